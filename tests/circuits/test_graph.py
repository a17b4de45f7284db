"""Held models and attribution graphs, against doubled sources, explicit powers and loops over sets.

In float64. Nothing of what a graph says is used to test it: a source is added again in the held
model, and all that depends on it must move by its column.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hfsae
from hfsae.circuits import Graph, attribution_graph, influence, shares
from hfsae.circuits.graph_files import METADATA, node_ids
from hfsae.cli import main
from hfsae.models import SAE

from ..tiny import n_hooks, stack

FAMILIES = ["llama", "gemma2", "gemma3_text", "qwen3", "gpt2", "gpt_neox", "mixtral"]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 4}
OWN = {"gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 50}}
OWN["gemma2"] = {"sliding_window": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
OWN["mixtral"] = {"num_local_experts": 4, "experts_implementation": "eager"}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
IDS = torch.tensor([[0, 17, 30, 4, 44, 9, 21, 17, 36]])


def make_lm(family: str) -> PreTrainedModel:
    sizes = {} if family == "gpt2" else SIZES
    config = AutoConfig.for_model(family, **sizes | OWN.get(family, {}) | SPECIAL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in lm.parameters():
            nn.init.normal_(parameter, std=0.4)
    return lm.requires_grad_(False)


def around_mlp(lm: PreTrainedModel, layer: int) -> tuple[str, str]:
    """What a transcoder of this block's MLP reads and writes."""
    block = f"{stack(lm)}.{layer}"
    if "gemma" in lm.config.model_type:
        return f"{block}.pre_feedforward_layernorm", f"{block}.post_feedforward_layernorm"
    return f"{block}.mlp:in", f"{block}.mlp"


