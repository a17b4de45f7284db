"""Fidelity on tiny random language models, against slow versions with hooks set by hand."""

import copy
import gc
import json
import math
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hfsae import BatchTopKCLT, BatchTopKCLTConfig
from hfsae.activations.tokens import TokenBatch
from hfsae.evaluation import (
    EvaluationArguments,
    EvaluationResult,
    evaluate,
    evaluate_all,
    mean_activation,
)
from hfsae.evaluation.result import LOSSES
from hfsae.lm import splice
from hfsae.ops import kl_of_logs

SITE, BOS = "layers.2", 2
ARGS = EvaluationArguments(n_tokens=None, bootstrap_samples=50)


class StubSAE:
    """Any object with encode, decode and config.site will do."""

    def __init__(self, encode=lambda x: x, decode=lambda z: z, site=SITE, target_site=None):
        self.encode, self._decode = encode, decode
        self.config = SimpleNamespace(site=site, target_site=target_site)

    def decode(self, latents, x=None):
        return self._decode(latents)


def rounding_sae():
    """Lossy but near: coordinates are cut to multiples of 1/2, small ones to zero."""
    return StubSAE(decode=lambda z: z, encode=lambda x: (2 * x).round() / 2)


def token_batches(vocab_size, n_batches=3, rows=4, ctx=10, seed=0):
    """Rows that start with BOS; documents of 7 tokens; some other positions left out of keep."""
    g = torch.Generator().manual_seed(seed)
    shape = (n_batches, rows, ctx)
    ids = torch.randint(3, vocab_size, shape, generator=g)
    ids[..., 0] = BOS
    keep = torch.rand(shape, generator=g) > 0.15
    keep[..., 0] = False
    document = torch.arange(ids.numel()).view(shape) // 7
    return [TokenBatch(*parts) for parts in zip(ids, keep, document, strict=True)]


def counted(keep, document):
    return keep[:, :-1] & (document[:, :-1] == document[:, 1:])


def values(result):
    return {name: m.value for name, m in result.metrics.items()}


@pytest.fixture
def batches(tiny_lm):
    return token_batches(tiny_lm.config.vocab_size)


def by_hand(sae, lm, batches, layer):
    """All arms row by row with hooks of our own and one loop over positions."""
    acts, sums = [], dict.fromkeys(("clean", "spliced", "zero", "mean", "kl", "n"), 0.0)

    def logits(row, change=None):
        def hook(module, inputs, output):
            x = output[0] if isinstance(output, tuple) else output
            acts.append(x.clone())
            new = x if change is None else change(x)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = lm.model.layers[layer].register_forward_hook(hook)
        with torch.no_grad():
            out = lm(input_ids=row[None]).logits[0].double()
        handle.remove()
        return out

    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    kept = []
    for ids, keep, _ in rows:
        logits(ids)
        kept.append(acts.pop()[0][keep])
    mean = torch.cat(kept).mean(dim=0)
    for ids, keep, document in rows:
        only_kept = keep[None, :, None]
        arms = {
            "clean": logits(ids),
            "spliced": logits(ids, lambda x: torch.where(only_kept, sae.decode(sae.encode(x)), x)),  # noqa: B023
            "zero": logits(ids, lambda x: torch.where(only_kept, 0, x)),  # noqa: B023
            "mean": logits(ids, lambda x: torch.where(only_kept, mean, x)),  # noqa: B023
        }
        for t in range(len(ids) - 1):
            if keep[t] and document[t] == document[t + 1]:
                sums["n"] += 1
                for name, arm in arms.items():
                    sums[name] -= arm[t].log_softmax(-1)[ids[t + 1]].item()
                p, q = arms["clean"][t].softmax(-1), arms["spliced"][t].softmax(-1)
                sums["kl"] += (p * (p / q).log()).sum().item()
    x = torch.cat(kept).double()
    error = x - sae.decode(sae.encode(x))
    return {
        **{f"ce_{name}": sums[name] / sums["n"] for name in ("clean", "spliced", "zero", "mean")},
        "delta_loss": (sums["spliced"] - sums["clean"]) / sums["n"],
        "loss_recovered_zero": 1
        - (sums["spliced"] - sums["clean"]) / (sums["zero"] - sums["clean"]),
        "loss_recovered_mean": 1
        - (sums["spliced"] - sums["clean"]) / (sums["mean"] - sums["clean"]),
        "kl": sums["kl"] / sums["n"],
        "fvu": (error.square().sum() / (x - x.mean(dim=0)).square().sum()).item(),
        "l0": (sae.encode(x) != 0).sum().item() / len(x),
    }


