"""The app's subject: an SAE, its language model, and the files beside its weights.

One `Subject` serves all sessions. They change only its labels and its caches. They may all run its
language model at once: changes to the model act only in their own thread (see `hfsae.lm`).
"""

import atexit
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.spelling import Tokens, tokenise, tokenise_chat
from ..features import Automatic, FeatureSearch, FeatureStore, read_automatic, read_labels
from ..features.inspection import Inspection, Ranked, inspect
from ..hub import beside, load
from ..lm import LoadedLM, contract, load_lm
from ..machine.files import MAX_TEXT, damaged, parse_json
from ..machine.names import (
    CARD,
    CONFIG,
    EVALUATION,
    EVIDENCE,
    EXAMPLES,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    LABELS,
    LATENTS,
    META,
    PRESETS,
    TRAINING,
)
from ..machine.refused import Damaged, Refused
from ..machine.seal import changes
from ..machine.visible import public_record
from ..machine.weights import KEY, of_others, refuse_mixture, weights_hash
from ..models import SAE
from ..packaged import SHIPPED_SAE
from .label_home import is_shown_to_others, label_home
from .salience import Numbers, numbers, telling

logger = logging.getLogger(__name__)

QUICKSTART = Path("runs", "quickstart")
_BESIDE = (
    CARD,
    EVALUATION,
    TRAINING,
    PRESETS,
    LABELS,
    EVIDENCE,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    LABELS,
    LATENTS,
    EXAMPLES,
    META,
)
MAX_TOKENS = 512  # of a text
_MAX_CONVERSATION = 2048  # tokens
_INSTRUCT = re.compile(r"instruct|chat|(?<![a-z])it(?![a-z])", re.IGNORECASE)
_REMEMBERED = 64  # texts
_MOST_EXACT_BYTES = 4e9  # of a second copy of the model in float32
_COPYING = threading.Lock()
_NAME_ONE = "start the app with --model and a name or folder"


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
        """Whether it is the SAE in this package, however its folder is written."""
        return Path(self.source).resolve() == SHIPPED_SAE.resolve()


def default_source() -> str:
    """The default SAE: the quickstart's, or else the small one in this package."""
    trained = (QUICKSTART / CONFIG).is_file()
    return str(QUICKSTART if trained else SHIPPED_SAE)


