"""Any SAE, with the language model and the text that it is measured on.

A source (a folder or a repository, in any format) becomes an SAE in a folder of its own
(`find_sae`, `open_folder`). That of a run has the run's recipe. One from elsewhere gets a
recipe.yaml beside it with its first measure: its source, and the sections lm, text, harvest and
sae.site that the next measure takes. What its files name is read in this order, and what stands
first wins:

    given  ->  recipe.yaml  ->  measured_with of its results  ->  training.json  ->  its config

Files may come from anywhere: only recipe.yaml, which is never published, may name a path of this
machine.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ..activations import (
    HarvestArguments,
    Harvester,
    MeasuredText,
    TextArguments,
    apart,
    check_text,
    plain_text,
    text_origin,
)
from ..activations.held_out import DIGEST, HELD_OUT
from ..cards import refuse_card_of_others
from ..convert import save_as
from ..features import FeatureStore, feature_page
from ..features.labels import read_names
from ..hub import files_beside, load_set
from ..hub import load as load_sae
from ..io.checksums import STAMPED, weights_hash
from ..io.errors import Refused, closest
from ..io.file_names import (
    CONFIG,
    EVALUATION,
    EVIDENCE,
    EXAMPLES,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    LABELS,
    LATENTS,
    LOG,
    META,
    PRESETS,
    RECIPE,
    TRAINING,
)
from ..io.files import passes, read_json, reading
from ..io.local_paths import LOCAL_FILES, is_folder
from ..lm import LoadedLM, widths_of
from ..models import SAE
from ..packaged import shipped_at
from ..training.trainer import make_accelerator, sum_products_in_float32
from .folder import finish, home_of, load_trained, norm_limits, trained_folder
from .inputs import load, read_rows
from .recipe import (
    SOURCE,
    LMArguments,
    Recipe,
    Sections,
    is_of_training,
    load_plain,
    read_recipe,
    save_recipe,
)
from .results import locked_run

_ABOUT = (CONFIG, LOG, *STAMPED, LATENTS, EXAMPLES, LABELS, PRESETS)
_ABOUT += (EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT, EVIDENCE)
_PARTS = ("subfolder", "layer", "width", "l0")
_CHOICES = {
    "dtype": ["bfloat16", "float16", "float32"],
    "attn_implementation": ["eager", "sdpa"],  # others may not be installed
}
_OF_CONFIG = {"name": "model_name", "revision": "model_revision"}
_OF_CONFIG |= {"dtype": "model_dtype", "attn_implementation": "model_attention"}


@dataclass
class SAEInContext:
    """An SAE, the folder of its results, and the recipe that these follow."""

    folder: Path
    """in hfsae's own format; results go there"""
    sae: SAE
    recipe: Recipe
    """its sections lm, text and harvest set what the SAE is measured on"""
    home: Path | None = None
    """the folder of its run, with recipe.yaml; None: the SAE is from elsewhere"""
    origin: Path | None = None
    """of an SAE from elsewhere: its own folder, if that is in hfsae's format"""
    source: str = ""
    """where it is from, for records"""

    @property
    def root(self) -> Path:
        """The folder to lock."""
        return self.home or self.folder


def of_run(folder: Path) -> SAEInContext:
    """The SAE in the folder of a run.

    Raises:
        ValueError: the folder belongs to no run, or is damaged.
    """
    home = home_of(folder)
    if home is None:
        raise Refused(
            f"{folder} belongs to no run: without a recipe.yaml its language model and held-out "
            "text are unknown; `hfsae train` writes one"
        )
    return SAEInContext(folder, load_trained(folder), read_recipe(home / RECIPE), home)


def check_held_out(placed: SAEInContext, why: str) -> None:
    """Check that the text of an SAE holds out documents.

    Args:
        why: what needs documents that training has not read.

    Raises:
        ValueError: the text holds out no documents, or cannot be read.
    """
    text = placed.recipe.text
    if text.held_out_fraction == 0:
        where = placed.home / RECIPE if placed.home else placed.source
        raise Refused(
            f"{where} holds out no documents (text.held_out_fraction is 0), but {why} "
            "that training has not read; train with 0.05, or give --text.dataset with other text "
            "(and --text.held_out_fraction 1.0 where its training text is not on this machine)"
        )
    if placed.home is None:
        check_text(text, "test")


