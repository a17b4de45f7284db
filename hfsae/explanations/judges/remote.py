"""Answers from a server: several calls at a time, retried, and each kept as soon as it is there."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ...machine.refused import Refused, one_line
from .base import Answer, JudgeArguments, Progress, Question, Usage
from .bodies import body_of, reduced, refused_feature
from .calls import calls_of
from .replies import read
from .transport import Body, Send, Trouble, sender_of

logger = logging.getLogger(__name__)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from one retry to the next
_GRACE = 5.0  # seconds for calls in flight when a run ends early


class _Ended(Exception):
    """The run ends: a call that waits is not made."""


class Remote:
    """Answers from an OpenAI-compatible server or one of Hugging Face's Inference Providers.

    Args:
        calls: file of all answers; None: they are not kept.
        send: None: by HTTP.
        sleep: waits some seconds before a retry; None: until the run ends, at most that long.

    Raises:
        ValueError: the key is missing.
    """

    has_log_likelihood = False

    def __init__(
        self,
        args: JudgeArguments,
        calls: Path | None = None,
        *,
        send: Send | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.name, self.usage = args.shown_model, Usage()
        self._args, self._calls = args, calls_of(args, calls)
        self._send = send or sender_of(args)
        self._ended = threading.Event()
        self._sleep = sleep or self._ended.wait
        self._lock = threading.Lock()
        self._without: frozenset[str] = frozenset()  # features that the server refuses
        self._has_answered, self._n_in_a_row = False, 0

    def answer(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Answer]:
        """The answers, in the order of the questions; those in calls.jsonl are taken from there.

        A call that fails leaves an Answer with a `failure`; the next run asks it again.

        Raises:
            ValueError: the server refuses the key, the account or the model, cannot be reached,
                does not chat, or answers nothing any more. What was answered is kept.
        """
        keys = [self._calls.key(question) for question in questions]
        answers = {key: self._calls.answer(key) for key in keys}
        new = {k: q for k, q in zip(keys, questions, strict=True) if answers[k] is None}
        self.usage.n_repeated += len(keys) - len(new)
        n_of = Counter(keys)
        n_done = sum(n for key, n in n_of.items() if key not in new)
        if progress is not None and n_done:
            progress(n_done, self.usage)
        for key, answer, n_calls in self._asked(new):
            answers[key] = answer
            self.usage.add(answer, n_calls)
            n_done += n_of[key]
            if progress is not None:
                progress(n_done, self.usage)
        return [answers[key] or Answer(None, "not asked") for key in keys]

    def log_likelihood(
        self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
    ) -> list[float]:
        """Always refused: servers give no probabilities of a given text."""
        raise Refused(
            f"{self._args.address} gives no probabilities of a given text; use a local model for "
            "the likelihood score: 'packaged', a Hub id or a folder"
        )

    def settle(self, about: str) -> None:
        """All answers are there."""

    def _asked(self, questions: dict[str, Question]) -> Iterator[tuple[str, Answer, int]]:
        """Keys with answers and the number of calls they took, as they come."""
        todo: SimpleQueue[tuple[str, Question]] = SimpleQueue()
        done: SimpleQueue[tuple[str, Answer, int] | BaseException] = SimpleQueue()
        for item in questions.items():
            todo.put(item)
        self._ended.clear()
        # Daemons: a call in flight does not hold up the end of the process.
        threads = [
            threading.Thread(target=self._work, args=(todo, done), daemon=True)
            for _ in range(min(self._args.concurrency, len(questions)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in questions:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self._ended.set()
            _empty(todo)
            limit = time.monotonic() + _GRACE
            for thread in threads:
                thread.join(max(limit - time.monotonic(), 0))
            self._calls.close()

    def _work(self, todo: SimpleQueue, done: SimpleQueue) -> None:
        """Asks until nothing is left, or the run ends."""
        while not self._ended.is_set():
            try:
                key, question = todo.get_nowait()
                answer, n_calls = self._one(question)
                done.put((key, answer, n_calls))
            except (Empty, _Ended):
                return
            except BaseException as error:  # raised again by the thread that waits
                self._ended.set()
                done.put(error)
                return

    def _one(self, question: Question) -> tuple[Answer, int]:
        """The answer, on disk, and the number of calls that it took: two if the first is none."""
        total = Usage()
        for is_last in (False, True):
            begin = time.perf_counter()
            try:
                answer = self._replied(question, is_last)
                is_over = answer.text is not None
            except Trouble as trouble:
                answer = Answer(None, self._reason(trouble))
                is_over = trouble.kind != "no chat"
                self._refuse_if_hopeless(trouble, is_last)
            seconds = time.perf_counter() - begin
            total.add(answer._replace(seconds=seconds), int(answer.n_tokens_in > 0))
            if is_over:
                break
        answer = answer._replace(
            n_tokens_in=total.n_tokens_in, n_tokens_out=total.n_tokens_out, seconds=total.seconds
        )
        self._calls.note([(question, answer)])
        return answer, total.n_calls

    def _replied(self, question: Question, is_last: bool) -> Answer:
        """The answer in the server's reply; the last time with another seed."""
        body = body_of(self._args.model, question, question.seed + is_last)
        reply, without = self._sent(body, self._without)
        answer = read(reply, question)
        self._note_sound(without)
        return answer

    def _note_sound(self, without: frozenset[str]) -> None:
        """Note that the server chats, and what it does not take."""
        with self._lock:
            if not self._without >= without:
                logger.info("%s takes no %s", self._args.address, ", ".join(sorted(without)))
            self._without |= without
            self._has_answered, self._n_in_a_row = True, 0

    def _sent(self, body: Body, without: frozenset[str]) -> tuple[dict[str, Any], frozenset[str]]:
        """The reply, and the features that the server refused."""
        n_retries = 0
        while True:
            if self._ended.is_set():
                raise _Ended
            try:
                return self._send(reduced(body, without)), without
            except Trouble as trouble:
                self._refuse_for(trouble)
                feature = refused_feature(trouble, reduced(body, without))
                if feature:
                    without |= {feature}
                elif trouble.may_pass and n_retries < self._n_retries(trouble):
                    self._wait(trouble, n_retries)
                    n_retries += 1
                else:
                    raise

    def _n_retries(self, trouble: Trouble) -> int:
        """Two where there was never a server, as with a wrong address; else what was set."""
        is_wrong = trouble.kind == "unreachable" and not self._has_answered
        return min(self._args.retries, 2) if is_wrong else self._args.retries

    def _wait(self, trouble: Trouble, n_retries: int) -> None:
        wait = min(_FIRST_WAIT * 2**n_retries, _LONGEST_WAIT) * random.uniform(0.5, 1)
        wait = wait if trouble.wait is None else trouble.wait + random.uniform(0, 0.5)
        logger.warning("%s: %s; again in %.0f s", self._args.address, self._reason(trouble), wait)
        self._sleep(wait)

    def _reason(self, trouble: Trouble) -> str:
        reason = one_line(trouble)
        return f"{trouble.status}: {reason}" if trouble.status else reason

    def _refuse_for(self, trouble: Trouble) -> None:
        """Raise Refused for what no other call can change."""
        args = self._args
        sentences = {
            401: f"{args.address} does not accept {self._of_key()} (401); put a valid key there",
            402: (
                f"the account of {self._of_key()} has no credit left at {args.address} (402); add "
                "some, and run the same command again: what was answered is kept"
            ),
            403: (
                f"{args.address} does not let {self._of_key()} use {args.model!r} (403); use "
                "another key or model"
            ),
            404: (
                f"{args.address} has no model {args.model!r}, or takes no chat completions (404); "
                "check the model's name and the address"
            ),
        }
        if trouble.status in sentences:
            raise Refused(sentences[trouble.status]) from trouble

    def _of_key(self) -> str:
        variable = self._args.key_variable
        if self._args.key() is None:
            return f"calls without a key: the environment variable {variable} is not set"
        return f"the key in {variable}"

    def _refuse_if_hopeless(self, trouble: Trouble, is_last: bool) -> None:
        """Raise Refused where nothing is to be expected of the server any more."""
        args, reason = self._args, self._reason(trouble)
        if trouble.kind == "unreachable":
            raise Refused(
                f"{args.address} cannot be reached ({reason}); is the server up, and is the "
                "address right?"
            ) from trouble
        if trouble.kind == "no chat" and is_last and not self._has_answered:
            raise Refused(
                f"{args.address} does not answer with chat completions ({reason}); it must be an "
                "OpenAI-compatible server, such as http://localhost:8000/v1, and the model one "
                "that chats"
            ) from trouble
        with self._lock:
            self._n_in_a_row += 1
            is_down = self._n_in_a_row > 2 * max(args.concurrency, 4)
        if is_down:
            raise Refused(
                f"{self._n_in_a_row} calls in a row to {args.address} failed ({reason}); run the "
                "same command again later: what was answered is kept"
            ) from trouble


def _empty(queue: SimpleQueue) -> None:
    """Take out all that is left."""
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
