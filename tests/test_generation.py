"""Two continuations side by side: what steers, and that nothing stays."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

import hfsae
from hfsae.steering.pair import Sampling, generate_pair

PROMPT = [2, 40, 50, 60]


def unsteered(phase):
    return nullcontext()


def last(pairs):
    return list(pairs)[-1]


@pytest.fixture
def lm(make_tiny_lm):
    return make_tiny_lm("llama")


def test_without_steering_both_are_the_same_and_kl_is_zero(lm, tiny_tokenizer):
    done = last(generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(12)))
    assert done.plain_ids == done.steered_ids and len(done.plain_ids) <= 12
    assert done.kl == pytest.approx(0.0, abs=1e-5) and done.done


def test_where_steering_changes_nothing_kl_is_exactly_zero_also_in_bfloat16(lm, tiny_tokenizer):
    """One pass over a text rounds otherwise than one for each token: the same is read the same."""
    done = last(generate_pair(lm.bfloat16(), tiny_tokenizer, PROMPT, unsteered, Sampling(30)))
    assert done.kl == 0 and set(done.raised) == {0.0}


def test_greedy_is_what_generate_gives(lm, tiny_tokenizer):
    sampling = Sampling(10, temperature=0.0, repetition_penalty=1.0)
    done = last(generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, sampling))
    expected = lm.generate(
        input_ids=torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        do_sample=False,
        max_new_tokens=10,
    )
    assert done.plain_ids == expected[0, 4:].tolist()


def test_a_seed_gives_the_same_text_and_another_another(lm, tiny_tokenizer):
    texts = [
        last(generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(12, seed=seed))).plain
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_only_the_steered_text_changes_and_no_hook_stays_between_tokens(lm, tiny_tokenizer):
    phases = []

    @contextmanager
    def steering(phase):
        phases.append(phase)
        with hfsae.patch(lm, {"layers.2": lambda x: x + 5.0 * torch.arange(16)}):
            yield

    plain = last(generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(6)))
    pairs = []
    for pair in generate_pair(lm, tiny_tokenizer, PROMPT, steering, Sampling(6)):
        pairs.append(pair)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.modules())
    assert pairs[-1].plain_ids == plain.plain_ids != pairs[-1].steered_ids
    assert pairs[-1].kl > 0.1
    assert phases[0] == "prompt" and set(phases[1:]) <= {"generated"}
    assert [len(p.steered_ids) for p in pairs[:3]] == [1, 2, 3]


def test_each_steered_token_says_how_much_likelier_steering_made_it(lm, tiny_tokenizer):
    def steering(phase):
        return hfsae.patch(lm, {"layers.2": lambda x: x + 5.0 * torch.arange(16)})

    pair = last(generate_pair(lm, tiny_tokenizer, PROMPT, steering, Sampling(6)))
    ids = torch.tensor([[*PROMPT, *pair.steered_ids]])

    def logs():
        rows = lm(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        return rows.gather(1, ids[0, len(PROMPT) :, None])[:, 0]

    plain = logs()
    with steering("prompt"):
        raised = logs() - plain
    assert pair.raised == pytest.approx(raised.tolist(), abs=1e-4) and max(pair.raised) > 1


def test_the_tokens_that_steering_made_likelier_are_named_with_both_probabilities(
    lm, tiny_tokenizer
):
    def steering(phase):
        return hfsae.patch(lm, {"layers.2": lambda x: x + 5.0 * torch.arange(16)})

    *begun, pair = generate_pair(lm, tiny_tokenizer, PROMPT, steering, Sampling(6))
    assert all(early.likelier is None is early.less_likely for early in begun)
    ids = torch.tensor([[*PROMPT, *pair.steered_ids]])

    def means():
        return lm(ids).logits[0, len(PROMPT) - 1 : -1].softmax(-1).mean(0)

    plain = means()
    with steering("prompt"):
        change = means() - plain
    assert pair.likelier[0].token_id == int(change.argmax())
    assert pair.less_likely[0].token_id == int(change.argmin())
    for shifts, sign in ((pair.likelier, 1), (pair.less_likely, -1)):
        gains = [sign * (shift.steered - shift.plain) for shift in shifts]
        assert gains == sorted(gains, reverse=True) and gains[-1] > 0
        for shift in shifts:
            assert shift.plain == pytest.approx(float(plain[shift.token_id]), abs=1e-4)
    nothing = last(generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(6)))
    assert nothing.likelier == nothing.less_likely == []


def test_the_repetition_penalty_makes_what_was_there_less_likely(lm, tiny_tokenizer):
    greedy = [
        last(
            generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(30, 0.0, penalty))
        ).plain_ids
        for penalty in (1.0, 5.0)
    ]
    assert len(set(greedy[1])) > len(set(greedy[0]))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"temperature": float("nan")}, "temperature is nan; it can be 0.0 to 5.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it can be 1 to 1024"),
        ({"seed": -1}, "seed is -1"),
        ({"repetition_penalty": 0.5}, "repetition_penalty is 0.5"),
    ],
)
def test_settings_that_cannot_be(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**options)


def test_a_prompt_that_is_none_or_leaves_no_room(lm, tiny_tokenizer):
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate_pair(lm, tiny_tokenizer, [], unsteered))
    with pytest.raises(ValueError, match="exceed the model's limit of 256"):
        next(generate_pair(lm, tiny_tokenizer, [5] * 250, unsteered, Sampling(20)))


def test_what_is_stopped_ends_with_a_kl_over_what_was_written(lm, tiny_tokenizer):
    pairs = []

    def stopped():
        return len(pairs) == 3

    for pair in generate_pair(lm, tiny_tokenizer, PROMPT, unsteered, Sampling(12), stopped):
        pairs.append(pair)
    assert len(pairs) == 4 and pairs[-1].done
    assert len(pairs[-1].steered_ids) == 3 and pairs[-1].kl == pytest.approx(0.0, abs=1e-5)