def limits_of(placed: SAEInContext, loaded: LoadedLM) -> dict[str, float]:
    """By site, the largest norm of an activation that counts: from the record of the training; for
    an SAE from elsewhere from the first rows, if a ratio is given. Without either, no limits."""
    recipe, sae = placed.recipe, placed.sae
    if placed.home is None and recipe.harvest.max_norm_ratio is not None:
        rows = next(iter(read_rows(recipe, loaded, recipe.evaluation.side, None)))
        args = HarvestArguments(recipe.harvest.rows, recipe.harvest.max_norm_ratio)
        harvester = Harvester(loaded.lm, [*widths_of(sae.config)], args)
        harvester(rows)
        return harvester.norm_limits
    has_record = placed.home is not None or (placed.folder / TRAINING).is_file()
    return norm_limits(sae, placed.folder) if has_record else {}


def refuse_without_text(placed: SAEInContext) -> None:
    """Refuse an SAE of activations that are not text's, where a language model is needed."""
    if placed.recipe.lms:
        raise Refused(
            f"{placed.folder} holds an SAE over several language models "
            f"({', '.join(placed.recipe.lms)}), and this runs a single one; `hfsae diff` compares "
            "them, and `hfsae show` and `hfsae demo` show what its latents fire on"
        )
    if placed.recipe.kind != "text":
        raise Refused(
            f"{placed.folder} holds an SAE of {placed.recipe.kind}, so there is no language model "
            "and no text for this; `hfsae show` and `hfsae demo` show what its latents fire on"
        )


def load_lm_for(*placed: SAEInContext) -> LoadedLM:
    """The language model of SAEs that share one, with them on its device; from here on the process
    sums products in float32."""
    recipe = placed[0].recipe
    refuse_without_text(placed[0])
    sum_products_in_float32()
    loaded = load(recipe.lm, str(make_accelerator(recipe.training).device))
    for one in placed:
        one.sae.to(cast(torch.device, loaded.lm.device))
    return loaded


def remember(placed: SAEInContext) -> None:
    """Write the recipe of an SAE from elsewhere into its folder: the next measure takes the same.
    It holds paths of this machine, and is never published."""
    if placed.home is not None:
        return
    recipe = placed.recipe
    text = plain_text(recipe.text)
    is_given = isinstance(recipe.text, MeasuredText) and recipe.text.rule == "given"
    if text["held_out_fraction"] == 1 and not is_given:
        del text["held_out_fraction"]  # which follows from the text of the training
    plain = {"lm": asdict(recipe.lm), "text": text, "harvest": asdict(recipe.harvest)}
    for section, field in (("lm", "name"), ("text", "dataset")):
        value = plain[section][field]
        if isinstance(value, str) and Path(value).exists():
            plain[section][field] = str(Path(value).absolute())
    sae = {"sae": {"site": placed.sae.config.site}}
    save_recipe(placed.folder, {SOURCE: placed.source, **plain, **sae})


