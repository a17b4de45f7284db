"""Steering writes what its formula says, at its tokens alone, and leaves nothing behind."""

import copy
import math
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature

import gguf
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel

import hfsae
from hfsae import Edit, capture, steer, suggest_strength
from hfsae.models import SAE
from hfsae.steering import (
    MODES,
    SeededSampling,
    load_steering_vector,
    repetition,
    save_steering_vector,
)

from .tiny import D_SAE, VARIANTS, make_sae, n_hooks, stack, tokens

OPTIONS = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def around(lm: PreTrainedModel, site: str, block, batch=None) -> tuple[Tensor, Tensor, Tensor]:
    """The site's activation before and after the block's write, and the logits."""
    with capture(lm, [site]) as before, block, capture(lm, [site]) as after:
        logits = lm(**(batch or tokens())).logits
    return before[site], after[site], logits


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamping_adds_exactly_the_decoded_difference(
    make_tiny_lm: Callable, variant: str, dtype: torch.dtype
):
    lm, sae = make_tiny_lm("gemma2").to(dtype), make_sae(variant=variant)
    edits = {3: 2.5, 7: -1.0}
    x, new, _ = around(lm, "layers.1", steer(lm, sae, edits, mode="clamp", spare_tokens=()))
    original = sae.encode(x.float())
    clamped = original.clone()
    clamped[..., 3], clamped[..., 7] = 2.5, -1.0
    difference = sae.decode(clamped, x.float()) - sae.decode(original, x.float())
    assert difference.abs().max() > 0.1
    assert torch.equal(new, (x + difference).to(dtype))


