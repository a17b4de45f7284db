"""The app's subject: an SAE, its model, and the files beside its weights; `opening` makes it. What
it comes without, a command makes: `how_to_make`.

One `Subject` serves all sessions. They change only its labels and its caches. They may all run its
language model at once: changes to the model act only in their own thread (see `hfsae.lm`).
"""

import atexit
import os
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.token_text import Tokens, single_tokens, tokenise, tokenise_chat
from ..circuits import GraphFile
from ..features import Automatic, FeatureSearch, FeatureStore
from ..features.inspection import Inspection, inspect
from ..features.pictures import Grid, Pictures
from ..hub.outgoing import is_of_hfsae
from ..io.errors import Refused
from ..io.file_names import CONFIG
from ..io.local_paths import without_local_paths
from ..io.units import PATCH, ROW, TOKEN, Unit
from ..lm import LoadedEncoder, LoadedLM, contract
from ..models import SAE
from ..packaged import SHIPPED_SAE, shipped_at
from ..runs import home_of
from . import validate

QUICKSTART = Path("runs", "quickstart")
MAX_TOKENS = 512  # of a text
MAX_TURNS, _MAX_CONVERSATION = 12, 2048  # of a conversation: messages, tokens
_INSTRUCT = re.compile(r"instruct|chat|(?<![a-z])it(?![a-z])", re.IGNORECASE)
_REMEMBERED = 64  # texts
_MOST_EXACT_BYTES = 4e9  # of a second copy of the model in float32
_MAKING = threading.RLock()
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


class Choice(NamedTuple):
    """Which SAE: arguments of `hfsae.load`."""

    source: str
    subfolder: str = ""
    layer: int | None = None
    width: str | None = None
    l0: float | str | None = None
    revision: str | None = None

    @property
    def is_shipped(self) -> bool:
        """Whether it is an SAE that comes with hfsae, however its folder is written."""
        return shipped_at(self.source) is not None


Exchange = tuple[str, str, str]
"""A message in a conversation, with the model's answer as it is, and steered."""


def default_source() -> str:
    """The default SAE: the quickstart's, or else the small one in this package."""
    trained = (QUICKSTART / CONFIG).is_file()
    return str(QUICKSTART if trained else SHIPPED_SAE)


