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

from ..io.checksums import content_hash
from ..io.errors import Refused
from ..io.files import replacing
from ..models.config import check_latent
from .arguments import LEAST_FIT, ExplainArguments
from .corpus import SHOWN, TESTED, CorpusActivations, Firings

N_QUANTILES = 5
_N_COMMONEST = 10  # peak tokens at which hard windows are
_FORMAT = 1
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
        if about.get("content") != _hash(arrays, about):
            return None
        kinds = json.loads(about["kinds"])
        columns: Any = [arrays[name].tolist() for name in ("windows", "peaks", "kinds")]
        places = zip(*columns, strict=True)
        windows = [Window._make([*at, peak, kinds[kind]]) for at, peak, kind in places]
        n_windows = arrays["n_windows"].tolist()
        ends = arrays["n_windows"].cumsum().tolist()
        groups = [windows[end - n : end] for end, n in zip(ends, n_windows, strict=True)]
        ends = arrays["n_trace"].cumsum()[:-1]
        tokens = np.split(arrays["token"].astype(np.int64), ends)
        traces = map(Firings, tokens, np.split(arrays["value"], ends))
        facts = zip(arrays["latent"].tolist(), arrays["density"].tolist(), traces, strict=True)
        evidence = [Evidence(*of, *groups[3 * i : 3 * i + 3]) for i, of in enumerate(facts)]
        n_latents = int(about["n_latents"])
        latents, directions = evidence[:n_latents], evidence[n_latents:]
        reading = CorpusActivations(
            **{name: arrays[name] for name in _FACTS},
            n_documents=tuple(json.loads(about["n_documents"])),
            projections=np.zeros((len(arrays["ids"]), 0), np.float32),
            _traces={e.latent: e.trace for e in latents},
        )
        return reading, Selection(latents, directions, json.loads(about["left_out"]))

    def save(self, reading: CorpusActivations, selection: Selection) -> None:
        """Write the file."""
        evidence = [*selection.latents, *selection.directions]
        groups = [getattr(e, group) for e in evidence for group in _GROUPS]
        windows: list[Window] = [window for group in groups for window in group]
        kinds = sorted({window.kind for window in windows})
        arrays = {name: getattr(reading, name) for name in _FACTS} | {
            "latent": np.array([e.latent for e in evidence]),
            "density": np.array([e.density for e in evidence]),
            "n_trace": np.array([len(e.trace.token) for e in evidence]),
            "token": np.concatenate([e.trace.token for e in evidence]).astype(np.int32),
            "value": np.concatenate([e.trace.value for e in evidence]),
            "n_windows": np.array([len(group) for group in groups]),
            "windows": np.array([w[:3] for w in windows]),
            "peaks": np.array([w.activation for w in windows]),
            "kinds": np.array([kinds.index(w.kind) for w in windows]),
        }
        about = {
            "made_from": self._made_from,
            "kinds": json.dumps(kinds),
            "left_out": json.dumps(selection.left_out),
            "n_latents": str(len(selection.latents)),
            "n_documents": json.dumps(reading.n_documents),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as path:
            save_file(arrays, path, {**about, "content": _hash(arrays, about)})


def _hash(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    plain = {key: value for key, value in about.items() if key != "content"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