@pytest.mark.parametrize(
    ("mode", "strength", "expected"),
    [
        ("add", 0.75, lambda old: old + 0.75),
        ("scale", -2.0, lambda old: old * -2.0),
        ("ablate", 9.0, torch.zeros_like),
        ("cap", 0.25, lambda old: old.clamp(max=0.25)),
        ("clamp", 0.5, lambda old: torch.full_like(old, 0.5)),
    ],
)
@pytest.mark.parametrize("error_term", [True, False])
def test_each_mode_changes_the_latent_as_its_formula_says(
    tiny_lm: PreTrainedModel, mode, strength: float, expected: Callable, error_term: bool
):
    sae = make_sae()
    block = steer(tiny_lm, sae, {5: strength}, mode=mode, error_term=error_term, spare_tokens=())
    x, new, _ = around(tiny_lm, "layers.1", block)
    latents = sae.encode(x)
    assert (latents[..., 5] > 0.25).any() and (latents[..., 5] == 0).any()
    change = expected(latents[..., 5]) - latents[..., 5]
    base = x if error_term else sae.decode(latents)
    torch.testing.assert_close(new, base + change[..., None] * sae.W_dec[5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_adding_nothing_and_scaling_by_one_leave_the_model_bit_equal(
    make_tiny_lm: Callable, variant: str
):
    for dtype in (torch.float32, torch.bfloat16):
        lm = make_tiny_lm("gemma2").to(dtype)
        clean = lm(**tokens()).logits
        for sae_dtype in (torch.float32, torch.bfloat16):
            sae = make_sae(variant=variant).to(sae_dtype)
            for edits in ({3: Edit(0.0, "add")}, {3: Edit(1.0, "scale"), 4: Edit(0, "add")}):
                with steer(lm, sae, edits, spare_tokens=()):
                    assert torch.equal(lm(**tokens()).logits, clean)


def test_the_orthogonal_mode_sets_components_and_keeps_all_that_is_orthogonal(
    tiny_lm: PreTrainedModel,
):
    sae = make_sae()
    edits = {2: 1.5, 9: -0.5}
    block = steer(tiny_lm, sae, edits, mode="orthogonal", spare_tokens=())
    x, new, _ = around(tiny_lm, "layers.1", block)
    for latent, strength in edits.items():
        row = sae.W_dec[latent]
        torch.testing.assert_close(new @ row, torch.full((3, 12), strength * float(row @ row)))
    q, _ = torch.linalg.qr(sae.W_dec[[2, 9]].T, mode="complete")
    torch.testing.assert_close(new @ q[:, 2:], x @ q[:, 2:], rtol=1e-4, atol=1e-4)


def test_the_unit_max_is_multiples_of_the_maximal_activation(tiny_lm: PreTrainedModel):
    sae, maxima = make_sae(), torch.arange(1.0, D_SAE + 1)
    logits = [
        around(tiny_lm, "layers.1", steer(tiny_lm, sae, edits, mode="clamp", **options))[2]
        for edits, options in (
            ({3: 1.5 * 4}, {}),
            ({3: 1.5}, {"unit": "max", "max_activations": maxima}),
            ({3: 1.5}, {"unit": "max", "max_activations": {3: 4.0}}),
            ({3: Edit(1.5, unit="max")}, {"max_activations": maxima.tolist()}),
        )
    ]
    assert all(torch.equal(logits[0], others) for others in logits[1:])


@pytest.mark.parametrize("variant", ["relu", "layer_norm"])
def test_the_unit_norm_is_per_cent_of_each_tokens_norm(tiny_lm: PreTrainedModel, variant: str):
    sae = make_sae(variant=variant)
    block = steer(tiny_lm, sae, {3: 20.0}, unit="norm", spare_tokens=())
    x, new, _ = around(tiny_lm, "layers.1", block)
    torch.testing.assert_close((new - x).norm(dim=-1), 0.2 * x.norm(dim=-1), rtol=1e-3, atol=1e-5)
    cosine = F.cosine_similarity(new - x, sae.W_dec[3].expand_as(x), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(3, 12))


def test_the_maxima_of_another_sae_are_refused_and_those_of_a_cast_or_folded_one_taken(
    tiny_lm: PreTrainedModel, tiny_tokenizer
):
    sae, other = make_sae(), make_sae()
    text = ["the cat sat on the mat " * 4]
    maxima = hfsae.collect(tiny_lm, sae, text, tokenizer=tiny_tokenizer).max_activations
    block = partial(steer, tiny_lm, latents={3: 1.0}, unit="max", mode="cap")
    with torch.no_grad():
        other.W_dec += 0.1 * torch.randn_like(other.W_dec)
    with pytest.raises(ValueError, match="max_activations is another SAE's: its decoder differs"):
        block(sae=other, max_activations=maxima).__enter__()
    with pytest.raises(ValueError, match="max_activations is another SAE's"):
        save_steering_vector("never.safetensors", other, {3: 1.0}, max_activations=maxima)
    maxima += 1.0  # in place: none is 0
    for same in (sae, copy.deepcopy(sae).bfloat16(), sae.folded(), copy.deepcopy(sae).half()):
        with block(sae=same, max_activations=maxima):
            tiny_lm(**tokens())
    with block(sae=other, max_activations=maxima.tolist()):
        tiny_lm(**tokens())


def test_latents_of_one_block_have_modes_and_units_of_their_own(tiny_lm: PreTrainedModel):
    sae = make_sae()
    edits = {1: 2.0, 2: Edit(mode="ablate"), 3: Edit(0.5, "clamp", "max"), 4: Edit(3, "scale")}
    block = steer(tiny_lm, sae, edits, max_activations={3: 4.0}, spare_tokens=())
    x, new, _ = around(tiny_lm, "layers.1", block)
    latents = sae.encode(x)
    changed = latents.clone()
    changed[..., 1] += 2
    changed[..., 2] = 0
    changed[..., 3] = 2
    changed[..., 4] *= 3
    assert torch.equal(new, x + (sae.decode(changed) - sae.decode(latents)))


def test_several_saes_act_at_their_own_sites_as_nested_blocks_do(any_lm: PreTrainedModel):
    low, high = make_sae(f"{stack(any_lm)}.1"), make_sae(f"{stack(any_lm)}.2", "jumprelu", seed=2)
    with steer(any_lm, [low, high], [{3: 2.0}, {4: Edit(1.0, "clamp")}]):
        together = any_lm(**tokens()).logits
    with steer(any_lm, low, {3: 2.0}), steer(any_lm, high, {4: 1.0}, mode="clamp"):
        assert torch.equal(any_lm(**tokens()).logits, together)
    with steer(any_lm, low, {3: 2.0}):
        assert not torch.equal(any_lm(**tokens()).logits, together)


def test_two_saes_at_one_site_act_one_after_the_other(tiny_lm: PreTrainedModel):
    one, other = make_sae(seed=1), make_sae(seed=2)
    block = steer(tiny_lm, [one, other], [{3: 2.0}, {4: 5.0}], mode="clamp", spare_tokens=())
    x, new, _ = around(tiny_lm, "layers.1", block)

    def clamped(sae: SAE, x: Tensor, latent: int, value: float) -> Tensor:
        latents = sae.encode(x)
        changed = latents.clone()
        changed[..., latent] = value
        return x + (sae.decode(changed) - sae.decode(latents))

    assert torch.equal(new, clamped(other, clamped(one, x, 3, 2.0), 4, 5.0))


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoders_latents_come_from_its_site_and_write_at_its_target(
    tiny_lm: PreTrainedModel, skip: bool
):
    site, target = "layers.1.mlp:in", "layers.1.mlp"
    sae = make_sae(site, target_site=target, skip_connection=skip)
    with capture(tiny_lm, [site]) as source:
        block = steer(tiny_lm, sae, {3: 2.0}, mode="clamp", spare_tokens=())
        y, new, _ = around(tiny_lm, target, block)
    change = 2.0 - sae.encode(source[site])[..., 3]
    torch.testing.assert_close(new, y + change[..., None] * sae.W_dec[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scope, error_term", [("all", True), ("all", False), ("prompt", False), ("generated", True)]
)
def test_generation_is_equal_with_and_without_a_cache(
    any_lm: PreTrainedModel, scope, error_term: bool
):
    sae = make_sae(f"{stack(any_lm)}.1")
    block = {"mode": "clamp", "scope": scope, "error_term": error_term}
    texts = []
    for use_cache in (True, False):
        with steer(any_lm, sae, {3: 6.0}, **block):
            texts.append(any_lm.generate(**tokens("left"), **OPTIONS, use_cache=use_cache))
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], any_lm.generate(**tokens("left"), **OPTIONS))


@pytest.mark.parametrize("scope", ["all", "prompt", "generated"])
def test_left_padding_changes_nothing(any_lm: PreTrainedModel, scope):
    sae, batch = make_sae(f"{stack(any_lm)}.1"), tokens("left")
    with steer(any_lm, sae, {3: 6.0}, mode="clamp", scope=scope):
        padded = any_lm.generate(**batch, **OPTIONS)
        alone = any_lm.generate(batch["input_ids"][1:2, 3:], **OPTIONS)
    assert torch.equal(padded[1, 3:], alone[0])


def changed_columns(lm: PreTrainedModel, scope: str, **options) -> list[list[bool]]:
    """For each forward pass of a generation, which columns of row 0 were steered."""
    sae, seen = make_sae(), []
    with capture(lm, ["layers.1"]) as before, steer(lm, sae, {3: 6.0}, scope=scope):
        hook = lm.base_model.layers[1].register_forward_hook(
            lambda module, args, out: seen.append((out != before["layers.1"]).any(-1)[0].tolist())
        )
        lm.generate(tokens(ctx=5)["input_ids"][:1], **OPTIONS | {"max_new_tokens": 3}, **options)
        hook.remove()
    return seen


def test_scope_says_which_tokens_are_steered(tiny_lm: PreTrainedModel):
    bos, prompt = [False], [True] * 4
    assert changed_columns(tiny_lm, "all") == [bos + prompt, [True], [True]]
    assert changed_columns(tiny_lm, "prompt") == [bos + prompt, [False], [False]]
    assert changed_columns(tiny_lm, "generated") == [[False] * 5, [True], [True]]
    assert changed_columns(tiny_lm, "generated", use_cache=False) == [
        [False] * 5,
        [False] * 5 + [True],
        [False] * 5 + [True] * 2,
    ]
    assert changed_columns(tiny_lm, "prompt", use_cache=False)[2] == bos + prompt + [False] * 2
    # two generations in one block: the second prompt is a prompt again, however it begins
    with steer(tiny_lm, make_sae(), {3: 6.0}, scope="generated"):
        ids = tokens(ctx=5)["input_ids"][:1]
        first = tiny_lm.generate(ids, **OPTIONS, use_cache=False)
        assert torch.equal(tiny_lm.generate(ids, **OPTIONS, use_cache=False), first)


def test_a_condition_on_an_earlier_site_chooses_the_tokens(tiny_lm: PreTrainedModel):
    sae, block = make_sae(), {"mode": "clamp", "spare_tokens": ()}
    inputs = tokens()
    with capture(tiny_lm, ["layers.0"]) as early:
        tiny_lm(**inputs)
    middle = early["layers.0"][..., 0].median()

    def holds(x: Tensor) -> Tensor:
        return x[..., 0] > middle

    expected = holds(early["layers.0"])
    assert 0 < expected.sum() < expected.numel()
    steered = steer(tiny_lm, sae, {3: 2.5}, when={"layers.0": holds}, **block)
    x, new, _ = around(tiny_lm, "layers.1", steered)
    assert torch.equal((x != new).any(-1), expected)
    for when, sentence in (
        ({"layers.2": holds}, r"'layers\.2' is not known .* runs later"),
        ({"layers.0": lambda x: x[..., 0]}, r"gives float32 \[.*it must give a truth value"),
    ):
        wrong = steer(tiny_lm, sae, {3: 2.5}, when=when, **block)
        with pytest.raises(ValueError, match=sentence), wrong:
            tiny_lm(**inputs)
    with steer(tiny_lm, sae, {3: 2.5}, when={"layers.0": holds}, **block):  # a token at a time
        cached = tiny_lm.generate(**inputs, **OPTIONS)
        plain = tiny_lm.generate(**inputs, **OPTIONS, use_cache=False)
    assert torch.equal(cached, plain)


def test_a_loop_by_hand_without_a_cache_is_steered_as_generate_is(tiny_lm: PreTrainedModel):
    ids, outs = tokens(ctx=5)["input_ids"][:1], []
    for scope in ("prompt", "generated"):
        with steer(tiny_lm, make_sae(), {3: 6.0}, mode="clamp", scope=scope):
            outs.append(tiny_lm.generate(ids, **OPTIONS))
            longer = ids
            while longer.shape != outs[-1].shape:
                token = tiny_lm(longer, use_cache=False).logits[:, -1:].argmax(dim=-1)
                longer = torch.cat([longer, token], dim=1)
        assert torch.equal(longer, outs[-1])
    assert not torch.equal(*outs)


@pytest.mark.parametrize(
    "way, scope",
    [
        ("a worse assistant", "all"),
        ("a worse assistant", "prompt"),
        ("a worse assistant", "generated"),
        ("itself as assistant", "all"),
        ("prompt lookup", "generated"),
        ("early exit", "prompt"),
        ("early exit", "generated"),
    ],
)
def test_assisted_decoding_gives_the_tokens_of_plain_decoding(make_tiny_lm: Callable, scope, way):
    lm, worse = make_tiny_lm("llama"), make_tiny_lm("llama", seed=1, num_hidden_layers=1)
    options = {
        "a worse assistant": {"assistant_model": worse},
        "itself as assistant": {"assistant_model": lm},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "early exit": {"assistant_early_exit": 2},
    }[way]
    ids = torch.tensor([[2, *[40, 50, 60, 70] * 3]])  # recurs: so that a lookup finds something
    plain, sizes = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}, []
    unsteered = lm.generate(ids, **plain)
    for sae, strength in ((make_sae(seed=seed), 9.0) for seed in range(3)):
        with steer(lm, sae, {3: strength}, mode="clamp", scope=scope):
            expected = lm.generate(ids, **plain)
            assisted = lm.generate(ids, **plain, **options)
            assert torch.equal(lm.generate(input_ids=ids, **plain), expected)
        assert torch.equal(assisted, expected)
        sizes.append(int((expected != unsteered).sum()))
    assert any(sizes), "nothing was steered"
    assert "generate" not in vars(lm) and n_hooks(lm) == 0