@pytest.mark.parametrize("sae", [rounding_sae(), StubSAE(encode=torch.relu)], ids=["near", "far"])
def test_every_number_agrees_with_hooks_and_loops_by_hand(tiny_lm, batches, sae):
    result = evaluate(tiny_lm, sae, batches, ARGS)
    for name, value in by_hand(sae, tiny_lm, batches, layer=2).items():
        assert result.metrics[name].value == pytest.approx(value, rel=2e-3, abs=1e-6), name
    assert result.metrics["delta_loss"].value != 0


def test_splicing_an_identity_gives_delta_and_kl_of_exactly_0(tiny_lm, batches):
    result = evaluate(tiny_lm, StubSAE(), batches, ARGS)
    for name in ("delta_loss", "kl", "fvu"):
        m = result.metrics[name]
        assert (m.value, m.low, m.high) == (0.0, 0.0, 0.0)
    assert result.metrics["loss_recovered_zero"].value == 1.0
    assert result.metrics["loss_recovered_mean"].value == 1.0
    assert result.metrics["cosine"].value == pytest.approx(1)


def test_zero_as_the_reconstruction_recovers_no_loss_over_zero_ablation(tiny_lm, batches):
    result = evaluate(tiny_lm, StubSAE(decode=torch.zeros_like), batches, ARGS)
    assert result.metrics["loss_recovered_zero"].value == 0.0
    assert result.metrics["ce_spliced"].value == result.metrics["ce_zero"].value


def test_the_mean_as_the_reconstruction_has_fvu_1_and_recovers_nothing_over_mean_ablation(
    tiny_lm, batches
):
    mean = mean_activation(tiny_lm, SITE, batches)
    result = evaluate(tiny_lm, StubSAE(decode=lambda z: mean.to(z).expand_as(z)), batches, ARGS)
    assert result.metrics["fvu"].value == pytest.approx(1, rel=1e-6)
    assert result.metrics["loss_recovered_mean"].value == 0.0


def test_token_counts_are_of_kept_tokens_and_of_predictions_within_a_document(tiny_lm, batches):
    result = evaluate(tiny_lm, StubSAE(), batches, ARGS)
    n_kept = sum(int(b.keep.sum()) for b in batches)
    assert result.n_tokens == result.metrics["fvu"].n_tokens == n_kept
    assert result.metrics["kl"].n_tokens == sum(
        int(counted(b.keep, b.document).sum()) for b in batches
    )
    kept_documents = {int(d) for b in batches for d in b.document[b.keep]}
    assert result.n_documents == len(kept_documents)


def test_no_arm_touches_a_position_that_is_not_kept(tiny_lm, batches):
    seen = []
    handle = tiny_lm.model.layers[3].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0].clone()),
        with_kwargs=True,
    )
    evaluate(tiny_lm, StubSAE(decode=lambda z: z + 1), batches[:1], ARGS)
    handle.remove()
    clean, *_, zero, mean, spliced = seen
    keep = batches[0].keep
    for arm in (spliced, zero, mean):
        assert torch.equal(arm[~keep], clean[~keep])  # BOS is among them
        assert not torch.isclose(arm[keep], clean[keep]).all(dim=-1).any()
    assert (zero[keep] == 0).all()
    torch.testing.assert_close(mean[keep], clean[keep].mean(dim=0).expand_as(mean[keep]))
    torch.testing.assert_close(spliced[keep], clean[keep] + 1)


def test_saes_evaluated_together_give_what_each_gives_alone(tiny_lm, batches):
    saes = {"rounding": rounding_sae(), "shifted": StubSAE(decode=lambda z: z + 0.1)}
    together = evaluate_all(tiny_lm, saes, batches, ARGS)
    for name, sae in saes.items():
        assert together[name].to_dict() == evaluate(tiny_lm, sae, batches, ARGS).to_dict()


