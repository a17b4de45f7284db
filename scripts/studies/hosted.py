"""A study's page on a Hugging Face Space, whose plan and answers are in a private data set.

Both are fetched at the start, so that a restarted Space resumes. An answer is on the Space's disk
at once, and in the data set within two minutes, or when the Space stops.

This module, too, comes from the data set (`PAGE`): the Space's own files tell nothing of a study.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitScheduler, HfApi, errors

from .plan import ANSWERS, PLAN, Refused

T = TypeVar("T")
PAGE = ("__init__.py", "plan.py", "answers.py", "server.py", "hosted.py")
PAGE += ("page.html", "rate.js", "rate.css")
"""The files here that a Space needs. They import no hfsae."""
HTTPError = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2

TOKEN, CODE = "HF_TOKEN", "STUDY_CODE"
"""Names of the Space's secrets."""
PORT = 7860
_MINUTES = 2  # between commits, of which the Hub takes some hundred in an hour


def host(answers: str, *, port: int = PORT) -> None:
    """Serve the study whose plan is in a data set, until the Space stops.

    Raises:
        SystemExit: a sentence: a secret is not set, the data set cannot be read or written, or is
            public; and when the Space stops.
    """
    from .server import rate  # with starlette, which a push does without

    # uvicorn raises its signal again when it has ended: without a handler, nothing ran after it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    study = Path(tempfile.mkdtemp())
    try:
        secrets = {name: os.environ.get(name, "").strip() for name in (TOKEN, CODE)}
        for name, value in secrets.items():
            if not value:
                raise Refused(f"the secret {name} is not set; set it in the Space's settings")
        token, code = secrets.values()
        with kept(answers, study, token):
            rate(study, host="0.0.0.0", port=port, code=code)
    except Refused as error:
        raise SystemExit(str(error)) from error


@contextmanager
def kept(answers: str, study: Path, token: str) -> Iterator[CommitScheduler]:
    """Fetch a study into a folder; inside, its answers go to the data set as they come.

    Raises:
        ValueError: the data set is public, or cannot be read or written; one sentence.
    """
    api = HfApi(token=token)
    files = [PLAN, f"{ANSWERS}/*.jsonl"]
    what = {"repo_id": answers, "repo_type": "dataset"}
    with hub_errors(f"keep answers in {answers}"):
        refuse_public(answers, with_retries(partial(api.repo_info, **what)).private)
        with_retries(partial(api.auth_check, **what, write=True))
        with_retries(partial(api.snapshot_download, **what, local_dir=study, allow_patterns=files))
        where = {"folder_path": study / ANSWERS, "path_in_repo": ANSWERS}
        scheduler = CommitScheduler(**what, **where, every=_MINUTES, private=True, token=token)
    try:
        yield scheduler
    finally:
        with_retries(lambda: scheduler.trigger().result())  # the last answers
        scheduler.stop()


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turns what the Hub's client raises inside into a sentence: what failed, and why."""
    try:
        yield
    except (HTTPError, errors.HFValidationError, OSError, RuntimeError) as error:
        raise Refused(f"cannot {doing}: {' '.join(str(error).split())[:300]}") from error


def with_retries(call: Callable[[], T]) -> T:
    """The call's result; broken connections and answers 429 and 5xx are retried."""
    for wait in (1, 2, 4, 8):
        try:
            return call()
        except HTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if status < 500 and status != 429:
                raise
            time.sleep(wait)
    return call()


def refuse_public(answers: str, is_private: bool | None) -> None:
    """Refuse a data set that raters could read.

    Raises:
        ValueError: it is public.
    """
    if not is_private:
        raise Refused(
            f"{answers} is public: raters could read the plan and each other's answers; make it "
            "private in its settings, or name another data set"
        )
