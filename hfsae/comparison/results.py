"""The measurements of each SAE of a comparison, in its own folder and in the report's folder.

The report's copy is small and outlives the weights. Its SAEs are not trained again, so a comparison
can grow in parts: on several machines, or by an arm or a seed added later. (All sparsities of one
arm and seed are one training run: to add a sparsity, set another output_dir.)
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig

from ..evaluation import EvaluationResult
from ..evaluation.metrics import Metric
from ..evaluation.probing.extract import KEY as PROBING_KEY
from ..evaluation.probing.extract import kept_extract
from ..hub import is_sae
from ..machine.checksums import CONTENT, of_others
from ..machine.files import damaged, read_json, read_tensors, write_tensors, write_whole
from ..machine.names import CAUSES, DOCUMENTS, EVALUATION, RESULT_TENSORS, RESULTS, TRAINING
from ..machine.refused import Damaged, Refused
from ..models import SAE
from ..recipe import (
    RESULT_SECTIONS,
    differences,
    evaluation_text,
    load_trained,
    what_matters,
)
from .arms import ArmRun
from .latent_scores import Explained, from_plain, read_explained

logger = logging.getLogger(__name__)

THRESHOLD_SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)
_ROWS_AT_ONCE = 4096  # of a dictionary, compared at a time with all rows of another
MATCHED = 0.7  # cosine above which latents of two seeds count as the same
_RECORDED = ("sae_as_trained", "harvested", "n_tokens", "seconds")

Key = tuple[str, int, str]


class Measured(NamedTuple):
    """One trained SAE."""

    arm: str
    seed: int
    name: str
    value: float
    """value of the swept field"""
    folder: Path
    """folder of its weights, which may be missing"""
    metrics: dict[str, float]
    sums: dict[str, Float[Tensor, " documents"]]
    """sums by document, with names such as "fidelity.error" """
    record: dict[str, Any]
    """record of its training run"""
    recipe: Mapping[str, Any] = {}
    """settings of its training and evaluation"""
    thresholds: tuple[float, ...] = ()
    """quantiles of learned thresholds at THRESHOLD_SHARES, in units of x/c; else empty"""
    agreement: Mapping[int, tuple[float, float]] = {}
    """for each other seed: mean of the decoder rows' best cosines with its rows, share > MATCHED"""
    causes: Mapping[str, Tensor] = {}
    causes_args: str = ""
    explained: Explained = Explained()
    """scores of its latents' explanations"""
    probing: Mapping[str, Any] = {}
    """means of its probing (`hfsae probe`), as in evaluation.json; empty: not probed"""
    foreign: Mapping[str, Mapping[str, float]] = {}
    """metrics on each foreign text (`evaluation.texts`), by the text's name"""

    @property
    def key(self) -> Key:
        """Arm, seed and name: they identify the SAE."""
        return self.arm, self.seed, self.name

    @property
    def scale(self) -> float:
        """c of its target, folded into its weights."""
        return _scale(self.record)


def write(result: EvaluationResult, run: ArmRun, name: str) -> None:
    """Save a result. evaluation.json is written last: if it exists, the result is complete."""
    folder = run.folders[name]
    text = evaluation_text(result, folder)
    sums = {
        f"{table}.{name}": values
        for table, columns in result.of_documents.items()
        for name, values in columns.items()
    }
    write_tensors(
        folder / DOCUMENTS, sums, {"with": _evaluation_settings(run, name), "of": _digest(text)}
    )
    write_whole(folder / EVALUATION, text)


def is_known(run: ArmRun, name: str, kept: Mapping[Key, Measured]) -> bool:
    """Whether the report or the SAE's folder holds its result."""
    return (run.arm, run.seed, name) in kept or is_measured(run, name)


def is_measured(run: ArmRun, name: str) -> bool:
    """Whether the SAE's folder holds both files of a result, from one evaluation with this recipe
    of the folder's weights (which may be gone)."""
    evaluation, sums = (run.folders[name] / file for file in (EVALUATION, DOCUMENTS))
    if not (evaluation.is_file() and sums.is_file()):
        return False
    if any(of_others(run.folders[name], [evaluation.name])):
        return False
    _, made = read_tensors(sums)
    text = evaluation.read_text(encoding="utf-8", errors="replace")
    settings = _evaluation_settings(run, name)
    if made.get("of", _digest(text)) != _digest(text):
        return False
    old, new = ({"evaluation": json.loads(each)} for each in (made.get("with", settings), settings))
    return not any(differences(old, new, ["evaluation"]))


def _evaluation_settings(run: ArmRun, name: str) -> str:
    """The settings that an evaluation depends on, as JSON text."""
    return json.dumps(what_matters(run.recipe, name)["evaluation"], sort_keys=True)


def _digest(text: str) -> str:
    """Of an evaluation's text, without what `hfsae probe` adds to it later, and the seal."""
    with suppress(ValueError):  # damaged: another digest
        record = json.loads(text)
        if isinstance(record, dict) and {PROBING_KEY, CONTENT} & {*record}:
            plain = {k: v for k, v in record.items() if k not in (PROBING_KEY, CONTENT)}
            text = json.dumps(plain, indent=1) + "\n"
    return blake2b(text.encode(), digest_size=16).hexdigest()