def test_reconstructions_alone_are_the_same_and_runs_end_at_the_site(tiny_lm, batches):
    saes, calls = {"rounding": rounding_sae()}, []
    whole = evaluate_all(tiny_lm, saes, batches, ARGS)["rounding"]
    handle = tiny_lm.lm_head.register_forward_hook(lambda *_: calls.append(1))
    alone = evaluate_all(tiny_lm, saes, batches, ARGS, losses=False)["rounding"]
    handle.remove()
    assert not calls and whole.metrics.keys() - alone.metrics.keys() == LOSSES.keys()
    assert all(whole.metrics[name] == metric for name, metric in alone.metrics.items())
    nothing = [b._replace(keep=torch.zeros_like(b.keep)) for b in batches]
    with pytest.raises(ValueError, match="no prediction to evaluate on"):
        evaluate_all(tiny_lm, saes, nothing, ARGS, losses=False)


def test_saes_evaluated_together_share_all_runs_but_their_own(tiny_lm, batches):
    n_runs = []
    for n_saes in (1, 3):
        calls = []
        handle = tiny_lm.lm_head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        evaluate_all(tiny_lm, {f"{i}": rounding_sae() for i in range(n_saes)}, batches, ARGS)
        handle.remove()
        n_runs.append(len(calls))
    assert n_runs[1] - n_runs[0] == 2 * len(batches)


def test_saes_of_several_target_sites_are_not_evaluated_together(tiny_lm, batches):
    saes = {"a": rounding_sae(), "b": StubSAE(site="layers.1")}
    with pytest.raises(ValueError, match=r"have 2 target sites \(layers.1, "):
        evaluate_all(tiny_lm, saes, batches, ARGS)


def test_sums_by_document_give_the_metrics(tiny_lm, batches):
    result = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    fidelity, losses = (result.of_documents[name] for name in ("fidelity", "losses"))
    fvu = fidelity["error"].sum() / fidelity["spread"].sum()
    assert float(fvu) == pytest.approx(result.metrics["fvu"].value, rel=1e-9)
    delta = (losses["spliced"] - losses["clean"]).sum() / losses["tokens"].sum()
    assert float(delta) == pytest.approx(result.metrics["delta_loss"].value, rel=1e-9)
    assert len(fidelity["tokens"]) == result.n_documents


def test_a_transcoder_reads_one_place_and_is_measured_at_another(tiny_lm, batches):
    site, target_site = "layers.2.mlp:in", "layers.2.mlp"
    mlp = tiny_lm.model.layers[2].mlp
    perfect = StubSAE(decode=mlp.forward, site=site, target_site=target_site)
    result = evaluate(tiny_lm, perfect, batches, ARGS)
    assert (result.site, result.target_site) == (site, target_site)
    assert result.metrics["fvu"].value == pytest.approx(0, abs=1e-9)
    assert result.metrics["delta_loss"].value == pytest.approx(0, abs=1e-6)
    copies = StubSAE(site=site, target_site=target_site)  # of its input: no good as an output
    assert evaluate(tiny_lm, copies, batches, ARGS).metrics["fvu"].value > 1


def cross_layer_transcoder():
    sites, targets = ["layers.0.mlp:in", "layers.2.mlp:in"], ["layers.1.mlp", "layers.2.mlp"]
    config = BatchTopKCLTConfig(d_in=32, d_sae=40, k=6, sites=sites, target_sites=targets)
    return BatchTopKCLT(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "make", [lambda: StubSAE(encode=lambda x: x.relu()), cross_layer_transcoder]
)
def test_the_spliced_arm_is_what_splice_does(tiny_lm, batches, make):
    sae = make()
    total, n = 0.0, 0
    for ids, keep, document in batches:
        with torch.no_grad(), splice(tiny_lm, sae, keep=keep):
            log_probs = tiny_lm(input_ids=ids).logits.float().log_softmax(-1)[:, :-1]
        at = counted(keep, document)
        total -= log_probs[at].gather(-1, ids[:, 1:][at][:, None]).sum().item()
        n += int(at.sum())
    result = evaluate(tiny_lm, sae, batches, ARGS)
    assert result.metrics["ce_spliced"].value == pytest.approx(total / n, rel=1e-5)