@pytest.mark.parametrize("passes_ids", ["the whole conversation", "the new turn alone"])
def test_a_next_turn_of_generate_on_a_kept_cache_is_prompt(make_tiny_lm: Callable, passes_ids):
    lm, sae, ids = make_tiny_lm("llama"), make_sae(), tokens(ctx=10)["input_ids"][:1]
    name = "cache" if "cache" in signature(lm.forward).parameters else "past_key_values"
    with steer(lm, sae, {3: 6.0}, mode="clamp", scope="generated"):
        expected = lm.generate(ids, **OPTIONS)[:, 10:]
        cache = DynamicCache(config=lm.config)
        lm(ids[:, :6], **{name: cache, "use_cache": True})
        given = ids if passes_ids == "the whole conversation" else ids[:, 6:]
        mask = torch.ones_like(ids)
        out = lm.generate(given, attention_mask=mask, **{name: cache}, **OPTIONS)
    assert torch.equal(out[:, given.shape[1] :], expected)


def test_a_float16_model_steered_to_nan_or_infinity_is_an_error(make_tiny_lm: Callable):
    lm, sae = make_tiny_lm("llama").to(torch.float16), make_sae()
    ids = tokens(ctx=5)["input_ids"][:1]
    sentence = r"'layers\.1', the model's last hidden state has NaN or infinity in float16; use a"
    with pytest.raises(hfsae.Refused, match=sentence), steer(lm, sae, {3: 3e5}, mode="clamp"):
        lm.generate(ids, **OPTIONS)
    assert n_hooks(lm) == 0
    with steer(lm, sae, {3: 2.0}, mode="clamp"):
        lm.generate(ids, **OPTIONS)


