"""Effects of latents on a metric over many texts, and circuits of them, for SAEs at any sites.

Sparse feature circuits (Marks et al. 2024, arXiv:2403.19647). Where an SAE writes, x is
decode(latents) + error. Nodes are each latent and, one a site, the error, at a position or summed
over positions. A clean text has a patch text of as many tokens; without one patch values are 0.

    effect(u) = m(clean) - m(clean, with u at its patch value)              mean over texts

What the model computes later answers to it, so the effect is positive where u raises the metric m.
The paper has m(with) - m(clean) for an m of the other sign: the same number.

    ablate    as it stands                                     a forward pass a node
    attrib    (u - u_patch) * dm/du at clean values            one backward pass
    ig        the same, dm/du averaged between both values at one site at a time, so that effects
              of a site add up; at midpoints (the paper: left ends)     a pass a site and a step

A circuit is a set of nodes. All others are set, as the model runs, to their mean over patch texts
at the same position, or to 0 without patch texts:

    faithfulness(C) = (m(C) - m(no nodes)) / (m(model) - m(no nodes))
    completeness(C) = faithfulness(all nodes but C): near 0 where C has all that matters

An edge from u to d is (u - u_patch) * dd/du * dm/dd at clean values, other sites held. BOS, EOS and
padding keep the model's own activations, as in `hfsae.splice`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isclose, nan
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.token_text import tokenise
from ..io.errors import Refused
from ..lm import (
    Moment,
    capture,
    cast_for,
    check_arguments,
    contract,
    find_module,
    intervene,
    special_ids,
    tokenizer_of,
    unspared,
)
from ..models import SAE

Texts = str | Sequence[str] | Int[Tensor, "_ _"]
Metric = Callable[[Tensor, Tensor], Tensor]
"""Logits [rows, ctx, vocab] of some texts, and which these are, [rows] -> a number each, [rows]."""


class NodeEffect(NamedTuple):
    """A latent or an error, and its effect."""

    sae: str
    """name of the SAE"""
    position: int | None
    """None: summed over positions"""
    latent: int
    """-1: the SAE's error"""
    effect: float


class Circuit(NamedTuple):
    """How much of the metric a set of nodes makes up."""

    n_nodes: int
    faithfulness: float
    completeness: float


def logit_difference(correct: Sequence[int], wrong: Sequence[int]) -> Metric:
    """The logit of each text's correct next token minus that of its wrong one, by token ids."""
    if len(correct) != len(wrong):
        raise Refused(f"there are {len(correct)} correct and {len(wrong)} wrong tokens; pair them")
    both = torch.tensor([[*correct], [*wrong]]).T

    def of(logits: Float[Tensor, "rows ctx vocab"], rows: Int[Tensor, " rows"]) -> Tensor:
        if int(rows.max()) >= len(both):
            raise Refused(f"the metric has the tokens of {len(both)} texts; give those of all")
        chosen = logits[:, -1].gather(1, both[rows.cpu()].to(logits.device))
        return chosen[:, 0] - chosen[:, 1]

    return of


