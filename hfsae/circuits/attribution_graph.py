"""Attribution graphs: which features, errors and tokens made which, and a prediction, of one text.

Transcoders stand for MLPs, at some blocks or all, or a cross-layer transcoder does; the rest of the
model is held as it runs on this text (`frozen`). Then each feature's activation and each logit is a
sum of what sources before it add, and nothing is left over:

    value_t = sum over sources s of A[t, s] + rest_t + bias_t
    A[t, s] = (what s writes) . d(what t reads) / d(what is written there)

    features    a latent at a position; writes activation * its decoder row
    errors      what the transcoder leaves out of an MLP's output; where there is none, all of it
    tokens      embeddings
    logits      W_U[token] minus the mean of all rows, at the last position

`rest` is of features beyond `max_feature_nodes`, `bias` of decoder and encoder biases, of position
embeddings, and of BOS, which has neither features nor errors. `Graph.check` compares both sides:
the bias comes from a pass with all sources at 0. Influence, pruning and both scores are
circuit-tracer's (github.com/decoderesearch/circuit-tracer, graph.py), the graph is that of Circuit
Tracing (Anthropic 2025).

A graph says what happens where attention stays as it is. `Graph.intervene` changes a node in the
held model and in the real one, so that both can be compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.token_text import named_token, tokenise
from ..io.errors import Refused
from ..io.processor import gpu_memory, main_memory
from ..lm import (
    capture,
    check_arguments,
    contract,
    find_module,
    known_tokenizer,
    special_ids,
    tokenizer_of,
    unspared,
)
from ..models import SAE
from .frozen import Frozen, frozen

Kind = Literal["feature", "error", "token", "logit"]
_ROUNDS = 4  # batches of features that are taken before influence is computed again
# Copies alive at once, measured on a CPU: of [batch, ctx, d] for each module whose output is held,
# of the weights of all sources, and of the square matrix while it is pruned.
_OF_PASSES, _OF_ROWS, _OF_MATRIX = 4.5, 3, 8


class Node(NamedTuple):
    """A place in a graph."""

    kind: Kind
    layer: int
    """block that a feature reads, or adds an error; -1 of tokens, number of blocks of logits"""
    position: int
    index: int
    """the latent, the token's id; -1 of errors"""
    value: float
    """activation, length of the error or embedding, probability of the token"""
    sae: str = ""
    """name of a feature's transcoder"""


class Effect(NamedTuple):
    """The change of values by an intervention."""

    features: Float[Tensor, " n_features"]
    """of activations before their thresholds, in the order of the graph's nodes"""
    logits: Float[Tensor, " n_logits"]


