"""A recipe: one section for each dataclass, and the run that it describes, from text to a folder.

    train -> evaluate on held-out documents -> collect what latents fire on -> figures and card

Each stage's result lies in the run's folder, so a second run of the same recipe resumes what was
interrupted and reuses what was finished; only what a changed section concerns is done again.
"""

import json
import logging
import os
import platform
import reprlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import torch
import yaml
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel

from . import card, contract, figures, processor
from .activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    Split,
    TextArguments,
    check_text,
    text_fingerprint,
    text_origin,
)
from .evaluation import EvaluationArguments, EvaluationResult, evaluate_all
from .evaluation.fidelity import NO_PREDICTION, counted_predictions
from .features import CollectArguments, collect
from .lm import LoadedLM, empty_lm, load_lm, site_width
from .lock import is_first_process, locked
from .models import SAE, SAEConfig, variants
from .models.base import own_fields
from .models.probe import N_TOKENS, write_probe
from .models.probe import NAME as PROBE
from .models.registry import IMPORT_HINT
from .records import damaged, parse_yaml, passes, read_json, sweep, write_whole
from .training import Trainer, TrainingArguments
from .training.identity import FREE
from .training.trainer import make_accelerator
from .weights import of_others, refuse_mixture, stamp

logger = logging.getLogger(__name__)
REPORT_SECTIONS = ("evaluation", "collect", "collect_tokens")
_REMAKING = ".remaking"
_MADE_WITH = {"evaluation.json": ("evaluation",), "features/meta.json": REPORT_SECTIONS[1:]}
# Of these, what people change most often comes first: the first differences are named.
_TRAINING_SECTIONS = ("sae", "saes", "training", "lm", "text", "harvest", "shuffle", "seed")
RESULT_SECTIONS = (*_TRAINING_SECTIONS, "evaluation")
_TAKEN = ("checkpoints", "features", "figures")  # folders of a run, beside its SAEs'
_N_SHOWN = 3
_DEFAULT_VARIANT = "jumprelu_sae"
# Settings that change nothing of the result.
_FREE = {*FREE, "cache", "cache_gb", "prefetch"}


@dataclass
class LMArguments:
    """Which language model, and in which dtype."""

    name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id or folder of a causal language model, or a .gguf file."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """Of the LM's weights and of harvested activations."""
    source: Literal["auto", "hub", "packaged"] = "auto"
    """"auto": the Hub, or where it cannot be reached the copy that a Python package carries."""
    attn_implementation: str | None = None
    """As in transformers; Gemma 2 wants "eager"."""


@dataclass
class Recipe:
    """What to train on which activations of which language model, and what to report of it."""

    lm: LMArguments = field(default_factory=LMArguments)
    text: TextArguments = field(default_factory=TextArguments)
    harvest: HarvestArguments = field(default_factory=HarvestArguments)
    shuffle: ShuffleArguments = field(default_factory=ShuffleArguments)
    sae: dict[str, Any] = field(default_factory=dict)
    """Fields of the SAE's config: model_type (jumprelu_sae), site, d_sae, target_l0 and so on; d_in
    is the site's width."""
    saes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several SAEs on the same stream: a name, and the fields of `sae` that differ."""
    training: TrainingArguments = field(default_factory=TrainingArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    collect: CollectArguments = field(default_factory=CollectArguments)
    collect_tokens: int = 1_000_000
    """Tokens of the training text in which to look for examples; 0 leaves the stage out."""
    seed: int = 0
    """Seed of the SAEs' initial weights."""
    license: str | None = None
    """Of the trained SAE, for its card: one of the Hub's identifiers, as 'apache-2.0'."""

    def __post_init__(self) -> None:
        if self.collect_tokens < 0:
            raise ValueError(
                f"collect_tokens must be 0 (to leave that stage out) or more, got "
                f"{self.collect_tokens}"
            )
        for name in self.saes:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] in _TAKEN or {"..", "/"} & {*parts}:
                raise ValueError(
                    f"an SAE cannot be called {name!r}, which is to be its folder in "
                    f"training.output_dir; leave out '..', a '/' in front, and {', '.join(_TAKEN)}"
                )

    def sae_fields(self) -> dict[str, dict[str, Any]]:
        """By name ("" for a single one), the config fields of each SAE; null unsets a field."""
        merged = {name: {**self.sae, **own} for name, own in (self.saes or {"": {}}).items()}
        return {
            name: {key: value for key, value in fields.items() if value is not None}
            for name, fields in merged.items()
        }

    @property
    def sites(self) -> list[str]:
        """All sites and target sites, each once."""
        every = [f.get(k) for f in self.sae_fields().values() for k in ("site", "target_site")]
        return list(dict.fromkeys(site for site in every if site))