def drawn(sae: SAE) -> SAE:
    """With random weights in float64, and a threshold that half of the latents pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in sae.named_parameters():
            nn.init.normal_(parameter, std=0.3)
            if "threshold" in name:
                nn.init.constant_(parameter, -2.0 if "log" in name else 0.05)
    return sae.double()


def transcoders(lm: PreTrainedModel, kind: str) -> dict[str, SAE]:
    """Of the first and the last block, the latter with a skip connection; or of all, across."""
    places = [around_mlp(lm, layer) for layer in range(3)]
    if kind == "across":
        reads, writes = ([*side] for side in zip(*places, strict=True))
        scales = {"site_scales": [1.0, 2.0, 3.0], "target_scales": [2.0, 1.0, 3.0]}
        sites = {"sites": reads, "target_sites": writes}
        clt = hfsae.JumpReLUCLTConfig(d_in=48, d_out=48, d_sae=60, **sites, **scales)
        return {"clt": drawn(hfsae.JumpReLUCLT(clt))}
    fields = {"d_in": 16, "d_sae": 40, "activation_scale": 2.0, "target_scale": 3.0}
    configs = {
        str(layer): hfsae.JumpReLUSAEConfig(
            site=places[layer][0],
            target_site=places[layer][1],
            skip_connection=layer == 2,
            **fields,
        )
        for layer in (0, 2)
    }
    return {name: drawn(hfsae.JumpReLUSAE(config)) for name, config in configs.items()}


def made(family: str, kind: str = "apart", **options: int) -> Graph:
    lm = make_lm(family)
    options = {"max_feature_nodes": 60, "batch": 8} | options
    return hfsae.graph(lm, transcoders(lm, kind), IDS, **options)


@pytest.fixture(scope="module")
def found() -> Graph:
    return made("llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_held_model_has_one_gradient_and_is_as_before_afterwards(family):
    lm = make_lm(family)
    before, hooks, own = lm(IDS).logits, n_hooks(lm), lm.config._attn_implementation
    decoder = lm.get_decoder()
    final = decoder(IDS).last_hidden_state
    with hfsae.frozen(lm, IDS) as held:
        assert held.check() <= 1e-9
        torch.testing.assert_close(held.run({}), final, rtol=0, atol=1e-4)  # softmax in float32
        assert len(held.layers) == 3
    with pytest.raises(KeyError), hfsae.frozen(lm, IDS):
        raise KeyError
    assert torch.equal(lm(IDS).logits, before) and n_hooks(lm) == hooks
    assert lm.config._attn_implementation == own
    assert not any("forward" in vars(module) for module in lm.modules())


@pytest.mark.parametrize("kind", ["apart", "across"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_exact_and_a_source_that_is_added_again_moves_all_by_its_column(family, kind):
    graph = made(family, kind)
    assert graph.n_active > 100 and graph.check() <= 1e-9
    targets = graph.of_kind("feature") | graph.of_kind("logit")
    kinds = [node.kind for node in graph.nodes]
    sources = [i for i, kind in enumerate(kinds) if kind != "logit"]
    for node in random.Random(0).sample(sources, 6):
        moved = torch.cat([*graph.intervene(node, 2.0)])
        torch.testing.assert_close(moved, graph.weights[targets, node], rtol=0, atol=1e-9)


def test_a_change_in_the_real_model_is_that_of_a_pass_with_another_output(found):
    """By hand: the MLP's output without one feature's part, and the model as it is around it."""
    lm = make_lm("llama")
    saes = transcoders(lm, "apart")
    graph = hfsae.graph(lm, saes, IDS, max_feature_nodes=60, batch=8)
    place = next(i for i, node in enumerate(graph.nodes) if node.sae == "0")
    node, sae = graph.nodes[place], saes["0"]
    with hfsae.capture(lm, ["layers.0.mlp:in"]) as acts:
        lm(IDS)
    latents = sae.encode(acts["layers.0.mlp:in"])
    without = latents.clone()
    without[0, node.position, node.index] = 0
    change = sae.decode(without) - sae.decode(latents)
    with hfsae.patch(lm, {"layers.0.mlp": lambda x: x + change}):
        changed = lm.get_decoder()(IDS).last_hidden_state[0, -1]
    plain = lm.get_decoder()(IDS).last_hidden_state[0, -1]
    table = lm.lm_head.weight
    chosen = [node.index for node in graph.nodes if node.kind == "logit"]
    expected = (table[chosen] - table.mean(dim=0)) @ (changed - plain)
    effect = graph.intervene(place, 0.0, real=True)
    torch.testing.assert_close(effect.logits, expected, rtol=0, atol=1e-6)  # norms in float32


def test_an_mlp_that_is_its_own_transcoder_leaves_no_error_and_both_scores_are_1():
    """A GPT-2 with ReLU: latents are its hidden units, rows of W_dec those of its second layer."""
    lm = make_lm("gpt2")
    saes = dict[str, SAE]()
    for layer, block in enumerate(lm.transformer.h):
        block.mlp.act = nn.ReLU()
        read, write = around_mlp(lm, layer)
        config = hfsae.ReLUSAEConfig(d_in=16, d_sae=64, site=read, target_site=write)
        sae = hfsae.ReLUSAE(config).double().requires_grad_(False)
        sae.W_enc.copy_(block.mlp.c_fc.weight)
        sae.b_enc.copy_(block.mlp.c_fc.bias)
        sae.W_dec.copy_(block.mlp.c_proj.weight)
        sae.b_dec.copy_(block.mlp.c_proj.bias)
        saes[str(layer)] = sae
    graph = hfsae.graph(lm, saes, IDS, max_feature_nodes=5000)
    errors = graph.weights[:, graph.of_kind("error")]
    assert graph.check() <= 1e-9 and (not errors.numel() or errors.abs().max() < 1e-9)
    assert graph.replacement_score == pytest.approx(1, abs=1e-9)
    assert graph.completeness_score == pytest.approx(1, abs=1e-9)


def test_influence_is_the_sum_of_sixty_powers(found):
    table, start = shares(found.weights), found.probabilities.double()
    power, total = start.clone(), torch.zeros_like(start)
    for _ in range(60):
        power = power @ table
        total += power
    torch.testing.assert_close(influence(found.weights, start), total)


def test_pruning_is_what_a_loop_over_sets_keeps(found):
    pruned = found.prune(0.7, 0.9)
    nodes, edges = pruned_by_sets(found, 0.7, 0.9)
    assert set(pruned.nodes.nonzero()[:, 0].tolist()) == nodes
    assert {(t, s) for t, s in pruned.edges.nonzero().tolist()} == edges
    assert 0 < len(edges) < int((found.weights != 0).sum())


def pruned_by_sets(graph: Graph, node_share: float, edge_share: float) -> tuple[set, set]:
    n, w = len(graph.nodes), graph.weights.tolist()
    start = graph.probabilities.tolist()

    def reach(kept: set[int]) -> tuple[list[list[float]], list[float]]:
        table = [[0.0] * n for _ in range(n)]
        for t in kept:
            total = sum(abs(w[t][s]) for s in kept)
            for s in kept:
                table[t][s] = abs(w[t][s]) / max(total, 1e-10)
        total, now = [0.0] * n, start
        for _ in range(60):
            now = [sum(now[t] * table[t][s] for t in kept if now[t]) for s in range(n)]
            total = [a + b for a, b in zip(total, now, strict=True)]
            if not any(now):
                break
        return table, total

    def least(values: list[float], share: float) -> float:
        total, reached = sum(values), 0.0
        for value in sorted(values, reverse=True):
            reached += value
            if reached >= share * total:
                return value
        return min(values)

    fixed = {i for i, node in enumerate(graph.nodes) if node.kind in ("token", "logit")}
    _, found = reach(set(range(n)))
    bound = least(found, node_share)
    kept = {i for i in range(n) if found[i] >= bound} | fixed
    table, found = reach(kept)
    score = {(t, s): table[t][s] * (found[t] + start[t]) for t in kept for s in kept}
    bound = least(list(score.values()), edge_share)
    edges = {pair for pair, value in score.items() if value >= bound and w[pair[0]][pair[1]]}
    while True:
        sources, targets = {s for _, s in edges}, {t for t, _ in edges}
        errors = {i for i, node in enumerate(graph.nodes) if node.kind == "error"}
        new = {i for i in kept if i in fixed or (i in sources and (i in targets or i in errors))}
        if new == kept:
            return kept, edges
        kept = new
        edges = {(t, s) for t, s in edges if t in kept and s in kept}


def test_a_planted_circuit_is_the_strongest_path():
    """One latent writes a direction that one of a later block reads, and this writes a logit's."""
    lm = make_lm("gpt2")
    saes = transcoders(lm, "apart")
    first, last = saes["0"].requires_grad_(False), saes["2"].requires_grad_(False)
    direction = torch.eye(16, dtype=torch.float64)[3]
    with hfsae.capture(lm, ["h.0.mlp:in"]) as acts:
        lm(IDS)
    first.W_enc[:, 7] = acts["h.0.mlp:in"][0, -1]
    first.W_dec[7], last.W_enc[:, 5], last.b_enc[5] = 50 * direction, direction, 10
    lm.transformer.ln_f.weight.fill_(1)
    last.W_dec[5] = 500 * lm.lm_head.weight[33]
    graph = hfsae.graph(lm, saes, IDS, target=33, max_feature_nodes=500, batch=8)
    places = {(n.sae, n.index, n.position): i for i, n in enumerate(graph.nodes)}
    end, sizes = IDS.shape[1] - 1, (graph.weights * graph.of_kind("feature")).abs()
    early, late = places["0", 7, end], places["2", 5, end]
    assert int(sizes[-1].argmax()) == late and int(sizes[late].argmax()) == early
    pruned = graph.prune()
    assert pruned.nodes[early] and pruned.edges[-1, late] and pruned.edges[late, early]