def test_a_chats_next_turn_on_a_kept_cache_is_prompt(tiny_lm: PreTrainedModel):
    ids, sae = tokens(ctx=10)["input_ids"][:1], make_sae()
    with steer(tiny_lm, sae, {3: 6.0}, scope="prompt"):
        whole = tiny_lm(ids).logits
        name = "cache" if "cache" in signature(tiny_lm.forward).parameters else "past_key_values"
        cache = {name: DynamicCache(config=tiny_lm.config), "use_cache": True}
        tiny_lm(ids[:, :6], **cache)
        turn = tiny_lm(ids[:, 6:], **cache).logits
    torch.testing.assert_close(turn, whole[:, 6:], rtol=1e-3, atol=1e-3)


def test_special_tokens_are_spared_unless_asked_for(tiny_lm: PreTrainedModel):
    sae, batch = make_sae(), tokens("right")
    x, new, _ = around(tiny_lm, "layers.1", steer(tiny_lm, sae, {3: 2.0}))
    special = torch.isin(batch["input_ids"], torch.tensor([0, 1, 2]))
    assert torch.equal((new == x).all(-1), special) and special.sum() == 9
    x, new, _ = around(tiny_lm, "layers.1", steer(tiny_lm, sae, {3: 2.0}, spare_tokens=()))
    assert not (new == x).all(-1).any()
    one = int(batch["input_ids"][0, 4])
    x, new, _ = around(tiny_lm, "layers.1", steer(tiny_lm, sae, {3: 2.0}, spare_tokens=[one]))
    assert torch.equal((new == x).all(-1), batch["input_ids"] == one)