def read(runs: Iterable[ArmRun], kept: Mapping[Key, Measured]) -> list[Measured]:
    """All SAEs of these runs, from their folders or else from a report's copy.

    Raises:
        ValueError: a file is damaged, or two SAEs were evaluated on different documents.
    """
    saes = (
        (run, name, kept.get((run.arm, run.seed, name))) for run in runs for name in run.folders
    )
    measured = _with_agreement([_read(*each) for each in saes])
    first = measured[0]
    for other in measured[1:]:
        for key in [key for key in ("fidelity.tokens", "losses.tokens") if key in first.sums]:
            if not torch.equal(first.sums[key], other.sums[key]):
                raise Refused(
                    f"{first.folder} and {other.folder} were evaluated on different documents; "
                    "delete evaluation.json in both folders and run the comparison again"
                )
    return measured


def _read(run: ArmRun, name: str, kept: Measured | None) -> Measured:
    folder = run.folders[name]
    causes, made_with = kept_causes(folder)
    if kept and not causes:
        causes, made_with = kept.causes, {"args": kept.causes_args}
    causes_args = made_with.get("args", "")
    explained = read_explained(folder, kept.explained if kept else Explained())
    probing = kept_extract(folder) or (kept.probing if kept else {})
    if kept and not is_measured(run, name):
        there = {"causes": causes, "causes_args": causes_args, "explained": explained}
        there["probing"] = probing
        return kept._replace(folder=folder, **there)
    evaluation = EvaluationResult.from_dict(read_json(folder / EVALUATION))
    sums, _ = read_tensors(folder / DOCUMENTS)
    record = read_json(folder / TRAINING)
    return Measured(
        run.arm,
        run.seed,
        name,
        run.values[name],
        folder,
        _values(evaluation.metrics),
        sums,
        _recorded(record),
        what_matters(run.recipe, name),
        _thresholds(folder, _scale(record)) or (kept.thresholds if kept else ()),
        kept.agreement if kept else {},
        causes,
        causes_args,
        explained,
        probing,
        {name: _values(text.metrics) for name, text in evaluation.texts.items()},
    )


def _values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {key: metric.value for key, metric in metrics.items()}


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _RECORDED} | {"machine": record.get("machine", "")}


class Harvest(NamedTuple):
    """The marks by which readings of the training text are compared."""

    n_tokens: int
    norm_limits: tuple[float, ...]
    digests: tuple[str, ...]
    """hash of all activations at each site; empty where a training did not record it"""


def harvests(measured: Sequence[Measured]) -> Counter[Harvest]:
    """How many SAEs saw which harvest."""
    of_saes = [m.record["harvested"] for m in measured]
    limits = _at_common_sites([harvested["norm_limits"] for harvested in of_saes])
    digests = _at_common_sites([harvested.get("digests", {}) for harvested in of_saes])
    lengths = [m.record["n_tokens"] for m in measured]
    return Counter(map(Harvest, lengths, limits, digests))


def n_harvests(measured: Sequence[Measured]) -> int:
    """In how many ways the text was read, by the norm limits and, among trainings of one length,
    the hashes. 1: all arms saw the same activations."""
    found = harvests(measured)
    of_length = Counter(each.n_tokens for each in found)
    return max(len({each.norm_limits for each in found}), *of_length.values())


