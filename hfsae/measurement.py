"""Make results again: for a run, or for any SAE, in any format and from anywhere.

    a finished run, and its recipe with other fields -> `again` -> evaluation.json or features/

    source -> `settle`: a folder in hfsae's own format -> `measure` -> evaluation.json or features/

For an SAE without a recipe, the caller gives its settings. Each result records under
`measured_with` the model, the text and the norm limits.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .activations import HarvestArguments, Harvester, text_origin
from .cards import refuse_card_of_others
from .convert import save_as
from .hub import beside
from .hub import load as load_sae
from .lm import LoadedLM
from .machine.files import passes, read_json, reading
from .machine.names import (
    CONFIG,
    EVALUATION,
    EVIDENCE,
    EXAMPLES,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    LABELS,
    LATENTS,
    LOG,
    MADE_BY,
    META,
    PROBE,
    TRAINING,
)
from .machine.refused import Refused
from .machine.visible import public_record
from .machine.weights import STAMPED, refuse_mixture, weights_hash
from .models import SAE
from .recipe import (
    MADE_WITH,
    Recipe,
    as_plain,
    check_foreign,
    differences,
    finish,
    load,
    load_plain,
    load_trained,
    norm_limits,
    note_remaking,
    read_rows,
    remaking,
    report,
    save_recipe,
    write_result,
)
from .training.trainer import make_accelerator, sum_products_in_float32

_ABOUT = (CONFIG, LOG, *STAMPED, LATENTS, EXAMPLES, LABELS)
_ABOUT += (EXPLANATIONS, EXPLANATIONS_RECORD, EVIDENCE)
_DTYPES = ("bfloat16", "float16", "float32")
_ATTENTIONS = ("eager", "sdpa")  # others may not be installed


def origin_of(choice: Mapping[str, Any]) -> Path | None:
    """The folder of an SAE in hfsae's own format, with the records beside it; from a repository,
    only these records are fetched, not the weights. None for SAEs of other formats.

    Args:
        choice: arguments of `hfsae.hub.beside`.
    """
    folder = beside(**choice, names=_ABOUT)
    config = None if folder is None else folder / CONFIG
    return folder if config and config.is_file() and "d_sae" in read_json(config) else None


def default_folder(choice: Mapping[str, Any]) -> Path:
    """The default folder of results: runs/NAME, named after the source and the choice."""
    source = str(choice["source"])
    name = Path(source).resolve().name if Path(source).exists() else source.rpartition("/")[2]
    parts = [name, *str(choice.get("subfolder", "")).split("/")]
    parts += [f"{k}_{choice[k]}" for k in ("layer", "width", "l0") if k in choice]
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
    if sae.config.site is None:
        sae.config.site = site
    elif site not in (None, sae.config.site):
        raise Refused(
            f"{choice['source']} was trained at {sae.config.site}, not at {site}; leave out --site"
        )
    return sae


def place(choice: Mapping[str, Any], output: str | None) -> tuple[Path, Path | None]:
    """The folder for an SAE's results, and its own folder if it is in hfsae's own format."""
    origin = origin_of(choice)
    if origin is not None and output is None and Path(choice["source"]).exists():
        return origin, origin
    return Path(output) if output else default_folder(choice), origin


def settle(sae: SAE, origin: Path | None, folder: Path) -> None:
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
            _copy(origin, staged)
        held = sorted(p.name for p in folder.iterdir() if not passes(p))
        if held and weights_hash(folder) != weights_hash(staged):
            what = "another SAE" if CONFIG in held else f"something else ({held[0]})"
            raise Refused(f"the folder {folder} holds {what}; give another --output_dir")
        if CONFIG not in held:
            _move(staged, folder)


def _move(staged: Path, folder: Path) -> None:
    """Copy weights first, the config last: so a folder with a config is complete."""
    files = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda n: (n.name == CONFIG, n.suffix != ".safetensors")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, folder / name)


def _copy(origin: Path, staged: Path) -> None:
    weights = [path.name for path in origin.glob("model*.safetensors*")]
    for name in (*weights, *_ABOUT):
        if (origin / name).is_file():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, staged / name)


def defaults(sae: SAE) -> dict[str, Any]:
    """Recipe fields from an SAE's config; its names are never used as paths."""
    config = sae.config
    name = config.model_name
    values: dict[str, Any] = {"text.held_out_fraction": 1.0}  # none of it is for training
    if isinstance(name, str) and not name.startswith(("/", ".", "~")) and not Path(name).exists():
        values |= {"lm.name": name, "lm.revision": config.model_revision}
    choices = {
        "lm.dtype": (config.model_dtype, _DTYPES),
        "lm.attn_implementation": (config.model_attention, _ATTENTIONS),
        "text.bos": (config.bos, ("row", "document", "none")),
    }
    values |= {key: value for key, (value, allowed) in choices.items() if value in allowed}
    return {key: value for key, value in values.items() if value is not None}


