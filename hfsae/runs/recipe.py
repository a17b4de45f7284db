"""A recipe: its sections and what they hold in full, in memory and in files; where two differ.
Importing this imports no torch.

A *plain* recipe is one as JSON types, as in recipe.yaml.

Many places are written in few words: `layers.{10..15}`, or `layers.{10..15}.mlp:in ->
layers.{}.mlp`. `{10..15}` is each number from 10 to 15, `{10,13,16}` each that is listed, and `{}`
the same one again; `a -> b` reads at a and reconstructs b. In `sae.site` they make an SAE at each
place; in `sae.sites`, a list or a text with commas, one SAE over all, and arrows fill
`sae.target_sites`, for cross-layer transcoders.

**The fields of SAEs' configs** are known without importing these, which takes seconds: so that a
wrong option is told at once. They are read from the source of hfsae/models: a field is an annotated
name in the body of a class, with its default and the text under it, and a class also has its bases'
fields. Variants in users' own modules are known by their classes, once these are imported.
"""

import ast
import json
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_origin, get_type_hints

import yaml

from ..activations import (
    ActivationArguments,
    HarvestArguments,
    ImageArguments,
    ShuffleArguments,
    Split,
    TextArguments,
)
from ..evaluation import EvaluationArguments
from ..evaluation.arguments import AUTO, AUTO_TOKENS
from ..features import CollectArguments
from ..io.bounds import (
    MOST_TOKENS,
    check_least,
    check_most,
    check_n_latents,
    check_seed,
    check_type,
)
from ..io.errors import Damaged, Refused, closest
from ..io.file_names import CHECKPOINTS, FEATURES, FIGURES, RECIPE
from ..io.files import damaged, parse_yaml, write_whole
from ..lm import Site
from ..lm.places import SLASH
from ..training import TrainingArguments
from ..training.arguments import FREE, SHARED

Count = int | Literal["auto"]
# The sections that people change most come first: error messages name the first differences.
TRAINING_SECTIONS = ("sae", "saes", "training", "lm", "lms", "text", "harvest", "activations")
TRAINING_SECTIONS += ("images", "shuffle", "seed")
RESULT_SECTIONS = (*TRAINING_SECTIONS, "evaluation")
SOURCE = "source"
"""The first key of the recipe of an SAE from elsewhere: where it is from."""
# Settings that do not change the result.
_FREE = {*FREE, "cache", "cache_gb", "prefetch", "labels"}
# The wheel has them inside the package, a clone beside its scripts.
_INSIDE = Path(__file__).with_name("shipped")
_FOLDER = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[2] / "scripts" / "recipes"
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
# Shares of training.n_tokens, and the most tokens. At these shares evaluation, examples and names
# take less time together than training does; they are the quickstart's, in two digits.
_EVALUATION = (0.0125, AUTO_TOKENS)
_EXAMPLES = (0.095, 1_000_000)
_NAMES = (0.032, 50_000)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LISTED = re.compile(r"\{(\w+(?:,\w+)+)\}")
_ARROW = "->"
_SHORT = re.compile(r"\{|->")  # in places that are written in few words
_BETWEEN = re.compile(r",(?![^{}]*\})")  # commas that are not within braces
_MOST_PLACES = 1000


@dataclass
class LMArguments:
    """The language model, and the dtype to load it in."""

    name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id or folder of a causal language model, or a .gguf file."""
    kind: Literal["auto"] | None = None
    """"auto": `name` is a vision model that `AutoModel` loads; it reads the recipe's
    images. None: a causal language model."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """dtype of the LM's weights and of harvested activations."""
    source: Literal["auto", "hub", "packaged"] = "auto"
    """"auto": the Hub, or if it cannot be reached, the copy in a Python package."""
    attn_implementation: str | None = None
    """As in transformers; Gemma 2 needs "eager"."""

    def __post_init__(self) -> None:
        for name in ("name", "dtype", "source"):
            if getattr(self, name) is None:
                raise Refused(f"lm.{name} is null; leave it out for the usual one, or give text")
        if isinstance(self.name, Path):
            self.name = str(self.name)
        if not isinstance(self.name, str):
            raise Refused(
                f"the language model must be a Hub id or a folder, as text, got a "
                f"{type(self.name).__name__}"
            )