def test_norm_outliers_are_left_out_of_every_arm_and_every_count(tiny_lm, batches):
    with torch.no_grad():
        x = [
            tiny_lm(input_ids=b.input_ids, output_hidden_states=True).hidden_states[3]
            for b in batches
        ]
    norms = [part.norm(dim=-1) for part in x]
    limit = torch.cat([n[b.keep] for n, b in zip(norms, batches, strict=True)]).quantile(0.8).item()
    smaller = [b._replace(keep=b.keep & (n <= limit)) for n, b in zip(norms, batches, strict=True)]
    limited = evaluate(tiny_lm, rounding_sae(), batches, ARGS, norm_limits={SITE: limit})
    assert values(limited) == values(evaluate(tiny_lm, rounding_sae(), smaller, ARGS))
    assert limited.n_tokens < sum(int(b.keep.sum()) for b in batches)


def test_the_result_does_not_depend_on_how_rows_are_batched(tiny_lm, batches):
    args = EvaluationArguments(n_tokens=50, bootstrap_samples=50, sae_batch_tokens=7)
    one_by_one = [TokenBatch(*(p[i : i + 1] for p in b)) for b in batches for i in range(len(b[0]))]
    a = evaluate(tiny_lm, rounding_sae(), batches, args)
    b = evaluate(tiny_lm, rounding_sae(), iter(one_by_one), args)
    assert 50 <= a.n_tokens < 60
    assert values(a) == pytest.approx(values(b), rel=1e-4)
    assert torch.equal(a.density, b.density)


def test_rows_whose_logits_are_too_many_go_through_the_lm_in_parts(tiny_lm, batches, monkeypatch):
    whole = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    rows, context = batches[0].input_ids.shape
    assert rows > 2
    monkeypatch.setattr(
        "hfsae.evaluation.arguments._LOGITS", 2 * context * tiny_lm.config.vocab_size
    )
    seen = list[int]()
    handle = tiny_lm.lm_head.register_forward_hook(lambda m, x, logits: seen.append(len(logits)))
    try:
        parts = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    finally:
        handle.remove()
    assert max(seen) == 2
    assert parts.n_tokens == whole.n_tokens
    assert values(parts) == pytest.approx(values(whole), rel=1e-4)


def test_while_arms_are_compared_no_other_log_probabilities_are_alive(
    tiny_lm, batches, monkeypatch
):
    vocab, alive = tiny_lm.config.vocab_size, list[int]()

    def counting(p, q):
        shapes = [
            x.shape for x in gc.get_objects() if type(x) is torch.Tensor and x.dtype == p.dtype
        ]
        alive.append(sum(shape[-1:] == (vocab,) and len(shape) == 2 for shape in shapes))
        return kl_of_logs(p, q)

    gc.collect()
    held = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim == 2]
    before = sum(x.dtype == torch.float32 and x.shape[-1] == vocab for x in held)
    del held
    monkeypatch.setattr("hfsae.evaluation.fidelity.kl_of_logs", counting)
    # bfloat16, so that logits do not count
    evaluate_all(copy.deepcopy(tiny_lm).bfloat16(), {"": rounding_sae()}, batches, ARGS)
    assert alive and set(alive) == {before + 2}


def test_no_more_batches_are_taken_than_are_needed(tiny_lm, batches):
    def stream():
        yield batches[0]
        raise AssertionError("one batch was enough")

    args = EvaluationArguments(n_tokens=int(batches[0].keep.sum()), bootstrap_samples=5)
    assert evaluate(tiny_lm, StubSAE(), stream(), args).n_tokens == args.n_tokens


def test_a_mean_given_by_the_caller_is_used_and_said(tiny_lm, batches):
    own = evaluate(tiny_lm, StubSAE(), batches, ARGS)
    zero = torch.zeros(tiny_lm.config.hidden_size)
    given = evaluate(tiny_lm, StubSAE(), batches, ARGS, mean=zero)
    assert given.metrics["ce_mean"].value == given.metrics["ce_zero"].value
    assert own.metrics["ce_mean"].value != own.metrics["ce_zero"].value
    assert given.mean_source == "given by the caller"
    assert "evaluation set" in own.mean_source