def refuse_no_tokens(recipe: Recipe, result: str) -> None:
    """
    Raises:
        ValueError: the recipe gives this result 0 tokens.
    """
    if {EVALUATION: recipe.sizes.evaluation, META: recipe.sizes.examples}[result] == 0:
        field = "evaluation.n_tokens" if result == EVALUATION else "collect_tokens"
        raise Refused(
            f"{field} is 0, so `hfsae {MADE_BY[result]}` would do nothing; give 1 or more"
        )


def refuse_texts(recipe: Recipe, origin: Path | None) -> None:
    """Check the evaluation's foreign texts for an SAE without a recipe.

    Args:
        origin: folder of an SAE in hfsae's own format; its training's record names the text.

    Raises:
        ValueError: a text cannot be read, or is a part of the training text.
    """
    path = None if origin is None else origin / TRAINING
    trained_on = None
    if path is not None and path.is_file():
        with reading(path):
            trained_on = read_json(path).get("text", {}).get("dataset")
    check_foreign(recipe.evaluation, recipe.text, trained_on)


def again(
    recipe: Recipe, folder: Path, home: Path, result: str, tell: Callable[[str], None] = print
) -> None:
    """Make one result of a finished run again, with its figures and card. Lock the run's folder
    first (`hfsae.recipe.alone`).

    If the recipe's sections for this result changed, or a remake was interrupted, the result is
    made again for all SAEs of the run: one recipe.yaml describes them all.

    Args:
        recipe: the run's recipe, with changed fields in the sections that affect this result.
        folder: the SAE's folder.
        home: the run's folder, with its recipe.yaml.
        result: "evaluation.json" or "features/meta.json".

    Raises:
        ValueError: another section differs from the run's recipe; or 0 tokens.
    """
    sections, verb = MADE_WITH[result], MADE_BY[result]
    old, new = as_plain(Recipe()) | load_plain(home), as_plain(recipe)
    for key, _, _ in differences(old, new, set(new) - set(sections)):
        raise Refused(
            f"`hfsae {verb}` cannot change {key}, only {' and '.join(sections)}: the rest "
            "describes how this SAE was trained"
        )
    refuse_no_tokens(recipe, result)
    if result == EVALUATION:
        check_foreign(recipe.evaluation, recipe.text, recipe.text.dataset)
    others: list[Path] = []
    unfinished = remaking(home)
    if result in unfinished or next(differences(old, new, sections), None):
        siblings = (home / name for name in recipe.sae_fields())
        others = [f for f in siblings if (f / CONFIG).is_file() and not f.samefile(folder)]
    sum_products_in_float32()
    device = str(make_accelerator(recipe.training).device)
    sae = load_trained(folder)  # first: a damaged file fails before the language model loads
    norm_limits(sae, folder)
    loaded = load(recipe.lm, device)
    if others:
        tell(f"{verb}: all {1 + len(others)} SAEs of {home}, since they share one recipe.yaml")
    note_remaking(home, {*unfinished, result})
    report(recipe, loaded, sae, folder, again=[result])
    for other in others:
        report(recipe, loaded, load_trained(other), other, again=[result])
    save_recipe(home, new)
    note_remaking(home, {*unfinished} - {result})


def measure(recipe: Recipe, sae: SAE, folder: Path, result: str, source: str) -> None:
    """Make one result in a folder that holds an SAE, and its figures and card again.

    Only the test side of the text is read; evaluation may be set to another.

    Args:
        result: "evaluation.json" or "features/meta.json".
        source: the SAE's origin, for the record.
    """
    refuse_card_of_others(folder)
    refuse_mixture(folder, [TRAINING, PROBE])  # no measurement remakes these
    sae.config.places  # noqa: B018 - an SAE without a site fails before the language model loads
    sum_products_in_float32()
    loaded = load(recipe.lm, str(make_accelerator(recipe.training).device))
    sae.to(loaded.lm.device)  # pyright: ignore
    limits = _limits(recipe, loaded, sae, folder)
    revision = getattr(loaded.lm.config, "_commit_hash", None) or recipe.lm.revision
    note = {
        "source": source,
        "lm": {**asdict(recipe.lm), "origin": loaded.origin, "revision": revision},
        "text": {**asdict(recipe.text), "origin": text_origin(recipe.text)},
        "norm_limits": limits,
    }
    more = public_record({"measured_with": note})
    write_result(result, recipe, loaded, sae, folder, limits, side="test", more=more)
    finish(folder)


def _limits(recipe: Recipe, loaded: LoadedLM, sae: SAE, folder: Path) -> dict[str, float]:
    """Norm limits: from the first rows if a ratio is given, else from the record of the SAE's
    training, else no limits."""
    if recipe.harvest.max_norm_ratio is not None:
        rows = next(iter(read_rows(recipe, loaded, recipe.evaluation.side, None)))
        args = HarvestArguments(recipe.harvest.rows, recipe.harvest.max_norm_ratio)
        harvester = Harvester(loaded.lm, list(dict.fromkeys(sae.config.places)), args)
        harvester(rows)
        return harvester.norm_limits
    return norm_limits(sae, folder) if (folder / TRAINING).is_file() else {}