@dataclass
class Subject:
    """An SAE with its model, if there is one, and the records beside its weights."""

    sae: SAE
    name: str
    """the requested SAE: a folder's name, or the id of a repository"""
    folder: Path | None = None
    """folder of the files beside its weights"""
    unit: Unit = TOKEN
    """what it reads one of at a time"""
    loaded: LoadedLM | None = None
    encoder: LoadedEncoder | None = None
    """the model of pictures that it reads, in the place of a language model"""
    lm_name: str | None = None
    """name of the model that runs, or else of the one in the SAE's config"""
    why_no_lm: str = "the app was started without one; leave out --no_model"
    store: FeatureStore | None = None
    positions: str = "patches"
    """which vectors of a model of pictures it reads: patches, cls or all"""
    pictures: Pictures | None = None
    """of the documents that the store's examples are from, where those are pictures"""
    columns: dict[str, Any] = field(default_factory=dict)
    """of the table of latents that go with labels of documents; see `table_actions`"""
    label_rows: list[dict[str, Any]] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)
    """which latents are of one of two language models; see `table_actions`"""
    graphs: dict[str, GraphFile] = field(default_factory=dict)
    """attribution graphs that were made before, by name"""
    transcoders: str | None = None
    """folder or repository of the set that it is of, if it is a transcoder"""
    evaluation: dict[str, Any] = field(default_factory=dict)
    card: str = ""
    labels: dict[int, str] = field(default_factory=dict)
    automatic: dict[int, str] = field(default_factory=dict)
    """explanations that `hfsae explain` gave, for latents without a label"""
    sources: dict[int, str] = field(default_factory=dict)
    """who gave them: "template" is a program, "lm" a language model"""
    doubtful: set[int] = field(default_factory=set)
    """latents whose automatic names are doubtful (`Automatic.is_doubtful`)"""
    label_home: Path | None = None
    """folder whose features/labels.json takes new labels; None: they are not kept"""
    presets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """sentences on what may make its numbers differ here"""

    in_python: str = "hfsae.load(...)"
    """code that loads it"""
    choice: Choice = field(default_factory=lambda: Choice(""))
    """what was asked for"""
    only_here: bool = False
    """whether only pages of this machine reach the app, which then reads any SAE on it"""

    @cached_property
    def d_sae(self) -> int:
        """How many latents it has."""
        return self.sae.config.d_sae

    @property
    def lm(self) -> PreTrainedModel:
        """Its language model. Raises ValueError with a sentence if it has none."""
        return self.language_model.lm

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its language model's tokenizer. Raises ValueError with a sentence if it has none."""
        return self.language_model.tokenizer

    @property
    def public_lm_name(self) -> str | None:
        """Its model's, without where a folder lies."""
        loaded = self.loaded or self.encoder
        lm = {"name": self.lm_name, "origin": loaded.origin if loaded else None}
        return without_local_paths({"lm": lm})["lm"]["name"]

    @property
    def shown_lm_name(self) -> str | None:
        """The name of its model, in code for those who see the page."""
        return self.public_lm_name if is_space() else self.lm_name

    @property
    def language_model(self) -> LoadedLM:
        """It, with its tokenizer. Raises ValueError with a sentence if it has none."""
        if self.loaded is None:
            raise Refused(f"this needs the language model, which is not loaded: {self.why_no_lm}")
        return self.loaded

    @property
    def runs_text(self) -> bool:
        """Whether a visitor can inspect and steer a text: not pictures, nor with two models."""
        return self.unit.is_text and not self.sae.config.model_names

    def name_of(self, latent: int) -> str:
        """A latent's label, or its automatic explanation marked as such; empty without both."""
        automatic = Automatic(self.automatic.get(latent, ""), self.sources.get(latent, ""))
        return self.labels.get(latent) or (automatic.marked if automatic.text else "")

    @property
    def names(self) -> dict[int, str]:
        """Those of all latents that have one."""
        return {i: self.name_of(i) for i in {**self.automatic, **self.labels}}

    def take_labels(self, labels: dict[int, str]) -> None:
        """Add labels to the existing ones; an empty one removes its latent's."""
        self.labels = {
            latent: label for latent, label in {**self.labels, **labels}.items() if label
        }

    @property
    def grid(self) -> Grid | None:
        """How patches cover the pictures that its examples are from."""
        return None if self.store is None else Grid.of(self.store.meta)

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens, or of its other units, that each latent fires on; 0 everywhere if it was
        not measured."""
        if self.store is not None:
            return self.store.densities
        counted = self.evaluation.get("density")
        return torch.tensor(counted) if counted else torch.zeros(self.d_sae)

    @property
    def is_counted(self) -> bool:
        """Whether `density` was measured."""
        return self.store is not None or bool(self.evaluation.get("density"))

    def largest(self) -> Float[Tensor, " d_sae"] | None:
        """Each latent's largest activation over the store's text, raw units."""
        return None if self.store is None else self.store.max_activations

    def tokens(self, text: object, chat: object = False) -> Tokens:
        """A caller's text as tokens; with `chat`, as a user's message in the chat template."""
        text, chat = validate.text(text), validate.flag(chat, "chat")
        tokenizer, bos = self.language_model.tokenizer, self.sae.config.bos != "none"
        return tokenise(tokenizer, text, bos=bos, chat=chat, max_tokens=MAX_TOKENS)

    def token_id(self, text: str) -> int:
        """Of a token by its text, or by `#` and its number.

        Raises:
            ValueError: the text is more than one token, with a space in front or without.
        """
        if text.startswith("#") and text[1:].isdecimal():
            return validate.whole(int(text[1:]), "the token", 0, len(self.tokenizer) - 1)
        if tokens := single_tokens(self.tokenizer, text):
            return tokens[0]
        raise Refused(f"{text[:40]!r} is not one token of this model; use one of its pieces")

    def conversations(self, earlier: Sequence[Exchange], message: object) -> tuple[Tokens, Tokens]:
        """A conversation up to the answer to a message, as tokens: unsteered so far, and steered.

        Raises:
            ValueError: the message is blank, the conversation has over 12 turns or 2,048 tokens, or
                the language model has no chat template.
        """
        if len(earlier) >= MAX_TURNS:
            raise Refused(f"the conversation has {len(earlier)} turns already; begin another one")
        last = ("user", validate.text(message))
        plain, steered = (
            [turn for e in earlier for turn in (("user", e[0]), ("assistant", e[answer]))]
            for answer in (1, 2)
        )
        return (
            tokenise_chat(self.tokenizer, [*plain, last], max_tokens=_MAX_CONVERSATION),
            tokenise_chat(self.tokenizer, [*steered, last], max_tokens=_MAX_CONVERSATION),
        )

    @property
    def has_chat(self) -> bool:
        """Whether its language model's tokenizer has a chat template."""
        return self.loaded is not None and bool(self.tokenizer.chat_template)

    @property
    def is_instruct(self) -> bool:
        """Whether its language model is one for conversations: by its name, and a template."""
        name = (self.lm_name or "").rpartition("/")[2]
        return self.has_chat and _INSTRUCT.search(name) is not None

    def inspection(self, text: object, chat: object = False) -> Inspection:
        """What fires in a caller's text; with `chat`, in a user's message."""

        def run(text: str, chat: bool) -> Inspection:
            return inspect(self.lm, self.sae, self.tokens(text, chat))

        # the last texts are remembered: a person looks at one token and latent after another
        remembered = self.cached("inspections", lambda: lru_cache(_REMEMBERED)(run))
        return remembered(validate.text(text), validate.flag(chat, "chat"))

    @cached_property
    def feature_search(self) -> FeatureSearch:
        """Search in its feature store."""
        if self.store is None:
            raise Refused("this SAE comes without a feature store; `hfsae collect` makes one")
        return FeatureSearch(self.store)

    @property
    def exact_lm(self) -> Any:
        """The model in float32: in bfloat16 the effect of one latent drowns in rounding. It is the
        model itself if that is in float32, or the copy would be too large."""

        def make() -> Any:
            lm: Any = self.lm
            if lm.dtype != torch.float32 and 4 * lm.num_parameters() <= _MOST_EXACT_BYTES:
                config = deepcopy(lm.config)  # of which it changes the dtype
                copy = type(lm)._from_config(config, dtype=torch.float32)
                copy.load_state_dict(lm.state_dict())
                copy.name_or_path = lm.name_or_path
                copy.generation_config = lm.generation_config
                lm = copy.to(lm.device).eval().requires_grad_(False)
            contract.intend(lm, self.sae, "model_dtype")
            return lm

        return self.cached("exact lm", make)

    def cached(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once, at its first use; a second caller waits for it."""
        with _MAKING:
            if name not in self._memory:
                self._memory[name] = make()
            return self._memory[name]

    @cached_property
    def _memory(self) -> dict[str, Any]:
        return {}

    @cached_property
    def directions(self) -> Path:
        """A folder for latents' directions, deleted when the app ends."""
        folder = tempfile.mkdtemp(prefix="hfsae-directions-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


def is_space() -> bool:
    """Whether this is a Space, whose visitors have no access to this machine's folders."""
    return "SPACE_ID" in os.environ


def public_name(choice: Choice) -> str:
    """No path of this machine: pages are shown to others."""
    path = Path(choice.source)
    if shipped := shipped_at(choice.source):
        return shipped[1]
    return path.name if path.is_absolute() else choice.source


def public_source(choice: Choice) -> str:
    """A folder's whole path, to those who may use it; else its name, or that of a repository."""
    here = Path(choice.source).exists() and not is_space()
    return str(Path(choice.source).resolve()) if here else public_name(choice)


def without_source(choice: Choice) -> dict[str, Any]:
    """What it picks out of a source."""
    return {name: value for name, value in choice._asdict().items() if name != "source"}


def how_to_make(subject: Subject, verb: str) -> tuple[str, list[str]] | None:
    """The whole command that makes what `hfsae VERB` makes (collect, evaluate, explain: names by a
    language model), and sentences on what to fill in and what comes after; None if it is there."""
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
        return shlex.join(parts), after
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
    return shlex.join(parts), [*notes, *after]


def without_examples(subject: Subject) -> str:
    """The refusal of what needs the examples that `hfsae collect` makes."""
    how = how_to_make(subject, "collect")
    return (
        "no examples of what its latents fire on were collected for this SAE; "
        f"`{how[0] if how else ''}` makes them"
    )
