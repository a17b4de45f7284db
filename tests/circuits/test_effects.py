"""Effects and circuits of several SAEs, against ablation in a linear model, sums, and Jacobians.

In float64, on a small random model with an SAE of the residual stream, one of what attention adds,
and a transcoder of an MLP.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import hfsae
from hfsae.circuits import Effects, NodeEffect, logit_difference
from hfsae.models import SAE

from ..tiny import make_sae, n_hooks, tokens

CLEAN, PATCH = (
    torch.cat([tokens(rows=1, seed=3 * i + j)["input_ids"] for j in range(3)]) for i in (0, 1)
)
METRIC = logit_difference([100, 101, 102], [200, 201, 202])
MLP = {"target_site": "layers.2.mlp", "skip_connection": True}
SITES = ("layers.1", "layers.2.self_attn", "layers.2.mlp")


def own(logits: Tensor, rows: Tensor) -> Tensor:
    return logits[:, -1, :50].square().sum(dim=-1)


@pytest.fixture(scope="module")
def lm(make_tiny_lm: Callable) -> PreTrainedModel:
    return make_tiny_lm("llama").double()


@pytest.fixture(scope="module")
def linear_lm(make_tiny_lm: Callable) -> PreTrainedModel:
    """Attention is uniform, MLPs are matrices, and there are no norms."""
    lm = make_tiny_lm("llama").double()
    for layer in lm.model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        layer.self_attn.q_proj.weight.zero_()
        layer.mlp = nn.Linear(16, 16).double().requires_grad_(False)
    lm.model.norm = nn.Identity()
    return lm


@pytest.fixture(scope="module")
def saes() -> dict[str, SAE]:
    """Not in the order in which they run; by a name that is no site, too."""
    mlp = make_sae("layers.2.mlp:in", seed=3, **MLP)
    several = {"mlp": mlp, SITES[0]: make_sae(SITES[0], "jumprelu"), SITES[1]: make_sae(SITES[1])}
    return {name: sae.double() for name, sae in several.items()}


@pytest.mark.parametrize("patch", [PATCH, None])
def test_in_a_linear_model_all_estimates_are_ablation(linear_lm, saes, patch):
    by = {
        method: hfsae.effects(
            linear_lm, saes, CLEAN, patch, metric=METRIC, method=method, top=None, batch=2
        )
        for method in ("attrib", "ig", "ablate")
    }
    assert {node.latent for node in by["ablate"].nodes} > {-1, by["ablate"].nodes[0].latent}
    for name in saes:
        exact = by["ablate"].by_sae[name]
        fires = exact.isfinite()
        assert fires.sum() > 10
        for method in ("attrib", "ig"):
            estimate = by[method].by_sae[name]
            torch.testing.assert_close(estimate[fires], exact[fires], rtol=0, atol=1e-9)
            assert not estimate[~fires].any()


def test_integrated_effects_of_a_site_add_up_to_the_whole(lm, saes):
    """From the patch text's residual stream on, the model says what it says of that text."""
    at = saes[SITES[0]]
    found = hfsae.effects(lm, {SITES[0]: at}, CLEAN, PATCH, metric=own, by_position=True, steps=40)
    of_patch = [own(lm(ids).logits, torch.arange(3)).mean() for ids in (CLEAN, PATCH)]
    whole = float(of_patch[0] - of_patch[1])
    assert found.value == pytest.approx(float(of_patch[0]), rel=1e-12)
    assert float(found.by_sae[SITES[0]].sum()) == pytest.approx(whole, rel=0.01)
    summed = hfsae.effects(lm, {SITES[0]: at}, CLEAN, PATCH, metric=own, steps=40)
    torch.testing.assert_close(found.by_sae[SITES[0]].sum(0), summed.by_sae[SITES[0]][0])
    assert all(abs(a.effect) >= abs(b.effect) for a, b in pairwise(found.nodes))


def test_an_ablated_node_is_that_of_a_pass_by_hand(lm, saes):
    found = hfsae.effects(lm, saes, CLEAN, metric=METRIC, method="ablate", by_position=True, top=5)
    assert len(found.nodes) == 5 == sum(int(x.isfinite().sum()) for x in found.by_sae.values())
    for node in found.nodes:
        sae = saes[node.sae]

        def edit(latents: Tensor, node: NodeEffect = node) -> Tensor:
            new = latents.clone()
            new[:, node.position, node.latent] = 0
            return new

        if node.latent >= 0:
            with hfsae.splice(lm, sae, error_term=True, edit=edit):
                without = METRIC(lm(CLEAN).logits, torch.arange(3)).mean()
            assert node.effect == pytest.approx(found.value - float(without), abs=1e-9)


