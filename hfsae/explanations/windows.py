"""Windows of text around a latent's peaks: those an explanation is made from, those that test it;
and the file that keeps them.

shown     10 with the largest peaks, 10 over quantiles of the peak, of the shown half
active    20 over five quantiles of the peak, of the tested half
inactive  10 at random, and 10 hard ones: at one of the latent's commonest peak tokens, where it
          is silent; that it is silent there is checked on each token of the window

No window holds a token without activations (see `corpus`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from ..activations.token_text import spell
from ..io.checksums import content_hash
from ..io.errors import Refused
from ..io.files import replacing
from ..models.config import check_latent
from .arguments import LEAST_FIT, ExplainArguments
from .corpus import SHOWN, TESTED, CorpusActivations, Firings

N_QUANTILES = 5
_N_COMMONEST = 10  # peak tokens at which hard windows are
_FORMAT = 2
_FACTS = ("ids", "half", "start", "stop", "computed", "n_firings", "order")
_GROUPS = ("shown", "active", "inactive")


class TooFew(Refused):
    """Too few latents qualify for a mean score."""


class Window(NamedTuple):
    """A stretch of tokens; the indices are those of a `CorpusActivations`."""

    start: int
    stop: int
    peak: int
    """the token with the largest activation, or a window's centre"""
    activation: float
    """there; 0 in an inactive window"""
    kind: str
    """top, quantile_1 (the weakest) to quantile_5, random or hard"""


class Evidence(NamedTuple):
    """The windows of a latent, or of a random direction."""

    latent: int
    """-1 for a direction"""
    density: float
    trace: Firings
    shown: list[Window]
    active: list[Window]
    inactive: list[Window]

    def activations(self, n_tokens: int) -> np.ndarray:
        """[n_tokens] the activation on each token that was read."""
        activations = np.zeros(n_tokens, dtype=np.float32)
        activations[self.trace.token] = self.trace.value
        return activations


class Selection(NamedTuple):
    """Chosen latents, the controls, and how many latents were left out for which reason."""

    latents: list[Evidence]
    directions: list[Evidence]
    left_out: dict[str, int]


def order_of(
    args: ExplainArguments, d_sae: int, explained: Collection[int] | None = None
) -> np.ndarray:
    """All latents in a random order, or the named ones; with `explained`, only those of them.

    Raises:
        ValueError: a named latent is out of range.
    """
    if args.latents is None:
        order = np.random.default_rng(args.seed).permutation(d_sae)
    else:
        order = np.array(sorted({*args.latents}))
        for latent in order.tolist():
            check_latent(latent, d_sae)
    return order if explained is None else order[np.isin(order, [*explained])]


def select(
    reading: CorpusActivations, args: ExplainArguments, explained: Collection[int] | None = None
) -> Selection:
    """The first latents of the order that qualify, and a random direction for each.

    Args:
        explained: latents that have an explanation; None: all.

    Raises:
        ValueError: none qualifies, or of 20 drawn ones or more fewer than 20.
    """
    chosen: list[Evidence] = []
    n_of = len(reading.n_firings) if args.latents is None else len({*args.latents})
    reasons: Counter[str] = Counter()
    if explained is not None:
        n_explained = len(order_of(args, len(reading.n_firings), explained))
        reasons["without an explanation"] = n_of - n_explained
    is_drawn = args.latents is None and args.n_latents != "all"
    for latent in reading.order.tolist():
        if is_drawn and len(chosen) == args.n_latents:
            break
        density, evidence = reading.density(latent), None
        if density == 0:
            reason = "silent on all tokens read"
        elif args.latents is None and density < args.min_density:
            reason = f"rarer than {args.min_density:g}"
        elif args.latents is None and density > args.max_density:
            reason = f"denser than {args.max_density:g}"
        else:
            reason = f"fewer than {args.least} windows on a half"
            evidence = gather(reading, args, latent, density, reading.trace(latent))
        if evidence is None:
            reasons[reason] += 1
        else:
            chosen.append(evidence)
    n, n_least = len(chosen), min(LEAST_FIT, int(args.n_latents)) if is_drawn else 1
    if n < n_least:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        qualify = {0: "no latent qualifies", 1: "only 1 latent qualifies"}
        raise TooFew(
            f"{qualify.get(n, f'only {n} latents qualify')}; scores need {n_least} ({listed}, of "
            f"{reading.n_computed:,} tokens); read more tokens, or other latents"
        )
    if not_drawn := n_of - n - reasons.total():
        reasons["not drawn"] = not_drawn
    chosen.sort(key=lambda evidence: evidence.latent)
    # Random directions, thresholded at the densities of the chosen latents.
    densities = [evidence.density for evidence in chosen]
    np.random.default_rng(args.seed).shuffle(densities)
    directions = []
    for direction, density in zip(range(reading.projections.shape[1]), densities, strict=False):
        trace = reading.densest(direction, density)
        evidence = gather(reading, args, -1 - direction, density, trace)
        if evidence is not None:
            directions.append(evidence)
    return Selection(chosen, directions, dict(+reasons))