def test_sampling_and_beams_run_steered(tiny_lm: PreTrainedModel):
    sae = make_sae()
    for options in ({"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}):
        with steer(tiny_lm, sae, {3: 50.0}, mode="clamp"):
            torch.manual_seed(0)
            cached = tiny_lm.generate(**tokens("left"), **OPTIONS | options)
            torch.manual_seed(0)
            assert torch.equal(
                tiny_lm.generate(**tokens("left"), **OPTIONS | options, use_cache=False), cached
            )
        torch.manual_seed(0)
        assert not torch.equal(tiny_lm.generate(**tokens("left"), **OPTIONS | options), cached)


def test_nothing_is_left_behind(tiny_lm: PreTrainedModel):
    sae, before, clean = make_sae(), n_hooks(tiny_lm), tiny_lm(**tokens()).logits
    with steer(tiny_lm, sae, {3: 6.0}):
        assert n_hooks(tiny_lm) > before
        tiny_lm(**tokens())
    assert n_hooks(tiny_lm) == before
    with pytest.raises(RuntimeError, match="boom"), steer(tiny_lm, sae, {3: 6.0}):
        raise RuntimeError("boom")
    with pytest.raises(ValueError, match="past the end: Gemma2"):
        steer(tiny_lm, [sae, make_sae("layers.9")], [{3: 6.0}, {3: 6.0}]).__enter__()
    with pytest.raises(ValueError, match="width 16, got"), steer(tiny_lm, sae, {3: 1.0}):
        sae.config.site, kept = "layers.1.mlp.down_proj:in", sae.config.site
        with steer(tiny_lm, sae, {3: 1.0}):
            sae.config.site = kept
            tiny_lm(**tokens())
    assert n_hooks(tiny_lm) == before
    assert torch.equal(tiny_lm(**tokens()).logits, clean)


def test_a_generator_closed_in_another_thread_leaves_nothing_behind(tiny_lm: PreTrainedModel):
    sae, before, clean = make_sae(), n_hooks(tiny_lm), tiny_lm(**tokens()).logits

    def stream():
        with steer(tiny_lm, sae, {3: 6.0}):
            while True:
                yield tiny_lm(**tokens()).logits

    session = stream()
    assert not torch.equal(next(session), clean)
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()
    assert n_hooks(tiny_lm) == before
    assert torch.equal(tiny_lm(**tokens()).logits, clean)


def test_threads_that_share_a_model_are_steered_each_for_itself(tiny_lm: PreTrainedModel):
    """Four threads, three steered differently and one not, all inside their blocks at once."""
    sae, batch = make_sae(), tokens("left")
    edits: list[dict[int, float | Edit]] = [
        {3: Edit(0.0, "add")},
        {3: 8.0},
        {5: 8.0},
        {3: -8.0, 7: 4.0},
    ]

    def text(todo: dict[int, float | Edit]) -> Tensor:
        with steer(tiny_lm, sae, todo, mode="clamp"):
            return tiny_lm.generate(**batch, **OPTIONS)

    alone = [text(todo) for todo in edits]
    assert len({tuple(one.flatten().tolist()) for one in alone}) == 4
    ready, wrong = threading.Barrier(4), []

    def session(i: int) -> None:
        for _ in range(8):
            ready.wait()
            try:
                if not torch.equal(text(edits[i]), alone[i]):
                    wrong.append(i)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=session, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(tiny_lm.generate(**batch, **OPTIONS), alone[0])


def test_a_forward_pass_of_another_thread_is_untouched_inside_the_block(tiny_lm: PreTrainedModel):
    clean, found = tiny_lm(**tokens()).logits, []
    with steer(tiny_lm, make_sae(), {3: 6.0}):
        thread = threading.Thread(target=lambda: found.append(tiny_lm(**tokens()).logits))
        thread.start()
        thread.join()
        steered = tiny_lm(**tokens()).logits
    assert torch.equal(found[0], clean) and not torch.equal(steered, clean)


def test_a_block_whose_model_ran_in_other_threads_only_says_so(tiny_lm: PreTrainedModel):
    def run_elsewhere() -> None:
        with steer(tiny_lm, make_sae(), {3: 6.0}):
            thread = threading.Thread(target=lambda: tiny_lm(**tokens()))
            thread.start()
            thread.join()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_elsewhere()
    assert any("enter it in the thread that runs the model" in str(w.message) for w in caught)


def test_a_task_is_not_steered_by_another_that_waits_in_its_block(tiny_lm: PreTrainedModel):
    import asyncio

    clean = tiny_lm(**tokens()).logits

    async def steered(inside: asyncio.Event, done: asyncio.Event) -> tuple[Tensor, Tensor]:
        with steer(tiny_lm, make_sae(), {3: 6.0}):
            inside.set()
            await done.wait()
            own = tiny_lm(**tokens()).logits
            return own, (await asyncio.to_thread(tiny_lm, **tokens())).logits

    async def both() -> tuple[Tensor, Tensor, Tensor]:
        inside, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(steered(inside, done))
        await inside.wait()
        other = tiny_lm(**tokens()).logits
        done.set()
        return other, *(await task)

    with ThreadPoolExecutor(1) as pool:  # this thread may have the loop of a browser's tests
        other, own, in_thread = pool.submit(asyncio.run, both()).result()
    assert torch.equal(other, clean)
    assert torch.equal(own, in_thread) and not torch.equal(own, clean)


@pytest.mark.parametrize(
    ("edits", "options", "sentence"),
    [
        ({40: 1.0}, {}, r"there is no latent 40; this SAE has 40, 0 to 39"),
        ({-1: 1.0}, {}, r"there is no latent -1"),
        ({True: 1.0}, {}, "latent True is not an index"),
        ({3: math.nan}, {}, "the strength of latent 3 is nan; use a finite number"),
        ({3: math.inf}, {"mode": "clamp"}, "is inf; use a finite number"),
        ({3: True}, {}, "is True; use a finite number"),
        ({3: 1.0}, {"mode": "boost"}, "mode is 'boost'; choose one of 'add', 'clamp'"),
        ({3: 1.0}, {"unit": "percent"}, "unit is 'percent'; choose one of 'raw', 'max', 'norm'"),
        ({3: 1.0}, {"scope": "none"}, "scope is 'none'; choose one of 'all', 'prompt'"),
        ({3: 1.0}, {"unit": "max"}, "needs the maximal activation of latent 3: pass max_activ"),
        ({3: 1.0}, {"unit": "max", "max_activations": {4: 1.0}}, "maximal activation of latent 3"),
        ({3: 1.0}, {"unit": "max", "max_activations": [0.0] * 40}, "never fired"),
        ({}, {}, "latents is empty; give a latent and a strength"),
        ({3: 1.0}, {"max_activations": [1.0] * 3}, "has 3 numbers, this SAE has 40 latents"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_before_any_hook(
    tiny_lm: PreTrainedModel, as_for_users, edits, options, sentence: str
):
    before = n_hooks(tiny_lm)
    with pytest.raises(ValueError, match=sentence) as error:
        steer(tiny_lm, make_sae(), edits, **options).__enter__()
    assert "\n" not in str(error.value) and n_hooks(tiny_lm) == before


@pytest.mark.parametrize("wrong", [5, "runs/quickstart", [5]])
def test_what_is_no_sae_is_refused_in_a_sentence(tiny_lm: PreTrainedModel, as_for_users, wrong):
    with pytest.raises(ValueError, match=r"^sae is .*; pass an SAE, such as hfsae\.load\(folder"):
        steer(tiny_lm, wrong, {3: 1.0}).__enter__()


def test_a_compiled_sae_steers_as_the_plain_one(tiny_lm: PreTrainedModel, as_for_users):
    sae, logits = make_sae(), []
    compiled, edits = torch.compile(sae), {3: 6.0}
    for one, its_edits in ((sae, edits), (compiled, edits), ([compiled], [edits])):
        with steer(tiny_lm, one, its_edits):
            logits.append(tiny_lm(**tokens()).logits)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], tiny_lm(**tokens()).logits)


def test_lists_that_do_not_match_are_refused(tiny_lm: PreTrainedModel):
    saes = [make_sae(), make_sae("layers.2")]
    cases = [
        (saes, {3: 1.0}, None, "has 1 entries for 2 SAEs"),
        (saes, [{3: 1.0}], None, "has 1 entries for 2 SAEs"),
        (saes[0], [{3: 1.0}], None, "latents is a list; one SAE needs a mapping"),
        (saes, [{3: 1.0}, {3: 1.0}], [[1.0] * 40], "max_activations has 1 entries for 2 SAEs"),
    ]
    for sae, latents, maxima, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            steer(tiny_lm, sae, latents, max_activations=maxima).__enter__()


def test_gradients_pass_through_a_steered_model(tiny_lm: PreTrainedModel):
    sae = make_sae().requires_grad_(True)
    with steer(tiny_lm, sae, {3: 6.0}, mode="clamp"):
        tiny_lm(**tokens()).logits.square().mean().backward()
    assert sae.W_dec.grad[3].abs().sum() > 0 and sae.W_enc.grad[:, 3].abs().sum() > 0


# Strength


def test_seeded_sampling_draws_from_the_softmax_and_from_nothing_else():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    ids = torch.zeros(20_000, 1, dtype=torch.long)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for temperature in (1.0, 0.5):
        drawn = SeededSampling(7, temperature)(ids, logits).argmax(-1)
        shares = torch.bincount(drawn, minlength=3) / len(drawn)
        expected = (logits[0] / temperature).softmax(-1)
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)
    again = SeededSampling(7, 0.5)(ids, logits).argmax(-1)
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, SeededSampling(8, 0.5)(ids, logits).argmax(-1))
    assert torch.equal(SeededSampling(7, 0.0)(ids, logits), logits)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="temperature is -1"):
        SeededSampling(0, -1.0)


