"""Other SAEs to compare with: which may be read from here, and those that lie near."""

import os
import re
from pathlib import Path

from ..convert.formats import find
from ..hub import list_saes
from ..machine.files import read_json
from ..machine.names import CONFIG
from ..machine.refused import Refused
from ..packaged import SHIPPED_SAE
from . import validate
from .subject import Choice, Subject

PACKAGED = "packaged"
"""names the SAE in this package"""
RUNS = Path("runs")
MOST, _NEAR = 40, 5  # SAEs offered on the page, and in a sentence
_REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.-]*)*)")


def check_name(name: object) -> str:
    """The folder or repository of another SAE, which must not be blank."""
    return validate.text(name, "the other SAE", limit=300, empty="name another SAE").strip()


def place_of(subject: Subject, other: str) -> Choice:
    """Where another SAE is: a folder, or a repository and the path in it. Only SAEs are read, and
    no answer reveals other folders. Where others may reach the app, only those below the folder
    that it was started in, or in that of the SAE that it shows.

    Raises:
        ValueError: it is not one of these.
    """
    if other == PACKAGED:
        return Choice(str(SHIPPED_SAE))
    is_local = subject.label_home is not None
    path = Path(os.path.expanduser(other) if subject.only_here else other).resolve()
    if is_local and (subject.only_here or _is_near(subject, path)) and _is_sae(path):
        return Choice(str(path))
    names = _REPOSITORY.fullmatch(other)
    if names and not (is_local and _is_of_folder(subject, Path(other).parts[0])):
        return Choice(names[1], names[2].strip("/"))
    raise Refused(_why_not(subject, other))


def _is_of_folder(subject: Subject, top: str) -> bool:
    """Whether a path's first part is a folder here, so that the path is none on the Hub."""
    return (subject.only_here or top == str(RUNS)) and Path(top).is_dir()


def choices(subject: Subject) -> list[str]:
    """Names of SAEs that lie near, to compare with: in the folder runs/, in the suite that this one
    is of, and the packaged one; without those that read vectors of another width."""
    if subject.label_home is None:
        return []
    siblings = subject.remembered("siblings", lambda: _inside(subject.choice))
    own = {_key(subject.choice.source), _key(str(subject.folder or ""))}
    names = dict.fromkeys([*_inside(Choice(str(RUNS))), *siblings, PACKAGED])
    if subject.choice.is_shipped:
        del names[PACKAGED]
    return [n for n in names if _key(n) not in own and _fits(subject, n)][:MOST]


def _inside(choice: Choice) -> list[str]:
    """The SAEs below a folder or repository, those of the chosen layer first."""
    source = choice.source
    if source == str(RUNS) and not RUNS.is_dir():
        return []
    try:
        entries = list_saes(source)
    except ValueError:  # of another machine, or without a network
        return []
    entries.sort(key=lambda entry: choice.layer not in (None, entry.layer))
    return [f"{source}/{entry.path}" for entry in entries if entry.path]


def _key(name: str) -> str:
    return str(Path(name).resolve())


def _fits(subject: Subject, name: str) -> bool:
    """Whether it reads vectors of the same width, as far as its config tells."""
    config = (SHIPPED_SAE if name == PACKAGED else Path(name)) / CONFIG
    try:
        width = read_json(config).get("d_in") if config.is_file() else None
    except ValueError:
        return False
    return width in (None, subject.sae.config.d_in)


def _is_near(subject: Subject, path: Path) -> bool:
    source = Path(subject.choice.source)
    homes = [Path.cwd(), *filter(None, [subject.folder]), *([source] if source.is_dir() else [])]
    return any(path.is_relative_to(home.resolve()) for home in homes)


def _is_sae(path: Path) -> bool:
    """Whether it is one, in any format; of a folder only its own files are looked at."""
    try:
        if path.is_file():
            return bool(find([path.name]))
        return "" in find(file.name for file in path.iterdir() if file.is_file())
    except OSError:
        return False


def _why_not(subject: Subject, other: str) -> str:
    refused, hub = (
        f"{other!r} is not an SAE that can be read from here",
        "a repository on the Hub as name/repository",
    )
    if subject.label_home is None:
        return f"{refused}; name {hub}"
    if subject.only_here:
        near = ", ".join(choices(subject)[:_NEAR])
        hub += f"; these are here: {near}" if near else ""
        return f"{refused}; name the folder of an SAE, or {hub}"
    return (
        f"{refused}: others may reach this app, so it reads folders of SAEs below the one that it "
        f"was started in; name one of these, or {hub}"
    )
