"""Calls to the Hub: temporary failures are retried, and each failure is one sentence.

Temporary failures are answers 429 and 5xx, and broken connections.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants, errors
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import HubRefused, one_line

HTTPError = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2
logger = logging.getLogger(__name__)
T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0, 8.0)
_FORGETS = 60.0  # seconds
_gave_up: float | None = None  # when the retries of a call were used up, by time.monotonic
_PASSING = (408, 429, 500, 502, 503, 504)


def with_retries(call: Callable[[], T], what: str) -> T:
    """The call's result; temporary failures are retried, but not where all retries of a call have
    failed in the last minute: a verb makes several calls, and each would wait for 15 seconds."""
    global _gave_up
    has_given_up = _gave_up is not None and time.monotonic() - _gave_up < _FORGETS
    for wait in () if has_given_up else WAITS:
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            if not _may_pass(error):
                raise
            response = getattr(error, "response", None)
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            pause = (min(float(asked), 60.0) if asked.isdigit() else 0.0) or wait
            logger.warning("%s: %s; again in %.0f s", what, _brief(error), pause)
            time.sleep(pause)
    _gave_up = time.monotonic()
    result = call()
    _gave_up = None
    return result


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, RuntimeError):  # the client's word for an upload that broke off
        return isinstance(error.__cause__, HTTPError) and _may_pass(error.__cause__)
    return isinstance(error, HTTPError)


@contextmanager
def hub_error_text(repo_id: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the client raises inside into HubRefused: what failed, and what would help."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, HFValidationError) as error:
        reason = hub_reason(error, repo_id, revision)
        if reason is None and isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror} ({error.filename or constants.HF_HUB_CACHE})"
        raise HubRefused(f"cannot {doing}: {reason or _brief(error)}") from error


def hub_reason(error: BaseException, repo_id: str, revision: str | None = None) -> str | None:
    """Why the Hub's client failed, with the remedy; None where an error is not the Hub's.

    Args:
        error: the client's, or of a library that used it, as transformers does.
    """
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    page = f"{constants.ENDPOINT}/{repo_id}"
    offline = "the Hub cannot be reached or is left out (local_files_only)"
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else offline
    reasons: dict[type[BaseException], str] = {  # a gated repository is a kind of one not found
        GatedRepoError: f"it is gated; ask for access at {page}, then `hf auth login`",
        RepositoryNotFoundError: "there is no such repository, or it is private and your token "
        "may not read it; check the name, or run `hf auth login`",
        RevisionNotFoundError: f"it has no revision {revision!r}",
        HFValidationError: "that is not a repository id; write 'name/repository'",
        LocalEntryNotFoundError: f"it is not in the cache, and {offline}; go online once, or "
        "name a local folder",
    }
    # libraries try files that a repository may lack: that explains nothing
    statuses = [
        c for c in chain if isinstance(c, HfHubHTTPError) and not isinstance(c, EntryNotFoundError)
    ]
    for kind, reason in reasons.items():
        if any(isinstance(cause, kind) for cause in chain):
            # the client looks in the cache after an answer that it does not show
            is_hidden = kind is LocalEntryNotFoundError and statuses
            return _of_status(statuses[0]) if is_hidden else reason
    if isinstance(error, EntryNotFoundError):
        return "it has no such file"
    if statuses:
        return _of_status(statuses[0])
    broken = [c for c in chain if isinstance(c, HTTPError) and not isinstance(c, HfHubHTTPError)]
    if broken:
        return f"the connection to {constants.ENDPOINT} broke ({_brief(broken[0])}); try again"
    return None


def _of_status(error: HfHubHTTPError) -> str:
    code = error.response.status_code
    message = (error.server_message or _brief(error)).strip().rstrip(".")
    return {
        401: f"the Hub does not know your token ({message}); run `hf auth login`, or give `token`",
        403: f"your token may not do that ({message}); use one with write access to the repository",
        412: "others' commits came in between, again and again; push once more",
        409: f"somebody changes the repository at the same time ({message}); run the command again",
        429: "the Hub asks for fewer requests (429); wait a few minutes and try again",
    }.get(code, f"the Hub answered {code} ({message}); try again later")


def _brief(error: BaseException) -> str:
    return one_line(error)[:200]
