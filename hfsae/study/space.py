"""A study as a Hugging Face Space: the page's files there, the plan in a private data set.

People may be able to read the files of a Space that they can open. So nothing in them is of SAE,
latent, density or control: `hosted` fetches the plan with the Space's own token.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..hub import requirement
from ..machine.client import in_a_sentence, patiently
from ..machine.names import CARD, STUDY_ANSWERS, STUDY_PLAN
from ..machine.refused import HubRefused, Refused
from .answers import is_closed, ledgers
from .hosted import CODE, PORT, TOKEN, refuse_public
from .plan import Plan

_Content = bytes | Path
_There = tuple[bool, set[str]]
_DOCKERFILE, _APP, _REQUIREMENTS = "Dockerfile", "app.py", "requirements.txt"
_OWN = (_DOCKERFILE, _APP, _REQUIREMENTS)
_DOCKER = f"""FROM python:3.11-slim
RUN useradd -m -u 1000 user
USER user
ENV PATH=/home/user/.local/bin:$PATH
WORKDIR /home/user/app
COPY --chown=user . .
RUN pip install --no-cache-dir -r {_REQUIREMENTS}
CMD ["python", "{_APP}"]
"""
_PROGRAM = '''"""The page on which people rate windows of text."""

from {module} import host

host({answers!r})
'''
_FRONT = {
    "title": "Rate windows of text",
    "emoji": "📝",
    "colorFrom": "gray",
    "colorTo": "indigo",
    "sdk": "docker",
    "app_port": PORT,
    "pinned": False,
    "short_description": "Short windows of text with marked tokens",
}
_CARD = """---
{front}---

Short windows of text, in which some tokens are marked. To rate them, give your name and the study's
code; the same name resumes where you stopped.
"""
_NEXT = """next:
  hf spaces secrets add {space} -s {token} -s {code}
      from your environment: a token that may write {answers} alone, and a word for raters
  hf repos settings {space} --type space --protected
      all may open the page, none can read its files; --public shows these, which reveal nothing
  raters open {address}?rater=NAME, each with a name and that word
at the end:
  hf spaces pause {space}
  hf download {answers} --repo-type dataset --local-dir {study}
  hfsae study close {study}"""


class _Order(NamedTuple):
    """The files for one repository."""

    repo_id: str
    kind: str
    """of the repository: dataset, space"""
    there: _There | None
    """whether it is private, and its files; None: it is new"""
    files: Mapping[str, _Content]
    """path in the repository -> content"""

    def __str__(self) -> str:
        is_private = self.there is None or self.there[0]
        state = "new" if self.there is None else "existing"
        who = "nobody but those you give access to" if is_private else "EVERYONE"
        names = ", ".join(self.files) or "nothing, the study is there"
        state += " private" if is_private else " public"
        return f"{state} {self.kind} {self.repo_id}, visible to {who}: {names}"


def push_space(
    study: Path,
    space: str,
    answers: str,
    *,
    wheel: Path | None = None,
    dry_run: bool = False,
    token: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Put a study on a Space. New repositories are private.

    Args:
        space: "name/space", for the page.
        answers: "name/dataset", private: it gets the plan and the answers so far, unless it holds
            the study already, and then each rater's answers.
        wheel: of hfsae, where its version is not on PyPI.
        dry_run: only print what would be sent; offline, without looking at the repositories.
        tell: called with what is sent before it is sent, and with what to do next.

    Raises:
        ValueError: the study is missing, damaged or closed; a name cannot be a repository's; there
            is no token; the data set is public or holds another study; the Space holds something
            else; or the Hub refuses.
    """
    looks = not (dry_run and constants.HF_HUB_OFFLINE)
    api = HfApi(token=token)
    orders = _orders(api, study, space, answers, wheel, looks)
    tell("\n".join(map(str, orders)))
    if dry_run:
        unseen = "" if looks else ", nor looked at, since HF_HUB_OFFLINE is set"
        tell(f"dry run: nothing was sent{unseen}")
        return
    for order in orders:
        _send(api, order)
    tell(_next(study, space, answers))


