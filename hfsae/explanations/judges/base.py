"""Questions, answers, and whether a text is one; the settings of a judge."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ...io.bounds import check_least
from ...io.errors import Refused

PACKAGED, PACKAGED_MODEL = "packaged", "HuggingFaceTB/SmolLM2-135M-Instruct"
LOCAL, FILES = "local", "files"
HF_TOKEN, OPENAI_API_KEY = "HF_TOKEN", "OPENAI_API_KEY"
_HUGGING_FACE = (".huggingface.co", ".huggingface.cloud", ".hf.space")
_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(i'm|i am) (very |so |really )?(sorry|unable|not able)\b|(i'm |i am )?sorry[,.]|"
    r"(unfortunately, )?i (can ?not|can't|won't|will not|am not able to) "
    r"(help|assist|answer|provide|comply|fulfil|continue|do that)|as an ai\b",
    re.IGNORECASE,
)
REFUSED = "the model refused to answer"
_FENCE = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.DOTALL)


class Question(NamedTuple):
    """One conversation, whose last message is to be answered."""

    messages: tuple[tuple[str, str], ...]
    """(role, text); roles are "system", "user", "assistant" """
    max_tokens: int = 200
    """of the answer, including what a model thinks before it"""
    schema: dict[str, Any] | None = None
    """JSON schema of the answer; None: free text"""
    choices: tuple[str, ...] = ()
    """answers whose log-probabilities are of interest ("yes", "no"); (): none"""
    seed: int = 0


class Answer(NamedTuple):
    """What a judge answered, or why it did not."""

    text: str | None
    """without <think> blocks; None: failed"""
    failure: str | None = None
    """why there is no answer, in one line"""
    log_probabilities: dict[str, float] | None = None
    """of the question's `choices`, in nats, where the judge has them"""
    n_tokens_in: int = 0
    n_tokens_out: int = 0
    seconds: float = 0.0


@dataclass
class Usage:
    """Calls, tokens and seconds so far; answers from calls.jsonl count only in `n_repeated`."""

    n_calls: int = 0
    """questions sent, or put to a local model"""
    n_repeated: int = 0
    """questions answered by an earlier run"""
    n_failed: int = 0
    n_tokens_in: int = 0
    n_tokens_out: int = 0
    seconds: float = 0.0
    """sum over calls; above wall-clock time where calls run side by side"""

    def add(self, answer: Answer, n_calls: int = 1) -> None:
        """Count a new answer."""
        self.n_calls += n_calls
        self.n_failed += answer.text is None
        self.n_tokens_in += answer.n_tokens_in
        self.n_tokens_out += answer.n_tokens_out
        self.seconds += answer.seconds

    def price(self, args: "JudgeArguments") -> float | None:
        """Money for the tokens so far, in the currency of `price_in` and `price_out`; None where
        no price is given."""
        if args.price_in is None and args.price_out is None:
            return None
        prices = self.n_tokens_in * (args.price_in or 0), self.n_tokens_out * (args.price_out or 0)
        return sum(prices) / 1e6


Progress = Callable[[int, Usage], object]
"""Called with the number of answered questions, and the usage so far."""


class PendingAnswers(Exception):
    """Questions were written to a file of requests, and have no answer yet; the sentence names the
    file."""


