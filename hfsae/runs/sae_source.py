"""From a source (a folder or a repository, in any format) to an SAE in a folder of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cards import refuse_card_of_others
from ..convert import save_as
from ..hub import files_beside
from ..hub import load as load_sae
from ..io.checksums import STAMPED, weights_hash
from ..io.files import passes, read_json
from ..io.file_names import (
    CONFIG,
    EVIDENCE,
    EXAMPLES,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    LABELS,
    LATENTS,
    LOG,
    PRESETS,
    RECIPE,
)
from ..io.errors import Refused, closest
from ..models import SAE
from ..packaged import shipped_at
from .context import SAEInContext
from .fields import Sections
from .recipe_files import read_recipe
from .context import of_run, remember
from .folder import home_of, is_of_a_run, locked_run, trained_folder
from .stages import finish
from .recipe_of_sae import known_fields, recipe_of, trained_text, with_given

_ABOUT = (CONFIG, LOG, *STAMPED, LATENTS, EXAMPLES, LABELS, PRESETS)
_ABOUT += (EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT, EVIDENCE)
_PARTS = ("subfolder", "layer", "width", "l0")


def find_sae(
    choice: Mapping[str, Any],
    given: Sections | None = None,
    *,
    site: str | None = None,
    output_dir: str | Path | None = None,
) -> SAEInContext:
    """The SAE of a source, the folder of its results, and the language model and text of its
    measures. Nothing is written: `filled` does that.

    For an SAE of a run these are the run's. For one from elsewhere they are in the files beside
    it, as far as these name them (`hfsae.runs.recipe_of_sae`); the results go to its own folder
    if that is a local one in hfsae's format, and to runs/NAME otherwise.

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
        own, (_, digest) = placed.recipe.text, trained_text([folder])
        how = (own, own.held_out_fraction, digest)
        placed.recipe = with_given(placed.recipe, given, *how)
        return placed
    sae = load_at(choice, site)
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


def chosen(source: str | Path, **options: object) -> dict[str, Any]:
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
def filled(placed: SAEInContext) -> Iterator[SAEInContext]:
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
    with _staged(choice, site) as (staged, is_measured):
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
    with _staged(choice) as (_, is_measured):
        return folder if is_measured else origin


@contextmanager
def _staged(choice: Mapping[str, Any], site: str | None = None) -> Iterator[tuple[Path, bool]]:
    """A temporary folder with the SAE of a choice in hfsae's own format, and whether runs/NAME
    holds the same."""
    folder, origin = place(choice, None)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()
        fill_folder(load_at(choice, site), origin, staged)
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
    source = choice["source"]
    if is_of_a_run(source) and not any(choice.get(part) not in (None, "") for part in _PARTS):
        return trained_folder(source)
    return origin_of(choice) if Path(source).exists() else None


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


def load_at(choice: Mapping[str, Any], site: str | None) -> SAE:
    """The SAE of a choice, with its site.

    Args:
        choice: arguments of `hfsae.load`.
        site: for an SAE without a site in its config.

    Raises:
        ValueError: the config names another site.
    """
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
