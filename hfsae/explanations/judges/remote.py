"""Answers from a server by the `openai` client: several calls at a time, which it retries, and each
kept as soon as it is there.

One client asks OpenAI-compatible servers and Hugging Face's Inference Providers, whose router
speaks the same protocol. Around it stand a deadline for a whole answer, as the client's own is for
each piece of one, and no redirections, so that questions go nowhere else.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from huggingface_hub import is_offline_mode

from ...io.errors import Refused, one_line
from ...io.secrets import hider
from .base import Answer, JudgeArguments, Question, Usage
from .calls import Judge
from .chat import ChatError, body_of, read_reply, reduced, refused_feature

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
ROUTER = "https://router.huggingface.co/v1"
"""Where Hugging Face's Inference Providers take chat completions."""
_GRACE = 5.0  # seconds for calls in flight when a run ends early
# Of what some servers answer with other statuses, 429 and 400.
_WORDS = {"insufficient_quota": 402, "model_not_found": 404, "model_not_supported": 404}
# Causes of a connection error, by the names that httpx and httpx2 share, that mean: no server.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError", "InvalidURL"}


class Remote(Judge):
    """Answers from an OpenAI-compatible server or one of Hugging Face's Inference Providers.

    Args:
        calls: file of all answers; None: they are not kept.

    Raises:
        ValueError: the key or the package `openai` is missing.
    """

    def __init__(self, args: JudgeArguments, calls: Path | None = None) -> None:
        try:
            import openai  # noqa: F401
        except ModuleNotFoundError as error:
            raise Refused(
                f"a judge on a server needs {error.name}: pip install 'hfsae[judge]'"
            ) from error
        super().__init__(args, calls)
        self._key, self._without_keys = args.key(), hider(args.secrets())
        self._refused: frozenset[str] = frozenset()  # parts of a body that the server refuses
        self._is_ended, self._has_answered, self._n_in_a_row = False, False, 0

    def _new_answers(self, questions: Mapping[str, Question]) -> Iterator[tuple[str, Answer, int]]:
        """By an event loop in a thread of its own, since a notebook has a loop already."""
        import openai

        if not questions:
            return
        args = self._args
        if args.base_url is None and is_offline_mode():
            raise Refused(
                "HF_HUB_OFFLINE is set, and Inference Providers are online; unset it, or name a "
                "local model"
            )
        address, query = base_of(args.base_url or ROUTER)
        client = openai.AsyncOpenAI(
            api_key=self._key or "none",  # else the client would take one from the environment
            base_url=address,
            default_query=query,
            timeout=args.timeout,
            max_retries=args.retries,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        todo = iter(questions.items())  # of all workers
        done: SimpleQueue[tuple[str, Answer, int] | BaseException] = SimpleQueue()
        self._is_ended = False

        async def work() -> None:
            for key, question in todo:
                if self._is_ended:
                    return
                done.put((key, *await self._one(client, question)))

        async def work_all() -> None:
            async with client:
                await asyncio.gather(
                    *(work() for _ in range(min(args.concurrency, len(questions))))
                )

        def run() -> None:
            try:
                asyncio.run(work_all())
            except BaseException as error:  # raised again by the thread that waits
                done.put(error)

        # A daemon: a call in flight does not hold up the end of the process.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            for _ in questions:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self._is_ended = True
            thread.join(_GRACE)

    async def _one(self, client: "openai.AsyncOpenAI", question: Question) -> tuple[Answer, int]:
        """The answer, on disk, and the number of calls that it took: two if the first is none, the
        second with another seed."""
        args, total = self._args, Usage()
        model = args.model
        if args.provider not in (None, "auto"):
            model = f"{model}:{args.provider}"
        answer = Answer(None, "not asked")
        for is_last in (False, True):
            begin = time.perf_counter()
            try:
                body = body_of(model, question, question.seed + is_last)
                reply, refused = await self._accepted(client, body)
                answer = read_reply(reply, question)
                if not self._refused >= refused:
                    logger.info("%s takes no %s", args.address, ", ".join(sorted(refused)))
                self._refused |= refused
                self._has_answered, self._n_in_a_row = True, 0
                is_over = answer.text is not None
            except ChatError as error:
                answer = Answer(None, _reason(error))
                is_over = error.kind != "no chat"
                self._refuse_if_hopeless(error, is_last)
            seconds = time.perf_counter() - begin
            total.add(answer._replace(seconds=seconds), int(answer.n_tokens_in > 0))
            if is_over:
                break
        answer = answer._replace(
            n_tokens_in=total.n_tokens_in, n_tokens_out=total.n_tokens_out, seconds=total.seconds
        )
        self._calls.note([(question, answer)])
        return answer, total.n_calls

    async def _accepted(
        self, client: "openai.AsyncOpenAI", body: dict[str, Any]
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """The reply to a body, and the parts of it that the server refused."""
        refused = self._refused
        while True:
            try:
                return await self._sent(client, reduced(body, refused)), refused
            except ChatError as error:
                self._refuse_for(error)
                if (part := refused_feature(error, reduced(body, refused))) is None:
                    raise
                refused |= {part}

    async def _sent(self, client: "openai.AsyncOpenAI", body: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request, which the client retries, without keys.

        Raises:
            ChatError: there is none.
        """
        import openai

        # of all tries, should the pieces of an answer drip in
        limit = self._args.timeout * (1 + self._args.retries)
        headers = {} if self._key else {"Authorization": openai.Omit()}
        chat: Any = client.chat.completions.with_raw_response
        try:
            raw = await asyncio.wait_for(chat.create(**body, extra_headers=headers), limit)
            reply = json.loads(raw.text)
        except (asyncio.TimeoutError, openai.APIConnectionError) as error:
            cause = error.__cause__ or error
            reason = self._without_keys(one_line(cause)[:200])
            if _UNREACHABLE & {kind.__name__ for kind in type(cause).__mro__}:
                raise ChatError("unreachable", reason) from None
            if isinstance(error, asyncio.TimeoutError | openai.APITimeoutError):
                reason = f"no whole answer within {self._args.timeout:g} s"
            raise ChatError("broken", reason) from None
        except openai.APIStatusError as error:
            if 300 <= (status := error.status_code) < 400:
                reason = f"it redirects, with status {status}"
                raise ChatError("no chat", reason) from None
            text = self._without_keys(error.response.text)
            reason = " ".join(text.split())[:200] or f"status {status}"
            status = next((s for word, s in _WORDS.items() if word in text), status)
            raise ChatError("status", reason, status) from None
        except (ValueError, RecursionError):
            raise ChatError("no chat", "the reply is not JSON") from None
        reply = self._without_keys(reply)
        if isinstance(reply, dict) and reply.get("choices"):
            return reply
        error = reply.get("error") if isinstance(reply, dict) else None
        if isinstance(error, dict) and str(error.get("code")).isdigit():  # though with status 200
            text = one_line(Exception(str(error.get("message"))))[:200]
            code = int(error["code"])  # from 429 on the same question may be answered later
            raise ChatError("status" if code < 429 else "no chat", text, code)
        raise ChatError("no chat", "the reply has no choices")

    def _refuse_for(self, error: ChatError) -> None:
        """Raise Refused for what no other call can change."""
        args, variable = self._args, self._args.key_variable
        key = f"the key in {variable}"
        if self._key is None:
            key = f"calls without a key: the environment variable {variable} is not set"
        sentences = {
            401: f"{args.address} does not accept {key} (401); put a valid key there",
            402: (
                f"the account of {key} has no credit left at {args.address} (402); add some, and "
                "run the same command again: what was answered is kept"
            ),
            403: (
                f"{args.address} does not let {key} use {args.model!r} (403); use another key or "
                "model"
            ),
            404: (
                f"{args.address} has no model {args.model!r}, or takes no chat completions (404); "
                "check the model's name and the address"
            ),
        }
        if error.status in sentences:
            raise Refused(sentences[error.status]) from error

    def _refuse_if_hopeless(self, error: ChatError, is_last: bool) -> None:
        """Raise Refused where nothing is to be expected of the server any more."""
        args, reason = self._args, _reason(error)
        if error.kind == "unreachable":
            raise Refused(
                f"{args.address} cannot be reached ({reason}); is the server up, and is the "
                "address right?"
            ) from error
        if error.kind == "no chat" and is_last and not self._has_answered:
            raise Refused(
                f"{args.address} does not answer with chat completions ({reason}); it must be an "
                "OpenAI-compatible server, such as http://localhost:8000/v1, and the model one "
                "that chats"
            ) from error
        self._n_in_a_row += 1
        if self._n_in_a_row > 2 * max(args.concurrency, 4):
            raise Refused(
                f"{self._n_in_a_row} calls in a row to {args.address} failed ({reason}); run the "
                "same command again later: what was answered is kept"
            ) from error


def base_of(address: str) -> tuple[str, dict[str, object]]:
    """An address as the client wants it, up to /v1, and its query; one without a path is meant as
    HOST/v1."""
    parts = urlsplit(address)
    path = (parts.path.rstrip("/") or "/v1").removesuffix("/chat/completions")
    base = parts._replace(path=path, query="", fragment="").geturl()
    return base, dict(parse_qsl(parts.query))


def _reason(error: ChatError) -> str:
    reason = one_line(error)
    return f"{error.status}: {reason}" if error.status else reason
