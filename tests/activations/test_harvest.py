"""Activations are those of the language model's own forward pass, at kept positions alone."""

import copy
import json

import pytest
import torch

from hfsae.activations import HarvestArguments, Harvester
from hfsae.activations.tokens import TokenBatch

SITES = ["layers.0", "layers.2"]


@pytest.fixture
def lm(tiny_lm):
    """A copy: some tests here change the LM, which others share."""
    return copy.deepcopy(tiny_lm)


@pytest.fixture
def batch(lm):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.config.vocab_size, (5, 7), generator=generator)
    keep = torch.rand(5, 7, generator=generator) > 0.3
    return TokenBatch(ids, keep, torch.arange(35).view(5, 7) // 3)


def hidden_states(lm, batch, layer):
    states = lm(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    return states[layer + 1]


class scaled_position:
    """The LM with layer 0's output multiplied at one place of the batch: a planted outlier."""

    def __init__(self, lm, row, position, factor):
        def hook(module, args, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            hidden[row, position] *= factor

        self.hook = lm.base_model.layers[0].register_forward_hook(hook)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.hook.remove()


def test_activations_are_the_hidden_states_at_kept_positions(lm, batch):
    got = Harvester(lm, SITES, HarvestArguments())(batch)
    for site, layer in zip(SITES, (0, 2), strict=True):
        assert torch.equal(got.activations[site], hidden_states(lm, batch, layer)[batch.keep])


def test_each_activation_comes_with_its_token_place_and_document(lm, batch):
    got = Harvester(lm, SITES, HarvestArguments())(batch)
    assert len(got.tokens) == int(batch.keep.sum())
    assert torch.equal(batch.input_ids[got.row, got.position], got.tokens)
    assert torch.equal(batch.document[got.row, got.position], got.document)
    assert batch.keep[got.row, got.position].all()


def test_two_sites_in_one_pass_equal_each_alone(lm, batch):
    together = Harvester(lm, SITES, HarvestArguments())(batch).activations
    for site in SITES:
        alone = Harvester(lm, [site], HarvestArguments())(batch).activations
        assert torch.equal(alone[site], together[site])


def test_layers_above_the_last_site_do_not_run(lm, batch):
    ran = []
    for layer in lm.base_model.layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module.self_attn.layer_idx))
    Harvester(lm, ["layers.1"], HarvestArguments())(batch)
    assert ran in ([0], [0, 1])  # layer 1's own counter may come after the hook that stops


def test_forward_passes_of_fewer_rows_give_the_same_positions(lm, batch):
    whole = Harvester(lm, SITES, HarvestArguments(rows=16))(batch)
    parts = Harvester(lm, SITES, HarvestArguments(rows=2))(batch)
    for mine, theirs in zip(whole[1:], parts[1:], strict=True):
        assert torch.equal(mine, theirs)
    for site in SITES:
        torch.testing.assert_close(whole.activations[site], parts.activations[site])


def test_a_bfloat16_lm_gives_bfloat16_activations(lm, batch):
    lm.to(torch.bfloat16)
    got = Harvester(lm, SITES, HarvestArguments(max_norm_ratio=50.0))(batch)
    assert {acts.dtype for acts in got.activations.values()} == {torch.bfloat16}
    assert torch.equal(got.activations["layers.0"], hidden_states(lm, batch, 0)[batch.keep])


def test_activations_may_enter_autograd(lm, batch):
    acts = Harvester(lm, SITES, HarvestArguments())(batch).activations["layers.2"]
    weight = torch.ones(acts.shape[1], requires_grad=True)
    (acts @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, acts.sum(0))


def test_a_planted_outlier_is_dropped_at_all_sites_and_counted(lm, batch):
    batch.keep[3, 4] = True
    harvester = Harvester(lm, SITES, HarvestArguments(max_norm_ratio=10.0))
    with scaled_position(lm, 3, 4, 1000.0):
        states = [hidden_states(lm, batch, layer) for layer in (0, 2)]
        got = harvester(batch)
    keep = batch.keep.clone()
    keep[3, 4] = False
    for site, state in zip(SITES, states, strict=True):
        assert torch.equal(got.activations[site], state[keep])
    assert torch.equal(got.tokens, batch.input_ids[keep])
    n_special = int((~batch.keep).sum())
    counts = (harvester.kept, harvester.dropped_outliers, harvester.dropped_special)
    assert counts == (35 - n_special - 1, 1, n_special)


def test_norm_limits_are_the_ratio_times_the_first_batchs_median_and_stay(lm, batch):
    harvester = Harvester(lm, SITES, HarvestArguments(max_norm_ratio=3.0))
    harvester(batch)
    limits = dict(harvester.norm_limits)
    for site, layer in zip(SITES, (0, 2), strict=True):
        norms = sorted(hidden_states(lm, batch, layer)[batch.keep].norm(dim=-1).tolist())
        assert limits[site] == pytest.approx(3.0 * norms[(len(norms) - 1) // 2], rel=1e-6)
    harvester(TokenBatch(batch.input_ids.flip(0), ~batch.keep, batch.document))
    assert harvester.norm_limits == limits


def test_given_norm_limits_are_used_as_they_are(lm, batch):
    norms = hidden_states(lm, batch, 0)[batch.keep].norm(dim=-1)
    limit = float(norms.median())
    harvester = Harvester(lm, SITES, HarvestArguments(), norm_limits={"layers.0": limit})
    got = harvester(batch)
    assert harvester.norm_limits == {"layers.0": limit}
    assert len(got.tokens) == int((norms <= limit).sum()) < len(norms)


def test_norm_limits_of_other_sites_are_ignored(lm, batch):
    site, limits = "layers.0", {"layers.0": 1e9, "layers.2": 0.0}
    harvester = Harvester(lm, [site], HarvestArguments(), norm_limits=limits)
    assert len(harvester(batch).tokens) == int(batch.keep.sum())
    assert harvester.norm_limits == {site: 1e9}


def test_a_result_does_not_depend_on_earlier_batches(lm, batch):
    harvester = Harvester(lm, SITES, HarvestArguments(max_norm_ratio=2.0))
    first, again = harvester(batch), harvester(batch)
    for site in SITES:
        assert torch.equal(first.activations[site], again.activations[site])


def test_norm_limits_of_another_harvester_drop_the_same_positions(lm, batch):
    args = HarvestArguments(max_norm_ratio=1.1)
    harvester = Harvester(lm, SITES, args)
    harvester(batch)
    limits = json.loads(json.dumps(harvester.norm_limits))
    fresh = Harvester(lm, SITES, args, norm_limits=limits)
    other = TokenBatch(batch.input_ids.flip(1), batch.keep, batch.document)
    assert torch.equal(fresh(other).tokens, harvester(other).tokens)
    assert fresh.norm_limits == harvester.norm_limits


def test_a_batch_with_nothing_to_keep_gives_empty_tensors_and_fixes_no_limit(lm, batch):
    harvester = Harvester(lm, SITES, HarvestArguments(max_norm_ratio=5.0))
    got = harvester(TokenBatch(batch.input_ids, torch.zeros_like(batch.keep), batch.document))
    assert got.activations["layers.0"].shape == (0, lm.config.hidden_size)
    assert (len(got.tokens), harvester.norm_limits) == (0, {})


@pytest.mark.parametrize("ratio", [None, 5.0], ids=["all kept", "without outliers"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_lm_whose_activations_overflow_is_refused(lm, batch, ratio, value, tmp_path):
    args = HarvestArguments(max_norm_ratio=ratio, cache=str(tmp_path))
    harvester, token = Harvester(lm, SITES, args), batch.input_ids[batch.keep][0]
    lm.get_input_embeddings().weight.data[token] = value
    with pytest.raises(ValueError, match=r"[1-9]\d* of \d+ positions at 'layers.*NaN"):
        harvester(batch)
    assert harvester.kept == harvester.dropped_outliers == 0


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^harvest\.rows is 0"):
        HarvestArguments(rows=0)
    with pytest.raises(ValueError, match=r"^harvest\.max_norm_ratio is 0\.5"):
        HarvestArguments(max_norm_ratio=0.5)


@pytest.fixture
def compiled_passes(monkeypatch):
    """torch.compile without a C++ compiler; the list grows by one for each block compiled."""
    seen, compile_ = [], torch.compile

    def compile_eagerly(forward, **options):
        seen.append(forward)
        return compile_(forward, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return seen


def test_compiled_blocks_give_the_same_activations(lm, batch, compiled_passes):
    plain = Harvester(lm, SITES, HarvestArguments(rows=2))(batch)
    compiled = Harvester(lm, SITES, HarvestArguments(rows=2, compile=True))
    got = compiled(batch)  # of rows 2, 2 and 1: the last is not what was compiled for
    assert len(compiled_passes) == 3, "the blocks up to the last site"
    for site in SITES:
        torch.testing.assert_close(got.activations[site], plain.activations[site])
    assert all("forward" not in vars(block) for block in lm.base_model.layers)


@pytest.mark.parametrize("site", ["layers.1.mlp", "embed_tokens"])
def test_what_happens_inside_a_compiled_block_is_not_asked_for(lm, site):
    with pytest.raises(ValueError, match=f"harvest.compile: {site} is not a block"):
        Harvester(lm, [site], HarvestArguments(compile=True))


def test_blocks_of_a_model_that_is_compiled_already_are_not_compiled(lm):
    compiled = copy.deepcopy(lm)
    compiled.base_model.layers[1].compile()
    for model in (torch.compile(lm), compiled):
        with pytest.raises(ValueError, match=r"harvest\.compile: this model is compiled already"):
            Harvester(model, SITES, HarvestArguments(compile=True))


def test_compiled_and_plain_activations_do_not_mix_in_a_cache(lm, batch, tmp_path, compiled_passes):
    plain = Harvester(lm, SITES, HarvestArguments(cache=str(tmp_path)))
    plain(batch)
    compiled = Harvester(lm, SITES, HarvestArguments(cache=str(tmp_path), compile=True))
    compiled(batch)
    assert compiled.caches[0].misses == 1


def test_a_block_that_cannot_be_compiled_is_one_sentence(lm, batch, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no g++ here\nand more lines")

    monkeypatch.setattr(torch, "compile", lambda forward, **options: fails)
    with pytest.raises(ValueError, match=r"harvest.compile: .*no g\+\+ here\); .* C\+\+ compiler"):
        Harvester(lm, SITES, HarvestArguments(rows=5, compile=True))(batch)