@dataclass
class Subject:
    """An SAE with its language model, if there is one, and the records beside its weights."""

    sae: SAE
    name: str
    """the requested SAE: a folder's name, or the id of a repository"""
    folder: Path | None = None
    """folder of the files beside its weights"""
    loaded: LoadedLM | None = None
    lm_name: str | None = None
    """name of the language model that runs, or else of the one in the SAE's config"""
    why_no_lm: str = "the app was started without one; leave out --no_model"
    store: FeatureStore | None = None
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

    @property
    def d_sae(self) -> int:
        """How many latents it has."""
        return self.sae.config.d_sae

    @property
    def lm(self) -> PreTrainedModel:
        """Its language model. Raises ValueError with a sentence if it has none."""
        return self._need_lm().lm

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its language model's tokenizer. Raises ValueError with a sentence if it has none."""
        return self._need_lm().tokenizer

    @property
    def public_lm_name(self) -> str | None:
        """Its language model's, without where a folder lies."""
        lm = {"name": self.lm_name, "origin": self.loaded.origin if self.loaded else None}
        return public_record({"lm": lm})["lm"]["name"]

    @property
    def shown_lm_name(self) -> str | None:
        """The name of its language model, in code for those who see the page."""
        return self.public_lm_name if is_shown_to_others() else self.lm_name

    @property
    def lm_in_python(self) -> str:
        """The same in Python."""
        return repr(self.shown_lm_name or "NAME")

    def _need_lm(self) -> LoadedLM:
        if self.loaded is None:
            raise Refused(f"this needs the language model, which is not loaded: {self.why_no_lm}")
        return self.loaded

    @property
    def bos(self) -> bool:
        """Whether prompts get a BOS token, as in training; True if that is unknown."""
        return self.sae.config.bos != "none"

    def label(self, latent: int) -> str:
        """A latent's label; empty if it has none."""
        return self.labels.get(latent, "")

    def name_of(self, latent: int) -> str:
        """A latent's label, or its automatic explanation marked as such; empty without both."""
        automatic = Automatic(self.automatic.get(latent, ""), self.sources.get(latent, ""))
        return self.label(latent) or (automatic.marked if automatic.text else "")

    @property
    def names(self) -> dict[int, str]:
        """Those of all latents that have one."""
        return {i: self.name_of(i) for i in {**self.automatic, **self.labels}}

    def take_labels(self, labels: dict[int, str]) -> None:
        """Add labels to the existing ones; an empty one removes its latent's."""
        self.labels = {
            latent: label for latent, label in {**self.labels, **labels}.items() if label
        }

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens each latent fires on; 0 everywhere if it was not measured."""
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

    def tokens(self, text: str, chat: bool = False) -> Tokens:
        """A text as tokens of its language model."""
        return tokenise(self.tokenizer, text, bos=self.bos, chat=chat, max_tokens=MAX_TOKENS)

    def conversation(self, messages: Sequence[tuple[str, str]]) -> Tokens:
        """Pairs of a role, "user" or "assistant", and a text, as tokens up to the next answer.

        Raises:
            ValueError: over 2,048 tokens, or its language model has no chat template.
        """
        return tokenise_chat(self.tokenizer, messages, max_tokens=_MAX_CONVERSATION)

    @property
    def has_chat(self) -> bool:
        """Whether its language model's tokenizer has a chat template."""
        return self.loaded is not None and bool(self.tokenizer.chat_template)

    @property
    def is_instruct(self) -> bool:
        """Whether its language model is one for conversations: by its name, and a template."""
        name = (self.lm_name or "").rpartition("/")[2]
        return self.has_chat and _INSTRUCT.search(name) is not None

    @cached_property
    def inspection(self) -> Callable[[str, bool], Inspection]:
        """`inspection(text, chat)`: what fires in a text. The last texts are remembered, since a
        person looks at one token and latent after another."""

        def run(text: str, chat: bool) -> Inspection:
            return inspect(self.lm, self.sae, self.tokens(text, chat))

        return lru_cache(maxsize=_REMEMBERED)(run)

    def ranking(self, seen: Inspection, hide: Collection[int] = ()) -> list[Ranked]:
        """The latents of a text, the most telling first; without a feature store, by activation."""
        numbers = self._numbers
        return seen.ranking(hide=hide) if numbers is None else telling(numbers, seen, hide)

    @cached_property
    def _numbers(self) -> Numbers | None:
        return None if self.store is None else numbers(self.store)

    @cached_property
    def feature_search(self) -> FeatureSearch:
        """Search in its feature store."""
        if self.store is None:
            raise Refused("this SAE comes without a feature store; `hfsae collect` makes one")
        return FeatureSearch(self.store)

    @property
    def exact_lm(self) -> Any:
        """The model in float32: in bfloat16 the effect of one latent drowns in rounding."""
        with _COPYING:  # a second caller waits instead of making another copy
            return self._lm_in_float32

    @cached_property
    def _lm_in_float32(self) -> Any:
        lm = _in_float32(self.lm)
        contract.intend(lm, self.sae, "model_dtype")
        return lm

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once, at its first use; a second caller waits for it."""
        with _COPYING:
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


def _in_float32(lm: Any) -> Any:
    """A float32 copy; the model itself if it is in float32 or the copy would be too large."""
    if lm.dtype == torch.float32 or 4 * lm.num_parameters() > _MOST_EXACT_BYTES:
        return lm
    config = deepcopy(lm.config)  # of which it changes the dtype
    copy = type(lm)._from_config(config, dtype=torch.float32)
    copy.load_state_dict(lm.state_dict())
    copy.name_or_path = lm.name_or_path
    copy.generation_config = lm.generation_config
    return copy.to(lm.device).eval().requires_grad_(False)


def open_subject(
    choice: Choice,
    *,
    model: str | None = None,
    site: str | None = None,
    with_lm: bool = True,
    device: str | None = None,
) -> Subject:
    """Load an SAE, its language model, and the files beside it; `notes` lists what is missing.

    Args:
        model: a language model to use instead of the one in the SAE's config.
        site: where an SAE whose config names no site reads, such as "layers.12".
        device: "cuda" where there is one, else "cpu".

    Raises:
        ValueError: there is no such SAE, records beside it were made with other weights, or the
            named model cannot be loaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sae = load(**choice._asdict(), device=device).eval().requires_grad_(False)
    sae.config.site = sae.config.site or site
    subject = Subject(sae, _shown_name(choice), in_python=_in_python(choice), choice=choice)
    subject.lm_name = sae.config.model_name
    subject.folder = beside(choice.source, _BESIDE, **without_source(choice))
    if subject.folder is not None:
        refuse_mixture(subject.folder)
    if Path(choice.source).is_dir() and not choice.is_shipped:
        subject.label_home = None if is_shown_to_others() else subject.folder
    else:
        source = "shipped" if choice.is_shipped else choice.source
        subject.label_home = label_home(source, **without_source(choice))
    for folder in dict.fromkeys((subject.folder, subject.label_home)):
        if folder is not None:
            _read_labels(subject, folder)
    if subject.folder is not None:
        _read_beside(subject, subject.folder)
    if with_lm:
        _attach_lm(subject, model, device)
    return subject