def test_repetition_is_the_share_of_recurring_trigrams():
    assert repetition(torch.arange(10)[None]) == 0
    assert repetition(torch.ones(1, 10, dtype=torch.long)) == 1 - 1 / 8
    assert repetition(torch.tensor([[1, 2, 3, 1, 2, 3], [1, 2, 3, 4, 5, 6]])) == (1 / 4) / 2
    assert repetition(torch.tensor([[1, 2]])) == 0


def test_the_kl_of_a_trial_is_that_of_step_by_step_forward_passes(tiny_lm: PreTrainedModel):
    """Oracle: no cache, no batch, no padding, one forward pass a token."""
    sae, batch, seed = make_sae(), tokens("left"), 5

    def block(strength: float):
        return steer(tiny_lm, sae, {3: strength}, mode="clamp", scope="all")

    found = suggest_strength(
        tiny_lm, batch, block, strengths=[3.0], n_tokens=4, refine=0, seed=seed, max_kl=1e9
    ).trials[1]
    kls = []
    for row, mask, new in zip(
        batch["input_ids"], batch["attention_mask"], found.generated, strict=True
    ):
        ids = row[mask.bool()]
        for token in new:
            q = F.log_softmax(tiny_lm(ids[None]).logits[0, -1], -1)
            with block(3.0):
                p = F.log_softmax(tiny_lm(ids[None]).logits[0, -1], -1)
            kls.append(float((p.exp() * (p - q)).sum()))
            ids = torch.cat([ids, token[None]])
    assert found.kl == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert found.kl > 0.01
    processor = LogitsProcessorList([SeededSampling(seed)])
    with block(3.0):
        text = tiny_lm.generate(
            **batch, **OPTIONS | {"max_new_tokens": 4}, logits_processor=processor
        )
    assert torch.equal(text[:, 12:], found.generated)


def test_the_suggestion_is_the_largest_strength_within_the_budget(tiny_lm: PreTrainedModel):
    sae = make_sae()

    def block(strength: float):
        return steer(tiny_lm, sae, {3: strength})

    seen: list[float] = []
    options = {"n_tokens": 6, "max_repetition": None, "strengths": [8.0, 1.0, 2.0, 4.0]}
    found = suggest_strength(
        tiny_lm,
        tokens("left"),
        block,
        max_kl=0.5,
        progress=lambda trial: seen.append(trial.strength),
        **options,
    )
    assert seen[:5] == [0.0, 1.0, 2.0, 4.0, 8.0] and len(seen) == 7
    assert [t.strength for t in found.trials] == sorted(seen)
    assert found.trials[0].kl == pytest.approx(0, abs=1e-4)
    within = [t for t in found.trials if t.strength <= found.strength]
    assert all(t.within and t.kl <= 0.5 for t in within) and within[-1].strength > 0
    assert next(t for t in found.trials if t.strength > found.strength).kl > 0.5
    assert found.table().count("\n") == 7 and "over budget" in found.table()
    assert found.passed
    assert suggest_strength(tiny_lm, tokens("left"), block, max_kl=0.0, **options).strength == 0


