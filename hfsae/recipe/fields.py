"""A recipe's sections, and the SAE configs that they make."""

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..activations import (
    ActivationArguments,
    HarvestArguments,
    ImageArguments,
    ShuffleArguments,
    Split,
    TextArguments,
)
from ..evaluation import EvaluationArguments
from ..features import CollectArguments
from ..machine.bounds import MOST_TOKENS, check_least, check_most, check_seed
from ..machine.names import CHECKPOINTS, FEATURES, FIGURES
from ..machine.refused import Refused
from ..training import TrainingArguments
from ..training.arguments import SHARED
from .lms import LMArguments, spelt_lms
from .shorthand import spelt
from .sizes import AUTO, Count, Sizes, sizes_of

logger = logging.getLogger(__name__)
# The sections that people change most come first: error messages name the first differences.
TRAINING_SECTIONS = ("sae", "saes", "training", "lm", "lms", "text", "harvest", "activations")
TRAINING_SECTIONS += ("images",)
TRAINING_SECTIONS += ("shuffle", "seed")
TAKEN_FOLDERS = (CHECKPOINTS, FEATURES, FIGURES)  # folders of a run, beside its SAEs'
_MOST_SECONDS = 86_400
Sections = dict[str, Any]
"""Fields of a recipe by section, of those that are given."""
Kind = Literal["text", "files", "pictures"]
UNUSED: dict[Kind, tuple[str, ...]] = {
    "text": ("activations", "images"),
    "files": ("lm", "lms", "text", "harvest", "images"),
    "pictures": ("lms", "text", "activations"),
}
"""Sections that a recipe does not use."""


@dataclass
class Recipe:
    """The SAEs to train, the language model and text to train on, and the results to make."""

    lm: LMArguments = field(default_factory=LMArguments)
    lms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several language models in the place of lm, to compare them: a name, and the fields of `lm`;
    sites have the name before a slash, as chat/layers.13."""
    text: TextArguments = field(default_factory=TextArguments)
    harvest: HarvestArguments = field(default_factory=HarvestArguments)
    activations: ActivationArguments = field(default_factory=ActivationArguments)
    """Files of activations, in the place of lm, text and harvest."""
    images: ImageArguments = field(default_factory=ImageArguments)
    """Pictures for a vision model, in the place of text."""
    shuffle: ShuffleArguments = field(default_factory=ShuffleArguments)
    sae: dict[str, Any] = field(default_factory=dict)
    """Fields of the SAE's config: model_type (jumprelu_sae), site, d_sae, target_l0 and so on; d_in
    is the site's width."""
    saes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several SAEs on the same stream: a name, and the fields of `sae` that differ; under
    `training`, the settings of `training` that differ, such as its learning_rate."""
    training: TrainingArguments = field(default_factory=TrainingArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    collect: CollectArguments = field(default_factory=CollectArguments)
    collect_tokens: Count = AUTO
    """Tokens to search for examples; "auto": 9.5 % of training.n_tokens, at most a million; 0
    leaves this stage out."""
    explain_tokens: Count = 0
    """Held-out tokens on which the names of 100 latents are tested, as by `hfsae explain`; all
    others with examples get names without scores. "auto": 3.2 % of training.n_tokens, at most
    50,000, and 0 without examples; 0 leaves this stage out."""
    probe_texts: int = 0
    """Texts of each of 20 packaged sets with which latents are probed, as by `hfsae probe` (500
    there), where a language model read text. 0 leaves this stage out."""
    preset_seconds: int = 0
    """Seconds to search for the app's presets at the end, for each SAE with examples: latents whose
    steering visibly changes texts. 0 leaves this stage out; `hfsae presets` looks longer."""
    seed: int = 0
    """Seed of the SAEs' initial weights."""
    license: str | None = None
    """Licence of the trained SAE, for its card: a Hub identifier such as 'apache-2.0'. That of a
    recipe's file is for its own language model: with another lm.name it has to be given, too."""

    def __post_init__(self) -> None:
        self.sae, self.saes = spelt(self.sae, self.saes)
        self.lms = spelt_lms(self.lms)
        check_seed("seed", self.seed)
        for name in ("collect_tokens", "explain_tokens"):
            if (n_tokens := getattr(self, name)) == AUTO:
                continue
            if n_tokens < 0:
                raise Refused(f"{name} must be 0 (to leave that stage out) or more, got {n_tokens}")
            check_most(name, n_tokens, MOST_TOKENS)
        check_least(self, probe_texts=0)
        if not 0 <= self.preset_seconds <= _MOST_SECONDS:
            raise Refused(
                f"preset_seconds is {self.preset_seconds}; it can be 0 (to leave that stage out) "
                f"to {_MOST_SECONDS:,}"
            )
        for name in self.saes:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] in TAKEN_FOLDERS or {"..", "/"} & {*parts}:
                raise Refused(
                    f"an SAE cannot be called {name!r}: the name becomes its folder "
                    "in training.output_dir; leave out '..', a leading '/', and "
                    f"{', '.join(TAKEN_FOLDERS)}"
                )
            self.training_of(name)

    def training_of(self, name: str) -> TrainingArguments:
        """The training settings of the SAE of this name ("" for a single one).

        Raises:
            ValueError: its own settings have no such field, or one that the stream depends on.
        """
        given = self.saes.get(name, {}).get("training", {})
        subject = f"saes.{name}.training"
        args = changed_training(self.training, given, subject)
        if shared := sorted(SHARED & {*given}):
            raise Refused(
                f"{subject}.{shared[0]} cannot differ between SAEs on one stream; set "
                f"training.{shared[0]}"
            )
        return args

    def sae_fields(self) -> dict[str, dict[str, Any]]:
        """The config fields of each SAE by name ("" for a single one); null unsets a field."""
        merged = {name: {**self.sae, **own} for name, own in (self.saes or {"": {}}).items()}
        return {
            name: {k: v for k, v in fields.items() if v is not None and k != "training"}
            for name, fields in merged.items()
        }

    @property
    def kind(self) -> Kind:
        """What the activations are made from."""
        if self.activations.files:
            return "files"
        if self.lm.kind is None:
            return "text"
        return "pictures"

    @property
    def models(self) -> dict[str, LMArguments]:
        """The language models by the names that sites have: of a single one ""."""
        several = {name: LMArguments(**given) for name, given in self.lms.items()}
        return several or {"": self.lm}

    @property
    def model_names(self) -> list[str]:
        """The Hub ids or folders of the language models."""
        return [args.name for args in self.models.values()]

    @property
    def has_labels(self) -> bool:
        """Whether the documents have labels, so that a table of them is made."""
        if self.kind == "files":
            return bool(self.activations.labels)
        if self.kind == "text" or not self.sizes.evaluation:
            return False
        return bool(self.images.labels)

    @property
    def sizes(self) -> Sizes:
        """The size of each stage after training, with a number for "auto"."""
        names, probing, presets = self.explain_tokens, self.probe_texts, self.preset_seconds
        if self.kind != "text" or self.lms:  # these need a single language model
            names, probing, presets = 0, 0, 0
        given = (self.evaluation.n_tokens, self.collect_tokens, names, probing, presets)
        return sizes_of(self.training.n_tokens, *given)

    @property
    def sites(self) -> list[str]:
        """All sites and target sites, each once."""
        several = self.sae_fields().values()
        every = [at for f in several for at in (f.get("site"), f.get("target_site"))]
        lists = ("sites", "target_sites")
        every += [at for f in several for name in lists for at in f.get(name) or ()]
        return list(dict.fromkeys(site for site in every if site))


