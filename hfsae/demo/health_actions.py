"""Actions that judge an SAE: its health, alone and beside another's, and its card."""

import math
import re
from pathlib import Path
from typing import Any

import torch

from .. import cards
from ..evaluation import EvaluationArguments, evaluate
from ..evaluation.metrics import DENSITY, FIDELITY
from ..evaluation.result import LOSSES
from ..hub import beside, list_files
from ..machine.files import read_json
from ..machine.names import CONFIG, EVALUATION
from ..machine.refused import Refused
from ..machine.seal import CHANGED, is_changed
from ..machine.units import ROW
from ..machine.visible import public
from .beside import apart, other_of
from .missing import missing
from .others import check_name, place_of
from .reading import tokens_of
from .rows import Json
from .subject import Subject

_BINS = 40
_LESS_IS_BETTER = {"fvu", "delta_loss", "ce_spliced", "kl", "dead_share"}
_MORE_IS_BETTER = {"cosine", "loss_recovered_mean", "loss_recovered_zero"}
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
    density = subject.density()
    return {
        "name": subject.name,
        "metrics": _metrics(subject.evaluation),
        "n_tokens": subject.evaluation.get("n_tokens"),
        "l0": _l0_bins(subject.evaluation.get("l0_histogram") or []),
        "density": _log_bins(density),
        "dead": int((density == 0).sum()) if subject.is_counted else None,
        "counted_on": _counted_on(subject),
        "d_sae": subject.d_sae,
        "thresholds": _threshold_bins(subject),
        "probing": _probing(subject),
        "texts": _texts(subject),
        "names": cards.names_section(subject.folder) if subject.folder is not None else {},
    }


def _probing(subject: Subject) -> Json:
    """What a few latents reveal about texts, absorption and uniformity, beside untrained ones."""
    if subject.folder is None:
        return {}
    return cards.probing_section(subject.folder, subject.evaluation)


def _texts(subject: Subject) -> Json:
    """Foreign texts beside the held-out one, and warnings."""
    if subject.folder is None:
        return {}
    return cards.texts_section(subject.folder, vars(subject.sae.config), subject.evaluation)


def compare_saes(subject: Subject, other: str) -> Json:
    """Held-out metrics of this SAE beside those of another.

    Args:
        other: the other SAE: a repository on the Hub, as name/repository; or, on your own machine,
            the folder of an SAE below the one that the app was started in, or the one that it
            shows.

    Returns:
        first (str): name of this SAE.
        second (str): name of the other.
        rows (list): {name, unit, first, second, winner} of each metric; "winner" is first or
            second, and null where they are equal, no side of the metric is better, or "apart" says
            in what the two differ.
        apart (str): their models, or their sites, where these differ: then nothing is better.
    """
    other = check_name(other)
    path = _evaluation_of(subject, other)
    if path is None or not path.is_file():
        raise Refused(f"{other} has no evaluation.json to compare; {_how(subject, other)}")
    try:
        results = read_json(path)
    except ValueError as error:  # whose sentence may name a folder of this machine
        raise Refused(f"the evaluation.json of {other} is damaged; make it again") from error
    if is_changed(results):
        raise Refused(f"the evaluation.json of {other} cannot be compared: {CHANGED}")
    ours, theirs = (
        {m["name"]: m for m in _metrics(evaluation)} for evaluation in (subject.evaluation, results)
    )
    rows = [
        {"name": name, "unit": m["unit"], "first": ours.get(name), "second": theirs.get(name)}
        for name, m in sorted((theirs | ours).items(), key=_place)
    ]
    different = apart(subject, _config_beside(path))
    for row in rows:
        row["winner"] = None if different else _winner(row)
    return {"first": subject.name, "second": other, "rows": rows, "apart": different}


def _config_beside(evaluation: Path) -> Json:
    """What an SAE's config tells of its model and site; nothing, in another library's format."""
    try:
        return read_json(evaluation.with_name(CONFIG))
    except (OSError, ValueError):
        return {}


def _how(subject: Subject, other: str) -> str:
    """How to measure the other SAE."""
    how = None
    if Path(place_of(subject, other).source).is_absolute():
        how = missing(other_of(subject, other), "evaluate")
    return f"`{how.command}` makes it" if how else "run `hfsae evaluate` first"


def _winner(row: Json) -> str | None:
    """Which of the two is better by a metric that has a better side, if they differ."""
    sign = -1 if row["name"] in _LESS_IS_BETTER else int(row["name"] in _MORE_IS_BETTER)
    if not sign or not row["first"] or not row["second"]:
        return None
    gain = sign * (row["first"]["value"] - row["second"]["value"])
    return None if not gain else "first" if gain > 0 else "second"


def _evaluation_of(subject: Subject, other: str) -> Path | None:
    """Its evaluation.json."""
    place = place_of(subject, other)
    root = Path(place.source)
    if root.is_absolute():
        folder = root if root.is_dir() else root.parent
        path = folder / EVALUATION
        return path if path.resolve().parent == folder else None
    folder = beside(list_files(place.source), [EVALUATION, CONFIG], subfolder=place.subfolder)
    return None if folder is None else folder / EVALUATION


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
    batch = tokens_of(subject, text).batch(subject.lm.device)
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


def _counted_on(subject: Subject) -> int | None:
    """Tokens that densities were counted on."""
    if subject.store is not None:
        return subject.store.meta.get("n_tokens")
    return subject.evaluation.get("n_tokens")


def _threshold_bins(subject: Subject) -> list[Json]:
    threshold = getattr(subject.sae, "threshold", None)
    if not isinstance(threshold, torch.Tensor) or threshold.numel() != subject.d_sae:
        return []
    return _bins(threshold.detach().float().cpu() * subject.sae.latent_scale)


def _metrics(evaluation: Json) -> list[Json]:
    """Name, value, interval and unit; what is not a number is left out."""
    metrics = evaluation.get("metrics")
    rows = []
    for name, m in sorted((metrics if isinstance(metrics, dict) else {}).items(), key=_place):
        if isinstance(m, dict) and _finite(m.get("value")) is not None:
            numbers = {key: _finite(m.get(key)) for key in ("value", "low", "high")}
            unit = "" if m.get("unit") == "1" else str(m.get("unit", ""))
            rows.append({"name": str(name), "unit": unit, **numbers})
    return rows


def _place(metric: tuple[str, Any]) -> int:
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


def _log_bins(density: torch.Tensor) -> list[Json]:
    """Of the logarithms to base ten of living latents' densities."""
    return _bins(density[density > 0].log10())


def _l0_bins(histogram: list[Any]) -> list[Json]:
    """Tokens by number of latents, in at most forty bins, from the first that is not empty."""
    counts = [int(n) for n in histogram]
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        return []
    step = max(1, math.ceil((filled[-1] + 1 - filled[0]) / _BINS))
    starts = range(filled[0], filled[-1] + 1, step)
    return [{"low": i, "high": i + step, "count": sum(counts[i : i + step])} for i in starts]