CheckCost = Callable[[Recipe, PreTrainedModel, dict[str, SAEConfig], torch.device], None]


def make_configs(recipe: Recipe, lm: PreTrainedModel) -> dict[str, SAEConfig]:
    """Each SAE's config, with d_in (and a transcoder's d_out) read off the language model.

    Raises:
        ValueError: no site, an unknown field or model_type, or a width that is not the site's.
    """
    _check_given(recipe)
    configs = {}
    for name, given in recipe.sae_fields().items():
        fields = {"model_name": recipe.lm.name, **_for_variant(name, given)}
        for key in ("site", "target_site"):
            if not isinstance(fields.get(key), str | None):
                raise ValueError(f"sae.{key} must be text, as 'layers.12', got {fields[key]!r}")
        places = {"d_in": fields["site"]}
        if fields.get("target_site"):
            places["d_out"] = fields["target_site"]
        for key, site in places.items():
            width = site_width(lm, site)
            if fields.setdefault(key, width) != width:
                raise ValueError(
                    f"sae.{key} is {fields[key]}, but {site} of {recipe.lm.name} is {width} wide; "
                    f"leave {key} out and it is read off the model"
                )
        fields.setdefault("model_revision", getattr(lm.config, "_commit_hash", None))
        configs[name] = AutoConfig.for_model(**fields)
    return configs