def test_progress_counts_tokens_to_the_end(tiny_lm, batches):
    done = []
    evaluate(tiny_lm, StubSAE(), batches, ARGS, progress=done.append)
    assert done == torch.tensor([int(b.keep.sum()) for b in batches]).cumsum(0).tolist()


def test_intervals_hold_the_value_and_repeat_with_the_seed(tiny_lm, batches):
    a = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    b = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    assert a.metrics == b.metrics
    assert all(m.low <= m.value <= m.high for m in a.metrics.values())
    assert a.metrics["fvu"].low < a.metrics["fvu"].high


def test_numbers_that_are_not_finite_are_refused_with_their_place(tiny_lm, batches):
    lm = copy.deepcopy(tiny_lm)
    lm.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="the language model gives NaN or infinite losses"):
        evaluate(lm, rounding_sae(), batches, ARGS)
    lm.model.layers[2].mlp.down_proj.weight.data[0] = float("nan")
    for mean in (None, torch.zeros(16)):
        with pytest.raises(ValueError, match=r"positions at 'layers\.2' have NaN or infinite act"):
            evaluate(lm, rounding_sae(), batches, ARGS, mean=mean)
    broken = StubSAE(decode=lambda z: z / 0)
    with pytest.raises(ValueError, match="SAE '' reconstructs NaN or infinity from finite"):
        evaluate(tiny_lm, broken, batches, ARGS)


def test_a_result_survives_strict_json_also_where_numbers_do_not_exist(tiny_lm, batches):
    one_document = [b._replace(document=torch.zeros_like(b.document)) for b in batches]
    for source in (batches, one_document):
        result = evaluate(tiny_lm, rounding_sae(), source, ARGS)
        text = json.dumps(result.to_dict(), allow_nan=False)
        again = EvaluationResult.from_dict(json.loads(text))
        assert json.dumps(again.to_dict()) == text
        assert torch.equal(again.density, result.density)
        assert again.table() == result.table()
    assert math.isnan(again.metrics["kl"].low)


def test_the_table_has_a_line_a_metric_with_interval_and_unit(tiny_lm, batches):
    result = evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    head, *lines = result.table().splitlines()
    assert head.split() == ["metric", "value", "95", "%", "interval", "unit"]
    assert [line.split()[0] for line in lines] == list(result.metrics)
    kl = result.metrics["kl"]
    row = next(line for line in lines if line.startswith("kl"))
    assert row.split() == [
        "kl",
        f"{kl.value:.4g}",
        f"{kl.low:.4g}",
        "to",
        f"{kl.high:.4g}",
        "nats/token",
    ]


def test_histograms_account_for_every_token_and_every_living_latent(tiny_lm, batches):
    result = evaluate(tiny_lm, StubSAE(encode=lambda x: x.relu()), batches, ARGS)
    assert int(result.l0_histogram.sum()) == result.n_tokens
    _, counts = result.density_histogram
    assert int(counts.sum()) == int((result.density > 0).sum())
    l0 = (result.l0_histogram * torch.arange(len(result.l0_histogram))).sum() / result.n_tokens
    assert l0.item() == pytest.approx(result.metrics["l0"].value)
    assert result.density.sum().item() == pytest.approx(result.metrics["l0"].value)


def inside_runs(block, handles):
    """How often what is in a block runs; hooks on the block itself fire even when it is skipped."""
    runs = []
    inside = next(block.children())
    handles.append(inside.register_forward_hook(lambda *_: runs.append(1)))
    return runs


@pytest.mark.parametrize("place", ["", ":in", ".mlp"])
def test_in_every_family_blocks_below_the_site_run_once_for_all_arms(any_lm, place):
    stack = next(n for n, m in any_lm.base_model.named_children() if isinstance(m, nn.ModuleList))
    blocks, handles = any_lm.base_model.get_submodule(stack), []
    below, above = inside_runs(blocks[1], handles), inside_runs(blocks[-1], handles)
    batches = token_batches(any_lm.config.vocab_size, n_batches=2)
    zero = torch.zeros(any_lm.config.hidden_size)
    result = evaluate(any_lm, StubSAE(site=f"{stack}.2{place}"), batches, ARGS, mean=zero)
    for handle in handles:
        handle.remove()
    assert len(below) == 2
    assert len(above) == 2 * 4 + 1  # one more to check the sharing
    assert result.metrics["delta_loss"].value == 0.0
    assert result.metrics["ce_zero"].value != result.metrics["ce_clean"].value