def changed_training(args: TrainingArguments, given: object, subject: str) -> TrainingArguments:
    """The arguments with those fields that are given, as in a recipe's file.

    Raises:
        ValueError: an unknown field, or a value that it cannot have; starts with `subject`.
    """
    if not isinstance(given, dict):
        raise Refused(f"{subject} must hold fields of training, got {given!r}")
    if unknown := sorted({*given} - {*TrainingArguments.__dataclass_fields__}):
        raise Refused(
            f"{subject} has no field {unknown[0]!r}; `hfsae train --help_all` lists them all"
        )
    try:
        return replace(args, **given)
    except TypeError as error:  # text where there must be a number
        raise Refused(f"{subject}: {error}; got {given}") from error


def check_cache(folder: Path) -> None:
    """Check that the folder of a cache can be written to.

    Raises:
        ValueError: it cannot be made, or written to.
    """
    home = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise Refused(f"harvest.cache {folder} cannot be made or written to; give another folder")


def check_arm(name: str, arm: dict[str, Any], keys: set[str]) -> None:
    """Check the keys and sections of an arm.

    Raises:
        ValueError: an arm of a comparison or a search has another key, or a section without fields.
    """
    if unknown := sorted(set(arm) - keys):
        raise Refused(
            f"arm {name} has no {unknown[0]!r}; an arm can have {', '.join(sorted(keys))}"
        )
    for section in sorted(arm.keys() & {"sae", "training", "ranges"}):
        if not isinstance(arm[section], dict):
            raise Refused(f"{section} of arm {name} must hold fields, got {arm[section]!r}")


def sides_of(recipe: Recipe) -> list[Split]:
    """The sides without which a recipe cannot run: of the training, and of its evaluation."""
    return ["train"] if recipe.sizes.evaluation == 0 else ["train", recipe.evaluation.side]


def rows_ahead(recipe: Recipe) -> int:
    """Activations that the training of a recipe reads: whole buckets."""
    training, bucket = recipe.training, bucket_tokens(recipe)
    used = -(-training.total_steps * training.batch_size // recipe.shuffle.passes)
    return -(-used // bucket) * bucket


def bucket_tokens(recipe: Recipe) -> int:
    """Activations of a bucket: the recipe's number, or as many as a shorter run uses. Of files, a
    whole number of batches: a bucket's remainder is not used, and here every row counts."""
    training = recipe.training
    used = -(-training.total_steps * training.batch_size // recipe.shuffle.passes)
    n = min(recipe.shuffle.bucket_tokens, max(used, training.batch_size))
    return n - n % training.batch_size if recipe.kind == "files" else n