def test_strengths_double_until_the_budget_is_passed_or_the_result_says_that_it_was_not(
    tiny_lm: PreTrainedModel,
):
    def block(strength: float):
        return steer(tiny_lm, sae, {3: strength})

    sae, ids = make_sae(), tokens()["input_ids"][:1]
    options = {"n_tokens": 6, "max_repetition": None, "strengths": [-0.0625, -0.125], "refine": 3}
    found = suggest_strength(tiny_lm, ids, block, max_kl=0.5, **options)
    tried = [trial.strength for trial in found.trials]
    beyond = next(trial for trial in found.trials if trial.strength < found.strength)
    assert found.passed and not beyond.within and beyond.kl > 0.5
    assert found.strength < -0.125 and tried[:4] == [0, -0.0625, -0.125, -0.25]
    over = min(tried)
    assert beyond.strength - found.strength == pytest.approx(over / 2 / 2**3)
    as_dict = suggest_strength(tiny_lm, {"input_ids": ids}, block, max_kl=0.5, **options)
    row = suggest_strength(tiny_lm, ids[0], block, max_kl=0.5, **options)
    assert row.table() == as_dict.table() == found.table()

    short = suggest_strength(tiny_lm, ids, block, max_kl=1e9, doublings=3, **options)
    assert not short.passed and short.strength == -1.0 and len(short.trials) == 6
    last = short.table().splitlines()[-1]
    assert last == "the budget was not passed: a larger strength may be within it, too"
    none = suggest_strength(tiny_lm, ids, block, max_kl=1e9, doublings=0, **options)
    assert not none.passed and none.strength == -0.125


def test_a_suggestion_shows_a_bar_unless_its_progress_goes_elsewhere(tiny_lm, capsys):
    def block(strength: float):
        return steer(tiny_lm, make_sae(), {3: strength})

    options = {"n_tokens": 2, "strengths": [1.0, 2.0], "max_kl": 1e9, "max_repetition": None}
    suggest_strength(tiny_lm, tokens("left"), block, doublings=2, **options)
    bar = capsys.readouterr().err
    assert "strengths:" in bar and "5/5" in bar and "KL" in bar
    options["doublings"] = 0
    suggest_strength(tiny_lm, tokens("left"), block, progress=lambda trial: None, **options)
    assert not capsys.readouterr().err


def test_the_repetition_budget_counts_alone(tiny_lm: PreTrainedModel):
    head = tiny_lm.get_output_embeddings().weight
    sae = make_sae("layers.3")
    with torch.no_grad():
        sae.W_dec[3] = head[77] / head[77].norm()  # at the last layer: pushes one token
    found = suggest_strength(
        tiny_lm,
        tokens("left"),
        lambda strength: steer(tiny_lm, sae, {3: strength}),
        strengths=[1.0, 1000.0],
        max_kl=None,
        max_repetition=0.85,
        n_tokens=12,
        refine=0,
        temperature=0.0,
    )
    assert found.strength == 1.0
    assert (found.trials[2].generated == 77).all()
    assert found.trials[2].repetition == pytest.approx(1 - 1 / 10)


def test_a_sweep_without_budget_or_order_is_refused(tiny_lm: PreTrainedModel):
    block = lambda strength: steer(tiny_lm, make_sae(), {3: strength})  # noqa: E731
    with pytest.raises(ValueError, match="no budget: give max_kl"):
        suggest_strength(tiny_lm, tokens(), block, max_kl=None, max_repetition=None)
    for strengths in ([], [1.0, -1.0], [0.0, 1.0], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="use finite numbers of one sign"):
            suggest_strength(tiny_lm, tokens(), block, strengths=strengths)