def test_a_site_in_a_nested_decoder_is_found(multimodal_lm):
    batches = token_batches(250)
    result = evaluate(multimodal_lm, StubSAE(), batches, ARGS)
    assert result.metrics["delta_loss"].value == 0.0
    assert result.metrics["ce_zero"].value != result.metrics["ce_clean"].value


def test_a_model_with_another_way_up_is_run_in_full(tiny_lm, batches):
    """Block 3 also takes what block 0's MLP gave, past the blocks between."""
    stash = []
    handles = [
        tiny_lm.model.layers[0].mlp.register_forward_hook(lambda m, i, out: stash.append(out)),
        tiny_lm.model.layers[3].mlp.register_forward_hook(
            lambda m, i, out: out + (stash.pop() if stash else 0)
        ),
    ]
    result = evaluate(
        tiny_lm, StubSAE(), batches, ARGS, mean=torch.zeros(tiny_lm.config.hidden_size)
    )
    for handle in handles:
        handle.remove()
    assert result.metrics["delta_loss"].value == 0.0


def hook_ids(lm):
    return [(*m._forward_hooks, *m._forward_pre_hooks) for m in lm.modules()]


def test_threads_that_share_a_model_are_evaluated_and_run_as_if_alone(tiny_lm, batches):
    expected = values(evaluate(tiny_lm, rounding_sae(), batches, ARGS))
    logits = [tiny_lm(batch.input_ids).logits for batch in batches]
    done, wrong = threading.Event(), []

    def evaluate_again():
        for _ in range(3):
            if values(evaluate(tiny_lm, rounding_sae(), batches, ARGS)) != expected:
                wrong.append("evaluation")

    def run():
        while not done.is_set():
            for batch, clean in zip(batches, logits, strict=True):
                if not torch.equal(tiny_lm(batch.input_ids).logits, clean):
                    wrong.append("forward pass")

    evaluating = [threading.Thread(target=evaluate_again) for _ in range(2)]
    running = threading.Thread(target=run)
    for thread in (*evaluating, running):
        thread.start()
    for thread in evaluating:
        thread.join()
    done.set()
    running.join()
    assert wrong == []
    assert not any("forward" in vars(block) for block in tiny_lm.base_model.layers)


def test_the_lm_is_left_as_it_was_also_after_an_error(tiny_lm, batches):
    ids = batches[0].input_ids
    before = tiny_lm(input_ids=ids).logits
    hooks = hook_ids(tiny_lm)

    def fails(latents):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        evaluate(tiny_lm, StubSAE(decode=fails), batches, ARGS)
    evaluate(tiny_lm, rounding_sae(), batches, ARGS)
    assert torch.equal(tiny_lm(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in tiny_lm.modules())
    assert hook_ids(tiny_lm) == hooks


def test_no_kept_token_a_training_lm_and_an_sae_without_a_site_are_refused(tiny_lm, batches):
    nothing = [b._replace(keep=torch.zeros_like(b.keep)) for b in batches]
    with pytest.raises(ValueError, match="no position is left to evaluate on"):
        evaluate(tiny_lm, StubSAE(), nothing, ARGS)
    alone = [b._replace(document=torch.arange(40).view(4, 10)) for b in batches]
    for unpredictable in (nothing, alone):
        with pytest.raises(ValueError, match="no prediction to evaluate on"):
            evaluate(tiny_lm, StubSAE(), unpredictable, ARGS, mean=torch.zeros(16))
    with pytest.raises(ValueError, match=r"\d+ above norm_limits"):
        evaluate(tiny_lm, StubSAE(), batches, ARGS, norm_limits={SITE: 0.0})
    with pytest.raises(ValueError, match="names no site"):
        evaluate(tiny_lm, StubSAE(site=None), batches, ARGS)
    tiny_lm.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            evaluate(tiny_lm, StubSAE(), batches, ARGS)
    finally:
        tiny_lm.eval()
