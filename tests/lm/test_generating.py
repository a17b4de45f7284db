"""Where the prompt of a call of `generate` ends, known to hooks in a block; and logits at some
positions alone."""

import torch

from hfsae.lm import logits_at, noting_prompts, prompt_length


def lengths_seen(lm, n_prompt: int) -> list[int | None]:
    """What a hook is told in each forward pass of a generation of two tokens."""
    seen: list[int | None] = []
    hook = lm.register_forward_pre_hook(lambda *_: seen.append(prompt_length()))
    ids = torch.ones(1, n_prompt, dtype=torch.long)
    lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2)
    hook.remove()
    return seen


def test_hooks_are_told_the_prompts_length_until_the_last_block_ends(tiny_lm):
    assert {*lengths_seen(tiny_lm, 5)} == {None}
    with noting_prompts(tiny_lm):
        with noting_prompts(tiny_lm):
            assert {*lengths_seen(tiny_lm, 5)} == {5}
        assert {*lengths_seen(tiny_lm, 3)} == {3} and prompt_length() is None
    assert {*lengths_seen(tiny_lm, 5)} == {None} and "generate" not in vars(tiny_lm)


def test_a_generate_that_the_model_had_of_its_own_is_there_again(tiny_lm):
    own = tiny_lm.generate
    calls = []
    tiny_lm.generate = lambda *args, **kwargs: calls.append(args) or own(*args, **kwargs)
    mine = tiny_lm.generate
    try:
        for _ in range(2):
            with noting_prompts(tiny_lm):
                assert {*lengths_seen(tiny_lm, 4)} == {4}
            assert tiny_lm.generate is mine
        assert len(calls) == 2
    finally:
        del tiny_lm.generate


def test_logits_at_some_positions_are_those_of_all_and_what_they_are_of_is_contiguous(tiny_lm):
    ids = torch.randint(3, 90, (2, 7))
    read = []
    hook = tiny_lm.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: read.append(args[0].is_contiguous() and args[0].stride(0))
    )
    with torch.no_grad():
        whole = tiny_lm(input_ids=ids).logits
        some = tiny_lm(input_ids=ids, **logits_at(tiny_lm, [-3, -1])).logits
    torch.testing.assert_close(some, whole[:, [-3, -1]])
    plain, same = (
        tiny_lm.generate(ids, max_new_tokens=3, do_sample=False, **more)
        for more in ({}, logits_at(tiny_lm, [-1]))
    )
    hook.remove()
    assert torch.equal(plain, same)
    width = tiny_lm.config.hidden_size
    assert read[1] == 2 * width and read[5:] == [width] * 3  # no row of another stands between


def test_a_model_that_computes_all_logits_is_asked_for_no_positions(tiny_lm, monkeypatch):
    monkeypatch.setattr(tiny_lm, "forward", lambda input_ids: input_ids)
    assert logits_at(tiny_lm, [-1]) == {}
