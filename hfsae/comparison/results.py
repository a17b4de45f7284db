"""The measurements of each SAE of a comparison, in its own folder and in the report's folder.

The report's copy is small and outlives the weights. Its SAEs are not trained again, so a comparison
can grow in parts: on several machines, or by an arm or a seed added later. (All sparsities of one
arm and seed are one training run: to add a sparsity, set another output_dir.)
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from ..evaluation.probing.extract import KEY as PROBING_KEY
from ..hub import is_sae
from ..io.checksums import CONTENT, of_others
from ..io.errors import Damaged, Refused
from ..io.file_names import DOCUMENTS, EVALUATION, RESULT_TENSORS, RESULTS, TRAINING
from ..io.files import damaged, locked, read_json, read_tensors, write_tensors, write_whole
from ..runs import (
    RESULT_SECTIONS,
    as_plain,
    differences,
    evaluation_text,
    load_trained,
    what_matters,
)
from .arms import ArmRun, Comparison

logger = logging.getLogger(__name__)

THRESHOLD_SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)
_ROWS_AT_ONCE = 4096  # of a dictionary, compared at a time with all rows of another
MATCHED = 0.7  # cosine above which latents of two seeds count as the same
_RECORDED = ("sae_as_trained", "harvested", "n_tokens", "seconds", "machine")
_OWN = {"arm", "seed", "sae", "value", "metrics", "fields", "thresholds", "agreement", "foreign"}

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
    foreign: Mapping[str, Mapping[str, float]] = {}
    """metrics on each foreign text (`evaluation.texts`), by the text's name"""
    more: Mapping[str, Any] = {}
    """what scripts measured beside: values for JSON, which the report's copy keeps"""
    more_tensors: Mapping[str, Tensor] = {}
    """and tensors; each name has a slash, as "causes/norm" """

    @property
    def key(self) -> Key:
        """Arm, seed and name: they identify the SAE."""
        return self.arm, self.seed, self.name

    @property
    def scale(self) -> float:
        """c of its target, folded into its weights."""
        trained = self.record["sae_as_trained"]
        return float(trained.get("target_scale") or trained["activation_scale"] or 1)


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
    measured = []
    every = [(run, name, folder) for run in runs for name, folder in run.folders.items()]
    for run, name, folder in every:
        old = kept.get((run.arm, run.seed, name))
        if old and not is_measured(run, name):
            measured.append(old._replace(folder=folder))
            continue
        evaluation = EvaluationResult.from_dict(read_json(folder / EVALUATION))
        of_texts = {text: e.metrics for text, e in evaluation.texts.items()}
        m = Measured(
            run.arm,
            run.seed,
            name,
            run.values[name],
            folder,
            {key: metric.value for key, metric in evaluation.metrics.items()},
            read_tensors(folder / DOCUMENTS)[0],
            _recorded(read_json(folder / TRAINING)),
            what_matters(run.recipe, name),
            foreign={t: {key: x.value for key, x in of.items()} for t, of in of_texts.items()},
        )
        if old:
            beside = ("thresholds", "agreement", "more", "more_tensors")
            m = m._replace(**{field: getattr(old, field) for field in beside})
        if is_sae(folder) and AutoConfig.from_pretrained(folder).has_thresholds:
            learned = load_trained(folder).get_parameter("threshold").detach() / m.scale
            quantiles = learned.quantile(torch.tensor(THRESHOLD_SHARES)).tolist()
            m = m._replace(thresholds=tuple(quantiles))
        measured.append(m)
    # Latents are matched between all whose weights exist; others keep the recorded matches.
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in measured:
        groups.setdefault((m.arm, m.name), []).append(m)
    agreement = {}
    for same in groups.values():
        with_weights = [m for m in same if is_sae(m.folder)] if len(same) > 1 else []
        rows = {
            m.seed: normalize(load_trained(m.folder).W_dec.detach().float(), dim=-1)
            for m in with_weights
        }
        for m in with_weights:
            agreement[m.key] = {**m.agreement}
            for seed, other in rows.items():
                if seed != m.seed:
                    parts = rows[m.seed].split(_ROWS_AT_ONCE)
                    best = torch.cat([(some @ other.T).amax(dim=1) for some in parts])
                    share = (best > MATCHED).float().mean()
                    agreement[m.key][seed] = float(best.mean()), float(share)
    measured = [m._replace(agreement=agreement.get(m.key, m.agreement)) for m in measured]
    first = measured[0]
    for other in measured[1:]:
        for key in [key for key in ("fidelity.tokens", "losses.tokens") if key in first.sums]:
            if not torch.equal(first.sums[key], other.sums[key]):
                raise Refused(
                    f"{first.folder} and {other.folder} were evaluated on different documents; "
                    "delete evaluation.json in both folders and run the comparison again"
                )
    return measured


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record.get(key, "") if key == "machine" else record[key] for key in _RECORDED}