@dataclass
class JudgeArguments:
    """The judge: a language model on this machine, on a server, or asked by files."""

    model: str = PACKAGED
    """"packaged" (SmolLM2-135M-Instruct), a Hub id or a folder; or the model's name at a server or
    in `requests`"""
    base_url: str | None = None
    """address of an OpenAI-compatible server: http://localhost:8000/v1"""
    provider: str | None = None
    """one of Hugging Face's Inference Providers, or "auto" """
    requests: str | None = None
    """folder for requests in OpenAI's Batch format, instead of a server"""
    answers: Sequence[str] = ()
    """all files of answers and of errors that came back so far"""
    key_env: str | None = None
    """environment variable with the key, instead of HF_TOKEN for Hugging Face and OPENAI_API_KEY,
    where it is set, for other addresses"""
    concurrency: int = 8
    """calls at a time"""
    retries: int = 6
    """after 429, 5xx, a timeout or a broken connection"""
    timeout: int | float = 120.0
    """seconds for a call, from its connection to the last byte of its answer"""
    price_in: int | float | None = None
    """money for a million tokens of questions"""
    price_out: int | float | None = None
    """money for a million tokens of answers"""
    batch_size: int = 16
    """questions at a time, for a local model"""

    def __post_init__(self) -> None:
        if self.base_url is not None and self.provider is not None:
            raise Refused(
                f"base_url {without_credentials(self.base_url)} and provider {self.provider!r} are "
                "both given; give one of them"
            )
        if self.is_served and self.is_by_file:
            raise Refused(
                f"the judge has both a server ({self.provider or self.address}) and a folder of "
                f"requests ({self.requests}); give only one of them"
            )
        if self.answers and self.requests is None:
            raise Refused(
                "answers are given without requests; also name the folder of requests, where "
                "further questions go (--requests)"
            )
        if self.base_url is not None:
            try:
                parts = urlsplit(self.base_url)
                is_sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:  # a port that is no number, a bracket that does not close
                is_sound = False
            if not is_sound:
                raise Refused(
                    "base_url is not an address; write http://HOST:PORT/v1, or https://HOST/v1"
                )
        if self.is_remote and self.model == PACKAGED:
            named = {"base_url": self.base_url, "provider": self.provider}
            where = next((name for name, value in named.items() if value is not None), "requests")
            raise Refused(f"{where} is given without a model; name the model to ask there")
        if not self.model.strip():
            raise Refused("model is empty; give 'packaged', a Hub id or a folder")
        check_least(self, concurrency=1, retries=0, batch_size=1)
        if not 0 < self.timeout < float("inf"):
            raise Refused(f"timeout is {self.timeout}; give a number of seconds above 0")
        for name in ("price_in", "price_out"):
            price = getattr(self, name)
            if price is not None and not 0 <= price < float("inf"):
                raise Refused(f"{name} is {price}; give money for a million tokens, 0 or more")

    @property
    def shown_model(self) -> str:
        """The model's name for a record: of a folder or file its last part alone."""
        path = Path(self.model).expanduser()
        return f"./{path.resolve().name}" if not self.is_remote and path.exists() else self.model

    def as_plain(self) -> dict[str, str]:
        """Who answers, for a record: no credentials, no paths."""
        return {"model": self.shown_model, "address": self.address}

    @property
    def is_served(self) -> bool:
        """Whether a server answers."""
        return self.base_url is not None or self.provider is not None

    @property
    def is_by_file(self) -> bool:
        """Whether questions and answers go by file."""
        return self.requests is not None

    @property
    def is_remote(self) -> bool:
        """Whether the model runs elsewhere, so that only its answers are known."""
        return self.is_served or self.is_by_file

    @property
    def has_probabilities(self) -> bool:
        """Whether it knows the probability of any answer: a model on this machine."""
        return not self.is_remote

    @property
    def address(self) -> str:
        """The address that answers, for a record: without credentials."""
        if self.base_url is not None:
            return without_credentials(self.base_url)
        if self.is_by_file:
            return FILES
        return f"provider {self.provider}" if self.provider is not None else LOCAL

    @property
    def key_variable(self) -> str:
        """Name of the environment variable with the key."""
        if self.key_env is not None:
            return self.key_env
        if self.base_url is None:
            return HF_TOKEN
        address = urlsplit(self.base_url)
        is_theirs = f".{address.hostname}".endswith(_HUGGING_FACE) and address.scheme == "https"
        return HF_TOKEN if is_theirs else OPENAI_API_KEY

    def key(self) -> str | None:
        """The key, only ever from the environment; None for a server that may need none.

        Raises:
            ValueError: the variable is not set, and was named or is needed; or it holds no key.
        """
        value = os.environ.get(self.key_variable, "").strip()
        if not value.isascii() or len(value.split()) > 1:
            raise Refused(
                f"the environment variable {self.key_variable} holds no key: a key has no spaces "
                "and no letters beyond ASCII; copy it again"
            )
        if value or not self.is_served:
            return value or None
        if self.key_env is None and self.key_variable == OPENAI_API_KEY:
            return None
        raise Refused(
            f"the environment variable {self.key_variable} is not set; put the key for "
            f"{self.address} there, or name another variable as key_env"
        )

    def secrets(self) -> set[str]:
        """Texts that no file may hold: keys of the environment, and an address's credentials."""
        names = {self.key_variable, HF_TOKEN, OPENAI_API_KEY}
        keys = {os.environ.get(name, "").strip() for name in names}
        parts = urlsplit(self.base_url or "")
        values = {value for _, value in parse_qsl(parts.query)}
        name, password = parts.username or "", parts.password
        own = unquote(name if password is None else password)  # some servers take a key as name
        return {text for text in {*keys, *values, own} if text}