class Sizes(NamedTuple):
    """The size of each stage after training, in tokens that it reads; 0: the stage is left out."""

    evaluation: int | None
    """None: all held-out text"""
    examples: int
    names: int
    probing: int
    """texts of a task"""
    presets: int
    """seconds"""


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
        self.sae = _sites_in_full(self.sae)
        self.saes = {name: _sites_in_full(own) for name, own in self.saes.items()}
        site = self.sae.get("site")
        if isinstance(site, str) and _SHORT.search(site):  # an SAE at each place
            places = [{"site": at, "target_site": to} for at, to in _places_in(site)]
            if self.saes or self.sae.get("target_site"):
                other = "saes names SAEs" if self.saes else "there is a target_site"
                raise Refused(
                    f"sae.site {site!r} makes an SAE at each place, and {other} too; leave out one"
                )
            if len(places) == 1:
                self.sae |= places[0]
            else:
                del self.sae["site"]
                self.saes = {
                    Site.parse(str(own["site"])).module: {k: v for k, v in own.items() if v}
                    for own in places
                }
        self.lms = _lms_in_full(self.lms) if self.lms else {}
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
        """The training settings of the SAE of this name ("" for a single one)."""
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
        """The size of each stage after training: the recipe's numbers, and for "auto" a share of
        the training's tokens, of two significant digits. Names are shown beside examples: without
        those, "auto" makes no names. Presets are looked for among examples."""
        numbers: list[Any] = [self.evaluation.n_tokens, self.collect_tokens, self.explain_tokens]
        for i, (share, most) in enumerate((_EVALUATION, _EXAMPLES, _NAMES)):
            if numbers[i] == AUTO:
                n = int(float(f"{share * self.training.n_tokens:.1e}"))
                numbers[i] = min(most, max(1, n))
        evaluation, examples, names = numbers
        if self.kind != "text" or self.lms:  # the others need a single language model
            return Sizes(evaluation, examples, 0, 0, 0)
        if self.explain_tokens == AUTO and not examples:
            names = 0
        presets = self.preset_seconds if examples else 0
        return Sizes(evaluation, examples, names, self.probe_texts, presets)

    @property
    def sites(self) -> list[str]:
        """All sites and target sites, each once."""
        several = self.sae_fields().values()
        every = [at for f in several for at in (f.get("site"), f.get("target_site"))]
        lists = ("sites", "target_sites")
        every += [at for f in several for name in lists for at in f.get(name) or ()]
        return list(dict.fromkeys(site for site in every if site))


def _lms_in_full(lms: object) -> dict[str, dict[str, Any]]:
    """The section lms with all fields of each model."""
    if not isinstance(lms, Mapping) or not all(isinstance(one, Mapping) for one in lms.values()):
        raise Refused(
            "lms must hold language models by name, such as {base: {name: ...}, chat: {name: "
            f"...}}}}, got {lms!r}"
        )
    if len(lms) == 1:
        raise Refused(f"lms has one model, {next(iter(lms))}; give lm for a single one")
    known = [field.name for field in fields(LMArguments) if field.name != "kind"]
    in_full = {}
    for name, given in lms.items():
        if not isinstance(name, str) or not name or SLASH in name:
            raise Refused(f"lms cannot have {name!r}: a name stands before the slash of sites")
        if unknown := [key for key in given if key not in known]:
            near = closest(str(unknown[0]), known) or f"; it has {', '.join(known)}"
            raise Refused(f"lms.{name} has no field {unknown[0]!r}{near}")
        if "name" not in given:
            raise Refused(f"lms.{name} has no name, the Hub id or folder of a language model")
        try:
            plain = asdict(LMArguments(**given))
        except Refused as error:
            raise Refused(f"lms.{name}: {error}") from error
        in_full[name] = {key: value for key, value in plain.items() if key != "kind"}
    return in_full


