"""A study as a Hugging Face Space; its plan, its answers and its page's code in a private data set.

People may be able to read the files of a Space that they can open. So nothing in them is of SAE,
latent, density or control: with its own token the Space fetches the page's code from the data set,
and that (`hosted`) fetches the plan.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .answers import is_closed, ledgers
from .hosted import CODE, PAGE, PORT, TOKEN, hub_errors, refuse_public
from .plan import ANSWERS, PLAN, Plan, Refused

_Content = bytes | Path
_There = tuple[bool, set[str]]
_DOCKERFILE, _APP, _REQUIREMENTS, _CARD = "Dockerfile", "app.py", "requirements.txt", "README.md"
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

import os
import sys

from huggingface_hub import snapshot_download

token = os.environ.get({token!r}, "").strip()
if not token:
    sys.exit("the secret {token} is not set; set it in the Space's settings")
folder = snapshot_download({answers!r}, repo_type="dataset", token=token, allow_patterns="{page}/*")
sys.path.insert(0, folder)
from {page}.hosted import host

host({answers!r})
'''
_NEEDED = "filelock\nhuggingface_hub>=1.3\nstarlette>=0.40\nuvicorn>=0.30\n"
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
_ABOUT = """---
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
  hf download {answers} --repo-type dataset --include 'answers/*' --local-dir {study}
  python -m studies close {study}"""


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
        names = ", ".join(self.files)
        state += " private" if is_private else " public"
        return f"{state} {self.kind} {self.repo_id}, visible to {who}: {names}"


def push_space(
    study: Path,
    space: str,
    answers: str,
    *,
    dry_run: bool = False,
    token: str | None = None,
    print_fn: Callable[[str], None] = print,
) -> None:
    """Put a study on a Space. New repositories are private.

    Args:
        space: "name/space", for the page.
        answers: "name/dataset", private: it gets the page's code; unless it holds the study already
            also the plan and the answers so far, and then each rater's answers.
        dry_run: only print what would be sent; offline, without looking at the repositories.
        print_fn: called with what is sent before it is sent, and with what to do next.

    Raises:
        ValueError: the study is missing, damaged or closed; a name cannot be a repository's; there
            is no token; the data set is public or holds another study; the Space holds something
            else; or the Hub refuses.
    """
    looks = not (dry_run and constants.HF_HUB_OFFLINE)
    api = HfApi(token=token)
    orders = _orders(api, study, space, answers, looks)
    print_fn("\n".join(map(str, orders)))
    if dry_run:
        unseen = "" if looks else ", nor looked at, since HF_HUB_OFFLINE is set"
        print_fn(f"dry run: nothing was sent{unseen}")
        return
    for order in orders:
        is_space = order.kind == "space"
        adds = [CommitOperationAdd(name, content) for name, content in order.files.items()]
        with hub_errors(f"push to {order.repo_id}"):
            api.create_repo(
                order.repo_id,
                repo_type=order.kind,
                private=True,
                exist_ok=True,
                space_sdk="docker" if is_space else None,
            )
            api.create_commit(
                order.repo_id,
                adds,
                commit_message="The page of a study" if is_space else "A study",
                repo_type=order.kind,
            )
    host = re.sub("[^a-z0-9]+", "-", space.lower())
    names = {"study": study, "space": space, "answers": answers, "token": TOKEN, "code": CODE}
    print_fn(_NEXT.format(**names, address=f"https://{host}.hf.space/"))


def _orders(api: HfApi, study: Path, space: str, answers: str, looks: bool) -> list[_Order]:
    """For the data set, and for the Space."""
    plan = Plan.load(study)
    if is_closed(study):
        raise Refused(f"{study} is closed: it takes no more answers; make another study")
    for repo_id in (space, answers):
        if repo_id.count("/") != 1:
            raise Refused(f"repository must be written as 'name/repository', got {repo_id!r}")
        with hub_errors(f"push to {repo_id}"):
            validate_repo_id(repo_id)
    if looks and not (api.token or get_token()):
        raise Refused("no token to write to the Hub; `hf auth login`, or set HF_TOKEN")
    home = Path(__file__).parent
    files: dict[str, _Content] = {f"{home.name}/{name}": home / name for name in PAGE}
    data_set = _look(api, answers, "dataset") if looks else None
    if not _holds(api, answers, plan, data_set):
        answered = [f"{ANSWERS}/{rater}.jsonl" for rater in ledgers(study, plan)]
        files |= {name: study / name for name in (PLAN, *answered)}
    there = _look(api, space, "space") if looks else None
    paths = there[1] - {".gitattributes", _CARD} if there else set()
    if paths - {*_OWN} or (paths and _DOCKERFILE not in paths):
        raise Refused(f"{space} holds something else; name another Space")
    front = yaml.safe_dump(_FRONT, sort_keys=False, allow_unicode=True)
    page = {
        _DOCKERFILE: _DOCKER.encode(),
        _CARD: _ABOUT.format(front=front).encode(),
        _APP: _PROGRAM.format(answers=answers, token=TOKEN, page=home.name).encode(),
        _REQUIREMENTS: _NEEDED.encode(),
    }
    return [_Order(answers, "dataset", data_set, files), _Order(space, "space", there, page)]


def _look(api: HfApi, repo_id: str, kind: str) -> _There | None:
    """Whether a repository is private, and its files; None: there is none."""
    with hub_errors(f"push to {repo_id}"):
        try:
            info = api.repo_info(repo_id, repo_type=kind)
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
    if PLAN not in there[1]:
        return False
    with hub_errors(f"read {answers}"):
        other = Plan.load(Path(api.hf_hub_download(answers, PLAN, repo_type="dataset")).parent)
    if other.hash != plan.hash:
        raise Refused(
            f"{answers} holds another study, plan {other.hash[:16]}, and this is "
            f"{plan.hash[:16]}; name another data set"
        )
    return True