def _for_variant(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields without those that only other variants have; what no variant has stays an error.

    An SAE that chooses k latents takes target_l0 as its k.
    """
    fields = {"model_type": _DEFAULT_VARIANT, **given}
    model_type = fields["model_type"]
    own = _fields_of_variants().get(model_type)
    if own is None:
        return fields
    subject = f"saes.{name}" if name else "sae"
    others = set().union(*_fields_of_variants().values()) - own
    target = fields.get("target_l0")
    if "k" in fields and "k" in own:
        others.add("target_l0")
    elif "k" in own and isinstance(target, int | float) and target % 1 == 0:
        fields["k"] = int(fields.pop("target_l0"))
        logger.info("%s: a %s takes target_l0 as its k, %d", subject, model_type, fields["k"])
    dropped = sorted(others & {*fields})
    if dropped:
        listed = ", ".join(f"{key} ({fields.pop(key)!r})" for key in dropped)
        logger.info("%s: left out, since a %s has no use for it: %s", subject, model_type, listed)
    return fields


def _fields_of_variants() -> dict[str, set[str]]:
    return {config.model_type: own_fields(config) | {"model_type"} for config in variants()}


def refuse_fields_of_others(recipe: Recipe, names: Iterable[str]) -> None:
    """
    Args:
        names: fields of sae that someone has just set, and so expects to matter.

    Raises:
        ValueError: no SAE of the recipe is of a variant that has such a field, but others do.
    """
    known = _fields_of_variants()
    types = {f.get("model_type", _DEFAULT_VARIANT) for f in recipe.sae_fields().values()}
    for name in names:
        having = sorted(variant for variant, own in known.items() if name in own)
        if having and types <= {*known} and not types & {*having}:
            raise ValueError(
                f"a {' or '.join(sorted(types))} has no field {name!r}; with sae.model_type "
                f"{' or '.join(having)} there is one"
            )


def _check_given(recipe: Recipe) -> None:
    """What needs no language model, which may have to be fetched."""
    for fields in recipe.sae_fields().values():
        if fields.get("site") is None:
            raise ValueError(
                "the recipe's sae section names no site; name a recipe file, or give sae.site, as "
                "'layers.12'"
            )
        if fields.get("d_sae") is None:
            raise ValueError("the recipe's sae section gives no d_sae; 8 to 32 times d_in is usual")
        known = sorted(c.model_type for c in variants())
        if (given := fields.get("model_type", known[0])) not in known:
            raise ValueError(
                f"sae.model_type {given!r} is unknown; hfsae has {', '.join(known)}; {IMPORT_HINT}"
            )


def _check_cache(folder: Path) -> None:
    home = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise ValueError(
            f"harvest.cache {folder} cannot be made or written to; give another folder"
        )


def check(recipe: Recipe) -> tuple[PreTrainedModel, dict[str, SAEConfig]]:
    """The language model without its weights, and each SAE's config; nothing is written.

    Raises:
        ValueError: whatever of a recipe can be known to be wrong at this point: fields, model,
            sites, widths, text that cannot be read.
    """
    if recipe.shuffle.bucket_tokens < recipe.training.batch_size:
        raise ValueError(
            f"shuffle.bucket_tokens ({recipe.shuffle.bucket_tokens}) is smaller than "
            f"training.batch_size ({recipe.training.batch_size}); a bucket is best at least 50 "
            "batches"
        )
    _check_given(recipe)
    if recipe.harvest.cache is not None:
        _check_cache(Path(recipe.harvest.cache).expanduser())
    lm = empty_lm(recipe.lm.name, revision=recipe.lm.revision, source=recipe.lm.source)
    configs = make_configs(recipe, lm)
    for side in _sides(recipe):
        check_text(recipe.text, side)
    return lm, configs


def _sides(recipe: Recipe) -> list[Split]:
    """The sides of the text that a recipe reads."""
    return ["train"] if recipe.evaluation.n_tokens == 0 else ["train", "held_out"]


def run(
    recipe: Recipe,
    command: str = "",
    loaded: LoadedLM | None = None,
    check_cost: CheckCost | None = None,
) -> list[Path]:
    """Do all that is not done yet; the folders of the trained SAEs.

    Args:
        loaded: the recipe's language model, if it is at hand.
        check_cost: called before anything is loaded or written, with the recipe, its model without
            weights, the SAEs' configs and the device; it may raise ValueError.

    Raises:
        ValueError: anything in the recipe that cannot be.
    """
    root = _output_dir(recipe)
    with alone(root, [root / name for name in recipe.sae_fields()]):
        return _run(recipe, command, loaded, check_cost)


@contextmanager
def alone(root: Path, homes: Iterable[Path]) -> Iterator[None]:
    """Have a run's folder for oneself, it and those of its SAEs without what killed processes left
    half written.

    Raises:
        ValueError: another process works there, or it cannot be written to.
    """
    with locked(root):
        if is_first_process():
            for home in {root, *homes}:
                for folder in (home, *(home / name for name in _TAKEN)):
                    sweep(folder)
        yield


def _output_dir(recipe: Recipe) -> Path:
    """
    Raises:
        ValueError: it is a file, or cannot be written to.
    """
    root = Path(recipe.training.output_dir)
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"training.output_dir {root}: {path} is a file; name a folder")
    home = next(f for f in (root, *root.absolute().parents) if f.is_dir())
    if not os.access(home, os.W_OK):
        raise ValueError(f"training.output_dir {root} cannot be written to; give another")
    return root


def _run(
    recipe: Recipe, command: str, loaded: LoadedLM | None, check_cost: CheckCost | None
) -> list[Path]:
    root = Path(recipe.training.output_dir)
    try:
        stale = stale_stages(recipe)
    except ValueError:
        check(recipe)  # what can be nowhere is said before what clashes here
        raise
    folders = [root / name for name in recipe.sae_fields()]
    done = [all((f / file).exists() for f in folders) for file in ("training.json", "config.json")]
    if all(done) and not stale and all(not _missing(f, recipe) for f in folders):
        if is_first_process():
            _forget_checkpoints(root)  # of a run that was killed just before its end
        logger.info("%s is complete: nothing to do", root)
        return folders
    accelerator = make_accelerator(recipe.training)
    recipe.shuffle.check_device()  # by now a process has its GPU
    lm, configs = check(recipe)
    if check_cost is not None and not all(done):
        check_cost(recipe, lm, configs, accelerator.device)
    loaded = loaded or load(recipe.lm, str(accelerator.device))
    _check_rows(recipe, loaded)
    if accelerator.is_main_process:
        _claim(root, recipe, stale)
    if not all(done):
        _train(recipe, loaded, configs, accelerator, command)
    if accelerator.is_main_process:
        for folder in folders:
            report(recipe, loaded, load_trained(folder), folder, again=stale)
        save_recipe(root, as_plain(recipe))
        note_remaking(root, ())
        _forget_checkpoints(root)
    return folders


def _forget_checkpoints(root: Path) -> None:
    """A finished run needs none, and the Hub wants none."""
    shutil.rmtree(root / "checkpoints", ignore_errors=True)


def stale_stages(recipe: Recipe) -> list[str]:
    """Results in the output folder that a changed section of the recipe makes out of date.

    Raises:
        ValueError: the folder holds something else, or a run of another recipe.
    """
    root = _output_dir(recipe)
    held = sorted(p.name for p in root.iterdir() if not passes(p)) if root.exists() else []
    if not held:
        return []
    if not (root / "recipe.yaml").is_file():
        raise ValueError(
            f"the folder {root} holds something else ({held[0]}, and no recipe.yaml); give another "
            "training.output_dir"
        )
    if not any(next(root.rglob(made), None) for made in ("step-*.pt", "config.json")):
        return []  # it was claimed, but nothing came of it: another recipe may have it
    theirs, ours = load_plain(root), as_plain(recipe)
    if found := list(differences(theirs, ours, _TRAINING_SECTIONS)):
        listed = [f"{key} is {old} there and {new} here" for key, old, new in found[:_N_SHOWN]]
        more = f"; {len(found) - _N_SHOWN} more" if len(found) > _N_SHOWN else ""
        raise ValueError(
            f"the folder {root} holds a run of another recipe ({'; '.join(listed)}{more}); give "
            "another training.output_dir or delete the folder"
        )
    n_tokens = {
        "evaluation.json": recipe.evaluation.n_tokens,
        "features/meta.json": recipe.collect_tokens,
    }
    unfinished = remaking(root)
    return [
        result
        for result, keys in _MADE_WITH.items()
        if n_tokens[result]
        and (result in unfinished or any(theirs.get(key) != ours[key] for key in keys))
    ]


def differences(
    old: dict[str, Any], new: dict[str, Any], sections: Iterable[str] = RESULT_SECTIONS
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, old value, new value) where recipes differ in what matters to the result.

    A field that `old` does not name, since it is older than the field, is as by default.
    """
    default = as_plain(Recipe())
    for section in sections:
        yield from _differences(section, *(r.get(section) for r in (old, new, default)))


def _differences(key: str, old: Any, new: Any, default: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        default = default if isinstance(default, dict) else {}
        for name in sorted({*old, *new} - _FREE):
            known = default.get(name)
            yield from _differences(f"{key}.{name}", old.get(name, known), new.get(name), known)
    elif old != new:
        yield key, reprlib.repr(old), reprlib.repr(new)


def what_matters(recipe: Recipe, name: str) -> dict[str, Any]:
    """All that the result of one of a recipe's SAEs follows from."""
    plain = as_plain(recipe)
    plain["saes"] = plain["saes"].get(name)
    return _without_free({key: plain[key] for key in RESULT_SECTIONS})


def _without_free(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_free(part) for name, part in value.items() if name not in _FREE}


def _claim(root: Path, recipe: Recipe, stale: Sequence[str]) -> None:
    """Say whose folder this is, what its finished stages were made with, and which of them are to
    be made again, so that none of these counts as done before all are."""
    plain = as_plain(recipe)
    if (root / "recipe.yaml").is_file() and next(root.rglob("config.json"), None):
        theirs = load_plain(root)
        plain |= {key: theirs[key] for key in REPORT_SECTIONS if key in theirs}
    note_remaking(root, {*remaking(root), *stale})
    save_recipe(root, plain)


def remaking(root: Path) -> list[str]:
    """Results that were being made again when something stopped it: whose they are is not known."""
    path = root / _REMAKING
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def note_remaking(root: Path, results: Iterable[str]) -> None:
    if listed := sorted(results):
        write_whole(root / _REMAKING, "\n".join(listed) + "\n")
    else:
        (root / _REMAKING).unlink(missing_ok=True)


def load_plain(root: Path) -> dict[str, Any]:
    path = root / "recipe.yaml"
    try:
        plain = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(damaged(path, error)) from error
    if not isinstance(plain, dict):
        raise ValueError(damaged(path, "no sections"))
    return plain


def save_recipe(root: Path, plain: dict[str, Any]) -> None:
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_whole(root / "recipe.yaml", text)


def as_plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(recipe)))