def test_files_have_the_fields_of_the_front_ends_and_their_scores(found, tmp_path: Path):
    labels = {"0": {node.index: "a name" for node in found.nodes if node.sae == "0"}}
    path = hfsae.save_graph(found, tmp_path, "one-text", labels=labels)
    hfsae.save_graph(found, tmp_path, "another")
    hfsae.save_graph(found, tmp_path, "one-text", labels=labels)
    listing = json.loads((tmp_path / METADATA).read_text())["graphs"]
    assert [g["slug"] for g in listing] == ["another", "one-text"]
    whole = json.loads(path.read_text())
    assert whole.keys() == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt", "node_threshold"} <= whole["metadata"].keys()
    kinds: dict[str, type | tuple] = {"node_id": str, "feature": int, "layer": str, "clerp": str}
    kinds |= {"ctx_idx": int, "feature_type": str, "jsNodeId": str, "token_prob": float}
    kinds |= {"is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "influence": float}
    for node in whole["nodes"]:
        for name, kind in kinds.items():
            assert isinstance(node[name], kind), (name, node)
    ids = [node["node_id"] for node in whole["nodes"]]
    assert len({*ids}) == len(ids)
    assert {x for link in whole["links"] for x in (link["source"], link["target"])} <= {*ids}
    pair = [node["node_id"] for node in whole["nodes"][:2]]
    grouped = hfsae.save_graph(found, tmp_path, "grouped", supernodes={"both": pair})
    assert json.loads(grouped.read_text())["qParams"]["supernodes"] == [["both", *pair]]
    layers = {node["layer"] for node in whole["nodes"]}
    assert {"E", "4"} <= layers <= {"E", "0", "1", "2", "4"}
    named = [n for n in whole["nodes"] if n["feature_type"].startswith("cross")]
    assert all((n["clerp"] == "a name") == (n["layer"] == "0") for n in named)
    for node in named:
        layer, latent = int(node["layer"]), int(node["node_id"].split("_")[1])
        assert node["feature"] == (layer + latent) * (layer + latent + 1) // 2 + latent


def test_pages_lie_where_the_front_end_looks_and_supernodes_take_all_positions(
    found, tmp_path: Path
):
    def page(latent: int) -> dict:
        return {"index": latent, "of": "0"}

    first = next(n for n in found.nodes if n.sae == "0")
    name = f"{first.layer}/{first.index}"
    path = hfsae.save_graph(found, tmp_path, "one", pages={"0": page}, supernodes={"a": [name]})
    whole = json.loads(path.read_text())
    assert whole["metadata"]["scan"] == "./graph_data/features/one"
    shown = [n for n in whole["nodes"] if n["feature_type"].startswith("cross")]
    home = tmp_path / "features" / "one"
    assert {f"{n['feature']}.json" for n in shown} == {file.name for file in home.iterdir()}
    for node in shown:
        there = json.loads((home / f"{node['feature']}.json").read_text())
        assert there["index"] == int(node["node_id"].split("_")[1])
        assert (there.get("of") == "0") == (node["layer"] == "0")
        if node["layer"] != "0":  # without a store: a page that says so
            assert "hfsae collect" in there["examples_quantiles"][0]["quantile_name"]
    alike = [n["node_id"] for n in shown if n["node_id"].startswith(name.replace("/", "_") + "_")]
    assert whole["qParams"]["supernodes"] == [["a", *alike]] and alike
    assert whole["qParams"]["pinnedIds"] == alike


def test_ids_are_unique_where_the_format_has_one_for_two():
    """Latent l of block 0 and the error of block l, at one position."""
    ids = node_ids(made("llama", max_feature_nodes=500))
    assert len({*ids}) == len(ids) and any(name.endswith("_error") for name in ids)


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(hfsae.Refused) as caught:
        do()
    return str(caught.value)


def test_bad_input_is_one_sentence():
    lm = make_lm("llama")
    apart = transcoders(lm, "apart")
    graph = hfsae.graph
    assert "at least two tokens" in refusal(lambda: graph(lm, apart, IDS[:, :1]))
    assert "no transcoder was given" in refusal(lambda: graph(lm, {}, IDS))
    twice = {**apart, "again": apart["0"]}
    assert "'again' is the second SAE that writes at" in refusal(lambda: graph(lm, twice, IDS))
    residual = hfsae.ReLUSAEConfig(d_in=16, d_sae=8, site="layers.1")
    plain = {"res": hfsae.ReLUSAE(residual).double()}
    assert "there is hfsae.attribute" in refusal(lambda: graph(lm, plain, IDS))
    silent = drawn(apart["0"])
    silent.b_enc.data.fill_(-1e3)
    assert "no feature of these" in refusal(lambda: graph(lm, {"0": silent}, IDS))
    assert "a contrast needs a target" in refusal(lambda: graph(lm, apart, IDS, contrast=3))
    assert "it has 0 to 49" in refusal(lambda: graph(lm, apart, IDS, target=50))
    assert "at least 1" in refusal(lambda: graph(lm, apart, IDS, max_feature_nodes=0))
    found = graph(lm, apart, IDS, max_feature_nodes=20)
    assert "no feature, error or token" in refusal(lambda: found.intervene(len(found.nodes) - 1))
    assert "0 to 1" in refusal(lambda: found.prune(nodes=80.0))
    assert "slug is" in refusal(lambda: hfsae.save_graph(found, "nowhere", "../up"))
    other = {"name": ["9_9_9"]}
    missing = refusal(lambda: hfsae.save_graph(found, "nowhere", "one", supernodes=other))
    assert "no node of this graph" in missing and not Path("nowhere").exists()


def test_the_command_writes_a_graph_of_a_set_beside_a_runs_checkpoint(
    tmp_path, tiny_lm, tiny_tokenizer, capsys
):
    for name, sae in transcoders(tiny_lm, "apart").items():
        sae.config.model_name = str(tmp_path / "lm")
        sae.float().save_pretrained(tmp_path / "run" / name)
    tiny_lm.save_pretrained(tmp_path / "lm")
    tiny_tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-00000001.pt").write_bytes(b"")
    argv = ["graph", str(tmp_path / "run"), "abc def", "--out", str(tmp_path / "graphs")]
    assert main([*argv, "--max_feature_nodes", "30"]) == 0
    said = capsys.readouterr().out
    assert "30 are nodes" in said and "replacement score" in said
    whole = json.loads((tmp_path / "graphs" / "abc-def.json").read_text())
    assert whole["metadata"]["prompt"].endswith("abc def") and whole["links"]
    assert "0 has no feature store" in said and "collect" in said
    groups = tmp_path / "groups.yaml"
    for content, sentence in (
        ("[1, 2]", "no mapping of names"),
        ("a: 0_7_1", "no mapping of names"),
        ("a: [1/2]\na: [1/3]", "appears twice"),
        ("a: [0_9999_1]", "'0_9999_1', which is no node"),
        ("a: [7/99]", "'7/99', which is no node"),
    ):
        groups.write_text(content)
        assert main([*argv, "--slug", "new", "--supernodes", str(groups)]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "graphs/new.json").exists()
    token = next(n["node_id"] for n in whole["nodes"] if n["layer"] == "E")
    groups.write_text(f"start: [{token}]")
    options = ["--slug", "new", "--supernodes", str(groups), "--scan", "tiny"]
    assert main([*argv, *options]) == 0
    link = capsys.readouterr().out.splitlines()[-1].partition("supernodes=")[2]
    assert json.loads(unquote(link)) == [["start", token]]
    new = json.loads((tmp_path / "graphs" / "new.json").read_text())
    assert new["qParams"]["supernodes"] == [["start", token]]
    assert new["metadata"]["scan"] == "tiny"
    assert main([*argv, "--nodes", "7"]) == 2
    assert "0 to 1" in capsys.readouterr().err
    assert main([*argv, "--slug", "a b"]) == 2
    assert "slug is 'a b'" in capsys.readouterr().err


def test_a_graph_larger_than_the_free_memory_is_refused_with_the_option_to_lower(monkeypatch):
    lm = make_lm("llama")
    saes = transcoders(lm, "apart")
    monkeypatch.setattr(attribution_graph, "main_memory", lambda: (500_000, 10**9))
    small = {"max_feature_nodes": 5, "batch": 1}
    assert hfsae.graph(lm, saes, IDS, **small).check() <= 1e-9
    sentence = refusal(lambda: hfsae.graph(lm, saes, IDS, max_feature_nodes=400, batch=1))
    assert re.search(r"needs \d.* GB of main memory, and 0\.0005 are free; lower max", sentence)
    sentence = refusal(lambda: hfsae.graph(lm, saes, IDS, max_feature_nodes=5, batch=512))
    assert "lower max_feature_nodes or batch, or give a shorter prompt" in sentence


def test_a_norm_of_another_form_is_refused_by_its_name(monkeypatch):
    class CubicNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3 / (1 + x.square().mean(dim=-1, keepdim=True))

    lm = make_lm("llama")
    lm.model.norm = CubicNorm()
    assert "CubicNorm is not gain" in refusal(lambda: hfsae.frozen(lm, IDS).__enter__())
    assert lm.config._attn_implementation != "hfsae_frozen"
