"""What an SAE comes without, and the whole command that makes it."""

import shlex
from pathlib import Path
from typing import NamedTuple

from ..hub.outgoing import is_of_hfsae
from ..io.units import PATCH, ROW, TOKEN
from ..runs import home_of
from .subject import Subject, public_source, without_source

_TEXT = "TEXTS.jsonl"
_INPUTS = {
    TOKEN: (
        ["--text.dataset", _TEXT],
        f'{_TEXT}: a row {{"text": ...}} for each document, or a data set on the Hub.',
    ),
    ROW: (
        ["--activations.files", "FILES.safetensors"],
        "FILES.safetensors: activations of the same site, a tensor [rows, width].",
    ),
    PATCH: (
        ["--lm.kind", "auto", "--images.folder", "PICTURES"],
        "PICTURES: a folder of pictures.",
    ),
}
"""of each kind of SAE, the inputs in a command, and what they are"""
_BY_MODEL = ["--explainer", "lm", "--judge", "MODEL_TO_ASK", "--requests", "asked"]
_JUDGE = (
    "MODEL_TO_ASK: any language model; the same command with --answers and the file that came back "
    "writes its names."
)
_SITES = {
    TOKEN: "SITE: where in the language model it reads, such as layers.12.",
    ROW: "SITE: the name of the tensor in the files.",
}


class HowToMake(NamedTuple):
    """The whole command that makes what an SAE comes without."""

    command: str
    notes: list[str]
    """sentences on what to fill in, and on what comes after"""


def how_to_make(subject: Subject, verb: str) -> HowToMake | None:
    """How to make what `hfsae VERB` makes (collect, evaluate, explain: names by a language model);
    None if it is there."""
    there = {"collect": subject.store is not None, "evaluate": bool(subject.evaluation)}
    there["explain"] = "template" not in subject.sources.values()
    if there[verb]:
        return None
    choice, folder, config = subject.choice, subject.folder, subject.sae.config
    is_own = folder is not None and Path(choice.source).exists() and is_of_hfsae(folder)
    parts, notes = ["hfsae", verb, public_source(choice)], []
    after = ["Then start the app again."]
    if verb == "explain":
        parts += _BY_MODEL
        after = [_JUDGE, *after]
    if folder is not None and is_own and home_of(folder):
        return HowToMake(shlex.join(parts), after)
    parts += [part for k, v in without_source(choice).items() if v for part in (f"--{k}", str(v))]
    if config.where is None:
        parts += ["--site", "SITE"]
        notes.append(_SITES.get(subject.unit, "SITE: where in the model it reads."))
    if subject.unit != ROW:
        parts += ["--lm.name", subject.shown_lm_name or "MODEL"]
        if subject.shown_lm_name is None:
            what = "language model" if subject.unit.is_text else "model"
            notes.append(f"MODEL: its {what}, a name on the Hub or a folder.")
    given, what = _INPUTS[subject.unit]
    parts += given
    notes.append(what)
    if not is_own:
        after[-1] = "It prints the folder of its results; `hfsae demo` opens that."
    return HowToMake(shlex.join(parts), [*notes, *after])


def without_examples(subject: Subject) -> str:
    """The refusal of what needs the examples that `hfsae collect` makes."""
    how = how_to_make(subject, "collect")
    return (
        "no examples of what its latents fire on were collected for this SAE; "
        f"`{how.command if how else ''}` makes them"
    )