def find_sae(
    choice: Mapping[str, Any],
    given: Sections | None = None,
    *,
    site: str | None = None,
    output_dir: str | Path | None = None,
) -> SAEInContext:
    """The SAE of a source, the folder of its results, and the language model and text of its
    measures. Nothing is written: `open_folder` does that.

    For an SAE of a run these are the run's. For one from elsewhere they are in the files beside
    it, as far as these name them; the results go to its own folder if that is a local one in
    hfsae's format, and to runs/NAME otherwise.

    Args:
        choice: arguments of `hfsae.load`: source, subfolder, layer, width, l0, revision.
        given: fields of a recipe, by section; they win.
        site: for an SAE that names none.
        output_dir: another folder for the SAE and its results.

    Raises:
        ValueError: there is no such SAE, or neither it nor the arguments name a language model or a
            site.
    """
    given, folder, source = given or {}, run_folder(choice), str(choice["source"])
    if folder is not None and output_dir is None:
        placed = of_run(folder)
        _put_at(placed.sae, site, source)
        text, (_, digest) = placed.recipe.text, trained_text([folder])
        placed.recipe = with_given(placed.recipe, given, text, text.held_out_fraction, digest)
        return placed
    sae = _load_at(choice, site)
    config, known = sae.config, Sections()
    target, origin = place(choice, output_dir)
    if folder is not None:
        base = read_recipe(Path(home_of(folder) or folder) / RECIPE)
        trained, fraction = base.text, base.text.held_out_fraction
        _, digest = trained_text([folder])
    else:
        folders = [*dict.fromkeys(path for path in (target, origin) if path is not None)]
        known = known_fields(config.to_dict(), folders)
        base, (trained, digest) = recipe_of(known), trained_text(folders[::-1])
        fraction = known["text"].get("held_out_fraction")
        if "name" not in {**known["lm"], **given.get("lm", {})}:
            raise Refused(
                f"{source} does not name its language model; give --lm.name (in Python model=)"
            )
    recipe = with_given(base, given, trained, fraction, digest)
    if config.where is None:
        config.site = known.get("sae", {}).get("site")
        if config.where is None:
            raise Refused(
                f"{source} does not name its site; give --site (in Python site=), such as "
                "'layers.12'"
            )
        origin = origin if origin == target else None  # its config is written anew, with the site
    config.model_name = config.model_name or recipe.lm.name
    named = Path(source).resolve().name if Path(source).exists() else source
    words = [named, *(f"{k}={v}" for k, v in choice.items() if k != "source" and v)]
    return SAEInContext(target, sae, recipe, None, origin, " ".join(words))


def find_saes(
    choices: Sequence[Mapping[str, Any]],
    given: Sections | None = None,
    *,
    site: str | None = None,
    output_dir: str | Path | None = None,
) -> list[SAEInContext]:
    """Several SAEs as `find_sae` finds each.

    Args:
        output_dir: for one SAE its folder; for several, where each gets a folder of its own.
    """
    found = []
    for choice in choices:
        own = output_dir
        if output_dir is not None and len(choices) > 1:
            own = Path(output_dir) / default_folder(choice).name
        found.append(find_sae(choice, given, site=site, output_dir=own))
    return found


def load_arguments(source: str | Path, **options: object) -> dict[str, Any]:
    """Arguments of `hfsae.load`. A repository's id may be followed by the folder of an SAE in it:
    name/repository/layers.12/l0_50.

    Raises:
        ValueError: both such an id and a subfolder are given, an option is unknown, or the source
            is not a path, for example a loaded SAE.
    """
    if not isinstance(source, str | Path):
        raise Refused(
            f"source must be a folder, or a repository as 'name/repository', got a "
            f"{type(source).__name__}"
        )
    known = (*_PARTS, "revision")
    for name in {*options} - {*known}:
        raise Refused(f"there is no option {name!r}{closest(name, known)}")
    choice = {name: value for name, value in options.items() if value not in (None, "")}
    parts = str(source).split("/")
    if len(parts) < 3 or str(source).startswith((".", "/", "~")) or Path(source).exists():
        return {"source": str(source), **choice}
    if "subfolder" in choice:
        raise Refused(f"{source} names a folder, and so does subfolder; give one of them")
    return {"source": "/".join(parts[:2]), "subfolder": "/".join(parts[2:]), **choice}


@contextmanager
def open_folder(placed: SAEInContext) -> Iterator[SAEInContext]:
    """A block in which the SAE's folder is locked and holds its weights; at its end the folder has
    a recipe, too.

    Raises:
        ValueError: the folder holds another SAE, something else, or a card that hfsae did not
            write; or another process works there.
    """
    with locked_run(placed.root, [placed.folder]):
        if placed.home is None:
            refuse_card_of_others(placed.folder)
            fill_folder(placed.sae, placed.origin, placed.folder)
        yield placed
        remember(placed)