def effects(
    lm: PreTrainedModel,
    saes: Mapping[str, SAE],
    clean: Texts,
    patch: Texts | None = None,
    *,
    metric: Metric,
    method: str = "ig",
    by_position: bool = False,
    steps: int = 10,
    top: int | None = 20,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch: int = 8,
) -> "Effects":
    """Effects of latents and errors of several SAEs on a metric.

        metric = hfsae.circuits.logit_difference([are, is_], [is_, are])
        found = hfsae.effects(lm, saes, ["The keys", "The key"], ["The key", "The keys"],
                              metric=metric)

    Args:
        lm: in float32; in bfloat16 small effects are lost.
        saes: by name, in any order, each with one site, or a transcoder; they run at their own
            sites, also where the name is a site.
        clean: texts, or token ids [n, ctx], all of as many tokens.
        patch: one for each of them; None: patch values are 0.
        metric: see `Metric`, and `logit_difference`; within `hfsae.capture`, also of activations.
        by_position: nodes at each position; else a node's effect is summed over positions.
        steps: of `ig`.
        top: nodes to ablate, the largest by `attrib`; others are no nodes. None: all that fire.
        tokenizer: for texts; None: the one that `hfsae.load_lm` loaded with the model.
        batch: texts in a pass.

    Raises:
        ValueError: an unknown method, no text, texts of several lengths, no SAE, one of another
            model or site or of several sites, two at one site, or a metric without a gradient or
            with another shape than one number a text.
    """
    if method not in ("ig", "attrib", "ablate"):
        raise Refused(f"method is {method!r}; give 'ig', 'attrib' or 'ablate'")
    if min(steps, batch, top or 1) < 1 or top == 0:
        raise Refused(f"steps, batch and top are {steps}, {batch}, {top}; give at least 1 of each")
    if not saes:
        raise Refused("no SAE was given; give {site: sae}, such as hfsae.load_set(folder)")
    check_arguments("effects", lm, *saes.values())
    names: dict[str, str] = {}  # by site
    for name, sae in saes.items():
        contract.check_model(lm, sae, tokenizer)
        find_module(lm, sae.config.reads.only_site)
        site = sae.config.writes.only_site
        module = find_module(lm, site)
        try:
            named = find_module(lm, name)
        except ValueError:  # a name of another kind
            named = module
        if all(module is not inside for inside in named.modules()):
            raise Refused(f"the SAE given at {name!r} was trained at {site!r}; name it {site!r}")
        if site in names:
            raise Refused(f"{names[site]!r} and {name!r} both write at {site!r}; give one of them")
        names[site] = name
    texts = _Texts(lm, saes, clean, patch, metric, tokenizer, batch)
    found = texts.effects("ig" if method == "ig" else "attrib", by_position, steps)
    return found if method != "ablate" else texts.ablated(found, top)


@dataclass
class Effects:
    """Effects of nodes, and circuits of them."""

    by_sae: dict[str, Float[Tensor, "_ d_sae_and_1"]]
    """of latents, then of the error, at each position, or [1, d_sae + 1]. NaN: not ablated"""
    nodes: list[NodeEffect] = field(repr=False)
    """what is not 0 in all clean and patch texts, the largest |effect| first"""
    value: float
    """the metric of the unchanged model, mean over texts"""
    _texts: "_Texts" = field(repr=False)

    def on(self, clean: Texts, patch: Texts | None = None, *, metric: Metric) -> "Effects":
        """The same nodes, for circuits on other texts.

        Raises:
            ValueError: as for `effects`; or nodes have positions, and texts another length.
        """
        old = self._texts
        new = _Texts(old.lm, old.saes, clean, patch, metric, old.tokenizer, old.batch)
        length = old.clean.shape[1]
        if self.nodes and self.nodes[0].position is not None and new.clean.shape[1] != length:
            raise Refused(f"nodes have positions in {length} tokens; give texts of as many tokens")
        return replace(self, value=new.mean({}), _texts=new)

    def curve(self, sizes: Sequence[int], *, errors: str = "nodes") -> list[Circuit]:
        """Circuits of the n largest nodes."""
        nodes = [node for node in self.nodes if errors == "nodes" or node.latent >= 0]
        return self.circuits([nodes[:n] for n in sizes], errors=errors)

    def circuits(
        self, sets: Iterable[Sequence[NodeEffect]], *, errors: str = "nodes"
    ) -> list[Circuit]:
        """Faithfulness and completeness of sets of nodes.

        Raises:
            ValueError: the metric is the same without all nodes, or `errors` is unknown.
        """
        if errors not in ("nodes", "keep", "remove"):
            raise Refused(f"errors is {errors!r}; give 'nodes', 'keep' or 'remove'")
        base = self._texts.base()

        def m(nodes: Sequence[NodeEffect], outside: bool = False) -> float:
            """The metric where these nodes keep their running values, or all others do."""
            edits = {}
            for name, of in self.by_sae.items():
                kept = torch.full_like(of, outside, dtype=torch.bool)
                for node in nodes:
                    if node.sae == name:
                        kept[_rows(node), node.latent] = not outside
                if errors != "nodes":
                    kept[:, -1] = errors == "keep"
                d, other = of.shape[1] - 1, base[name]
                error = kept[:, -1:].expand(-1, other.shape[-1] - d)
                mark = torch.cat([kept[:, :-1], error], dim=1).to(other.device)
                edits[name] = lambda now, mark=mark, other=other: torch.where(mark, now, other)
            return self._texts.mean(edits)

        nothing = m([])
        if isclose(nothing, self.value, rel_tol=1e-6):
            raise Refused(f"the metric is {nothing:.4g} with all nodes and with none: no shares")
        pairs = [(len(nodes), m(nodes), m(nodes, outside=True)) for nodes in sets]
        shares = [[(x - nothing) / (self.value - nothing) for x in both] for _, *both in pairs]
        return [Circuit(n, *both) for (n, *_), both in zip(pairs, shares, strict=True)]

    def edges(self, nodes: Sequence[NodeEffect]) -> dict[tuple[NodeEffect, NodeEffect], float]:
        """Weights between nodes of different sites, from the first to the second: the part of the
        first one's effect that goes through the second, and through no other site between."""
        weights: dict[tuple[NodeEffect, NodeEffect], float] = {}
        of = {name: [node for node in nodes if node.sae == name] for name in self.by_sae}
        for rows in self._texts.chunks():
            clean, patch = self._texts.states(rows)
            slopes = self._texts.slopes(rows, clean)
            for s, t in combinations(clean, 2):
                for target, slope in self._texts.into(rows, clean, s, t, slopes[t], of[t]):
                    each = self._texts.nodes(s, rows, (clean[s] - patch[s]) * slope)
                    for source in of[s]:
                        part = float(each[:, _rows(source), source.latent].sum())
                        key, n = (source, target), len(self._texts.clean)
                        weights[key] = weights.get(key, 0.0) + part / n
        return weights