def _shown_name(choice: Choice) -> str:
    """No path of this machine: pages are shown to others."""
    path = Path(choice.source)
    if choice.is_shipped:
        return "the small SAE that comes with hfsae"
    return path.name if path.is_absolute() else choice.source


def _in_python(choice: Choice) -> str:
    if choice.is_shipped:
        return "hfsae.load(hfsae.packaged.SHIPPED_SAE)"
    which = without_source(choice)
    options = [f"{name}={value!r}" for name, value in which.items() if value]
    return f"hfsae.load({', '.join([repr(shown_source(choice)), *options])})"


def shown_source(choice: Choice) -> str:
    """A folder's whole path, to those who may use it; else its name, or that of a repository."""
    here = Path(choice.source).exists() and not is_shown_to_others()
    return str(Path(choice.source).resolve()) if here else _shown_name(choice)


def _read_labels(subject: Subject, folder: Path) -> None:
    is_own = folder == subject.label_home != subject.folder
    if is_own and any(of_others(folder, [LABELS], subject.folder)):
        subject.notes.append(
            f"labels that you gave another version of it are left out; they stay in {folder}"
        )
        return
    try:
        subject.take_labels(read_labels(folder, subject.folder))
    except ValueError as error:
        subject.notes.append(f"its labels are left out: {error}")
    try:
        for latent, name in read_automatic(folder).items():
            subject.automatic[latent], subject.sources[latent] = name.text, name.source
            if name.is_doubtful:
                subject.doubtful.add(latent)
    except ValueError as error:
        subject.notes.append(f"its automatic names are left out: {error}")


def without_source(choice: Choice) -> dict[str, Any]:
    """What it picks out of a source."""
    return {name: value for name, value in choice._asdict().items() if name != "source"}


