"""Where the prompt of a call of `generate` ends, known to hooks while a block is open."""

import torch

from hfsae.lm import noting_prompts, prompt_length


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