def test_no_nodes_have_no_share_all_have_the_whole_and_kept_errors_leave_the_model_as_it_is(
    lm, saes
):
    seen: list[Tensor] = []

    def metric(logits: Tensor, rows: Tensor) -> Tensor:
        seen.append(logits)
        return METRIC(logits, rows)

    hooks = n_hooks(lm)
    found = hfsae.effects(lm, saes, CLEAN, PATCH, metric=metric, method="attrib")
    seen.clear()
    nothing, everything = found.circuits([[], found.nodes])
    assert (nothing.faithfulness, nothing.completeness) == (0, 1)
    assert (everything.faithfulness, everything.completeness) == pytest.approx((1, 0), abs=1e-12)
    latents = [node for node in found.nodes if node.latent >= 0]
    assert len(latents) == len(found.nodes) - 3
    seen.clear()
    _, kept = found.circuits([[], latents], errors="keep")
    assert kept.faithfulness == pytest.approx(1) and torch.equal(seen[3], lm(CLEAN).logits)
    (removed,) = found.circuits([found.nodes], errors="remove")
    assert removed.faithfulness != pytest.approx(1, abs=0.01) and n_hooks(lm) == hooks
    sizes = found.curve([2, 5])
    assert [circuit.n_nodes for circuit in sizes] == [2, 5]
    assert found.on(CLEAN, PATCH, metric=METRIC).curve([5])[0] == sizes[1]


def test_nodes_outside_a_circuit_have_their_mean_over_patch_texts(lm, saes):
    """By hand, of one SAE, whose nodes are all outside."""
    name, sae = SITES[0], saes[SITES[0]]
    found = hfsae.effects(lm, {name: sae}, CLEAN, PATCH, metric=METRIC, batch=2)
    with hfsae.capture(lm, [name]) as acts:
        lm(PATCH)
    mean = sae.encode(acts[name]).mean(0)
    error = (acts[name] - sae.decode(sae.encode(acts[name]))).mean(0)
    counted = ((CLEAN > 2) & (PATCH > 2))[..., None]  # other than padding, EOS and BOS
    one = next(node for node in found.nodes if node.latent >= 0)

    def value(keeps: bool) -> float:
        def new(x: Tensor) -> Tensor:
            latents = mean.expand(3, -1, -1).clone()
            if keeps:
                latents[..., one.latent] = sae.encode(x)[..., one.latent]
            return torch.where(counted, sae.decode(latents) + error, x)

        with hfsae.patch(lm, {name: new}):
            return float(METRIC(lm(CLEAN).logits, torch.arange(3)).mean())

    share = (value(True) - value(False)) / (found.value - value(False))
    assert found.circuits([[one]])[0].faithfulness == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("by_position", [True, False])
