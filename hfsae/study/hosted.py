"""A study's page on a Hugging Face Space, whose plan and answers are in a private data set.

Both are fetched at the start, so that a restarted Space resumes. An answer is on
the Space's disk at once, and in the data set within two minutes, or when the Space stops.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import CommitScheduler, HfApi

from ..machine.client import in_a_sentence, patiently
from ..machine.names import STUDY_ANSWERS, STUDY_PLAN
from ..machine.refused import Refused

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
        token, code = _secret(TOKEN), _secret(CODE)
        with kept(answers, study, token):
            rate(study, host="0.0.0.0", port=port, code=code)
    except Refused as error:
        raise SystemExit(str(error)) from error


def _secret(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise Refused(f"the secret {name} is not set; set it in the Space's settings")
    return value


@contextmanager
def kept(answers: str, study: Path, token: str) -> Iterator[CommitScheduler]:
    """Fetch a study into a folder; inside, its answers go to the data set as they come.

    Raises:
        ValueError: the data set is public, or cannot be read or written; one sentence.
    """
    api = HfApi(token=token)
    files = [STUDY_PLAN, f"{STUDY_ANSWERS}/*.jsonl"]
    what = {"repo_id": answers, "repo_type": "dataset"}
    with in_a_sentence(answers, f"keep answers in {answers}"):
        refuse_public(answers, patiently(partial(api.repo_info, **what), "repo_info").private)
        patiently(partial(api.auth_check, **what, write=True), "auth_check")
        fetch = partial(api.snapshot_download, **what, local_dir=study, allow_patterns=files)
        patiently(fetch, "snapshot_download")
        where = {"folder_path": study / STUDY_ANSWERS, "path_in_repo": STUDY_ANSWERS}
        scheduler = CommitScheduler(**what, **where, every=_MINUTES, private=True, token=token)
    try:
        yield scheduler
    finally:
        patiently(lambda: scheduler.trigger().result(), "the last answers")
        scheduler.stop()


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