def _sites_in_full(sae: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an SAE with each place of its `sites` and `target_sites` on its own."""
    in_full = dict(sae)
    for name in ("sites", "target_sites"):
        if not (given := in_full.get(name)):
            continue
        texts = _BETWEEN.split(given) if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise Refused(f"sae.{name} must be a list of places such as 'layers.12', got {given!r}")
        places = list[tuple[str, str | None]]()
        for text in map(str.strip, texts):
            places += _places_in(text) if _SHORT.search(text) else [(text, None)]
        targets = [target for _, target in places if target]
        in_full[name] = [site for site, _ in places]
        if not targets:
            continue
        if name == "target_sites" or sae.get("target_sites"):
            raise Refused(
                f"sae.{name} has an arrow ({_ARROW}), and sae.target_sites names targets too; "
                "leave out one"
            )
        if len(targets) != len(places):
            raise Refused("sae.sites has places with an arrow and places without; write all alike")
        in_full["target_sites"] = targets
    return in_full


def _places_in(text: str) -> list[tuple[str, str | None]]:
    """Each place that a text in few words names, with its target or None."""
    ranges, lists = _RANGE.findall(text), _LISTED.findall(text)
    rest = _LISTED.sub("", _RANGE.sub("", text)).replace("{}", "")
    if len(ranges) + len(lists) > 1 or "{" in rest or (not ranges and not lists and "{}" in text):
        raise Refused(
            f"site {text!r} has braces of another form; use {{10..15}} or {{10,13,16}} once, and "
            "{} for the same number again"
        )
    values = lists[0].split(",") if lists else [""]
    if ranges:
        first, last = map(int, ranges[0])
        if not first <= last < first + _MOST_PLACES:
            raise Refused(
                f"site {text!r} counts from {first} to {last}; give the smaller number first"
            )
        values = [str(number) for number in range(first, last + 1)]
    places = []
    for value in values:
        one = _LISTED.sub(value, _RANGE.sub(value, text)).replace("{}", value)
        site, arrow, target = (part.strip() for part in one.partition(_ARROW))
        if arrow and not (site and target):
            raise Refused(f"site {text!r} lacks a side of its arrow; write `a -> b`")
        places.append((site, target or None))
    return places


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


def shipped_recipes(folder: str | None = None) -> dict[str, str]:
    """{name: what it trains}, sorted by name; the description is the first line of each file.

    Args:
        folder: another one's recipes, by path.

    Raises:
        ValueError: that folder has none.
    """
    paths = sorted(Path(folder or _FOLDER).glob("*.yaml"))
    if not paths:
        raise Refused(f"{folder} is no folder with recipes; give one that holds .yaml files")
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    first = (text.partition("\n")[0].lstrip("# ") for text in texts)
    names = (str(path) if folder else path.stem for path in paths)
    return dict(zip(names, first, strict=True))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or else the name of a recipe that comes with hfsae.

    Raises:
        ValueError: there is neither.
    """
    for path in (Path(name), _FOLDER / f"{name}.yaml"):  # a folder of that name is in nobody's way
        if path.is_file():
            return path
    names = list(shipped_recipes())
    near = closest(str(name), names)
    raise Refused(
        f"there is no recipe {str(name)!r}{near}; give a YAML file's path, or one that comes with "
        f"hfsae: {', '.join(names)}"
    )


def read_recipe(name: str | Path) -> Recipe:
    """A recipe from a file, or one that comes with hfsae: "quickstart", "gemma2_2b_16k".

    Raises:
        ValueError: there is no such recipe, or it has an unknown section or field.
    """
    kinds: dict[str, Any] = get_type_hints(Recipe)
    sections = read_sections(find_recipe(name))
    for section, value in sections.items():
        sections[section] = kinds[section](**value) if is_dataclass(kinds[section]) else value
    return Recipe(**sections)


def read_sections(path: Path, kind: type[Recipe] = Recipe) -> dict[str, Any]:
    """The sections of a recipe's file, as they stand there.

    Args:
        kind: of the recipe, which says which sections and fields there are.

    Raises:
        ValueError: it is no YAML mapping, or has an unknown section or field.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise Refused(
            f"the recipe {path} has no sections, such as lm: and training:; `hfsae recipes` "
            "lists recipes that come with hfsae"
        )
    kinds: dict[str, Any] = get_type_hints(kind)
    for name, value in content.items():
        if name not in kinds:
            near = closest(str(name), [*kinds]) or f"; known: {', '.join(kinds)}"
            raise Refused(f"a recipe has no section {name!r}{near}")
        has_fields = is_dataclass(kinds[name])
        if (has_fields or get_origin(kinds[name]) is dict) and not isinstance(value, dict):
            raise Refused(f"section {name} of {path} must hold fields, not {value!r}")
        names = [field.name for field in fields(kinds[name])] if has_fields else []
        for key in value if has_fields else ():
            if key not in names:
                near = closest(str(key), names) or f"; known: {', '.join(names)}"
                raise Refused(f"section {name} has no field {key!r}{near}")
    return content


def load_plain(root: Path) -> dict[str, Any]:
    """The folder's recipe.yaml, by section.

    Raises:
        Damaged: it is no YAML mapping.
    """
    path = root / RECIPE
    try:
        plain = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(damaged(path, error)) from error
    if not isinstance(plain, dict):
        raise Damaged(damaged(path, "no sections"))
    return plain


def is_of_training(path: Path) -> bool:
    """Whether a recipe.yaml is of a training, and not of an SAE from elsewhere."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return not file.readline().startswith(f"{SOURCE}:")


def save_recipe(root: Path, plain: dict[str, Any]) -> None:
    """Write the folder's recipe.yaml."""
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_whole(root / RECIPE, text)


def differences(
    old: dict[str, Any], new: dict[str, Any], sections: Iterable[str] = RESULT_SECTIONS
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, old value, new value) where recipes differ in ways that change the result.

    Fields that `old` predates count as their defaults.

    Args:
        sections: names of sections, or dotted names of fields in them.
    """
    default, rest = as_plain(Recipe()), list[tuple[str, list[Any]]]()
    for section in sections:
        name, _, field = section.partition(".")
        values = [plain.get(name) for plain in (old, new, default)]
        values = [(value or {}).get(field) for value in values] if field else values
        rest.append((section, values))
    while rest:
        key, (ours, theirs, usual) = rest.pop(0)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            usual = usual if isinstance(usual, dict) else {}
            names = sorted({*ours, *theirs} - _FREE)
            three = [[ours.get(n, usual.get(n)), theirs.get(n), usual.get(n)] for n in names]
            rest[:0] = zip([f"{key}.{name}" for name in names], three, strict=True)
        elif ours != theirs:
            yield key, reprlib.repr(ours), reprlib.repr(theirs)


def what_is_set(recipe: Recipe, sections: Iterable[str]) -> dict[str, Any]:
    """The values of sections, or of fields with dotted names, without those that are the default
    and those that do not change a result."""
    plain, default = as_plain(recipe), as_plain(Recipe())
    return {key: _set_in(value_at(plain, key), value_at(default, key)) for key in sections}


def _set_in(value: object, default: object) -> object:
    if not isinstance(value, dict):
        return value
    usual = default if isinstance(default, dict) else {}
    differing = {k: v for k, v in value.items() if k not in _FREE and v != usual.get(k)}
    return {key: _set_in(part, usual.get(key)) for key, part in differing.items()}


def value_at(plain: object, key: str) -> Any:
    """The value at a dotted key of a recipe as JSON types; 0 if there is none."""
    for name in key.split("."):
        plain = plain.get(name, 0) if isinstance(plain, dict) else 0
    return plain


def with_value(recipe: Recipe, key: str, value: object) -> Recipe:
    """The recipe with another value at a dotted key, "field" or "section.field"."""
    section, _, name = key.rpartition(".")
    if not section:
        return replace(recipe, **{name: value})
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def what_matters(recipe: Recipe, name: str) -> dict[str, Any]:
    """Everything that determines the result of one of a recipe's SAEs."""
    plain = as_plain(recipe)
    plain["saes"] = plain["saes"].get(name)
    return _without_free({key: plain[key] for key in RESULT_SECTIONS if key in plain})


def _without_free(value: object) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_free(part) for name, part in value.items() if name not in _FREE}


