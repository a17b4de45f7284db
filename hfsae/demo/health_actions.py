"""Actions that judge an SAE: its health, alone and beside another's, and its card."""

import math
import re
from typing import Any

import torch

from .. import cards
from ..evaluation import EvaluationArguments, evaluate
from ..evaluation.metrics import DENSITY, FIDELITY
from ..evaluation.result import LOSSES
from ..io.local_paths import public
from ..io.units import ROW
from .rows import Json
from .subject import Subject

_BINS = 40
_ORDER = {name: i for i, name in enumerate([*FIDELITY, *DENSITY, *LOSSES])}
_TEXT_METRICS = ("l0", "fvu", "ce_clean", "ce_spliced", "delta_loss", "kl")


def health(subject: Subject) -> Json:
    """How good this SAE is: held-out metrics, histograms of L0, density and thresholds, what its
    latents reveal about texts, where that was probed, and how good their names are.

    Returns:
        name (str): of the SAE.
        metrics (list): {name, unit, value, low, high} of each; low and high are the ends of the
            95 % interval.
        n_tokens (int | None): tokens of the held-out text.
        l0 (list): {low, high, count} of tokens by the number of latents that fire on them.
        density (list): {low, high, count} of latents by the logarithm to base ten of their density.
        dead (int | None): latents that never fired; null: not counted.
        counted_on (int | None): tokens that densities were counted on.
        d_sae (int): latents of the SAE.
        thresholds (list): {low, high, count} of latents by their threshold, raw units.
        probing (dict): how well a few latents classify texts, where that was measured.
        texts (dict): metrics on foreign texts, where they were measured.
        names (dict): scores of names beside controls, where latents were named.
    """
    density, evaluation, folder = subject.density(), subject.evaluation, subject.folder
    counted_on = evaluation.get("n_tokens")
    if subject.store is not None:
        counted_on = subject.store.meta.get("n_tokens")
    # tokens by number of latents, from the first that is not empty
    counts = [int(n) for n in evaluation.get("l0_histogram") or []]
    filled = [i for i, n in enumerate(counts) if n] or [0]
    step = max(1, math.ceil((filled[-1] + 1 - filled[0]) / _BINS))
    starts = range(filled[0], filled[-1] + 1, step) if any(counts) else ()
    threshold = getattr(subject.sae, "threshold", None)
    if isinstance(threshold, torch.Tensor) and threshold.numel() == subject.d_sae:
        thresholds = _bins(threshold.detach().float().cpu() * subject.sae.latent_scale)
    else:
        thresholds = []
    return {
        "name": subject.name,
        "metrics": metric_rows(evaluation),
        "n_tokens": evaluation.get("n_tokens"),
        "l0": [{"low": i, "high": i + step, "count": sum(counts[i : i + step])} for i in starts],
        "density": _bins(density[density > 0].log10()),
        "dead": int((density == 0).sum()) if subject.is_counted else None,
        "counted_on": counted_on,
        "d_sae": subject.d_sae,
        "thresholds": thresholds,
        "probing": cards.probing_section(folder, evaluation) if folder is not None else {},
        "texts": cards.texts_section(folder, vars(subject.sae.config), evaluation)
        if folder is not None
        else {},
        "names": cards.names_section(folder) if folder is not None else {},
    }


def measure(subject: Subject, text: str) -> Json:
    """How well the SAE explains a text of your own, and what the model loses on it.

    Args:
        text: some sentences; the more, the less the numbers depend on chance.

    Returns:
        n_tokens (int): tokens that were measured.
        l0 (float | None): latents that fire on a token, on average.
        fvu (float | None): fraction of the activations' variance that is left unexplained.
        ce_clean (float | None): the model's loss, nats a token.
        ce_spliced (float | None): its loss on the SAE's reconstructions.
        delta_loss (float | None): the difference of the two.
        kl (float | None): KL(model || spliced model) of the next token, nats.
    """
    batch = subject.tokens(text).batch(subject.lm.device)
    arguments = EvaluationArguments(n_tokens=None, bootstrap_samples=1)
    result = evaluate(subject.lm, subject.sae, [batch], arguments)
    return {"n_tokens": result.n_tokens} | {
        name: _finite(result.metrics[name].value) for name in _TEXT_METRICS
    }


def about(subject: Subject) -> Json:
    """Which SAE and model this is; call it before the other actions.

    Returns:
        name (str): of the SAE.
        kind (str): its architecture.
        unit (str): what it reads one of at a time: token; or row or patch, which other
            answers call a token.
        site (str | None): the place in the model whose activations it reads.
        d_sae (int): how many latents it has: their indices are 0 to d_sae - 1.
        d_in (int): width of the activations.
        model (str | None): the model; null: activations were read from files.
        model_origin (str | None): where its weights come from.
        model_missing (str | None): why no model is loaded; null if one is, or none is needed.
        notes (list[str]): what may make numbers differ here.
    """
    config, loaded = subject.sae.config, subject.loaded or subject.encoder
    has_model = loaded is not None or subject.unit == ROW  # of which nothing runs it
    why_not = re.sub("'[^']*'", lambda m: repr(public(m[0][1:-1])), subject.why_no_lm)
    return {
        "name": subject.name,
        "kind": config.model_type,
        "unit": subject.unit.one,
        "site": config.where_in_short,
        "d_sae": config.d_sae,
        "d_in": config.d_in,
        "model": subject.public_lm_name,
        "model_origin": public(loaded.origin, "origin") if loaded else None,
        "model_missing": None if has_model else why_not,
        "notes": subject.notes,
    }


def card(subject: Subject) -> Json:
    """The model card: what the SAE was trained on, how it was measured, and its limits; long.

    Returns:
        card (str): Markdown; empty if the SAE comes without one.
    """
    return {"card": subject.card}


def metric_rows(evaluation: Json) -> list[Json]:
    """Name, value, interval and unit; what is not a number is left out."""
    metrics = evaluation.get("metrics")
    rows = []
    for name, m in sorted((metrics if isinstance(metrics, dict) else {}).items(), key=metric_order):
        if isinstance(m, dict) and _finite(m.get("value")) is not None:
            numbers = {key: _finite(m.get(key)) for key in ("value", "low", "high")}
            unit = "" if m.get("unit") == "1" else str(m.get("unit", ""))
            rows.append({"name": str(name), "unit": unit, **numbers})
    return rows


def metric_order(metric: tuple[str, Any]) -> int:
    """Of a metric in a table: as `evaluate` has them, whatever the order in a file."""
    return _ORDER.get(metric[0], len(_ORDER))


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _bins(values: torch.Tensor) -> list[Json]:
    """Forty bins between the extremes."""
    if not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    counts = torch.histc(values, _BINS, low, high).tolist()
    step = (high - low) / _BINS
    return [
        {"low": low + i * step, "high": low + (i + 1) * step, "count": int(n)}
        for i, n in enumerate(counts)
    ]
