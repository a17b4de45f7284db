"""Compare hfsae's files for circuit-tracer with what its own classes compute from them.

    pip install --no-deps circuit-tracer==0.5.0      # beside hfsae: its classes need no more
    python scripts/interop/check_circuit_tracer.py

Writes a cross-layer transcoder and a set of transcoders with skip connections; loads them by
circuit-tracer; and has circuit-tracer write the first, for hfsae to read. Prints the
largest differences of latents and of reconstructions, relative to the largest reconstruction. Then
makes an attribution graph, prunes and scores it by both, and reads its file as circuit-tracer's
model of it. Exits with status 1 where a difference is 1e-4 or more.
"""

import importlib.util
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import hfsae
from hfsae import JumpReLUCLT, JumpReLUCLTConfig, ReLUSAE, ReLUSAEConfig
from hfsae.convert import save_set_as

LAYERS, D, D_SAE, N = 4, 16, 64, 32
READ = [f"layers.{i}.mlp:in" for i in range(LAYERS)]
WRITTEN = [f"layers.{i}.mlp" for i in range(LAYERS)]
MODEL, CPU = "HuggingFaceTB/SmolLM2-135M", torch.device("cpu")
LIMIT = 1e-4

Difference = tuple[str, Tensor, Tensor, Tensor, Tensor]
"""a title; latents and reconstructions of hfsae, then those of circuit-tracer"""


def moved(sae: hfsae.SAE) -> hfsae.SAE:
    """Weights other than those that a start gives, as after training."""
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return sae.eval().folded()


def cross_layer(folder: Path) -> Iterator[Difference]:
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    places = {"sites": READ, "target_sites": WRITTEN, "model_name": MODEL}
    sizes = {"d_in": LAYERS * D, "d_sae": LAYERS * D_SAE, "initial_threshold": 0.3}
    sae = moved(JumpReLUCLT(JumpReLUCLTConfig(**places, **sizes)))
    hfsae.save_as(sae, folder, "circuit_tracer_clt")
    x = torch.randn(LAYERS, N, D)
    side_by_side = torch.cat([*x], dim=-1)
    latents = sae.encode(side_by_side)
    recon = sae.decode(latents)
    for lazy in (True, False):
        theirs = load_clt(str(folder), dtype=torch.float32, device=CPU, lazy_decoder=lazy)
        found = theirs.encode(x)
        wrote = theirs.decode(found)
        of_them = (torch.cat([*found], dim=-1), torch.cat([*wrote], dim=-1))
        yield f"CLT, {'lazy' if lazy else 'whole'}", latents, recon, *of_them
        if not lazy:
            again = folder.with_name("again")
            theirs.to_safetensors(str(again))
            shutil.copy(folder / "config.yaml", again)
            read = hfsae.load(again)
            found = read.encode(side_by_side)
            yield "CLT, written by circuit-tracer", latents, recon, found, read.decode(found)


def transcoders(folder: Path) -> Iterator[Difference]:
    from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder

    saes = []
    for site, target in zip(READ, WRITTEN, strict=True):
        places = {"site": site, "target_site": target, "model_name": MODEL}
        sizes = {"d_in": D, "d_sae": D_SAE, "skip_connection": True}
        saes.append(moved(ReLUSAE(ReLUSAEConfig(**places, **sizes))))
    save_set_as(saes, folder, "circuit_tracer")
    for i, sae in enumerate(saes):
        path, x = folder / f"layer_{i}.safetensors", torch.randn(N, D)
        theirs = load_relu_transcoder(str(path), i, dtype=torch.float32, device=CPU)
        latents, found = sae.encode(x), theirs.encode(x)
        yield f"transcoder {i}", latents, sae.decode(latents, x), found, theirs.decode(found, x)


def graph_of_both(folder: Path) -> float:
    """The largest difference of influence and scores; infinite if other nodes or edges are kept."""
    from circuit_tracer.frontend.graph_models import Model
    from circuit_tracer.graph import compute_graph_scores, prune_graph
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=24, vocab_size=50)
    lm = LlamaForCausalLM(config).eval()
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    saes = {}
    for layer in (0, 2):
        places = {"site": READ[layer], "target_site": WRITTEN[layer]}
        saes[str(layer)] = moved(ReLUSAE(ReLUSAEConfig(**places, d_in=D, d_sae=D_SAE)))
    with torch.enable_grad():
        graph = hfsae.graph(lm, saes, torch.randint(3, 50, (1, 9)), max_feature_nodes=60, batch=8)
    n_features = int(graph.of_kind("feature").sum())
    n_logits, n_tokens = int(graph.of_kind("logit").sum()), len(graph.tokens)
    # circuit-tracer has a row for each error, also for those that are 0
    places, at = [], n_features
    for node in graph.nodes[n_features:]:
        if node.kind == "error":
            places.append(at + node.layer * n_tokens + node.position)
    after = n_features + LAYERS * n_tokens
    every = [*range(n_features), *places, *range(after, after + n_tokens + n_logits)]
    matrix = torch.zeros(after + n_tokens + n_logits, after + n_tokens + n_logits)
    matrix[torch.tensor(every)[:, None], torch.tensor(every)] = graph.weights
    theirs: Any = SimpleNamespace(
        input_tokens=graph.tokens,
        logit_targets=range(n_logits),
        selected_features=range(n_features),
        adjacency_matrix=matrix,
        logit_probabilities=graph.probabilities[-n_logits:],
        cfg=SimpleNamespace(n_layers=LAYERS),
    )
    kept, ours = prune_graph(theirs), graph.prune()
    edges = kept.edge_mask[every][:, every] & (graph.weights != 0)
    if not (torch.equal(kept.node_mask[every], ours.nodes) and torch.equal(edges, ours.edges)):
        return math.inf
    own = (graph.replacement_score, graph.completeness_score)
    off = [abs(a - b) for a, b in zip(own, compute_graph_scores(theirs), strict=True)]
    off.append(float((kept.cumulative_scores[every] - ours.influence).abs().max()))
    path = hfsae.save_graph(graph, folder, "one")
    read = Model.model_validate_json(path.read_text(encoding="utf-8"))
    return max(off) if len(read.links) == int(ours.edges.sum()) else math.inf


@torch.no_grad()
def main() -> int:
    torch.manual_seed(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "set")
        folder.mkdir()
        made = (*cross_layer(Path(temporary, "clt")), *transcoders(folder))
        for title, *values in made:
            latents, recon, found, wrote = values
            assert (latents > 0).any() and (latents == 0).any()
            pairs, size = ((latents, found), (recon, wrote)), float(recon.abs().max())
            off = [float((own - other).abs().max()) / size for own, other in pairs]
            print(f"{title}: latents {off[0]:.1e}, reconstructions {off[1]:.1e}")
            worst = max(worst, *off)
        off = graph_of_both(Path(temporary, "graphs"))
        print(
            f"graph: nodes and edges kept are {'equal' if off < math.inf else 'OTHERS'}, {off:.1e}"
        )
        worst = max(worst, off)
    return int(worst >= LIMIT)


if __name__ == "__main__":
    if importlib.util.find_spec("circuit_tracer") is None:
        print("circuit-tracer is missing: pip install --no-deps circuit-tracer", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