def harvests(
    measured: Sequence[Measured],
) -> Counter[tuple[int, tuple[float, ...], tuple[str, ...]]]:
    """How many SAEs saw which harvest, by the marks by which readings of the training text are
    compared: the number of tokens, the norm limits, and the hash of all activations at each site
    (empty where a training did not record it)."""
    of_saes = [m.record["harvested"] for m in measured]
    marks = []
    for by_site in ([h["norm_limits"] for h in of_saes], [h.get("digests", {}) for h in of_saes]):
        common = sorted(set.intersection(*map(set, by_site)))  # arms may read more than one
        marks.append([tuple(values[site] for site in common) for values in by_site])
    return Counter(zip([m.record["n_tokens"] for m in measured], *marks, strict=True))


def n_harvests(measured: Sequence[Measured]) -> int:
    """In how many ways the text was read, by the norm limits and, among trainings of one length,
    the hashes. 1: all arms saw the same activations."""
    found = harvests(measured)
    of_length = Counter(n_tokens for n_tokens, *_ in found)
    return max(len({limits for _, limits, _ in found}), *of_length.values())


def save_results(comparison: Comparison, measured: Sequence[Measured], command: str) -> None:
    """Write results.json and results.safetensors into the report's folder. Other SAEs in them stay,
    except those of the same arm and seed with another recipe."""
    report = comparison.report_folder
    with locked(report, wait=True):  # other parts of the comparison may end at the same time
        new, recipes = {m.key for m in measured}, {(m.arm, m.seed): m.recipe for m in measured}
        sections = set(RESULT_SECTIONS) - {"saes"}
        everything = list(measured)
        for key, m in results_in(report).items():
            ours = recipes.get((m.arm, m.seed), m.recipe)
            if key not in new and not any(differences({**m.recipe}, {**ours}, sections)):
                everything.append(m)
        tensors = {}
        for m in everything:
            sums = {f"sums/{name}": values for name, values in m.sums.items()}
            for name, values in (sums | {**m.more_tensors}).items():
                tensors[f"{_prefix(m.key)}{name}"] = values
        write_tensors(report / RESULT_TENSORS, tensors)
        saes = [
            {
                "arm": m.arm,
                "seed": m.seed,
                "sae": m.name,
                "value": m.value,
                "metrics": m.metrics,
                "fields": m.recipe["saes"],
                "thresholds": m.thresholds,
                "agreement": m.agreement,
                **m.more,
                **({"foreign": m.foreign} if m.foreign else {}),
                **m.record,
            }
            for m in everything
        ]
        of_runs = {
            f"{m.arm}/{m.seed}": {key: part for key, part in m.recipe.items() if key != "saes"}
            for m in everything
        }
        results = {
            "command": command,
            "recipe": as_plain(comparison),
            "saes": saes,
            "recipes": of_runs,
        }
        write_whole(report / RESULTS, json.dumps(results, indent=1) + "\n")


def kept(report: Path, runs: Iterable[ArmRun]) -> dict[Key, Measured]:
    """The results of these runs in a report's folder that have the same recipes; of others the
    first difference is logged.

    Raises:
        ValueError: a file is damaged.
    """
    everything = results_in(report)
    same = {}
    for run in runs:
        for name in run.folders:
            m = everything.get((run.arm, run.seed, name))
            if m is None:
                continue
            difference = next(differences({**m.recipe}, what_matters(run.recipe, name)), None)
            if difference:
                sentence = "%s: %s has another recipe and is left out (%s was %s, is %s)"
                logger.info(sentence, report, "/".join(map(str, m.key)), *difference)
            else:
                same[m.key] = m
    return same


def results_in(report: Path) -> dict[Key, Measured]:
    """All results in a report's folder, by arm, seed and name; empty without its two files.

    Raises:
        ValueError: a file is damaged.
    """
    if not all((report / name).is_file() for name in (RESULT_TENSORS, RESULTS)):
        return {}
    tensors, _ = read_tensors(report / RESULT_TENSORS)
    numbers = read_json(report / RESULTS)
    saes = []
    try:
        for plain in numbers["saes"]:
            key = plain["arm"], plain["seed"], plain["sae"]
            prefix, recipe = _prefix(key), numbers["recipes"][f"{plain['arm']}/{plain['seed']}"]
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            agreement = {int(s): (mean, share) for s, (mean, share) in plain["agreement"].items()}
            sums = {k.removeprefix("sums/"): t for k, t in own.items() if k.startswith("sums/")}
            saes.append(
                Measured(
                    *key,
                    plain["value"],
                    Path(),
                    plain["metrics"],
                    sums,
                    _recorded(plain),
                    {**recipe, "saes": plain["fields"]},
                    tuple(plain["thresholds"]),
                    agreement,
                    plain.get("foreign", {}),
                    {k: value for k, value in plain.items() if k not in _OWN | {*_RECORDED}},
                    {k: t for k, t in own.items() if not k.startswith("sums/")},
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(damaged(report / RESULTS, f"{type(error).__name__}: {error}")) from error
    return {m.key: m for m in saes if m.sums}


def _prefix(key: Key) -> str:
    return "/".join(map(str, key)) + "/"