class _Texts:
    """Texts, the SAEs, and passes of the model in which nodes have other values.

    A state is latents and error side by side, [rows, ctx, d_sae + d_out]."""

    clean: Int[Tensor, "n ctx"]
    counted: Bool[Tensor, "n ctx 1"]

    def __init__(
        self,
        lm: PreTrainedModel,
        saes: Mapping[str, SAE],
        clean: Texts,
        patch: Texts | None,
        metric: Metric,
        tokenizer: PreTrainedTokenizerBase | None,
        batch: int,
    ) -> None:
        self.lm, self.saes, self.metric, self.batch = lm, saes, metric, batch
        self.tokenizer = tokenizer
        self.clean = self._ids(clean, "clean")
        self.patch = None if patch is None else self._ids(patch, "patch")
        self.counted = unspared(self.clean, special_ids(lm))[..., None]
        if self.patch is not None:
            n, other = [*self.clean.shape], [*self.patch.shape]
            if n != other:
                raise Refused(f"clean texts have [n, tokens] {n}, patch texts {other}; pair them")
            self.counted &= unspared(self.patch, special_ids(lm))[..., None]

    def _ids(self, texts: Texts, which: str) -> Tensor:
        if not len(texts):
            raise Refused(f"there is no {which} text; give at least one")
        if isinstance(texts, Tensor):
            return texts.to(self.lm.device)
        bos = next(iter(self.saes.values())).config.bos != "none"
        tokenizer = self.tokenizer or tokenizer_of(self.lm)
        given = [texts] if isinstance(texts, str) else texts
        ids = [tokenise(tokenizer, text, bos=bos).ids for text in given]
        for text, row in zip(given, ids, strict=True):
            if len(row) != len(ids[0]):
                raise Refused(
                    f"{which} text {text[:40]!r} has {len(row)} tokens and {given[0][:40]!r} "
                    f"{len(ids[0])}; positions are compared, so give texts of as many tokens"
                )
        return torch.tensor(ids, device=self.lm.device)

    def chunks(self) -> Sequence[Tensor]:
        return torch.arange(len(self.clean), device=self.lm.device).split(self.batch)

    @torch.no_grad()
    def states_of(self, ids: Int[Tensor, "rows ctx"]) -> dict[str, Tensor]:
        """By SAE, in the order in which they write."""
        ends = {name: (s.config.reads, s.config.writes) for name, s in self.saes.items()}
        sites = dict.fromkeys(end.only_site for both in ends.values() for end in both)
        with capture(self.lm, [*sites]) as acts:
            self.lm(input_ids=ids, use_cache=False)
        order = [*acts]
        names = sorted(ends, key=lambda name: order.index(ends[name][1].only_site))
        return {k: self.state(k, *(acts[end.only_site] for end in ends[k])) for k in names}

    def states(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of clean texts and of their patch texts."""
        clean = self.states_of(self.clean[rows])
        if self.patch is None:
            return clean, {name: torch.zeros_like(state) for name, state in clean.items()}
        return clean, self.states_of(self.patch[rows])

    def base(self) -> dict[str, Tensor]:
        """What nodes outside a circuit have: [ctx, d_sae + d_out]."""
        if self.patch is None:
            return {k: x[0] for k, x in self.states(torch.zeros(1, dtype=torch.long))[1].items()}
        parts = [self.states_of(ids) for ids in self.patch.split(self.batch)]
        return {
            k: torch.stack([p[k].sum(0) for p in parts]).sum(0) / len(self.patch) for k in parts[0]
        }

    def state(self, name: str, source: Tensor, target: Tensor) -> Tensor:
        sae = self.saes[name]
        source = cast_for(sae, source)
        latents = sae.encode(source)
        error = target.to(latents.device) - sae.decode(latents, source)
        return torch.cat([latents, error], dim=-1)

    def nodes(self, name: str, rows: Tensor, x: Float[Tensor, "rows ctx _"]) -> Tensor:
        """Of a state's numbers those of nodes, [rows, ctx, d_sae + 1], 0 at spared tokens."""
        d = self.saes[name].config.d_sae
        x = torch.cat([x[..., :d], x[..., d:].sum(dim=-1, keepdim=True)], dim=-1)
        return x * self.counted[rows].to(x.device)

    def value(
        self, rows: Int[Tensor, " rows"], writes: Mapping[str, Callable[[Moment], Tensor]]
    ) -> Float[Tensor, " rows"]:
        """The metric of some texts, where SAEs, in the order of `states_of`, write this."""
        with ExitStack() as stack:
            for name, write in writes.items():
                stack.enter_context(intervene(self.lm, self.saes[name], write))
            logits = self.lm(input_ids=self.clean[rows], use_cache=False).logits
            values = self.metric(logits, rows)
        if not isinstance(values, Tensor) or values.shape != rows.shape:
            shape = [*values.shape] if isinstance(values, Tensor) else type(values).__name__
            raise Refused(
                f"the metric gives {shape} for {len(rows)} texts; it must give a number for each, "
                f"[{len(rows)}], as hfsae.circuits.logit_difference does"
            )
        return values

    def writes(
        self, rows: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> dict[str, Callable[[Moment], Tensor]]:
        """Interventions that set states of running ones; what stays adds exactly 0."""

        def write(moment: Moment, name: str) -> Tensor:
            sae, d, x = self.saes[name], self.saes[name].config.d_sae, moment.target
            with torch.no_grad():
                now = self.state(name, moment.source, x)
            new = edits[name](now)
            change = sae.decode(new[..., :d], moment.source) - sae.decode(
                now[..., :d], moment.source
            )
            change = (change + (new - now)[..., d:]).to(x)
            return torch.where(self.counted[rows], x + change, x)

        return {name: lambda moment, name=name: write(moment, name) for name in edits}

    @torch.no_grad()
    def mean(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> float:
        """The metric with these edits, mean over texts."""
        total = sum(float(self.value(r, self.writes(r, edits)).sum()) for r in self.chunks())
        return total / len(self.clean)

    @torch.enable_grad()
    def slopes(self, rows: Tensor, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metric's gradient by states, of SAEs in these states."""
        leaves = {name: state.clone().requires_grad_() for name, state in at.items()}
        edits = {name: lambda now, leaf=leaf: leaf for name, leaf in leaves.items()}
        values = self.value(rows, self.writes(rows, edits))
        if not values.requires_grad:
            raise Refused(
                "the metric has no gradient; compute it by torch, from logits as they are"
            )
        slopes = torch.autograd.grad(values.sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True))

    def effects(self, method: str, by_position: bool, steps: int) -> Effects:
        totals: dict[str, Tensor] = {}
        sizes: dict[str, Tensor] = {}
        for rows in self.chunks():
            clean, patch = self.states(rows)
            groups = [[name] for name in clean] if method == "ig" else [[*clean]]
            points = (torch.arange(steps) + 0.5) / steps if method == "ig" else torch.zeros(1)
            for names in groups:
                mean = {name: torch.zeros_like(clean[name]) for name in names}
                for a in points.tolist():
                    at = {name: clean[name].lerp(patch[name], a) for name in names}
                    for name, slope in self.slopes(rows, at).items():
                        mean[name] += slope / len(points)
                for k, slope in mean.items():
                    parts = (clean[k] - patch[k]) * slope, clean[k].abs() + patch[k].abs()
                    for part, into in zip(parts, (totals, sizes), strict=True):
                        x = self.nodes(k, rows, part).sum(dim=0).double().cpu()
                        x = x if by_position else x.sum(dim=0, keepdim=True)
                        into[k] = into.get(k, 0) + x / len(self.clean)
        nodes = []
        for name, total in totals.items():
            places = sizes[name].nonzero()
            values = total[places.unbind(1)].tolist()
            for (position, latent), value in zip(places.tolist(), values, strict=True):
                latent = -1 if latent == total.shape[1] - 1 else latent
                nodes.append(NodeEffect(name, position if by_position else None, latent, value))
        nodes.sort(key=lambda node: -abs(node.effect))
        return Effects(totals, nodes, self.mean({}), self)

    @torch.no_grad()
    def ablated(self, found: Effects, top: int | None) -> Effects:
        """The exact effects of the largest nodes."""
        nodes = found.nodes[:top]
        values = [0.0] * len(nodes)
        for rows in self.chunks():
            clean, patch = self.states(rows)
            unchanged = self.value(rows, {})
            for i, (name, _, latent, _) in enumerate(nodes):
                d, at, new = self.saes[name].config.d_sae, _rows(nodes[i]), clean[name].clone()
                columns = slice(d, None) if latent < 0 else latent
                new[:, at, columns] = patch[name][:, at, columns]
                writes = self.writes(rows, {name: lambda now, new=new: new})
                change = unchanged - self.value(rows, writes)
                values[i] += float(change.sum()) / len(self.clean)
        by_sae = {name: torch.full_like(x, nan) for name, x in found.by_sae.items()}
        nodes = [node._replace(effect=x) for node, x in zip(nodes, values, strict=True)]
        for node in nodes:
            by_sae[node.sae][_rows(node), node.latent] = node.effect
        nodes.sort(key=lambda node: -abs(node.effect))
        return replace(found, by_sae=by_sae, nodes=nodes)

    @torch.enable_grad()
    def into(
        self,
        rows: Tensor,
        clean: Mapping[str, Tensor],
        s: str,
        t: str,
        slope: Tensor,
        targets: Sequence[NodeEffect],
    ) -> list[tuple[NodeEffect, Tensor]]:
        """Of each target at t the gradient, by states at s, of its part in the metric."""
        leaf, now = clean[s].clone().requires_grad_(), list[Tensor]()

        def read(moment: Moment) -> Tensor:
            now.append(self.state(t, moment.source, moment.target))
            return moment.target

        order = [*clean]
        between = order[order.index(s) + 1 : order.index(t)]
        writes = self.writes(rows, {s: lambda now: leaf})
        writes |= {name: lambda moment: moment.target.detach() for name in between}
        self.value(rows, writes | {t: read})
        parts = self.nodes(t, rows, now[0] * slope)
        found = []
        for target in targets:
            part = parts[:, _rows(target), target.latent].sum()
            if part.requires_grad:  # else t reads before s writes
                found.append((target, torch.autograd.grad(part, leaf, retain_graph=True)[0]))
        return found


def _rows(node: NodeEffect) -> int | slice:
    return slice(None) if node.position is None else node.position