@contextmanager
def own_folder(choice: Mapping[str, Any], site: str | None = None) -> Iterator[Path]:
    """A folder that holds the SAE of a choice in hfsae's own format, with what was measured of it,
    to copy from: its own, or runs/NAME if an earlier measure made that, or else a temporary one.

    Raises:
        ValueError: there is no such SAE.
    """
    folder, origin = place(choice, None)
    if folder == origin:
        yield folder
        return
    with _temporary(choice, site) as (staged, is_measured):
        if not is_measured:
            finish(staged)
        yield folder if is_measured else staged


def results_folder(choice: Mapping[str, Any]) -> Path | None:
    """The folder with what was measured of an SAE: runs/NAME, if an earlier measure made that, or
    else its own, if that is in hfsae's format; None if there is neither.

    Raises:
        ValueError: there is no such SAE.
    """
    here = _folder_here(choice)
    if here is not None and (home_of(here) is not None or weights_hash(here) is None):
        return here  # of a run; or without weights, so that nothing else can be measured of it
    folder, origin = place(choice, None)
    if folder == origin or not (folder / CONFIG).is_file():
        return origin
    with _temporary(choice) as (_, is_measured):
        return folder if is_measured else origin


@contextmanager
def _temporary(choice: Mapping[str, Any], site: str | None = None) -> Iterator[tuple[Path, bool]]:
    """A temporary folder with the SAE of a choice in hfsae's own format, and whether runs/NAME
    holds the same."""
    folder, origin = place(choice, None)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()
        fill_folder(_load_at(choice, site), origin, staged)
        is_there = (folder / CONFIG).is_file() and weights_hash(folder) == weights_hash(staged)
        yield staged, is_there


def run_folder(choice: Mapping[str, Any]) -> Path | None:
    """The folder of the SAE of a choice, if it belongs to a run on this machine.

    Raises:
        ValueError: its training is not finished, or no SAE fits the choice.
    """
    folder = _folder_here(choice)
    return folder if folder is not None and home_of(folder) is not None else None


def _folder_here(choice: Mapping[str, Any]) -> Path | None:
    """The folder on this machine of an SAE in hfsae's own format."""
    folder = Path(choice["source"])
    is_own = (folder / CONFIG).is_file() and "d_sae" in read_json(folder / CONFIG)
    is_whole = not any(choice.get(part) not in (None, "") for part in _PARTS)
    if is_whole and (is_own or (folder / RECIPE).is_file()):
        return trained_folder(choice["source"])
    return origin_of(choice) if folder.exists() else None


def origin_of(choice: Mapping[str, Any]) -> Path | None:
    """The folder of an SAE in hfsae's own format, with the records beside it; from a repository,
    only these records are fetched, not the weights. None for SAEs of other formats.

    Args:
        choice: arguments of `hfsae.hub.beside`.
    """
    folder = files_beside(**choice, names=_ABOUT)
    config = None if folder is None else folder / CONFIG
    return folder if config and config.is_file() and "d_sae" in read_json(config) else None


def default_folder(choice: Mapping[str, Any]) -> Path:
    """The default folder of results: runs/NAME, named after the source and the choice."""
    source = str(choice["source"])
    name = Path(source).resolve().name if Path(source).exists() else source.rpartition("/")[2]
    parts = [name, *str(choice.get("subfolder") or "").split("/")]
    parts += [f"{k}_{choice[k]}" for k in ("layer", "width", "l0") if choice.get(k) is not None]
    return Path("runs", "-".join(filter(None, parts)))


def _load_at(choice: Mapping[str, Any], site: str | None) -> SAE:
    """The SAE of a choice; with the site, where its config has none."""
    sae = load_sae(**choice)
    _put_at(sae, site, str(choice["source"]))
    return sae


def _put_at(sae: SAE, site: str | None, source: str) -> None:
    config = sae.config
    if config.where is None:
        config.site = site
    elif site not in (None, config.where):
        raise Refused(f"{source} was trained at {config.where}, not at {site}; leave out --site")