def _read_beside(subject: Subject, folder: Path) -> None:
    card = folder / CARD
    if card.is_file() and card.stat().st_size < MAX_TEXT:
        subject.card = card.read_text(encoding="utf-8", errors="replace")
    subject.evaluation = _read_json(folder / EVALUATION, dict, subject.notes)
    _read_presets(subject, folder)
    for change in changes(folder, [EVALUATION, EXPLANATIONS_RECORD]):
        subject.notes.append(f"do not trust its {change.path.name}: {change.why}")
    if change := next(changes(folder, [META]), None):
        subject.notes.append(
            f"its features/ are left out because of {change.path.name}: {change.why}"
        )
    elif (folder / META).is_file():
        store = FeatureStore.load(folder)
        if len(store) == subject.d_sae:
            subject.store = store
        else:
            subject.notes.append(
                f"its features/ has {len(store):,} latents, and the SAE has "
                f"{subject.d_sae:,}: it is left out"
            )


def _read_presets(subject: Subject, folder: Path) -> None:
    """Valid ones; those that were found for other weights are left out, with a note."""
    listed = _read_json(folder / PRESETS, list, subject.notes)
    presets = [p for p in listed if _is_preset(p, subject.d_sae)]
    ours = weights_hash(folder) if any(KEY in preset for preset in presets) else None
    subject.presets = [p for p in presets if ours is None or p.get(KEY, ours) == ours]
    if n := len(presets) - len(subject.presets):
        subject.notes.append(f"{n} of its presets are left out: they were found for other weights")


def _is_preset(preset: object, d_sae: int) -> bool:
    """Whether it is a valid preset: a name, a prompt and {latent: strength}."""
    if not isinstance(preset, dict) or not isinstance(preset.get("latents"), dict):
        return False
    texts = [preset.get(key, "") for key in ("plain", "steered")]
    texts += [preset.get(key) for key in ("name", "prompt")]
    return all(isinstance(text, str) for text in texts) and all(
        index.isdecimal() and int(index) < d_sae and isinstance(strength, int | float)
        for index, strength in preset["latents"].items()
    )


def _read_json(path: Path, kind: type, notes: list[str]) -> Any:
    """The content of a JSON file; an empty `kind` if it is missing, and, with a note, if it is
    damaged or of another kind."""
    try:
        content = parse_json(path)
        if not isinstance(content, kind):
            raise Damaged(damaged(path, f"not a JSON {'object' if kind is dict else 'array'}"))
    except (OSError, ValueError) as error:
        if path.exists():
            logger.warning("%s is left out: %s", path, error)
            notes.append(f"its {path.name} is left out: {error}")
        return kind()
    return content


def _attach_lm(subject: Subject, model: str | None, device: str) -> None:
    config = subject.sae.config
    name = subject.lm_name = model or config.model_name
    if name is None:
        subject.why_no_lm = f"the SAE's config names none; {_NAME_ONE}"
        return
    options: dict[str, Any] = {"dtype": config.model_dtype or "auto", "device": device}
    if model is None or model == config.model_name:
        options |= {
            "revision": config.model_revision,
            "attn_implementation": config.model_attention,
        }
    try:
        subject.loaded = load_lm(name, **options)
        differences = contract.differences(config, *subject.loaded[:2])
        if wrong := [d for d in differences if d.severity == "error"]:
            raise Refused(f"this SAE is not for {name}: {wrong[0]}")
    except ValueError as error:
        subject.loaded = None
        if model is not None:
            raise
        subject.why_no_lm = f"{str(error).rstrip('.')}; {_NAME_ONE}"
        return
    subject.notes += [str(difference) for difference in differences]
    if subject.folder is not None and config.model_weights is None:
        record = _read_json(subject.folder / TRAINING, dict, subject.notes).get("lm", {})
        _note_another_copy(subject, record.get("origin"), subject.loaded.origin)


def _note_another_copy(subject: Subject, theirs: object, ours: str) -> None:
    """A note if the weights differ, which the same name may have: a package's may be quantised."""
    is_told = isinstance(theirs, str) and not theirs.startswith("folder")
    if is_told and not ours.startswith("folder") and theirs != ours:
        subject.notes.append(
            f"it was trained on another copy of the language model ({theirs}; this is {ours}), "
            "whose activations may differ"
        )