def test_edges_are_products_of_jacobians(make_tiny_lm, by_position):
    """Residual SAEs of three blocks: all of the stream lies in the middle one, so that there is no
    edge past it but through spared tokens."""
    lm, names = make_tiny_lm("gpt2").double(), ["h.0", "h.1", "h.2"]
    saes = {name: make_sae(name, seed=i).double() for i, name in enumerate(names)}
    ids, patch = CLEAN[:1], PATCH[:1]
    metric = logit_difference([100], [200])
    options = {"metric": metric, "method": "attrib", "by_position": by_position}
    found = hfsae.effects(lm, saes, ids, patch, **options)
    some = [n for name in names for n in [n for n in found.nodes if n.sae == name][:6]]
    some += [node for node in found.nodes if node.latent < 0 and node not in some]
    edges = found.edges(some)
    states = {}
    for which, of in (("clean", ids), ("patch", patch)):
        with hfsae.capture(lm, names) as acts:
            lm(of)
        states[which] = {
            k: torch.cat([f := sae.encode(acts[k]), acts[k] - sae.decode(f)], -1)
            for k, sae in saes.items()
        }
    counted = ((ids > 2) & (patch > 2))[..., None]

    def later(state: Tensor, s: str, t: str | None) -> Tensor:
        """The state at t, or the metric, where s has another one."""
        new = saes[s].decode(state[..., :40]) + state[..., 40:]
        sites = [t] if t else []
        replacement = {s: lambda x: torch.where(counted, new, x)}
        with hfsae.patch(lm, replacement), hfsae.capture(lm, [*sites, "h.3"]) as acts:
            logits = lm(ids).logits
        if t is None:
            return metric(logits, torch.zeros(1, dtype=torch.long))
        f = saes[t].encode(acts[t])
        return torch.cat([f, acts[t] - saes[t].decode(f)], -1)

    def reduced(x: Tensor) -> Tensor:
        return torch.cat([x[..., :40], x[..., 40:].sum(-1, keepdim=True)], -1)

    for s, t in pairwise(names):
        clean, delta = states["clean"][s], (states["clean"][s] - states["patch"][s]) * counted
        of_metric = torch.autograd.functional.jacobian(
            lambda x, t=t: later(x, t, None)[0], states["clean"][t]
        )
        table = torch.autograd.functional.jacobian(lambda x, s=s, t=t: later(x, s, t), clean)
        weighed = table * (of_metric * counted)[..., None, None, None] * delta
        weighed = weighed[0, :, :, 0]  # [ctx, width] of t, [ctx, width] of s
        whole = reduced(reduced(weighed).movedim((0, 1), (2, 3))).movedim((2, 3), (0, 1))
        if not by_position:
            whole = whole.sum((0, 2), keepdim=True)
        checked = 0
        for source in some:
            for target in some:
                if (source.sae, target.sae) == (s, t):
                    at = (target.position or 0, target.latent, source.position or 0, source.latent)
                    assert edges[source, target] == pytest.approx(float(whole[at]), abs=1e-9)
                    checked += abs(float(whole[at])) > 1e-6
        assert checked > 5
    past = [w for (s, t), w in edges.items() if (s.sae, t.sae) == (names[0], names[2])]
    assert not any(past) and not any(s.sae >= t.sae for s, t in edges)


def a_number(logits: Tensor, rows: Tensor) -> Tensor:
    return logits.mean()


def of_ids(logits: Tensor, rows: Tensor) -> Tensor:
    return logits[:, -1].argmax(-1).double()


BAD = {
    "unknown method": ({"method": "exact"}, "'exact'; give 'ig', 'attrib' or 'ablate'"),
    "one number": ({"metric": a_number}, r"gives \[\] for 3 texts; .* \[3\]"),
    "no gradient": ({"metric": of_ids}, "no gradient"),
    "lengths": ({"patch": PATCH[:, :-1]}, r"\[3, 12\], patch texts \[3, 11\]"),
    "no text": ({"clean": []}, "no clean text"),
    "other lengths": ({"clean": ["abc", "abcd"]}, "'abcd' has 5 tokens and 'abc' 4"),
    "no SAE": ({"saes": {}}, "no SAE was given"),
    "no step": ({"steps": 0}, "give at least 1"),
    "few tokens": ({"metric": logit_difference([1], [2])}, "the tokens of 1 texts"),
    "another site": (
        {"saes": {"layers.0": make_sae("layers.1")}},
        "given at 'layers.0' was trained at 'layers.1'",
    ),
    "twice": ({"saes": {"a": make_sae(), "b": make_sae()}}, "both write at 'layers.1'"),
    "no site": ({"saes": {"a": make_sae("layers.9")}}, "past the end"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(tiny_lm, tiny_tokenizer, case):
    changed, sentence = BAD[case]
    given = {"saes": {"layers.1": make_sae()}, "clean": CLEAN, "metric": METRIC, **changed}
    with pytest.raises(hfsae.Refused, match=sentence):
        hfsae.effects(tiny_lm, tokenizer=tiny_tokenizer, **given)


def test_a_metric_that_nodes_do_not_move_has_no_shares(tiny_lm):
    found: Effects = hfsae.effects(
        tiny_lm, {"a": make_sae("layers.3")}, CLEAN, metric=lambda x, rows: x[:, -1, 0] * 0 + 1
    )
    with pytest.raises(hfsae.Refused, match="no shares"):
        found.curve([1])
    with pytest.raises(hfsae.Refused, match="give 'nodes', 'keep' or 'remove'"):
        found.curve([1], errors="drop")