def place(choice: Mapping[str, Any], output: str | Path | None) -> tuple[Path, Path | None]:
    """The folder for an SAE's results, and its own folder if it is in hfsae's own format: the same,
    where it may be written to and does not come with hfsae."""
    origin = origin_of(choice)
    is_here = origin is not None and output is None and Path(choice["source"]).exists()
    if origin is not None and is_here and shipped_at(origin) is None and os.access(origin, os.W_OK):
        return origin, origin
    return Path(output) if output else default_folder(choice), origin


def fill_folder(sae: SAE, origin: Path | None, folder: Path) -> None:
    """Put the SAE into a folder in hfsae's own format. Lock the folder first.

    Args:
        origin: folder of an SAE in that format, whose files are copied.

    Raises:
        ValueError: the folder holds another SAE, or something else.
    """
    if origin is not None and origin.resolve() == folder.resolve():
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staged = Path(scratch) / "sae"
        if origin is None:
            save_as(sae, staged, "hfsae")
        else:
            weights = [path.name for path in origin.glob("model*.safetensors*")]
            for name in (*weights, *_ABOUT):
                if (origin / name).is_file():
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(origin / name, staged / name)
        held = sorted(p.name for p in folder.iterdir() if not passes(p))
        if held and weights_hash(folder) != weights_hash(staged):
            what = "another SAE" if CONFIG in held else f"something else ({held[0]})"
            raise Refused(f"the folder {folder} holds {what}; give another --output_dir")
        if CONFIG in held:
            return
        # Weights first, the config last: so a folder with a config is complete.
        files = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
        for name in sorted(files, key=lambda n: (n.name == CONFIG, n.suffix != ".safetensors")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, folder / name)


def known_fields(config: Mapping[str, Any], folders: Sequence[Path]) -> Sections:
    """Fields of a recipe's sections lm, text and harvest, and `sae` with the site.

    Args:
        config: the SAE's.
        folders: folders with files of this SAE; the first one is read first.
    """
    about = {field: config.get(name) for field, name in _OF_CONFIG.items()}
    bos = config.get("bos")
    sections: Sections = {"lm": _lm_of(about) or _precision(about), "text": {}}
    if bos in ("row", "document", "none"):
        sections["text"]["bos"] = bos
    for name in (TRAINING, EVALUATION, META):  # the most telling last
        for folder in reversed(folders):
            if not (folder / name).is_file():
                continue
            record = read_json(folder / name)
            record = record if name == TRAINING else _mapping(record.get("measured_with"))
            if lm := _lm_of(record.get("lm")):
                is_same = lm["name"] == sections["lm"].get("name")
                sections["lm"] = (sections["lm"] if is_same else {}) | lm
            if text := _text_of(record.get("text")):
                rule = _mapping(record["text"].get(HELD_OUT)).get("rule")
                if text.get("held_out_fraction") == 1 and rule != "given":
                    del text["held_out_fraction"]  # which no user gave
                sections["text"] = text
    for folder in reversed(folders):
        path = folder / RECIPE
        if path.is_file() and not is_of_training(path):
            plain = load_plain(folder)
            with reading(path):
                recipe_of(plain)  # refuses what no field can have
                sections |= {name: plain[name] for name in ("lm", "text", "harvest", "sae")}
    return sections


def recipe_of(known: Sections) -> Recipe:
    """A recipe with these fields; all documents are held out unless a share is given."""
    lm, text, harvest = (known.get(name, {}) for name in ("lm", "text", "harvest"))
    return Recipe(
        lm=LMArguments(**lm),
        text=TextArguments(**{"held_out_fraction": 1.0, **text}),
        harvest=HarvestArguments(**harvest),
    )