def as_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON types, as in recipe.yaml, without sections that its inputs do not use."""
    plain = json.loads(json.dumps(asdict(recipe)))
    if recipe.lm.kind is None:
        del plain["lm"]["kind"]
    if not recipe.text.mask_share:  # recipes and hashes from before it stay as they are
        del plain["text"]["mask_share"]
    unused = {*UNUSED[recipe.kind], "lm" if recipe.lms else "lms"}
    return {name: value for name, value in plain.items() if name not in unused}


DEFAULT_VARIANT = "jumprelu_sae"
"""the model_type of a recipe that names none"""
_ROOM = Path(__file__).parents[1] / "models"
_ANNOTATIONS = {"Literal": Literal, "Number": int | float}
_EVERY_MODEL = ("model_type", "dtype", "torch_dtype")  # fields beside the declared ones


class DeclaredField(NamedTuple):
    type: Any
    """None: it is only known by importing"""
    default: Any
    """None without one, too"""
    text: str


class Variant(NamedTuple):
    """A variant as its classes declare it."""

    fields: dict[str, DeclaredField]
    formula: str


def known_variants() -> dict[str, Variant]:
    """The variants by model_type: those of hfsae, and imported ones."""
    known = dict(declared_variants())
    if f"{__name__.partition('.')[0]}.models" in sys.modules:
        from ..models.config import own_fields, variants  # which is there already

        for config in variants():
            if config.model_type not in known:
                every, fields = config.__dataclass_fields__, {}
                for name in sorted(own_fields(config)):
                    kind, default = every[name].type, getattr(config, name, None)
                    fields[name] = DeclaredField(kind, default, "")
                known[config.model_type] = Variant(fields, "a variant of your own")
    return known


def check_sae_fields(recipe: Recipe, given: Iterable[str] = ()) -> None:
    """Check fields of SAEs' configs, as far as that needs neither a model nor torch.

    Args:
        given: fields that the user set explicitly, expecting an effect.

    Raises:
        ValueError: an unknown model_type, a field that no variant has, a given one that no variant
            in the recipe has, one with a value of another type, or an impossible size.
    """
    variants, saes = known_variants(), recipe.sae_fields().values()
    every = {*_EVERY_MODEL, *(name for v in variants.values() for name in v.fields)}
    for of_sae in saes:
        own = variants[check_model_type(of_sae)].fields
        for name in of_sae.keys() - every:
            near = closest(name, [*own]) or closest(name, sorted(every))
            raise Refused(f"sae has no field {name!r}{near or '; `--help_all` lists all'}")
    types = {check_model_type(of_sae) for of_sae in saes}
    for name in given:
        having = sorted(t for t, variant in variants.items() if name in variant.fields)
        if having and not types & {*having}:
            raise Refused(
                f"a {' or '.join(sorted(types))} has no field {name!r}; with sae.model_type "
                f"{' or '.join(having)} there is one"
            )
        for of_sae in saes:
            declared = variants[check_model_type(of_sae)].fields.get(name)
            if declared and declared.type is not None and name in of_sae:
                check_type(f"sae.{name}", of_sae[name], declared.type)
    for of_sae in saes:
        sizes = [of_sae.get(name) for name in ("d_sae", "target_l0")]
        if all(isinstance(size, int | float | None) for size in sizes):
            check_n_latents(*sizes, prefix="sae.")


def check_model_type(fields: Mapping[str, Any]) -> str:
    """The model_type of an SAE's fields."""
    given = fields.get("model_type") or DEFAULT_VARIANT
    if given not in (known := known_variants()):
        raise Refused(
            f"sae.model_type {given!r} is unknown{closest(str(given), [*known])}; hfsae has "
            f"{', '.join(sorted(known))}; import the module of a variant of your own first (a "
            "command: --import MODULE)"
        )
    return given