@dataclass
class Graph:
    """A graph of one text. Nodes are features, errors, tokens, logits, in this order."""

    nodes: list[Node]
    tokens: list[str]
    weights: Float[Tensor, "n n"]
    """A[target, source], in the model's dtype; rows of errors and tokens are 0"""
    rest: Float[Tensor, " n"]
    """of features that are no nodes, summed over them"""
    bias: Float[Tensor, " n"]
    value: Float[Tensor, " n"]
    """what a feature's or logit's row sums to, with rest and bias"""
    n_active: int
    """features that fire, nodes or not"""
    texts: dict[int, str]
    """of the logits' tokens"""
    model_name: str
    _model: "_Model" = field(repr=False)

    @property
    def probabilities(self) -> Float[Tensor, " n"]:
        """Of logits; 0 of other nodes."""
        return torch.tensor([n.value if n.kind == "logit" else 0.0 for n in self.nodes])

    @property
    def input_ids(self) -> Int[Tensor, "1 ctx"]:
        """The text's tokens."""
        return self._model.ids

    @property
    def transcoders(self) -> dict[str, tuple[SAE, list[int]]]:
        """Each with the blocks that it reads, in the order of its latents."""
        saes, parts = self._model.saes, self._model.parts
        return {k: (sae, [p.layer for p in parts if p.name == k]) for k, sae in saes.items()}

    def index_in_layer(self, node: Node) -> int:
        """Of a feature: the latent among those of its block. A cross-layer transcoder's count over
        all blocks."""
        sae = self._model.saes[node.sae]
        return node.index % (sae.config.d_sae // len(sae.sources()))

    def of_kind(self, kind: Kind) -> Bool[Tensor, " n"]:
        """Which nodes are of a kind."""
        return torch.tensor([node.kind == kind for node in self.nodes])

    def check(self) -> float:
        """The largest |sum of A[t] + rest + bias - value| over the largest |value|: 0 if exact."""
        is_target = self.of_kind("feature") | self.of_kind("logit")
        total = self.weights.double().sum(dim=1) + self.rest + self.bias
        return float((total - self.value)[is_target].abs().max() / self.value.abs().max())

    def influence(self) -> Float[Tensor, " n"]:
        """Of each node on the logits, through all paths, by shares of absolute weights."""
        return influence(self.weights, self.probabilities)

    @property
    def replacement_score(self) -> float:
        """Share of the logits' influence that begins at tokens, not at errors."""
        found = self.influence()
        of_tokens, of_errors = (float(found[self.of_kind(k)].sum()) for k in ("token", "error"))
        return of_tokens / (of_tokens + of_errors)

    @property
    def completeness_score(self) -> float:
        """Mean over nodes, by influence, of the share of input that is not of errors."""
        weight = self.influence() + self.probabilities
        of_errors = shares(self.weights)[:, self.of_kind("error")].sum(dim=1)
        return float((weight * (1 - of_errors)).sum() / weight.sum())

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> "Pruned":
        """The nodes, then the edges, that hold these shares of influence; then without what leads
        nowhere or comes from nowhere.

        Raises:
            ValueError: a share is not between 0 and 1.
        """
        check_shares(nodes, edges)
        start, found = self.probabilities, self.influence()
        features, errors = self.of_kind("feature"), self.of_kind("error")
        fixed = ~(features | errors)
        kept = (found >= _bound(found, nodes)) | fixed
        left = self.weights * kept[:, None] * kept
        through = shares(left) * (influence(left, start) + start)[:, None]
        edge = (through >= _bound(through.flatten(), edges)) & (left != 0)
        while True:
            leads, comes = edge.any(dim=0), edge.any(dim=1)
            new = kept & (leads | fixed) & (comes | errors | fixed)
            if torch.equal(new, kept):
                break
            kept = new
            edge &= kept[:, None] & kept
        order = found.argsort(descending=True)
        cumulative = torch.empty_like(found)
        cumulative[order] = found[order].cumsum(0) / found.sum().clamp(min=1e-10)
        return Pruned(kept, edge, cumulative)

    def intervene(self, node: int, factor: float = 0.0, *, real: bool = False) -> Effect:
        """What changes where a node's part is multiplied by `factor`: 0 removes it.

        Args:
            node: its place in `nodes`: a feature, an error or a token.
            real: in the model itself, whose attention, norms and MLPs answer; else in the held one.
        """
        if not 0 <= node < len(self.nodes) or self.nodes[node].kind == "logit":
            raise Refused(f"node {node} is no feature, error or token of {len(self.nodes)} nodes")
        return self._model.intervene(node, factor - 1, real)


class Pruned(NamedTuple):
    """What is left of a graph."""

    nodes: Bool[Tensor, " n"]
    edges: Bool[Tensor, "n n"]
    influence: Float[Tensor, " n"]
    """cumulative share of influence, of the strongest node first: a front end's slider cuts here"""


def shares(weights: Float[Tensor, "targets sources"]) -> Float[Tensor, "targets sources"]:
    """|A|, each row divided by its sum."""
    sizes = weights.abs()
    return sizes / sizes.sum(dim=1, keepdim=True).clamp(min=1e-10)


def influence(weights: Float[Tensor, "n n"], start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """start times the sum of all powers of the shares, which end: sources lie before targets."""
    table = shares(weights)
    reached = start.to(table) @ table
    total = reached
    while bool(reached.any()):
        reached = reached @ table
        total = total + reached
    return total


def check_shares(nodes: float, edges: float) -> None:
    """Check the shares of influence that pruning keeps.

    Raises:
        ValueError: one is not between 0 and 1.
    """
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 < share <= 1:
            raise Refused(f"{name} is {share}; give the share of influence to keep, 0 to 1")


def _bound(values: Float[Tensor, " n"], share: float) -> Tensor:
    """The smallest of the largest values that together have this share of the sum."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum().clamp(min=1e-10)
    return ordered[min(int(torch.searchsorted(reached, share)), len(ordered) - 1)]


def graph(
    lm: PreTrainedModel,
    saes: Mapping[str, SAE],
    text: str | Int[Tensor, "1 ctx"],
    *,
    target: int | str | None = None,
    contrast: int | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_feature_nodes: int | None = None,
    probability: float = 0.95,
    max_logits: int = 10,
    batch: int = 64,
    progress: Callable[[int, int], object] = lambda done, all: None,
) -> Graph:
    """The attribution graph of one text and what the model expects after it.

        saes = hfsae.load_set("runs/transcoders")
        found = hfsae.graph(lm, saes, "The capital of France is")

    Args:
        lm: in float32; in bfloat16 sums are exact to that dtype alone.
        saes: transcoders of MLPs by name, at most one a block, or a cross-layer transcoder.
        text: a text, or its token ids.
        target, contrast: a token to explain, and one to explain it against; None: the likeliest
            tokens that together have `probability`, at most `max_logits`.
        max_feature_nodes: None: 500 on a CPU, 7,500 elsewhere.
        batch: targets of one backward pass.
        progress: called with the number of features done, and of all.

    Raises:
        ValueError: a text of one token, an SAE that is no transcoder of an MLP or of another model,
            two at one block, no feature that fires, a model that `frozen` refuses, or more memory
            than is free (without psutil, of a GPU alone).
    """
    if not saes:
        raise Refused("no transcoder was given; give {name: sae}, such as hfsae.load_set(folder)")
    check_arguments("graph", lm, *saes.values())
    for sae in saes.values():
        contract.check_model(lm, sae, tokenizer)
    if isinstance(text, str):
        bos = next(iter(saes.values())).config.bos != "none"
        ids = tokenise(tokenizer or tokenizer_of(lm), text, bos=bos).ids
        text = torch.tensor([ids])
    if max_feature_nodes is not None and max_feature_nodes < 1:
        raise Refused(f"max_feature_nodes is {max_feature_nodes}; it must be at least 1")
    if target is None and contrast is not None:
        raise Refused("a contrast needs a target, the token to explain against it")
    model = _Model(lm, dict(saes), text, tokenizer or known_tokenizer(lm))
    with torch.no_grad():
        logits = lm(input_ids=model.ids, use_cache=False).logits[0, -1].float()

    def id_of(token: int | str) -> int:
        if isinstance(token, str):
            return named_token(tokenizer or tokenizer_of(lm), token, lambda: logits)[0]
        if not 0 <= token < len(logits):
            raise Refused(f"token {token} is not in the vocabulary: it has 0 to {len(logits) - 1}")
        return token

    chances = logits.softmax(dim=-1)
    if target is None:
        best = chances.topk(min(max_logits, len(chances)))
        n = int((best.values.cumsum(0) < probability).sum()) + 1
        chosen = [(int(i), None) for i in best.indices[:n]]
    else:
        chosen = [(id_of(target), None if contrast is None else id_of(contrast))]
    if max_feature_nodes is None:
        max_feature_nodes = 500 if lm.device.type == "cpu" else 7500
    values = [float(chances[i]) for i, _ in chosen]
    return model.graph(chosen, values, max_feature_nodes, batch, progress)


class _Part(NamedTuple):
    """Features of one transcoder's source: all that fire at tokens that count."""

    name: str
    sae: SAE
    site: str
    layer: int
    source: slice
    """its columns of what the SAE reads"""


class _Model:
    """A text, the transcoders, and what fires; passes of the held model over it."""

    def __init__(
        self,
        lm: PreTrainedModel,
        saes: dict[str, SAE],
        ids: Tensor,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.lm, self.saes, self.ids, self.tokenizer = lm, saes, ids.to(lm.device), tokenizer
        self.counted = unspared(self.ids, special_ids(lm))[0]
        self.sites = sorted({site for sae in saes.values() for site in sae.config.reads.names})

    @contextmanager
    def _held(self) -> Iterator[Frozen]:
        with frozen(self.lm, self.ids) as held:
            self.modules: dict[str, nn.Module] = {}
            for name, sae in self.saes.items():
                for site in sae.config.writes.names:
                    module = held.hold(site)
                    if module in self.modules.values():
                        raise Refused(f"{name!r} is the second SAE that writes at {site!r}")
                    self.modules[site] = module
            yield held

    @torch.no_grad()
    def _read(self, held: Frozen, foresee: Callable[[int, int], None]) -> None:
        """Features, what they write, and errors; of the text's own pass.

        Args:
            foresee: called with the number of features so far, and the bytes of what the last ones
                write, before this is computed.
        """
        self.parts: list[_Part] = []
        with capture(held.lm, self.sites) as acts:
            held.run({})
        self.clean = {site: x.detach() for site, x in acts.items()}
        self.embedded = held.outputs[held.embedding][0]
        found: list[tuple[Tensor, ...]] = []  # part, position, latent, activation
        self.errors = {m: held.outputs[m][0] * self.counted[:, None] for m in held.layers}
        writes: dict[nn.Module, list[tuple[int, Tensor]]] = {m: [] for m in held.layers}
        n = 0
        for name, sae in self.saes.items():
            if sae.config.token_norm != "none":
                raise Refused(f"{name!r} divides by each token's norm, which is not linear")
            x = sae.config.reads.joined({s: self.clean[s][0] for s in sae.config.reads.names})
            x = x.to(sae.device)
            latents = sae.encode(x) * self.counted.to(sae.device)[:, None]
            recon = sae.split(sae.decode(latents, x))
            scale = sae.write_scale / sae.latent_scale if sae.config.has_column_scales else 1.0
            sources = sae.sources()
            if len(sources) == 1 and len(sae.config.reads) > 1:
                raise Refused(f"{name!r} reads several sites at once; it is no transcoder")
            for s, (rows, _, columns, _) in enumerate(sources):
                site = sae.config.reads.names[s]
                module = find_module(held.lm, site)
                blocks = enumerate(held.blocks)
                inside = (i for i, b in blocks if module is not b and module in {*b.modules()})
                if (layer := next(inside, None)) is None:
                    raise Refused(f"{site!r} is in no block; a graph takes transcoders of MLPs")
                first = s * len(rows)
                at, latent = latents[:, first : first + len(rows)].nonzero(as_tuple=True)
                latent = latent + first
                foresee(n + len(at), len(at) * sae.config.d_out * self.embedded.element_size())
                part = torch.full_like(at, len(self.parts))
                found.append((part, at, latent, latents[at, latent]))
                self.parts.append(_Part(name, sae, site, layer, columns))
                vectors = sae.split(sae.decoder_rows()[latent] * scale * latents[at, latent, None])
                for target, vector in vectors.items():
                    writes[self.modules[target]].append((n, vector.to(self.ids.device)))
                n += len(at)
            for target, part in recon.items():
                module = self.modules[target]
                recon_here = part.to(self.errors[module])
                counted = self.counted[:, None]
                self.errors[module] = (held.outputs[module][0] - recon_here) * counted
        self.part, self.position, self.latent, self.activation = (
            torch.cat(column).to(self.ids.device) for column in zip(*found, strict=True)
        )
        if not n:
            raise Refused("no feature of these transcoders fires in this text; try a longer one")
        self.written = {m: pairs for m, pairs in writes.items() if pairs}
        self.bases = {m: held.outputs[m][0] - error for m, error in self.errors.items()}
        for module, pairs in self.written.items():
            for begin, vectors in pairs:
                at, base = self.position[begin : begin + len(vectors)], self.bases[module]
                self.bases[module] = base.index_add(0, at, -vectors.to(base))

    def _foresee(
        self, held: Frozen, n_wanted: int, n_logits: int, batch: int, n_active: int, written: int
    ) -> None:
        """Refuse a graph whose arrays, beside the models, exceed the memory that is free."""
        size, d = self.embedded.element_size(), self.embedded.shape[-1]
        n_nodes, n_others = min(n_wanted, n_active), (1 + len(held.layers)) * self.ids.shape[1]
        n_rows, n = n_nodes + n_logits, n_nodes + n_others + n_logits
        passes = 2 * written + _OF_PASSES * size * batch * n_others * d
        passes += _OF_ROWS * size * n_rows * (n_active + n_others)
        square = _OF_MATRIX * size * n * n  # pruned in main memory
        needs: list[tuple[str, float, float]] = []
        if self.ids.device.type == "cuda":
            cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            needs.append(("GPU memory", passes, gpu_memory()[0] + cached))
            passes = 0
        if find_spec("psutil") is not None:
            needs.append(("main memory", passes + square, main_memory()[0]))
        for kind, need, free in needs:
            if need > free:
                raise Refused(
                    f"a graph of {self.ids.shape[1]} tokens and {n_nodes:,} of the {n_active:,} "
                    f"features that fire needs {need / 1e9:.3g} GB of {kind}, and {free / 1e9:.3g} "
                    "are free; lower max_feature_nodes or batch, or give a shorter prompt"
                )

    def _leaf(self, module: nn.Module, value: Tensor, acts: Mapping[str, Tensor]) -> Any:
        """The output of a module: a constant, and a skip connection's change where there is one."""
        site = next((site for site, m in self.modules.items() if m is module), None)
        sae = next((s for s in self.saes.values() if site in s.config.writes.names), None)
        if site is None or sae is None or not sae.config.skip_connection:
            return value

        def silent_for(x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:-1], sae.config.d_sae)

        def with_skip() -> Tensor:
            names = sae.config.reads.names
            clean = sae.config.reads.joined({name: self.clean[name] for name in names})
            now = {
                name: acts.get(name, self.clean[name].expand(len(value), -1, -1)) for name in names
            }
            x = sae.config.reads.joined(now)
            change = sae.decode(silent_for(x), x) - sae.decode(silent_for(clean), clean)
            return value + sae.split(change)[site].to(value)

        return with_skip

    def _pass(
        self, held: Frozen, leaves: Mapping[nn.Module, Tensor], rows: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the unembedding and the transcoders read, with these values at leaves."""
        with capture(held.lm, self.sites) as acts:
            every = {m: held.outputs[m].expand(rows, -1, -1) for m in self.modules.values()}
            every |= leaves
            final = held.run({m: self._leaf(m, v, acts) for m, v in every.items()}, rows)
        return final, dict(acts)

    def _directions(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """d activation / d what is read, [n, d_read], of features of one part; and the constant."""
        part = self.parts[int(self.part[chosen[0]])]
        at, latent = self.position[chosen], self.latent[chosen]
        reads = part.sae.config.reads
        x = reads.joined({s: self.clean[s][0] for s in reads.names}).to(part.sae.device)
        with torch.enable_grad():
            rows = x[at].detach().clone().requires_grad_()
            values = part.sae.encode(rows).gather(1, latent[:, None].to(rows.device))[:, 0]
            slopes = torch.autograd.grad(values.sum(), rows)[0][:, part.source]
        constants = values.detach() - (slopes * x[at][:, part.source]).sum(dim=-1)
        return slopes.to(self.ids.device), constants.to(self.ids.device)

    def _values(
        self, final: Tensor, acts: Mapping[str, Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Activations before thresholds of features, and logits, of a pass of one row."""
        of_features = torch.zeros(len(features), dtype=torch.float64)
        for part in self.part[features].unique().tolist():
            where = (self.part[features] == part).nonzero()[:, 0]
            for some in where.split(64):
                slopes, constants = self._directions(features[some])
                x = acts[self.parts[part].site][0, self.position[features[some]]].to(slopes)
                of_features[some.cpu()] = ((slopes * x).sum(-1) + constants).double().cpu()
        of_logits = (self.directions.to(final) @ final[0, -1]).double().cpu()
        return of_features, of_logits

    def graph(
        self,
        chosen: Sequence[tuple[int, int | None]],
        chances: Sequence[float],
        max_features: int,
        batch: int,
        progress: Callable[[int, int], object],
    ) -> Graph:
        with self._held() as held:
            self._read(held, partial(self._foresee, held, max_features, len(chosen), batch))
            table = held.lm.get_output_embeddings().weight.detach()
            mean = table.mean(dim=0)
            self.directions = torch.stack(
                [table[i] - (mean if other is None else table[other]) for i, other in chosen]
            )
            n_all, n_context = len(self.latent), self.ids.shape[1]
            modules = [held.embedding, *held.layers]
            with torch.enable_grad():
                leaves = {m: held.outputs[m].repeat(batch, 1, 1).requires_grad_() for m in modules}
                final, acts = self._pass(held, leaves, batch)

            def rows(objective: Tensor) -> Tensor:
                """Of each row's objective: what each source adds, [batch, sources]."""
                slopes = torch.autograd.grad(
                    objective, list(leaves.values()), retain_graph=True, allow_unused=True
                )
                by = {
                    m: torch.zeros_like(leaves[m]) if s is None else s
                    for m, s in zip(modules, slopes, strict=True)
                }
                of_features = torch.zeros(batch, n_all, dtype=final.dtype, device=final.device)
                for module, pairs in self.written.items():
                    for begin, vectors in pairs:
                        at = self.position[begin : begin + len(vectors)]
                        for p in at.unique().tolist():
                            here = (at == p).nonzero()[:, 0]
                            of_features[:, begin + here] += (
                                by[module][:, p] @ vectors[here].to(final).T
                            )
                of_errors = [(by[m] * self.errors[m]).sum(-1) for m in held.layers]
                of_tokens = (by[held.embedding] * self.embedded).sum(-1)
                return torch.cat([of_features, *of_errors, of_tokens], dim=1)

            def of_logits() -> Tensor:
                parts = []
                for some in torch.arange(len(chosen)).split(batch):
                    picked = torch.arange(len(some), device=final.device)
                    values = (final[picked, -1] * self.directions[some].to(final)).sum()
                    parts.append(rows(values)[: len(some)])
                return torch.cat(parts)

            def of_features(some: Tensor) -> Tensor:
                total = final.new_zeros(())
                for part in self.part[some].unique().tolist():
                    where = (self.part[some] == part).nonzero()[:, 0]
                    slopes, _ = self._directions(some[where])
                    x = acts[self.parts[part].site][where, self.position[some[where]]]
                    total = total + (x * slopes.to(x)).sum()
                return rows(total)[: len(some)]

            known, done = of_logits().detach(), torch.zeros(0, dtype=torch.long)
            start = torch.tensor(chances, dtype=known.dtype, device=known.device)
            n_nodes = min(max_features, n_all)
            while len(done) < n_nodes:
                scores = _so_far(known, start, done)
                scores[done] = -1
                for some in (
                    scores[:n_all]
                    .argsort(descending=True)[: min(_ROUNDS * batch, n_nodes - len(done))]
                    .split(batch)
                ):
                    known = torch.cat([known, of_features(some).detach()])
                    done = torch.cat([done, some.to(done)])
                    progress(len(done), n_nodes)
            return self._assembled(held, known, done, chosen, chances, n_context)

    @torch.no_grad()
    def _assembled(
        self,
        held: Frozen,
        known: Tensor,
        done: Tensor,
        chosen: Sequence[tuple[int, int | None]],
        chances: Sequence[float],
        n_context: int,
    ) -> Graph:
        n_all, n_logits = len(self.latent), len(chosen)
        layers = torch.tensor([part.layer for part in self.parts])[self.part.cpu()]
        key = [(int(layers[i]), int(self.position[i]), int(self.latent[i])) for i in done]
        order = sorted(range(len(done)), key=key.__getitem__)
        self.features = done[order].to(self.ids.device)
        errors = [
            (m, p) for m in held.layers for p in range(n_context) if bool(self.errors[m][p].any())
        ]
        self.error_nodes = errors
        column = {m: n_all + i * n_context for i, m in enumerate(held.layers)}
        sources = [*self.features.tolist(), *(column[m] + p for m, p in errors)]
        first_token = n_all + len(held.layers) * n_context
        sources += range(first_token, first_token + n_context)
        rows = torch.cat([known[n_logits:][order], known[:n_logits]]).cpu()
        n_features, n = len(order), len(sources) + n_logits
        is_target = torch.zeros(n, dtype=torch.bool)
        is_target[:n_features] = is_target[n - n_logits :] = True
        weights = rows.new_zeros(n, n)
        weights[is_target, : len(sources)] = rows[:, sources]
        rest, value, bias = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
        left = torch.ones(n_all, dtype=torch.bool)
        left[done] = False
        rest[is_target] = rows[:, :n_all][:, left].double().sum(dim=1)
        final, acts = self._pass(held, {})
        value[is_target] = torch.cat(self._values(final, acts, self.features))
        silent = {m: base[None] for m, base in self.bases.items()}
        silent[held.embedding] = torch.zeros_like(held.outputs[held.embedding])
        final, acts = self._pass(held, silent)
        bias[is_target] = torch.cat(self._values(final, acts, self.features))
        nodes = [
            Node(
                "feature",
                *key[i],
                float(self.activation[done[i]]),
                self.parts[int(self.part[done[i]])].name,
            )
            for i in order
        ]
        nodes += [
            Node("error", held.layers[m], p, -1, float(self.errors[m][p].norm())) for m, p in errors
        ]
        embedded = self.embedded.norm(dim=-1)
        ids = self.ids[0].tolist()
        nodes += [Node("token", -1, p, i, float(embedded[p])) for p, i in enumerate(ids)]
        last = len(held.blocks)
        nodes += [
            Node("logit", last, n_context - 1, token, chance)
            for (token, _), chance in zip(chosen, chances, strict=True)
        ]
        texts = {token: self._text(token) for token, _ in chosen}
        tokens, name = [self._text(i) for i in ids], str(getattr(self.lm, "name_or_path", ""))
        return Graph(nodes, tokens, weights, rest, bias, value, n_all, texts, name, self)

    def _text(self, token: int) -> str:
        return str(token) if self.tokenizer is None else str(self.tokenizer.decode([token]))

    @torch.no_grad()
    def intervene(self, node: int, by: float, real: bool) -> Effect:
        n_features, n_errors = len(self.features), len(self.error_nodes)
        parts: list[tuple[nn.Module, int, Tensor]] = []  # module, position, what the node writes
        if node < n_features:
            feature = int(self.features[node])
            for module, pairs in self.written.items():
                for begin, vectors in pairs:
                    if begin <= feature < begin + len(vectors):
                        at = int(self.position[feature])
                        parts.append((module, at, vectors[feature - begin]))
        elif node < n_features + n_errors:
            module, at = self.error_nodes[node - n_features]
            parts.append((module, at, self.errors[module][at]))
        else:
            at = node - n_features - n_errors
            parts.append((self.lm.get_input_embeddings(), at, self.embedded[at]))
        added: dict[nn.Module, Tensor] = {}
        for module, at, vector in parts:
            added[module] = vector.new_zeros(1, self.ids.shape[1], len(vector))
            added[module][0, at] = by * vector
        if real:
            passes = self._real({}), self._real(added)
        else:
            with self._held() as held:
                whole = {m: held.outputs[m] + change for m, change in added.items()}
                passes = self._pass(held, {}), self._pass(held, whole)
        before, after = (torch.cat(self._values(*one, self.features)) for one in passes)
        change = after - before
        return Effect(change[:n_features], change[n_features:])

    def _real(self, added: Mapping[nn.Module, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """A pass of the model itself, with something added to what modules give."""

        def plus(change: Tensor, module: nn.Module, args: tuple, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + change, *output[1:])
            return output + change

        handles = [m.register_forward_hook(partial(plus, change)) for m, change in added.items()]
        try:
            decoder: Any = self.lm.get_decoder()
            with capture(self.lm, self.sites) as acts:
                final = decoder(input_ids=self.ids, use_cache=False).last_hidden_state
            return final, dict(acts)
        finally:
            for handle in handles:
                handle.remove()


def _so_far(known: Tensor, start: Tensor, done: Tensor) -> Tensor:
    """Influence of all sources on the logits, from the rows that are known: logits', then those of
    the features `done`."""
    table = shares(known)
    n_logits = len(start)
    reached = start @ table[:n_logits]
    total = reached.clone()
    while len(done) and bool(reached[done].any()):
        reached = reached[done] @ table[n_logits:]
        total += reached
    return total