def gather(
    reading: CorpusActivations, args: ExplainArguments, latent: int, density: float, trace: Firings
) -> Evidence | None:
    """A latent's windows; None if it has too few.

    Args:
        latent: its index, on which what is drawn depends; negative for a random direction.
    """
    rng = np.random.default_rng([args.seed, latent + 2**32])
    activations = np.zeros(len(reading.ids), dtype=np.float32)
    activations[trace.token] = trace.value
    shown, active = (
        list(peaks(reading, activations, trace, half, args.window)) for half in (SHOWN, TESTED)
    )
    if min(len(shown), len(active)) < args.least:
        return None
    top, rest = shown[: args.shown // 2], shown[args.shown // 2 :]
    top = [window._replace(kind="top") for window in top]
    counts = Counter(int(reading.ids[window.peak]) for window in shown)
    commonest = [token for token, _ in counts.most_common(_N_COMMONEST)]
    inactive = _inactive(reading, args, activations, commonest, rng)
    return Evidence(
        latent,
        density,
        trace,
        top + over_quantiles(rest, args.shown - len(top), rng),
        over_quantiles(active, args.tested, rng),
        inactive,
    )


def peaks(
    reading: CorpusActivations, activations: np.ndarray, trace: Firings, half: int, reach: int
) -> Iterator[Window]:
    """Windows around the tokens with a window's largest activation, strongest first; no two
    overlap."""
    inside = reading.half[trace.token] == half
    token, value = trace.token[inside], trace.value[inside]
    taken = np.zeros(len(reading.ids), dtype=bool)
    for at in token[np.argsort(-value, kind="stable")].tolist():
        start = max(int(reading.start[at]), at - reach)
        stop = min(int(reading.stop[at]), at + reach + 1)
        if not taken[start:stop].any() and activations[start:stop].max() <= activations[at]:
            taken[start:stop] = True
            yield Window(start, stop, at, float(activations[at]), "")


def over_quantiles(windows: Sequence[Window], n: int, rng: np.random.Generator) -> list[Window]:
    """n windows, as many at random from each of five groups of equal size by peak; weak groups lack
    the remainder. Strongest first."""
    if not windows:
        return []
    group = N_QUANTILES - 1 - np.arange(len(windows)) * N_QUANTILES // len(windows)
    keys = rng.random(len(windows))
    drawn = []
    for quantile in reversed(range(N_QUANTILES)):
        members = np.flatnonzero(group == quantile)
        share = n // N_QUANTILES + (N_QUANTILES - 1 - quantile < n % N_QUANTILES)
        for member in sorted(members[np.argsort(keys[members])][:share].tolist()):
            drawn.append(windows[member]._replace(kind=f"quantile_{quantile + 1}"))
    return drawn


def _inactive(
    reading: CorpusActivations,
    args: ExplainArguments,
    activations: np.ndarray,
    commonest: Sequence[int],
    rng: np.random.Generator,
) -> list[Window]:
    """Windows in which each token is computed and silent: hard ones, and random ones."""
    at = np.arange(len(reading.ids))
    start = np.maximum(reading.start, at - args.window)
    stop = np.minimum(reading.stop, at + args.window + 1)
    blocked = np.concatenate([[0], ((activations > 0) | ~reading.computed).cumsum()])
    silent = np.flatnonzero((reading.half == TESTED) & (blocked[stop] == blocked[start]))
    is_hard = np.isin(reading.ids[silent], commonest)
    taken = np.zeros(len(at), dtype=bool)
    windows: list[Window] = []
    for kind, centres in (("hard", silent[is_hard]), ("random", silent)):
        n = args.tested // 2 if kind == "hard" else args.tested
        for centre in rng.permutation(centres).tolist():
            if len(windows) == n:
                break
            first, last = int(start[centre]), int(stop[centre])
            if not taken[first:last].any():
                taken[first:last] = True
                windows.append(Window(first, last, centre, 0.0, kind))
    return windows


class WindowText(NamedTuple):
    """A window as text: joined, `tokens` are readable."""

    tokens: list[str]
    peak: int
    """index of the peak's token"""
    window: Window
    activations: tuple[float, ...] = ()
    """one a token"""

    @property
    def text(self) -> str:
        """The tokens joined, as they are."""
        return "".join(self.tokens)


def window_text(
    reading: CorpusActivations,
    window: Window,
    tokenizer: PreTrainedTokenizerBase,
    activations: np.ndarray | None = None,
) -> WindowText:
    """A window's text, token by token.

    Args:
        activations: of the latent on each token that was read.
    """
    inside = slice(window.start, window.stop)
    values = () if activations is None else tuple(activations[inside].tolist())
    tokens = spell(tokenizer, reading.ids[inside].tolist())
    return WindowText(tokens, window.peak - window.start, window, values)


def shown_windows(
    reading: CorpusActivations, evidence: Sequence[Evidence], tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[WindowText]]:
    """The shown windows of latents, as text."""
    shown = {}
    for e in evidence:
        activations = e.activations(len(reading.ids))
        shown[e.latent] = [window_text(reading, w, tokenizer, activations) for w in e.shown]
    return shown


class StudyFile:
    """What a pass over the text found, kept while a judge's answers are awaited: it is read once.

    A safetensors file with the tokens, their halves, and the windows and firings of the chosen
    latents and directions. Its head has the hash of what all this was made from, and that of the
    content: of anything else, or damaged, it is made again.

    Args:
        made_from: plain values that decide what is found: weights, text, settings.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self.path = path
        self._made_from = content_hash({**made_from, "format": _FORMAT})

    @cached_property
    def content(self) -> tuple[CorpusActivations, Selection] | None:
        """What `save` was given, without the projections, from which directions were chosen; None:
        there is no file, it is damaged, or of something else."""
        try:
            with safe_open(self.path, "np") as file:
                about = file.metadata() or {}
                if about.get("made_from") != self._made_from:
                    return None
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if about.get("content") != _hash(arrays):
            return None
        plain = json.loads(arrays["selection"].tobytes())
        ends = arrays["n_trace"].cumsum()[:-1]
        columns = (np.split(arrays[name], ends) for name in ("token", "value"))
        traces = map(Firings, *columns)
        latents, directions = (
            [
                Evidence(latent, density, next(traces), *([Window(*w) for w in g] for g in groups))
                for latent, density, *groups in plain[part]
            ]
            for part in ("latents", "directions")
        )
        reading = CorpusActivations(
            **{name: arrays[name] for name in _FACTS},
            n_documents=tuple(plain["n_documents"]),
            projections=np.zeros((len(arrays["ids"]), 0), np.float32),
            _traces={e.latent: e.trace for e in latents},
        )
        return reading, Selection(latents, directions, plain["left_out"])

    def save(self, reading: CorpusActivations, selection: Selection) -> None:
        """Write the file."""
        parts = {"latents": selection.latents, "directions": selection.directions}
        traces = [e.trace for part in parts.values() for e in part]
        plain: dict[str, Any] = {
            name: [[e.latent, e.density, e.shown, e.active, e.inactive] for e in part]
            for name, part in parts.items()
        }
        plain |= {"left_out": selection.left_out, "n_documents": reading.n_documents}
        arrays = {name: getattr(reading, name) for name in _FACTS} | {
            "selection": np.frombuffer(json.dumps(plain).encode(), np.uint8),
            "n_trace": np.array([len(trace.token) for trace in traces]),
            "token": np.concatenate([trace.token for trace in traces]),
            "value": np.concatenate([trace.value for trace in traces]),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as path:
            save_file(arrays, path, {"made_from": self._made_from, "content": _hash(arrays)})


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
