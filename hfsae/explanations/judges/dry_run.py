"""The judge of a dry run: it asks nothing, and counts what would be asked."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...lm import load_tokenizer
from ...packaged import packaged_lm
from .base import PACKAGED, PACKAGED_MODEL, Answer, JudgeArguments, Progress, Question, Usage
from .calls import calls_of
from .chat import n_question_tokens, n_tokens
from .local import ChatIds

_TEXT = "words about ships and harbours, after the name of a place"
# Seconds for a thousand tokens in and out: of a server, a usual rate of one call at a time; of the
# packaged model, measured on one core with bfloat16 products.
_RATES = {"server": (0.2, 20.0), "local": (0.3, 20.0)}


class TokenCounter(NamedTuple):
    """Counts tokens of texts and of questions."""

    text: Callable[[str], int]
    question: Callable[[Question], int]
    how: str
    """in words, for the plan"""


def token_counter(args: JudgeArguments) -> TokenCounter:
    """A local model's own tokenizer; for a server's model SmolLM2's where that is installed, else a
    quarter of the characters.

    Raises:
        ValueError: the local model's tokenizer cannot be loaded.
    """
    if not args.is_remote:
        is_packaged = args.model == PACKAGED
        name = PACKAGED_MODEL if is_packaged else args.model
        ids = ChatIds(load_tokenizer(name, source="packaged" if is_packaged else "auto"))
        how = "the model's own tokenizer and chat template"
        return TokenCounter(lambda t: len(ids.text(t)), lambda q: len(ids.prompt(q)), how)
    if packaged_lm(PACKAGED_MODEL) is None:
        how = "characters / 4: no tokenizer is at hand"
        return TokenCounter(n_tokens, n_question_tokens, how)
    tokenizer: Any = load_tokenizer(PACKAGED_MODEL, source="packaged")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    how = f"the tokenizer of {PACKAGED_MODEL}, since {args.model}'s is not at hand"
    return TokenCounter(count, lambda question: n_question_tokens(question, count), how)


class DryRunJudge:
    """Answers every question with words that parse, so that the questions after it are counted too.

        judge = DryRunJudge(args, folder / CALLS)
        ...                     # whatever would be asked
        judge.plan()

    What calls.jsonl answers is answered from there, and counts as no call.
    """

    def __init__(
        self, args: JudgeArguments, calls: Path | None = None, counter: TokenCounter | None = None
    ) -> None:
        self.name, self.has_probabilities = args.shown_model, not args.is_remote
        self.usage = Usage()
        self.most_tokens_out = 0
        """the most tokens of answers, if each is as long as it may be"""
        self._args, self._calls = args, calls_of(args, calls)
        self._counter = counter or token_counter(args)
        self._answers: dict[str, Answer] = {}

    def answer(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Answer]:
        """An answer of the right form for each question; an earlier run's where there is one."""
        answers = []
        for question in questions:
            key = self._calls.key(question)
            answer = self._calls.answer(key)
            if answer is not None:
                self.usage.n_repeated += 1
            elif key in self._answers:
                answer = self._answers[key]
            else:
                # Each text is another, since questions about two equal ones would count as one.
                answer = self._made_up(question, f"{_TEXT} {len(self._answers)}")
                self._answers[key] = answer
                self.usage.add(answer)
                self.most_tokens_out += question.max_tokens
            answers.append(answer)
            if progress is not None:
                progress(len(answers), self.usage)
        return answers

    def settle(self, about: str) -> None:
        """All answers are there."""

    def _made_up(self, question: Question, text: str) -> Answer:
        even = None
        if question.choices:
            text, n = question.choices[0], len(question.choices)
            even = {choice: -math.log(n) for choice in question.choices}
        elif question.schema is not None:
            text = json.dumps(example(question.schema, text))
        n_out = min(self._counter.text(text), question.max_tokens)
        return Answer(text, None, even, self._counter.question(question), n_out)

    def plan(self) -> dict[str, Any]:
        """What would be asked: numbers of calls and tokens, seconds, and money where prices are
        given; with the rates and the count's method in words."""
        usage, kind = self.usage, "server" if self._args.is_remote else "local"
        per_thousand = _RATES[kind]
        at_once = self._args.concurrency if self._args.is_remote else 1
        work = usage.n_tokens_in * per_thousand[0] + usage.n_tokens_out * per_thousand[1]
        return {
            "model": self.name,
            "n_calls": usage.n_calls,
            "n_answered_before": usage.n_repeated,
            "n_tokens_in": usage.n_tokens_in,
            "n_tokens_out": usage.n_tokens_out,
            "most_tokens_out": self.most_tokens_out,
            "tokens_counted_by": self._counter.how,
            "seconds": work / 1000 / at_once,
            "rate": ""  # a batch is as fast as whoever answers it
            if self._args.is_by_file
            else (
                f"{per_thousand[0]:g} s for a thousand tokens of questions and {per_thousand[1]:g} "
                f"s of answers, {at_once} at a time"
            ),
            "price": usage.price(self._args),
        }


def example(schema: dict[str, Any], words: str = _TEXT) -> Any:
    """A value that a JSON schema accepts: all entries, first choices, lists of a length that is
    given, else of three.

    Args:
        words: any text in it.
    """
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return example(schema[union][0], words)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: example(part, words) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        n = schema.get("minItems") or min(schema.get("maxItems", 3), 3)
        return [example(schema.get("items", {}), words) for _ in range(n)]
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 0), 0)
    plain = {"boolean": True, "null": None}
    return plain[kind] if kind in plain else words[: schema.get("maxLength", len(words))]