def _orders(
    api: HfApi, study: Path, space: str, answers: str, wheel: Path | None, looks: bool
) -> list[_Order]:
    """For the data set, and for the Space."""
    plan = Plan.load(study)
    if is_closed(study):
        raise Refused(f"{study} is closed: it takes no more answers; make another study")
    for repo_id in (space, answers):
        _refuse_name(repo_id)
    if looks and not (api.token or get_token()):
        raise HubRefused("no token to write to the Hub; `hf auth login`, or set HF_TOKEN")
    page = _space_files(answers, wheel)
    data_set = _look(api, answers, "dataset") if looks else None
    given = {} if _holds(api, answers, plan, data_set) else _study_files(study, plan)
    there = _look(api, space, "space") if looks else None
    _refuse_other_space(space, there)
    return [_Order(answers, "dataset", data_set, given), _Order(space, "space", there, page)]


def _refuse_name(repo_id: str) -> None:
    if repo_id.count("/") != 1:
        raise Refused(f"repository must be written as 'name/repository', got {repo_id!r}")
    with in_a_sentence(repo_id, f"push to {repo_id}"):
        validate_repo_id(repo_id)


def _look(api: HfApi, repo_id: str, kind: str) -> _There | None:
    """Whether a repository is private, and its files; None: there is none."""
    with in_a_sentence(repo_id, f"push to {repo_id}"):
        try:
            info = patiently(partial(api.repo_info, repo_id, repo_type=kind), "repo_info")
        except RepositoryNotFoundError:
            return None
    return bool(info.private), {f.rfilename for f in getattr(info, "siblings", None) or []}


def _holds(api: HfApi, answers: str, plan: Plan, there: _There | None) -> bool:
    """Whether the data set holds the study.

    Raises:
        ValueError: it is public, or holds another study.
    """
    if there is None:
        return False
    refuse_public(answers, there[0])
    if STUDY_PLAN not in there[1]:
        return False
    with in_a_sentence(answers, f"read {answers}"):
        fetch = partial(api.hf_hub_download, answers, STUDY_PLAN, repo_type="dataset")
        other = Plan.load(Path(patiently(fetch, "download")).parent)
    if other.hash != plan.hash:
        raise Refused(
            f"{answers} holds another study, plan {other.hash[:16]}, and this is "
            f"{plan.hash[:16]}; name another data set"
        )
    return True


def _refuse_other_space(space: str, there: _There | None) -> None:
    paths = there[1] - {".gitattributes", CARD} if there else set()
    others = {path for path in paths if path not in _OWN and not path.endswith(".whl")}
    if others or (paths and _DOCKERFILE not in paths):
        raise Refused(f"{space} holds something else; name another Space")


def _study_files(study: Path, plan: Plan) -> dict[str, _Content]:
    """The plan and the answers so far."""
    answered = [f"{STUDY_ANSWERS}/{rater}.jsonl" for rater in ledgers(study, plan)]
    return {name: study / name for name in (STUDY_PLAN, *answered)}


def _space_files(answers: str, wheel: Path | None) -> dict[str, _Content]:
    if wheel and not (wheel.is_file() and wheel.suffix == ".whl"):
        raise Refused(f"{wheel} is not a wheel; `pip wheel --no-deps .` in a clone makes one")
    needed = f"./{wheel.name}[study]" if wheel else requirement("study")
    module = f"{__package__}.hosted"
    texts = {
        _DOCKERFILE: _DOCKER,
        CARD: _CARD.format(front=yaml.safe_dump(_FRONT, sort_keys=False, allow_unicode=True)),
        _APP: _PROGRAM.format(module=module, answers=answers),
        _REQUIREMENTS: f"{needed}\n",
    }
    files: dict[str, _Content] = {name: text.encode() for name, text in texts.items()}
    return files | ({wheel.name: wheel} if wheel else {})


def _send(api: HfApi, order: _Order) -> None:
    """Create the repository if it is missing, and commit the files."""
    what = partial(api.create_repo, order.repo_id, repo_type=order.kind)
    sdk = "docker" if order.kind == "space" else None
    make = partial(what, private=True, exist_ok=True, space_sdk=sdk)
    adds = [CommitOperationAdd(name, content) for name, content in order.files.items()]
    message = "The page of a study" if sdk else "A study"
    commit = partial(api.create_commit, order.repo_id, adds, commit_message=message)
    with in_a_sentence(order.repo_id, f"push to {order.repo_id}"):
        patiently(make, "create_repo")
        if adds:
            patiently(partial(commit, repo_type=order.kind), "commit")


def _next(study: Path, space: str, answers: str) -> str:
    """The steps that are left."""
    host = re.sub("[^a-z0-9]+", "-", space.lower())
    names = {"study": study, "space": space, "answers": answers, "token": TOKEN, "code": CODE}
    return _NEXT.format(**names, address=f"https://{host}.hf.space/")