@cache
def declared_variants() -> dict[str, Variant]:
    """The variants of hfsae."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in _ROOM.glob("*.py")]
    statements = [node for module in modules for node in module.body]
    nodes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}

    def fields_of(name: str) -> dict[str, DeclaredField]:
        bases = [b.id for b in nodes[name].bases if isinstance(b, ast.Name) and b.id in nodes]
        fields = {k: v for base in reversed(bases) for k, v in fields_of(base).items()}
        for node, after in pairwise([*nodes[name].body, ast.Pass()]):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if ast.unparse(node.annotation).startswith("ClassVar"):
                continue
            values = []  # of numbers, texts and built-in types; None of others
            for expression in (node.annotation, node.value):
                try:
                    text = ast.unparse(expression) if expression else "None"
                    values.append(eval(text, dict(_ANNOTATIONS)))
                except NameError:
                    values.append(None)
            under = after.value if isinstance(after, ast.Expr) else None
            text = str(under.value) if isinstance(under, ast.Constant) else ""
            kind, default = values
            fields[node.target.id] = DeclaredField(kind, default, " ".join(text.split()))
        return fields

    variants, given = {}, dict[str, dict[str, Any]]()  # by class, what its body gives a name
    for name, node in nodes.items():
        plain = [n for n in node.body if isinstance(n, ast.Assign)]
        targets = [(n.targets[0], n.value) for n in plain]
        given[name] = {t.id: value for t, value in targets if isinstance(t, ast.Name)}
    for name, node in nodes.items():
        config = getattr(given[name].get("config_class"), "id", None)
        model_type = getattr(given.get(config or "", {}).get("model_type"), "value", None)
        if config and model_type:
            formula = (ast.get_docstring(node) or "").partition("\n")[0]
            variants[model_type] = Variant(fields_of(config), formula)
    return dict(sorted(variants.items()))