def _at_common_sites(by_site: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Each one's values at the sites that all have: arms may read more than one."""
    common = sorted(set.intersection(*map(set, by_site)))
    return [tuple(values[site] for site in common) for values in by_site]


def kept_causes(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Causal measurements of the weights in a folder, and their arguments; empty if not made."""
    is_there = (folder / CAUSES).is_file() and not any(of_others(folder, [CAUSES]))
    return read_tensors(folder / CAUSES) if is_there else ({}, {})


def _scale(record: dict[str, Any]) -> float:
    trained = record["sae_as_trained"]
    return float(trained.get("target_scale") or trained["activation_scale"] or 1)


def _thresholds(folder: Path, scale: float) -> tuple[float, ...]:
    if not is_sae(folder) or not AutoConfig.from_pretrained(folder).has_thresholds:
        return ()
    learned = load_trained(folder).get_parameter("threshold").detach() / scale
    return tuple(learned.quantile(torch.tensor(THRESHOLD_SHARES)).tolist())


def _with_agreement(measured: Sequence[Measured]) -> list[Measured]:
    """The SAEs with matches between all whose weights exist; others keep the recorded matches."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in measured:
        groups.setdefault((m.arm, m.name), []).append(m)
    agreement = {}
    for same in groups.values():
        with_weights = [m for m in same if is_sae(m.folder)] if len(same) > 1 else []
        rows = {m.seed: _decoder_rows(m.folder) for m in with_weights}
        for m in with_weights:
            new = {s: _matched(rows[m.seed], other) for s, other in rows.items() if s != m.seed}
            agreement[m.key] = {**m.agreement, **new}
    return [m._replace(agreement=agreement.get(m.key, m.agreement)) for m in measured]


def _decoder_rows(folder: Path) -> Float[Tensor, "d_sae d_out"]:
    sae: SAE = load_trained(folder)
    return normalize(sae.W_dec.detach().float(), dim=-1)


def _matched(rows: Tensor, others: Tensor) -> tuple[float, float]:
    best = torch.cat([(some @ others.T).amax(dim=1) for some in rows.split(_ROWS_AT_ONCE)])
    return float(best.mean()), float((best > MATCHED).float().mean())


def keep(report: Path, measured: Sequence[Measured], command: str, recipe: dict[str, Any]) -> None:
    """Write results.json and results.safetensors. Other SAEs in them stay, except those of the same
    arm and seed with another recipe."""
    everything = [*measured, *_staying(_kept(report), measured)]
    tensors = {
        f"{_prefix(m.key)}{part}/{name}": tensor
        for m in everything
        for part, table in _tables(m).items()
        for name, tensor in table.items()
    }
    write_tensors(report / RESULT_TENSORS, tensors)
    recipes = {
        f"{m.arm}/{m.seed}": {key: part for key, part in m.recipe.items() if key != "saes"}
        for m in everything
    }
    results = {
        "command": command,
        "recipe": recipe,
        "saes": list(map(_plain, everything)),
        "recipes": recipes,
    }
    write_whole(report / RESULTS, json.dumps(results, indent=1) + "\n")


def _tables(m: Measured) -> dict[str, Mapping[str, Tensor]]:
    return {"sums": m.sums, "causes": m.causes, "explained": m.explained.as_tensors()}


def _staying(kept: Mapping[Key, Measured], measured: Sequence[Measured]) -> Iterator[Measured]:
    new, recipes = {m.key for m in measured}, {(m.arm, m.seed): m.recipe for m in measured}
    sections = set(RESULT_SECTIONS) - {"saes"}
    for key, m in kept.items():
        ours = recipes.get((m.arm, m.seed), m.recipe)
        if key not in new and not any(differences({**m.recipe}, {**ours}, sections)):
            yield m


def kept(report: Path, runs: Iterable[ArmRun]) -> dict[Key, Measured]:
    """The results of these runs in a report's folder that have the same recipes.

    Raises:
        ValueError: a file is damaged.
    """
    everything = _kept(report)
    same = {}
    for run in runs:
        for name in run.folders:
            m = everything.get((run.arm, run.seed, name))
            if m and not _differs(m, run, report):
                same[m.key] = m
    return same


def _differs(m: Measured, run: ArmRun, report: Path) -> bool:
    """Whether a result has another recipe than the run; logs the first difference."""
    difference = next(differences({**m.recipe}, what_matters(run.recipe, m.name)), None)
    if difference:
        sentence = "%s: %s has another recipe and is left out (%s was %s, is %s)"
        logger.info(sentence, report, "/".join(map(str, m.key)), *difference)
    return difference is not None


def _kept(report: Path) -> dict[Key, Measured]:
    if not all((report / name).is_file() for name in (RESULT_TENSORS, RESULTS)):
        return {}
    tensors, _ = read_tensors(report / RESULT_TENSORS)
    numbers = read_json(report / RESULTS)
    try:
        saes = [_from_plain(plain, numbers["recipes"], tensors) for plain in numbers["saes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(damaged(report / RESULTS, f"{type(error).__name__}: {error}")) from error
    return {m.key: m for m in saes if m.sums}


def _plain(m: Measured) -> dict[str, Any]:
    return {
        "arm": m.arm,
        "seed": m.seed,
        "sae": m.name,
        "value": m.value,
        "metrics": m.metrics,
        "fields": m.recipe["saes"],
        "thresholds": m.thresholds,
        "agreement": m.agreement,
        "causal": m.causes_args,
        **({"explained": m.explained.as_plain()} if m.explained.lexical_args else {}),
        **({"probing": m.probing} if m.probing else {}),
        **({"foreign": m.foreign} if m.foreign else {}),
        **m.record,
    }


def _from_plain(
    plain: dict[str, Any], recipes: dict[str, Any], tensors: Mapping[str, Tensor]
) -> Measured:
    key = plain["arm"], plain["seed"], plain["sae"]
    sums, causes, explained = (
        _part(tensors, f"{_prefix(key)}{part}/") for part in ("sums", "causes", "explained")
    )
    return Measured(
        *key,
        plain["value"],
        Path(),
        plain["metrics"],
        sums,
        _recorded(plain),
        {**recipes[f"{plain['arm']}/{plain['seed']}"], "saes": plain["fields"]},
        tuple(plain["thresholds"]),
        {int(seed): (mean, share) for seed, (mean, share) in plain["agreement"].items()},
        causes,
        plain["causal"],
        from_plain(plain.get("explained", {}), explained),
        plain.get("probing", {}),
        plain.get("foreign", {}),
    )


def _prefix(key: Key) -> str:
    return "/".join(map(str, key)) + "/"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
