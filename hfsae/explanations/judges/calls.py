"""What every judge does: it answers questions, and keeps each answer in features/calls.jsonl, a
line each, written as answers come.

    {"call": hash, "model": ..., "address": ..., "messages": [[role, text], ...],
     "parameters": {...}, "answer": {"text": ..., "failure": ..., ...}}

A call is known by the hash of model, messages and parameters, whether it went to a server or into a
file: one that was answered is never asked again, one that failed is. No key is written, not even
one that a server echoes. Each line has a hash (`hfsae.io.checksums`): one that was changed
since is refused, as scores are computed from it; one that a killed run left unfinished is passed
over.
"""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from ...io.checksums import sealed, sealed_lines
from ...io.secrets import hider
from .base import LOCAL, Answer, JudgeArguments, Progress, Question, Usage

_END = 2**20  # bytes
T = TypeVar("T")


class Judge:
    """Answers questions: a local language model, a server's, files of answers, or
    `DryRunJudge`, which only counts. Another one has `_new_answers`, or an `answer` of its own.

    Args:
        calls: file of all answers; None: they are not kept.

    Raises:
        ValueError: a line of that file was changed after it was written.
    """

    has_probabilities: bool = False
    """whether it knows those of any answer: a model on this machine"""

    def __init__(self, args: JudgeArguments, calls: Path | None = None) -> None:
        self.name, self.usage = args.shown_model, Usage()
        """for the record: "packaged", a Hub id, or the model's name at the server"""
        self._args, self._calls = args, Calls(args, calls)

    def answer(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Answer]:
        """The answers, in the order of the questions; what calls.jsonl answers is not asked again.

        A call that fails leaves an Answer with a `failure`; the next run asks it again.

        Raises:
            ValueError: the model cannot be loaded; or the server refuses the key, the account or
                the model, cannot be reached, does not chat, or answers nothing any more. What was
                answered is kept.
        """
        keys = [self._calls.key(question) for question in questions]
        answers = {key: self._calls.answer(key) for key in keys}
        new = {k: q for k, q in zip(keys, questions, strict=True) if answers[k] is None}
        self.usage.n_repeated += len(keys) - len(new)
        n_of = Counter(keys)
        n_done = sum(n for key, n in n_of.items() if key not in new)
        if progress is not None and n_done:
            progress(n_done, self.usage)
        with closing(self._calls):
            for key, answer, n_calls in self._new_answers(new):
                answers[key] = answer
                self.usage.add(answer, n_calls)
                n_done += n_of[key]
                if progress is not None:
                    progress(n_done, self.usage)
        return [answers[key] or Answer(None, "not asked") for key in keys]

    def _new_answers(self, questions: Mapping[str, Question]) -> Iterator[tuple[str, Answer, int]]:
        """Keys with answers, which are on disk, and the numbers of calls that they took."""
        raise NotImplementedError

    def settle(self, about: str) -> None:
        """Make sure that all answers so far are there, before results that need them.

        Args:
            about: what the answers are for, a plural noun for the sentence.

        Raises:
            PendingAnswers: some answers come by file, and are not there yet.
        """


class Calls:
    """The answers of earlier runs and of this one; threads may share it.

    A model in a folder is known by names, sizes and both ends of its files, which training changes.

    Args:
        args: the model that answers.
        path: None: nothing is kept on disk.

    Raises:
        ValueError: a line on disk was changed after it was written.
    """

    def __init__(self, args: JudgeArguments, path: Path | None) -> None:
        self._path = path
        self._who = {"model": args.shown_model, "address": args.address}
        identity, folder = args.model, Path(args.model).expanduser()
        if not args.is_remote and folder.exists():
            folder = folder.resolve()
            files = [folder] if folder.is_file() else sorted(folder.iterdir())
            digest = hashlib.sha256()
            for file in filter(Path.is_file, files):
                size = file.stat().st_size
                digest.update(f"{file.name} {size} ".encode())
                with open(file, "rb") as content:
                    digest.update(content.read(_END))
                    content.seek(max(size - _END, 0))
                    digest.update(content.read(_END))
            identity = digest.hexdigest()
        self._identity = identity
        self._without_keys = hider(args.secrets())
        self._lock, self._file = threading.Lock(), -1
        self._answers: dict[str, Answer] = {}
        for line in sealed_lines(path) if path and path.is_file() else ():
            self._learn(line)

    def key(self, question: Question) -> str:
        """Hash of a question to this model; a local one answers alike whatever the seed."""
        if self._who["address"] == LOCAL:
            question = question._replace(seed=0)
        messages = list(map(list, question.messages))
        return _call(self._identity, self._who["address"], messages, parameters(question))

    def answer(self, key: str) -> Answer | None:
        """The answer of an earlier call; None where there is none, or it failed."""
        return self._answers.get(key)

    def note(self, answered: Sequence[tuple[Question, Answer]]) -> None:
        """Write answers to disk before returning."""
        lines = [
            {
                "call": self.key(question),
                **self._who,
                "messages": list(map(list, question.messages)),
                "parameters": parameters(question),
                "answer": answer._asdict(),
            }
            for question, answer in answered
        ]
        with self._lock:
            for line in lines:
                self._learn(line)
            if self._path is None:
                return
            if self._file < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                if size := os.fstat(self._file).st_size:
                    os.lseek(self._file, size - 1, os.SEEK_SET)
                    if os.read(self._file, 1) != b"\n":  # a killed run left a line unfinished
                        os.write(self._file, b"\n")
            texts = [
                json.dumps(sealed(self._without_keys(line)), ensure_ascii=False) for line in lines
            ]
            data = "".join(f"{text}\n" for text in texts).encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; a later answer opens it again."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _learn(self, line: dict[str, Any]) -> None:
        key = str(line.get("call"))
        if line.get("address") != LOCAL and "messages" in line:
            who = str(line.get("model")), str(line.get("address"))
            key = _call(*who, line["messages"], line.get("parameters"))
        answer = line.get("answer")
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            try:
                self._answers[key] = Answer(**self._without_keys(answer))
            except TypeError:  # of another version
                return


def _call(model: str, address: str, messages: object, parameters: object) -> str:
    """Hash of a call: a model elsewhere is the same one by whichever way it is asked."""
    where = LOCAL if address == LOCAL else "elsewhere"
    content = json.dumps([model, where, messages, parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def parameters(question: Question) -> dict[str, Any]:
    """What decides an answer besides the messages."""
    return {
        "temperature": 0,
        "max_tokens": question.max_tokens,
        "schema": question.schema,
        "choices": list(question.choices),
        "seed": question.seed,
    }


def replies_to(
    judge: Judge,
    questions: Sequence[Question],
    parse: Callable[[Question, Answer], T | None],
    note: Callable[[int], object],
) -> list[T | None]:
    """The parsed answers; None where there was none. A question whose answer does not parse is
    asked once more, with another seed; a call that failed is not repeated."""

    def parsed(question: Question, answer: Answer) -> T | None:
        return None if answer.text is None else parse(question, answer)

    answers = judge.answer(questions, lambda n, _: note(n))
    replies = [parsed(*pair) for pair in zip(questions, answers, strict=True)]
    again = [i for i, r in enumerate(replies) if r is None and answers[i].text is not None]
    seconds = [questions[i]._replace(seed=questions[i].seed + 1) for i in again]
    if seconds:
        for i, answer in zip(again, judge.answer(seconds), strict=True):
            replies[i] = parsed(questions[i], answer)
    return replies