def with_given(
    recipe: Recipe,
    given: Sections,
    trained: TextArguments | None,
    fraction: float | None = None,
    digest: str | None = None,
) -> Recipe:
    """The recipe with the fields that a user gives. Another language model has no revision of the
    old one's; of every text only documents that training has not read are on the test side.

    Args:
        trained: the text of the SAE's training; None: unknown.
        fraction: the share of the recipe's text that a user wanted held out, if one did.
        digest: of the training's text as it was; None: not known.
    """
    lm, text, base = given.get("lm", {}), given.get("text", {}), recipe
    if lm.get("name", recipe.lm.name) != recipe.lm.name:
        kept = {"dtype": recipe.lm.dtype, "attn_implementation": recipe.lm.attn_implementation}
        base = replace(base, lm=LMArguments(**kept))
    if text.get("dataset", recipe.text.dataset) != recipe.text.dataset:
        size, bos = recipe.text.context_size, recipe.text.bos
        base, fraction = replace(base, text=TextArguments(context_size=size, bos=bos)), None
    sections: dict[str, Any] = {}
    for name, value in given.items():
        old = getattr(base, name)
        has_fields = hasattr(old, "__dataclass_fields__")
        sections[name] = replace(old, **value) if has_fields else value
    new = replace(base, **sections)
    fraction = text.get("held_out_fraction", fraction)
    return replace(new, text=apart(new.text, trained, fraction, digest))


def trained_text(folders: Sequence[Path]) -> tuple[TextArguments | None, str | None]:
    """The text of an SAE's training, from the record in the first folder that has one, and its
    digest as it was; None where the record has no text. Local files and documents of a list cannot
    be found by their record: their name is then one that no file has."""
    path = next((f / TRAINING for f in folders if (f / TRAINING).is_file()), None)
    about = {} if path is None else _mapping(read_json(path).get("text"))
    digest = about.get(DIGEST)
    if path is None or not isinstance(about.get("dataset"), str):
        return None, digest
    if text := _text_of(about):
        return TextArguments(**text), digest
    shares = ("held_out_fraction", "validation_fraction")
    name = about["dataset"].rpartition("/")[2]
    with reading(path):
        text = TextArguments(
            f"{name} ({about.get('origin', LOCAL_FILES)})",
            **{share: about[share] for share in shares if share in about},
        )
    return text, digest


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lm_of(record: object) -> dict[str, Any]:
    """Fields of `lm` from a record of others; none, if it names a path."""
    about = _mapping(record)
    name, revision = about.get("name"), about.get("revision")
    if not isinstance(name, str) or is_folder(about) or _is_path(name):
        return {}
    own = {"name": name} | ({"revision": revision} if isinstance(revision, str) else {})
    return own | _precision(about)


def _precision(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key, allowed in _CHOICES.items() if about.get(key) in allowed}


def _text_of(record: object) -> dict[str, Any]:
    """Fields of `text` from a record of others; none, if that is not packaged or on the Hub."""
    about, names = _mapping(record), {field.name for field in fields(TextArguments)}
    text = {name: value for name, value in about.items() if name in names}
    if not isinstance(text.get("dataset"), str) or _is_path(text["dataset"]):
        return {}
    try:
        origin = text_origin(TextArguments(**text))
    except (ValueError, TypeError):
        return {}
    is_there = origin != LOCAL_FILES and about.get("origin", origin) == origin
    return text if is_there else {}


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def open_transcoders(
    source: str | Path, *, subfolder: str = "", revision: str | None = None
) -> tuple[
    dict[str, SAE], dict[str, dict[int, str]], dict[str, Callable[[int], Mapping[str, Any]]]
]:
    """A set of transcoders for graphs, from a folder or a repository, with what lies beside their
    weights.

    Returns:
        By the paths of transcoders below the source: these; {latent: label}, people's, else names
        that `hfsae explain` gave; and, of those with a feature store, what gives a latent's page.

    Raises:
        ValueError: as `hfsae.load_set`; or what lies beside them is damaged or of other weights.
    """
    beside = (META, LATENTS, EXAMPLES, LABELS, EXPLANATIONS, EXPLANATIONS_RECORD, EVIDENCE)
    saes, labels, pages = load_set(source, subfolder=subfolder, revision=revision), {}, {}
    for path in saes:
        home = files_beside(source, beside, subfolder=path, revision=revision)
        labels[path] = {} if home is None else read_names(home)
        if home is not None and (home / META).is_file():
            pages[path] = partial(feature_page, FeatureStore.load(home))
    return saes, labels, pages
