"""The judge that arguments name, and that of a dry run, which counts what would be asked."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...lm import load_tokenizer
from .base import PACKAGED, PACKAGED_MODEL, Answer, JudgeArguments, Progress, Question
from .batch_file import BatchFileJudge
from .calls import Judge
from .chat import n_question_tokens, n_tokens
from .local import ChatIds, Local
from .remote import Remote

_TEXT = "words about ships and harbours, after the name of a place"
# Seconds for a thousand tokens in and out: of a server, a usual rate of one call at a time; of the
# packaged model, measured on one core with bfloat16 products.
_RATES = {"server": (0.2, 20.0), "local": (0.3, 20.0)}


def judge_of(args: JudgeArguments, calls: Path | None = None) -> Judge:
    """The judge that the arguments name.

    Args:
        calls: features/calls.jsonl, with the answers of earlier runs; None: they are not kept.

    Raises:
        ValueError: a key or a package is missing, or a file of answers cannot be read.
    """
    if args.is_by_file:
        return BatchFileJudge(args, calls)
    return Remote(args, calls) if args.is_served else Local(args, calls)


class DryRunJudge(Judge):
    """Answers every question with words that parse, so that the questions after it are counted too.

        judge = DryRunJudge(args, folder / CALLS)
        ...                     # whatever would be asked
        judge.plan()

    What calls.jsonl answers is answered from there, and counts as no call.

    Args:
        count: tokens of a text at a server; None: a quarter of the characters. A local model's own
            tokenizer counts for itself.

    Raises:
        ValueError: the local model's tokenizer cannot be loaded.
    """

    def __init__(
        self,
        args: JudgeArguments,
        calls: Path | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        super().__init__(args, calls)
        self.has_probabilities = not args.is_remote
        self.most_tokens_out = 0
        """the most tokens of answers, if each is as long as it may be"""
        self._answers: dict[str, Answer] = {}
        self._count_question: Callable[[Question], int]
        if not args.is_remote:
            is_packaged = args.model == PACKAGED
            name = PACKAGED_MODEL if is_packaged else args.model
            ids = ChatIds(load_tokenizer(name, source="packaged" if is_packaged else "auto"))
            self._how = "the model's own tokenizer and chat template"
            self._count = lambda text: len(ids.text(text))
            self._count_question = lambda question: len(ids.prompt(question))
            return
        self._how, self._count = "characters / 4, as its tokenizer is elsewhere", count or n_tokens
        self._count_question = lambda question: n_question_tokens(question, self._count)

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

    def _made_up(self, question: Question, text: str) -> Answer:
        even = None
        if question.choices:
            text, n = question.choices[0], len(question.choices)
            even = {choice: -math.log(n) for choice in question.choices}
        elif question.schema is not None:
            text = json.dumps(example(question.schema, text))
        n_out = min(self._count(text), question.max_tokens)
        return Answer(text, None, even, self._count_question(question), n_out)

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
            "tokens_counted_by": self._how,
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
    """A value that a question's JSON schema accepts, with these words as each text."""
    if schema["type"] == "object":
        return {name: example(part, words) for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        return [example(schema["items"], words) for _ in range(schema["minItems"])]
    return words if schema["type"] == "string" else schema["minimum"]
