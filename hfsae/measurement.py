"""Any SAE, of any format and from anywhere, measured on a language model and a text.

    source -> `settle`: a folder in hfsae's own format -> `measure` -> evaluation.json or features/

What a trained SAE's recipe tells has to be given here. Each result notes under `measured_with` the
model, the text and the norm limits that it was made with.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .activations import HarvestArguments, Harvester, text_origin
from .card import refuse_card_of_others
from .convert import save_as
from .lm import LoadedLM
from .models import SAE
from .models.probe import NAME as PROBE
from .public import public_record
from .recipe import Recipe, finish, load, norm_limits, read_rows, write_result
from .records import passes, read_json
from .suite import beside
from .training.trainer import make_accelerator
from .weights import RECORDS, refuse_mixture, weights_hash

_FEATURES = tuple(f"features/{name}" for name in ("latents.parquet", "examples.parquet"))
_ABOUT = ("config.json", "log.jsonl", *RECORDS, *_FEATURES, "features/labels.json")
_DTYPES = ("bfloat16", "float16", "float32")
_ATTENTIONS = ("eager", "sdpa")  # others may not be installed here


def origin_of(choice: Mapping[str, Any]) -> Path | None:
    """The folder of an SAE in hfsae's own format, with the records beside it; of a repository, what
    it has of them is fetched, and no weights. None for SAEs of other formats.

    Args:
        choice: arguments of `hfsae.suite.beside`.
    """
    folder = beside(**choice, names=_ABOUT)
    config = None if folder is None else folder / "config.json"
    return folder if config and config.is_file() and "d_sae" in read_json(config) else None


def default_folder(choice: Mapping[str, Any]) -> Path:
    """Where results go if nobody says where: runs/NAME, after the source and what was chosen."""
    source = str(choice["source"])
    name = Path(source).resolve().name if Path(source).exists() else source.rpartition("/")[2]
    parts = [name, *str(choice.get("subfolder", "")).split("/")]
    parts += [f"{k}_{choice[k]}" for k in ("layer", "width", "l0") if k in choice]
    return Path("runs", "-".join(filter(None, parts)))


def settle(sae: SAE, origin: Path | None, folder: Path) -> None:
    """Have a folder hold the SAE in hfsae's own format. Lock it before.

    Args:
        origin: of an SAE in that format, from where its files are copied.

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
            what = "another SAE" if "config.json" in held else f"something else ({held[0]})"
            raise ValueError(f"the folder {folder} holds {what}; give another --output_dir")
        if "config.json" not in held:
            _move(staged, folder)


def _move(staged: Path, folder: Path) -> None:
    """Weights first, the config last: so a folder with a config holds all of it."""
    files = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda n: (n.name == "config.json", n.suffix != ".safetensors")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, folder / name)


def _copy(origin: Path, staged: Path) -> None:
    weights = [path.name for path in origin.glob("model*.safetensors*")]
    for name in (*weights, *_ABOUT):
        if (origin / name).is_file():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, staged / name)


def defaults(sae: SAE) -> dict[str, Any]:
    """Fields of a recipe that an SAE's config tells; what it names is never taken as a path."""
    config = sae.config
    name = config.model_name
    found: dict[str, Any] = {"text.held_out_fraction": 1.0}  # nobody trained on it: all of it
    if isinstance(name, str) and not name.startswith(("/", ".", "~")) and not Path(name).exists():
        found |= {"lm.name": name, "lm.revision": config.model_revision}
    known = {
        "lm.dtype": (config.model_dtype, _DTYPES),
        "lm.attn_implementation": (config.model_attention, _ATTENTIONS),
        "text.bos": (config.bos, ("row", "document", "none")),
    }
    found |= {key: value for key, (value, allowed) in known.items() if value in allowed}
    return {key: value for key, value in found.items() if value is not None}


def measure(recipe: Recipe, sae: SAE, folder: Path, result: str, source: str) -> None:
    """Make one result in a folder that holds an SAE, and its figures and card anew.

    All that is asked for is read from the held-out side of the text.

    Args:
        result: "evaluation.json" or "features/meta.json".
        source: where the SAE came from, for the record.
    """
    refuse_card_of_others(folder)
    refuse_mixture(folder, ["training.json", PROBE])  # which no measurement makes anew
    sae.config.places  # noqa: B018 - an SAE without a site need not wait for the language model
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
    write_result(result, recipe, loaded, sae, folder, limits, side="held_out", more=more)
    finish(folder)


def _limits(recipe: Recipe, loaded: LoadedLM, sae: SAE, folder: Path) -> dict[str, float]:
    """Norm limits: from the first rows if a ratio is given, else those of the SAE's training, if
    that is on record; else none."""
    if recipe.harvest.max_norm_ratio is not None:
        rows = next(iter(read_rows(recipe, loaded, "held_out", None)))
        args = HarvestArguments(recipe.harvest.rows, recipe.harvest.max_norm_ratio)
        harvester = Harvester(loaded.lm, list(dict.fromkeys(sae.config.places)), args)
        harvester(rows)
        return harvester.norm_limits
    return norm_limits(sae, folder) if (folder / "training.json").is_file() else {}
