"""features/calls.jsonl: every question with its answer, a line each, written as answers come.

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
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...io.checksums import sealed, sealed_lines
from ...io.secrets import hider
from .base import LOCAL, Answer, JudgeArguments, Question

_END = 2**20  # bytes


class Calls:
    """The answers of earlier runs and of this one; threads may share it.

    Args:
        path: None: nothing is kept on disk.
        model: what answers, as others may see it.
        identity: what answers, as the hash has it: of a folder, a digest of its files.
        address: without credentials.
        secrets: keys, hidden wherever they occur.

    Raises:
        ValueError: a line on disk was changed after it was written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        model: str,
        identity: str,
        address: str,
        secrets: Collection[str] = (),
    ) -> None:
        self._path, self._who = path, {"model": model, "address": address}
        self._identity = _identity(identity, address)
        self._without_keys = hider(secrets)
        self._lock, self._file = threading.Lock(), -1
        self._answers: dict[str, Answer] = {}
        for line in sealed_lines(path) if path and path.is_file() else ():
            self._learn(line)

    def key(self, question: Question) -> str:
        """Hash of a question to this model; a local one answers alike whatever the seed."""
        if self._who["address"] == LOCAL:
            question = question._replace(seed=0)
        messages = list(map(list, question.messages))
        return _hash([*self._identity, messages, parameters(question)])

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
            who = _identity(str(line.get("model")), str(line.get("address")))
            key = _hash([*who, line["messages"], line.get("parameters")])
        answer = line.get("answer")
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            try:
                self._answers[key] = Answer(**self._without_keys(answer))
            except TypeError:  # of another version
                return


def _identity(model: str, address: str) -> list[str]:
    """What answers, for a hash: a model elsewhere is the same one by whichever way it is asked."""
    return [model, LOCAL] if address == LOCAL else [model, "elsewhere"]


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def calls_of(args: JudgeArguments, path: Path | None) -> Calls:
    """The calls to the model that the arguments name.

    A model in a folder is known by names, sizes and both ends of its files, which training changes.
    """
    identity, folder = args.model, Path(args.model).expanduser()
    if not args.is_remote and folder.exists():
        folder = folder.resolve()
        files = [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.is_file())
        digest = hashlib.sha256()
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with open(file, "rb") as content:
                digest.update(content.read(_END))
                content.seek(max(size - _END, 0))
                digest.update(content.read(_END))
        identity = digest.hexdigest()
    return Calls(
        path,
        model=args.shown_model,
        identity=identity,
        address=args.address,
        secrets=args.secrets(),
    )


def parameters(question: Question) -> dict[str, Any]:
    """What decides an answer besides the messages."""
    return {
        "temperature": 0,
        "max_tokens": question.max_tokens,
        "schema": question.schema,
        "choices": list(question.choices),
        "seed": question.seed,
    }