def without_credentials(address: str) -> str:
    """An address without user, password, query and fragment, any of which may hold a key."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl().rstrip("/")


def misfit(text: str, question: Question) -> str:
    """Why a text is no answer to a question, by its choices or its schema; "" where it is one.

    A list may stand without the object around it, and a number beside a text may be missing.
    """
    if question.choices:
        is_one = choice_in(text, question.choices) is not None
        return "" if is_one else f"it is none of {', '.join(question.choices)}"
    value = json_in(text)
    for key, form in (question.schema or {}).get("properties", {}).items():
        part = value.get(key) if isinstance(value, dict) else value
        if form["type"] == "array":
            n, least, most = form["minItems"], form["items"]["minimum"], form["items"]["maximum"]
            wanted = f'"{key}" is to have {n} whole numbers, {least} to {most}'
            if not isinstance(part, list):
                return f"{wanted}, and is no list"
            if len(part) != n:
                return f"{wanted}, and has {len(part)}"
            for number in part:
                if type(number) is not int or not least <= number <= most:
                    return f"{wanted}, and has {str(number)[:20]!r}"
        is_text = isinstance(value, dict) and isinstance(part, str) and part.strip()
        if form["type"] == "string" and not is_text:
            return f'it has no text "{key}"'
    return ""


def choice_in(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer consists of, whatever its case and full stop; else None."""
    word = answer.strip().strip("\"'.:*`").casefold()
    return next((choice for choice in choices if choice.casefold() == word), None)


def json_in(answer: str) -> Any:
    """The one JSON object or list in an answer: alone, in a fence, or between words; else None."""
    text = answer.strip()
    if fence := _FENCE.match(text):
        text = fence[1]
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, min(starts))
    except (ValueError, RecursionError):
        return None
    return value


def without_thoughts(text: str) -> str | None:
    """A text without what is between <think> and </think>; None if a thought does not end.

    Some chat templates open the thought themselves, so an end without a beginning counts.
    """
    kept, begin, is_inside = [], 0, False
    for tag in _TAG.finditer(text):  # one pass: a text of a million tags takes no longer than one
        if not tag[1] and not is_inside:
            kept.append(text[begin : tag.start()])
        elif tag[1] and not is_inside:
            kept.clear()
        is_inside, begin = not tag[1], tag.end()
    return None if is_inside else "".join([*kept, text[begin:]]).strip()


def failure_of(text: str | None, stop: object, question: Question) -> str | None:
    """Why a text is no answer; None if it is one.

    Args:
        text: without thoughts; None: a thought does not end.
        stop: "length" if the answer was cut.
    """
    if _REFUSAL.match((text or "").replace("\u2019", "'")):
        return REFUSED
    if text is None:
        return f"a thought without an end within {question.max_tokens} tokens"
    if not text:
        return "an empty answer"
    if question.schema is not None and stop == "length":
        return f"the answer was cut at {question.max_tokens} tokens"
    return None