def _check_rows(recipe: Recipe, loaded: LoadedLM) -> None:
    """Read each side up to what it is read for, so that text which cannot do fails before the
    training.

    Raises:
        ValueError: a side keeps no token, or the held-out side no prediction to evaluate.
    """
    for side in _sides(recipe):
        for batch in read_rows(recipe, loaded, side, None):
            wanted = batch.keep if side == "train" else counted_predictions(batch)
            if wanted.any():
                break
        else:
            raise ValueError(NO_PREDICTION)


def load(args: LMArguments, device: str | None = None) -> LoadedLM:
    return load_lm(
        args.name,
        revision=args.revision,
        dtype=args.dtype,
        device=device,
        attn_implementation=args.attn_implementation,
        source=args.source,
    )


def _train(
    recipe: Recipe,
    loaded: LoadedLM,
    configs: dict[str, SAEConfig],
    accelerator: Any,
    command: str,
) -> None:
    text = PackedRows(loaded.tokenizer, recipe.text, "train", rows=recipe.harvest.rows, epochs=None)
    harvester = Harvester(loaded.lm, recipe.sites, recipe.harvest)
    stream = ShuffledActivations(
        text,
        harvester,
        recipe.shuffle,
        recipe.training.batch_size,
        n_batches=recipe.training.total_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    saes = {}
    for name, config in configs.items():
        for term, value in contract.terms(loaded.lm, loaded.tokenizer, recipe.text.bos).items():
            setattr(config, term, value)
        torch.manual_seed(recipe.seed)  # each alone, so that company changes nothing
        saes[name] = AutoModel.from_config(config)
    trainer = Trainer(
        saes,
        stream,
        recipe.training,
        accelerator=accelerator,
        provenance=_provenance(recipe, loaded, command),
        text=text_fingerprint(recipe.text),
    )
    with closing(stream):
        trainer.train()
    trainer.close()


def _provenance(recipe: Recipe, loaded: LoadedLM, command: str) -> dict[str, Any]:
    names = ("hfsae", "torch", "transformers", "accelerate", "datasets", "huggingface_hub")
    return {
        "lm": {
            **asdict(recipe.lm),
            "origin": loaded.origin,
            "revision": getattr(loaded.lm.config, "_commit_hash", None) or recipe.lm.revision,
        },
        "text": {**asdict(recipe.text), "origin": text_origin(recipe.text)},
        **{name: asdict(getattr(recipe, name)) for name in ("harvest", "shuffle")},
        "seed": recipe.seed,
        "card": {"license": recipe.license},
        "command": command,
        "versions": {"python": platform.python_version(), **_versions(names)},
        "machine": processor.told(loaded.lm.device),
    }


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_trained(folder: Path) -> SAE:
    """The SAE in a folder that `hfsae train` wrote."""
    return AutoModel.from_pretrained(folder).eval()


def report(
    recipe: Recipe, loaded: LoadedLM, sae: SAE, folder: Path, again: Iterable[str] = ()
) -> None:
    """Evaluate, collect, draw and write the card: what of these the folder lacks, and `again`."""
    refuse_mixture(folder, ["training.json"])  # which no later stage makes anew
    missing = [*_missing(folder, recipe), *again]
    sae.to(cast(Any, loaded.lm.device))
    limits = norm_limits(sae, folder)
    if "evaluation.json" in missing:
        write_result("evaluation.json", recipe, loaded, sae, folder, limits)
    if "features/meta.json" in missing:
        write_result("features/meta.json", recipe, loaded, sae, folder, limits)
    if PROBE in missing:
        write_probe(sae, _probe_activations(recipe, loaded, sae, limits), folder)
    finish(folder)


def write_result(
    name: str,
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    folder: Path,
    limits: dict[str, float],
    *,
    side: Split = "train",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Evaluate, or collect, and write what comes of it into a folder.

    Args:
        name: "evaluation.json" or "features/meta.json".
        limits: by site, the largest norm of a kept activation.
        side: of the text, in which to look for examples; evaluated is the held-out one.
        more: what the record is to hold besides.
    """
    if name == "evaluation.json":
        result = evaluate_held_out(recipe, loaded, {"": sae}, limits)[""]
        write_whole(folder / name, evaluation_text(result, folder, more))
        return
    rows = read_rows(recipe, loaded, side, recipe.collect_tokens)
    with _bar("collect", recipe.collect_tokens) as progress:
        store = collect(
            sae,
            loaded.lm,
            loaded.tokenizer,
            rows,
            recipe.collect,
            norm_limits=limits,
            progress=progress,
        )
    store.meta |= {**stamp(folder), **(more or {})}
    store.save(folder)


def evaluation_text(
    result: EvaluationResult, folder: Path, more: Mapping[str, Any] | None = None
) -> str:
    """Of evaluation.json, for the weights that lie in a folder."""
    return json.dumps({**result.to_dict(), **stamp(folder), **(more or {})}, indent=1) + "\n"


def _probe_activations(
    recipe: Recipe, loaded: LoadedLM, sae: SAE, limits: dict[str, float]
) -> Tensor:
    """Raw activations of some tokens, of held-out text if there is any."""
    site, _ = sae.config.places
    harvester = Harvester(
        loaded.lm,
        [site],
        recipe.harvest,
        norm_limits={site: limits[site]} if site in limits else None,
    )
    for batch in read_rows(recipe, loaded, _sides(recipe)[-1], None):
        activations = harvester(batch).activations[site]
        if n := len(activations):
            return activations[torch.linspace(0, n - 1, N_TOKENS).long()].float()
    raise ValueError(
        f"no activation is left for {PROBE}: {harvester.dropped_outliers} positions are above the "
        "norm limits of the training; give other text"
    )


def norm_limits(sae: SAE, folder: Path) -> dict[str, float]:
    """By site, the norm above which positions were dropped in the training of a folder's SAE."""
    path = folder / "training.json"
    harvested = read_json(path).get("harvested")
    limits = harvested.get("norm_limits") if isinstance(harvested, dict) else None
    if not isinstance(limits, dict):
        raise ValueError(damaged(path, "it names no norm limits"))
    return {site: limit for site, limit in limits.items() if site in sae.config.places}


def evaluate_held_out(
    recipe: Recipe, loaded: LoadedLM, saes: Mapping[str, SAE], limits: dict[str, float]
) -> dict[str, EvaluationResult]:
    """On held-out documents, as the recipe's evaluation section says."""
    n_tokens = recipe.evaluation.n_tokens
    rows = read_rows(recipe, loaded, "held_out", n_tokens)
    done = 0
    with _bar("evaluate", n_tokens) as progress:

        def advance(n: int) -> None:
            nonlocal done
            progress(n - done)
            done = n

        return evaluate_all(
            saes, loaded.lm, rows, recipe.evaluation, norm_limits=limits, progress=advance
        )


def finish(folder: Path) -> None:
    """Figures and card, from what lies in the folder.

    Raises:
        ValueError: the folder mixes results of different weights.
    """
    refuse_mixture(folder)
    figures.draw(folder)
    card.write_card(folder)


def read_rows(recipe: Recipe, loaded: LoadedLM, split: Split, n: int | None) -> PackedRows:
    """The token rows of one side of the text, once: all, or as many as hold n tokens."""
    return PackedRows(loaded.tokenizer, recipe.text, split, rows=recipe.harvest.rows, max_tokens=n)


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    every = 0.2 if sys.stderr.isatty() else 15.0
    with tqdm(total=total, desc=name, unit="tok", unit_scale=True, mininterval=every) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance


def _missing(folder: Path, recipe: Recipe) -> list[str]:
    """Results that the recipe asks for and the folder lacks, or has of other weights; a card older
    than its data is one."""
    wanted = ["evaluation.json"] if recipe.evaluation.n_tokens != 0 else []
    wanted += ["features/meta.json"] if recipe.collect_tokens else []
    wanted += [PROBE]
    others = list(of_others(folder, wanted))
    missing = [name for name in wanted if name in others or not (folder / name).exists()]
    card = folder / "README.md"
    data = [folder / name for name in ("training.json", *wanted) if (folder / name).exists()]
    if not card.exists() or any(p.stat().st_mtime > card.stat().st_mtime for p in data):
        missing.append("README.md")
    return missing
