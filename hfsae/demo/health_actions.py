"""Actions that judge an SAE: its health, alone and beside another's, and its card.

Of another SAE: which may be read from here, its metrics, and both on one text.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .. import cards
from ..activations.tokens import counted_predictions
from ..convert.formats import find
from ..evaluation import EvaluationArguments, evaluate
from ..evaluation.metrics import DENSITY, FIDELITY
from ..evaluation.result import LOSSES
from ..features.inspection import inspect
from ..hub import files_beside, list_files, list_saes
from ..io.checksums import CHANGED, is_changed
from ..io.errors import Refused
from ..io.file_names import CONFIG, EVALUATION
from ..io.files import read_json
from ..io.local_paths import public
from ..io.units import ROW
from ..lm import contract
from ..models.config import where_of
from ..packaged import SHIPPED_SAE
from . import validate
from .opening import open_subject
from .rows import Json, firing_rows
from .subject import Choice, Subject, how_to_make

_BINS = 40
_ORDER = {name: i for i, name in enumerate([*FIDELITY, *DENSITY, *LOSSES])}
_SAME_LOSS = 1.01  # times the model's own loss on the other's text: up to here it is one text
_SIZES = ("n_tokens", "n_documents")
_TEXT_METRICS = ("l0", "fvu", "ce_clean", "ce_spliced", "delta_loss", "kl")
PACKAGED = "packaged"
"""names the SAE in this package"""
RUNS = Path("runs")
MOST, _NEAR = 40, 5  # SAEs offered on the page, and in a sentence
_REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.-]*)*)")
_MOST_TOKENS = 80  # in the table of tokens
_CLOSE = 1.1  # times the other's L0: up to here the two are compared at equal L0


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
    if not counted_predictions(batch).any():
        raise Refused("this text is too short to measure; write some sentences")
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


def compare_saes(subject: Subject, other: str) -> Json:
    """Held-out metrics of this SAE beside those of another.

    Args:
        other: the other SAE: a repository on the Hub, as name/repository; or, on your own machine,
            the folder of an SAE below the one that the app was started in, or the one that it
            shows.

    Returns:
        first (str): name of this SAE.
        second (str): name of the other.
        rows (list): {name, unit, first, second} of each metric, with 95 % intervals.
        apart (str): their models, or their sites, where these differ: then nothing is better.
        same_text (bool): as far as sizes and the model's own loss tell, both were measured on the
            same text; if not, nothing is better.
        equal_l0 (bool): both use about as many latents a token; if not, the one with more explains
            more for that reason alone.
    """
    other = check_name(other)
    place, how = place_of(subject, other), None
    root = Path(place.source)
    if is_here := root.is_absolute():
        folder = root if root.is_dir() else root.parent
    else:
        listing = list_files(place.source)
        folder = files_beside(listing, [EVALUATION, CONFIG], subfolder=place.subfolder)
    path = None if folder is None else folder / EVALUATION
    is_link = is_here and path is not None and path.resolve().parent != folder
    if path is None or is_link or not path.is_file():
        if is_here:
            how = how_to_make(other_of(subject, other), "evaluate")
        hint = f"`{how[0]}` makes it" if how else "run `hfsae evaluate` first"
        raise Refused(f"{other} has no evaluation.json to compare; {hint}")
    try:
        results = read_json(path)
    except ValueError as error:  # whose sentence may name a folder of this machine
        raise Refused(f"the evaluation.json of {other} is damaged; make it again") from error
    if is_changed(results):
        raise Refused(f"the evaluation.json of {other} cannot be compared: {CHANGED}")
    try:
        config = read_json(path.with_name(CONFIG))
    except (OSError, ValueError):  # in another library's format
        config = {}
    ours, theirs = (
        {m["name"]: m for m in metric_rows(evaluation)}
        for evaluation in (subject.evaluation, results)
    )
    sizes = ([e.get(key) for e in (subject.evaluation, results)] for key in _SIZES)
    same_text = all(None in pair or pair[0] == pair[1] for pair in sizes)
    losses, rates = (
        [of[name]["value"] for of in (ours, theirs) if name in of] for name in ("ce_clean", "l0")
    )
    same_text &= max(losses, default=0) <= _SAME_LOSS * min(losses, default=0)
    return {
        "first": subject.name,
        "second": other,
        "rows": [
            {"name": name, "unit": m["unit"], "first": ours.get(name), "second": theirs.get(name)}
            for name, m in sorted((theirs | ours).items(), key=metric_order)
        ],
        "apart": apart(subject, config),
        "same_text": same_text,
        "equal_l0": max(rates, default=0) <= _CLOSE * min(rates, default=0),
    }


def side_by_side(subject: Subject, other: str, text: str) -> Json:
    """Two SAEs of one language model on a text: variance unexplained, L0, and what fires where.

    Args:
        other: the second SAE, as for compare_saes.
        text: some sentences.

    Returns:
        first (dict): of this SAE: {name, kind, site, d_sae, l0, fvu, rows}: latents that fire on a
            token, the fraction of variance that is left unexplained, and the most telling latents.
        second (dict): the same of the other SAE.
        apart (str): in what the two differ so that none can be better: their models, or their
            sites; empty: in neither.
        equal_l0 (bool): both use about as many latents a token: only then FVU compares fairly.
        tokens (list): {token, l0, latents, activations, cosine}: on each token the strongest latent
            of either SAE, and the cosine of their directions.
    """
    second = other_of(subject, other)
    saes = subject, second
    seen = subject.inspection(text), inspect(subject.lm, second.sae, subject.tokens(text))
    first, last = (
        {
            "name": sae.name,
            "kind": sae.sae.config.model_type,
            "site": sae.sae.config.where,
            "d_sae": sae.sae.config.d_sae,
            "l0": sum(s.l0) / max(1, s.n_kept),
            "fvu": s.fvu if s.fvu == s.fvu else None,
            "rows": firing_rows(sae, s)[0],
        }
        for sae, s in zip(saes, seen, strict=True)
    )
    rates, tokens = (first["l0"], last["l0"]), []
    for position, special in enumerate(seen[0].tokens.special[:_MOST_TOKENS]):
        if special:
            continue
        best = [next(iter(s.at(position).ranking()), None) for s in seen]
        cosine = None
        if best[0] and best[1]:
            one, two = (s.sae.W_dec[b.latent].float() for s, b in zip(saes, best, strict=True) if b)
            if one.shape == two.shape:
                cosine = float(F.cosine_similarity(one, two.to(one.device), dim=0))
        row = {
            "token": seen[0].tokens.texts[position],
            "l0": [s.l0[position] for s in seen],
            "latents": [None if b is None else b.latent for b in best],
            "activations": [None if b is None else b.max for b in best],
            "cosine": cosine,
        }
        tokens.append(row)
    return {
        "first": first,
        "second": last,
        "apart": apart(subject, vars(second.sae.config)),
        "equal_l0": max(rates) <= _CLOSE * min(rates),
        "tokens": tokens,
    }


def apart(subject: Subject, other: Mapping[str, Any]) -> str:
    """Why figures of another SAE, of this config, cannot be ranked beside this one's: they are of
    different models, or of different sites; what is unknown counts as the same."""
    own = vars(subject.sae.config)
    models = [public(config.get("model_name"), "model_name") for config in (own, other)]
    sites = [where_of(config) for config in (own, other)]
    return " and ".join(
        f"{what} ({first} and {second})"
        for what, (first, second) in (("models", models), ("sites", sites))
        if first and second and first != second
    )


def other_of(subject: Subject, other: object) -> Subject:
    """The second SAE, without a language model of its own.

    Raises:
        ValueError: it is none that may be read from here, or one of another language model.
    """
    other = check_name(other)
    if subject.label_home is None:
        raise Refused(
            "a second SAE's weights are not loaded here; run `hfsae demo` on your own machine"
        )
    second = _open_second(place_of(subject, other))
    wrong = [
        d
        for d in contract.differences(second.sae.config, subject.lm, subject.tokenizer)
        if d.severity == "error"
    ]
    if wrong:
        raise Refused(f"{other} is not for this language model: {wrong[0]}")
    widths = second.sae.config.d_in, subject.sae.config.d_in
    if widths[0] != widths[1]:
        raise Refused(
            f"{other} reads vectors of {widths[0]:,} numbers, this SAE of {widths[1]:,}; name one "
            "of the same language model"
        )
    return second


@lru_cache(maxsize=2)
def _open_second(choice: Choice) -> Subject:
    subject = open_subject(choice, with_lm=False)
    subject.name = f"{subject.name}/{choice.subfolder}".rstrip("/")  # of a suite's several
    return subject


def check_name(name: object) -> str:
    """The folder or repository of another SAE, which must not be blank."""
    return validate.text(name, "the other SAE", limit=300, empty="name another SAE").strip()


def place_of(subject: Subject, other: str) -> Choice:
    """Where another SAE is: a folder, or a repository and the path in it. Only SAEs are read, and
    no answer reveals other folders. Where others may reach the app, only those below the folder
    that it was started in, or in that of the SAE that it shows.

    Raises:
        ValueError: it is not one of these.
    """
    if other == PACKAGED:
        return Choice(str(SHIPPED_SAE))

    def is_sae(path: Path) -> bool:
        """Whether it is one, in any format; of a folder only its own files are looked at."""
        try:
            if path.is_file():
                return bool(find([path.name]))
            return "" in find(file.name for file in path.iterdir() if file.is_file())
        except OSError:
            return False

    is_local, is_alone = subject.label_home is not None, subject.only_here
    if is_local:
        path, source = Path(os.path.expanduser(other) if is_alone else other), subject.choice.source
        homes = [Path.cwd(), subject.folder, Path(source) if Path(source).is_dir() else None]
        path = path.resolve()
        is_near = any(path.is_relative_to(home.resolve()) for home in homes if home is not None)
        if (is_alone or is_near) and is_sae(path):
            return Choice(str(path))
    if names := _REPOSITORY.fullmatch(other):
        top = Path(other).parts[0]  # where it is a folder here, this is no path on the Hub
        if not (is_local and (is_alone or top == str(RUNS)) and Path(top).is_dir()):
            return Choice(names[1], names[2].strip("/"))
    what, near = "a repository on the Hub as name/repository", ""
    if is_local:
        below = ""
        if not is_alone:
            below = " below the one that the app was started in, as others may reach this app"
        what = f"the folder of an SAE{below}, or {what}"
    if is_alone and (names := sae_choices(subject)[:_NEAR]):
        near = f"; these are here: {', '.join(names)}"
    raise Refused(f"{other!r} is not an SAE that can be read from here; name {what}{near}")


def sae_choices(subject: Subject) -> list[str]:
    """Names of SAEs that lie near, to compare with: in the folder runs/, in the suite that this one
    is of, and the packaged one; without those that read vectors of another width."""
    if subject.label_home is None:
        return []

    def key(name: str) -> str:
        return str(Path(name).resolve())

    def fits(name: str) -> bool:
        config = (SHIPPED_SAE if name == PACKAGED else Path(name)) / CONFIG
        try:
            width = read_json(config).get("d_in") if config.is_file() else None
        except ValueError:
            return False
        return width in (None, subject.sae.config.d_in)

    siblings = subject.cached("siblings", lambda: _inside(subject.choice))
    own = {key(subject.choice.source), key(str(subject.folder or ""))}
    names = dict.fromkeys([*_inside(Choice(str(RUNS))), *siblings, PACKAGED])
    if subject.choice.is_shipped:
        del names[PACKAGED]
    return [name for name in names if key(name) not in own and fits(name)][:MOST]


def _inside(choice: Choice) -> list[str]:
    """The SAEs below a folder or repository, those of the chosen layer first."""
    source = choice.source
    if source == str(RUNS) and not RUNS.is_dir():
        return []
    try:
        entries = list_saes(source)
    except ValueError:  # of another machine, or without a network
        return []
    entries.sort(key=lambda entry: choice.layer not in (None, entry.layer))
    return [f"{source}/{entry.path}" for entry in entries if entry.path]