@pytest.mark.lm
@pytest.mark.slow
def test_a_real_model_is_steered_under_generate(packaged_lm):
    """SmolLM2 in bfloat16: after its last block, towards the output embedding of one word."""
    lm, tokenizer, _ = packaged_lm
    config = hfsae.TopKSAEConfig(d_in=576, d_sae=64, k=8, site="layers.29")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae = hfsae.TopKSAE(config).eval().requires_grad_(False)
    ocean = tokenizer(" ocean", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        sae.W_dec[5] = F.normalize(lm.get_output_embeddings().weight[ocean].float(), dim=0)
    tokenizer.padding_side = "left"
    prompts = [tokenizer.bos_token + text for text in ("I like to", "Once there was a man who")]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    clean = lm.generate(**batch, max_new_tokens=8, do_sample=False)
    with steer(lm, sae, {5: Edit(1.0, "scale"), 6: Edit(0.0, "add")}):
        assert torch.equal(lm.generate(**batch, max_new_tokens=8, do_sample=False), clean)
    found = suggest_strength(
        lm,
        batch,
        lambda strength: steer(lm, sae, {5: strength}, unit="norm"),
        strengths=[10.0, 40.0, 160.0],
        n_tokens=8,
        refine=0,
    )
    assert found.trials[1].within and not found.trials[-1].within and found.strength < 160
    assert found.trials[0].kl < 0.05 and found.trials[-1].kl > 2
    assert found.trials[-1].repetition > 0.3
    assert (found.trials[-1].generated == ocean).float().mean() > 0.5


# Export


def test_an_exported_vector_steers_as_the_sae_does(tiny_lm: PreTrainedModel, tmp_path):
    sae = make_sae()
    edits, maxima = {3: 0.5, 7: -2.0}, {3: 4.0, 7: 1.0}
    path = tmp_path / "calm.safetensors"
    save_steering_vector(path, sae, edits, unit="max", max_activations=maxima)
    site, vector, metadata = load_steering_vector(path)
    assert site == "layers.1" and metadata["latents"] == '{"3": 2.0, "7": -2.0}'
    with steer(tiny_lm, sae, {3: 2.0, 7: -2.0}, spare_tokens=()):
        steered = tiny_lm(**tokens()).logits
    with hfsae.patch(tiny_lm, {site: lambda x: x + vector.to(x)}):
        torch.testing.assert_close(tiny_lm(**tokens()).logits, steered, rtol=1e-3, atol=1e-3)


def test_a_mean_difference_is_that_of_last_tokens(packaged_lm):
    lm, tokenizer, _ = packaged_lm
    sides = ["I am calm", "All is well"], ["I am so angry"]
    means = []
    for side in sides:
        rows = [tokenizer(tokenizer.bos_token + t, return_tensors="pt") for t in side]
        states = [lm(**row, output_hidden_states=True).hidden_states[8][0, -1] for row in rows]
        means.append(sum(state.detach().double() for state in states) / len(states))
    vector = hfsae.mean_difference(lm, "layers.7", *sides, tokenizer=tokenizer)
    assert torch.allclose(vector.double(), means[0] - means[1], rtol=1e-2, atol=1e-2)
    assert vector.dtype == torch.float32 and vector.norm() > 1
    with pytest.raises(ValueError, match="there is no text"):
        hfsae.mean_difference(lm, "layers.7", ["a"], [""], tokenizer=tokenizer)


def test_directions_are_saved_with_their_labels_and_one_of_them_is_a_vector(tmp_path):
    calm, loud = torch.arange(4.0), torch.ones(4)
    path = save_steering_vector(tmp_path / "calm.safetensors", {"calm": calm}, site="layers.7")
    site, vector, metadata = load_steering_vector(path)
    assert site == "layers.7" and torch.equal(vector, calm) and metadata["labels"] == '["calm"]'
    both = {"calm": calm, "loud": loud}
    save_steering_vector(path, both, site="layers.7")
    config = hfsae.BatchTopKSAEConfig(d_in=4, d_sae=8, k=2)
    x, labels = hfsae.training.read_directions(str(path), config)
    assert torch.equal(x, torch.stack([calm, loud])) and labels == ["calm", "loud"]
    with pytest.raises(ValueError, match="has 2 directions; save the one to add"):
        load_steering_vector(path)
    for wrong in ({}, {"site": "layers.7", "latents": {1: 2.0}}):
        with pytest.raises(ValueError, match="directions need their site"):
            save_steering_vector(path, both, **wrong)
    for vectors in ({}, {"a": torch.ones(2, 2)}, {"a": calm, "b": torch.ones(3)}):
        with pytest.raises(ValueError, match=r"directions are vectors \[d\] of one width"):
            save_steering_vector(path, vectors, site="layers.7")
    with pytest.raises(ValueError, match="of an SAE give latents"):
        save_steering_vector(path, make_sae())


@pytest.mark.parametrize(
    ("site", "layer"),
    [("layers.3", 3), ("layers.3:in", 2), ("h.1", 1), ("language_model.layers.2", 2)],
)
def test_gguf_holds_the_vector_under_the_blocks_number(tmp_path, site: str, layer: int):
    sae = make_sae(site, model_name="a/model")
    save_steering_vector(tmp_path / "v.gguf", sae, {3: 2.0})
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    [tensor] = reader.tensors
    assert tensor.name == f"direction.{layer}" and tensor.tensor_type.name == "F32"
    assert torch.equal(torch.tensor(tensor.data), 2.0 * sae.W_dec[3])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "a/model"
    assert fields["controlvector.layer_count"] == layer
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def test_several_threads_may_write_one_vector(tmp_path):
    sae, path = make_sae(), tmp_path / "v.safetensors"
    with ThreadPoolExecutor(8) as threads:
        for written in [
            threads.submit(save_steering_vector, path, sae, {3: 2.0}) for _ in range(200)
        ]:
            assert written.result() == path
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_what_is_no_vector_is_refused_and_nothing_is_written(tmp_path):
    cases = [
        (
            "v.bin",
            make_sae(),
            {3: 1.0},
            {},
            "'v.bin' has no known suffix; end it in .safetensors or",
        ),
        ("v.safetensors", make_sae(variant="unit_rms"), {3: 1.0}, {}, "has token_norm 'unit_rms'"),
        ("v.safetensors", make_sae(), {3: 1.0}, {"unit": "norm"}, "depends on the token"),
        ("v.safetensors", make_sae(), {3: Edit(1.0, "clamp")}, {}, "mode 'clamp' .latent 3. dep"),
        ("v.gguf", make_sae("layers.0"), {3: 1.0}, {}, "not at 'layers.0'"),
        ("v.gguf", make_sae("layers.1:in"), {3: 1.0}, {}, "not at 'layers.1:in'"),
        ("v.gguf", make_sae("layers.2.mlp"), {3: 1.0}, {}, "not at 'layers.2.mlp'"),
    ]
    for name, sae, edits, options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            save_steering_vector(tmp_path / name, sae, edits, **options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "v.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_steering_vector(tmp_path / "v.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="is a pipe, a device or another special file"):
        load_steering_vector(tmp_path / "pipe.safetensors")
    make_sae().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a steering vector"):
        load_steering_vector(tmp_path / "model.safetensors")


def test_all_modes_are_documented():
    documented = hfsae.steering.intervention.__doc__
    assert all(f"    {mode} " in documented for mode in MODES)
