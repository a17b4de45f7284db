"""A judge that is asked by file: requests in OpenAI's Batch format, and the answers that come back.

    {"custom_id": hash, "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"custom_id": hash, "response": {"status_code": 200, "body": {...}}, "error": null}

Requests go as they are to OpenAI's Batch API, `vllm run-batch`, LiteLLM and others that took over
the format. A request is known by its hash, so answers may come in any order, twice, in several
files, or among those of other runs. One whose server refused a part of the request is asked again
without that part. One that the server finds bad, or the model refuses, counts as failed, with the
reason; one that came back without an answer that can be read, such as a list that is too short, or
with another error, such as a quota, is asked again, and counts as failed after three times. All of
these are told with their ids in the round in which they come.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ...io.errors import Refused, one_line
from ...io.file_names import FOUND
from ...io.file_names import STUDY_PLAN as PLAN
from ...io.files import numbered_lines, reading, write_whole
from ...io.secrets import hider
from .base import (
    REFUSED,
    Answer,
    JudgeArguments,
    PendingAnswers,
    Progress,
    Question,
    misfit,
)
from .calls import Judge
from .chat import ChatError, body_of, read_reply, reduced, refused_feature

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
"""Of a file, as OpenAI takes it."""
_MAX_LINE = 2**23  # bytes of an answer; the longest that we ask for have some ten thousand
_URL = "/v1/chat/completions"
_BAD = (400, 413, 422)  # the request is at fault, and would fail again
_MOST_ERRORS = 3  # others that came back for one request, until it counts as failed
_MOST_TOLD = 5  # ids in a sentence
_AT_ONCE = 256  # answers that are written to calls.jsonl together


class BatchFileJudge(Judge):
    """Answers from files; what they do not answer is written into a folder of requests.

    Args:
        calls: file of all answers; None: they are not kept.
        most_requests, most_bytes: of a file of requests.

    Raises:
        ValueError: a file of answers is not JSON Lines or has none, or the folder holds other
            files.
    """

    def __init__(
        self,
        args: JudgeArguments,
        calls: Path | None = None,
        *,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        assert args.requests is not None
        self._most_requests, self._most_bytes = most_requests, most_bytes
        super().__init__(args, calls)
        self._folder = Path(args.requests).expanduser()
        paths = [Path(path).expanduser() for path in args.answers]
        if self._folder.exists() and not self._folder.is_dir():
            raise Refused(f"requests {self._folder} is a file; give a folder")
        known = {path.resolve() for path in paths}
        for path in sorted(self._folder.glob("*")):  # those of an earlier round may be there
            is_ours = path.name == PLAN or any(map(path.match, ("requests-*.jsonl", FOUND)))
            if not is_ours and path.resolve() not in known:
                raise Refused(
                    f"requests {self._folder} holds {path.name}; give an empty folder, or that of "
                    "an earlier round of the same command"
                )
        self._given = _by_id(paths, hider(args.secrets()))
        self._without = frozenset[str]()  # features that the server refuses
        self._asked: set[str] = set()
        self._waiting: dict[str, Question] = {}  # since `settle`
        self._errors: dict[str, str] = {}  # by request, why it is asked again
        self._failed: dict[str, str] = {}  # and why it is not
        self._written: dict[str, list[Path]] = {}  # and into which files

    def answer(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Answer]:
        """The answers, in the order of the questions; one without waits: see `settle`."""
        answers: dict[str, Answer] = {}
        new: list[tuple[Question, Answer]] = []
        keys = [self._calls.key(question) for question in questions]
        for n, (key, question) in enumerate(zip(keys, questions, strict=True), 1):
            self._asked.add(key)
            earlier = self._calls.answer(key)
            if earlier is not None and not _lack(earlier, question):
                self.usage.n_repeated += 1
                answers[key] = earlier
            elif key not in answers:
                answer = self._read(key, question)
                if answer is None:
                    self._waiting[key] = question
                else:
                    new.append((question, answer))
                    self.usage.add(answer)
                answers[key] = answer or Answer(None, "not answered yet")
            if progress is not None:
                progress(n, self.usage)
        for first in range(0, len(new), _AT_ONCE):
            self._calls.note(new[first : first + _AT_ONCE])
        self._calls.close()
        return [answers[key] for key in keys]

    def settle(self, about: str) -> None:
        """Write requests for the questions since the last call that have no answer, if there are
        any.

        Raises:
            PendingAnswers: there are.
        """
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        if new := {key: q for key, q in waiting.items() if key not in self._written}:
            self._written |= dict.fromkeys(new, self._write(new))
        paths = self._written[next(reversed(waiting))]
        files = paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"
        n = len(waiting)
        wait = "request waits" if n == 1 else "requests wait"
        again = ""
        if reasons := {key: self._errors[key] for key in waiting if key in self._errors}:
            again = (
                f" ({len(reasons):,} came back without an answer that can be read: "
                f"{_listed(reasons)}; what does so {_MOST_ERRORS} times counts as failed)"
            )
        raise PendingAnswers(
            f"{n:,} {wait} for {self.name} to answer, for {about}: {self._folder / files}"
            f"{again}. After that run the same command with --answers and all "
            "files that came back."
        )

    def notes(self) -> Iterator[str]:
        """Sentences on answers that count as failed, and on those that belong to no request; call
        it at the end of a round."""
        if self._failed:
            yield f"requests that count as failed ({len(self._failed):,}): {_listed(self._failed)}"
        if unknown := [key for key in self._given if key not in self._asked]:
            paths = self._folder.glob("requests-*.jsonl")
            requested = {json.loads(line)["custom_id"] for p in paths for _, line in _lines(p)}
            if others := {key: "" for key in unknown if key not in requested}:
                yield f"answers that belong to no request here ({len(others):,}): {_listed(others)}"

    def refuse_unused(self) -> None:
        """Refuse answers that match no question; call it at the end of a round.

        Raises:
            ValueError: answers were given, and none belongs to a question that was asked.
        """
        if self._given and not self._given.keys() & self._asked:
            ids = ", ".join(key[:12] for key in list(self._given)[:3])
            raise Refused(
                f"none of the {len(self._given):,} answers belongs to a question of "
                f"this SAE and plan (their ids begin with {ids}); give the answers to "
                f"the requests in {self._folder}"
            )

    def _read(self, key: str, question: Question) -> Answer | None:
        """The best of what came back for a question; None: nothing did, or it is to be asked in
        another form."""
        refused, errors = [], []
        for line in self._given.get(key, ()):
            try:
                answer = read_reply(_body(line), question)
            except ChatError as error:
                body = body_of(self._args.model, question, question.seed)
                feature = refused_feature(error, body)
                if feature is not None:
                    self._without |= {feature}
                    continue
                is_bad = error.kind == "status" and error.status in _BAD
                (refused if is_bad else errors).append(one_line(error))
                continue
            if not (lack := _lack(answer, question)):
                return answer
            (refused if lack == REFUSED else errors).append(lack)
        if errors and not refused:
            self._errors[key] = errors[0]
        if refused or len(errors) >= _MOST_ERRORS:
            self._failed[key] = [*refused, *errors][0]
            return Answer(None, self._failed[key])
        return None

    def _write(self, questions: Mapping[str, Question]) -> list[Path]:
        """Files of requests, named by what they hold: those of earlier rounds stay."""
        parts: list[list[str]] = [[]]
        size = 0
        for key, question in questions.items():
            body = reduced(body_of(self._args.model, question, question.seed), self._without)
            request = {"custom_id": key, "method": "POST", "url": _URL, "body": body}
            line = json.dumps(request) + "\n"  # ASCII: a character is a byte
            if len(parts[-1]) == self._most_requests or size + len(line) > self._most_bytes:
                parts.append([])
                size = 0
            parts[-1].append(line)
            size += len(line)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(chain(*parts)).encode()).hexdigest()[:8]
        paths = []
        for number, part in enumerate(parts, 1):
            of = "" if len(parts) == 1 else f"-{number}-of-{len(parts)}"
            paths.append(self._folder / f"requests-{name}{of}.jsonl")
            write_whole(paths[-1], "".join(part))
        return paths


def _lack(answer: Answer, question: Question) -> str:
    """Why an answer cannot be read; "" where it can."""
    if answer.text is None or answer.log_probabilities:
        return answer.failure or ""
    return misfit(answer.text, question)


def _listed(reasons: Mapping[str, str]) -> str:
    """Ids with their reasons, at most so many."""
    ids = [f"{key} ({why})" if why else key for key, why in reasons.items()]
    more = f" and {len(ids) - _MOST_TOLD:,} more" if len(ids) > _MOST_TOLD else ""
    return ", ".join(ids[:_MOST_TOLD]) + more


def _by_id(
    paths: Sequence[Path], hidden: Callable[[Any], Any]
) -> Mapping[str, list[dict[str, Any]]]:
    """Lines of all files by custom_id, in an order that does not depend on theirs."""
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for path in paths:
        if path.is_dir():
            raise Refused(f"answers {path} is a folder; give the files that came back")
        if not path.is_file():
            raise Refused(f"answers {path}: there is no such file; give the file that came back")
        n = 0
        for number, text in _lines(path):
            where = f"{path}, line {number}"
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict) and "output_file_id" in line:
                raise Refused(
                    f"{path} is the state of a batch, and has no answers; download the files that "
                    "its output_file_id and error_file_id name"
                )
            if line is None and text.startswith(b"{") and not text.endswith(b"\n"):
                raise Refused(f"{where} breaks off: the file is not whole; download it again")
            if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
                raise Refused(
                    f"{where} is not an answer with a custom_id; give the file that came back"
                )
            if "response" not in line and "error" not in line:
                raise Refused(f"{where} is a request, not an answer; give the file that came back")
            line = hidden(line)
            lines.setdefault(line["custom_id"], {})[json.dumps(line, sort_keys=True)] = line
            n += 1
        if not n:
            raise Refused(f"{path} holds no answers; give the file that came back")
    return {key: [same[text] for text in sorted(same)] for key, same in lines.items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with reading(path), open(path, "rb") as file:
        yield from numbered_lines(file, _MAX_LINE)


def _body(line: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion of an answer.

    Raises:
        ChatError: it failed.
    """
    response = line.get("response")
    response = response if isinstance(response, dict) else {}
    body, status = response.get("body"), response.get("status_code", 200)
    if isinstance(body, dict) and "error" not in body and status == 200 and not line.get("error"):
        return body
    told = line.get("error") or body
    while isinstance(told, dict) and isinstance(told.get("error"), dict | str):
        told = told["error"]
    reason = told.get("message") if isinstance(told, dict) else told
    status = status if isinstance(status, int) and status != 200 else 0
    raise ChatError("status", str(reason or "no reason is given"), status)
