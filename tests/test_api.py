"""The calls that a new user types: their order, what they take, and what they give back."""

import os
import signal

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel

import hfsae
from hfsae.activations import (
    HarvestArguments,
    Harvester,
    ShuffleArguments,
    ShuffledActivations,
    TextSource,
)
from hfsae.activations.tokens import documents
from hfsae.io.errors import Damaged, HubRefused
from hfsae.io.files import read_json

from .tiny import TEXTS, make_sae, tiny_recipe, tokens

ARGS = hfsae.EvaluationArguments(n_tokens=300, bootstrap_samples=10)
NO_EVALUATION = hfsae.EvaluationArguments(n_tokens=0)


@pytest.mark.parametrize("call", ["evaluate", "collect", "latents", "attribute"])
def test_the_language_model_comes_first(call):
    sae = make_sae("layers.1")
    with pytest.raises(ValueError, match=rf"hfsae\.{call}\(lm, sae, \.\.\.\)"):
        getattr(hfsae, call)(sae, sae, "text")


@pytest.mark.parametrize("call", ["evaluate", "collect", "latents", "attribute", "splice", "steer"])
def test_what_is_no_model_or_no_sae_is_one_sentence(call, tiny_lm, as_for_users):
    more = {"splice": [], "steer": [{1: 2.0}]}.get(call, ["text"])

    def run(lm, sae):
        block = getattr(hfsae, call)(lm, sae, *more)
        block.__enter__()  # of a context: the others raise before

    with pytest.raises(hfsae.Refused, match=r"^lm is None; pass .*hfsae\.load_lm\(name\)\.lm$"):
        run(None, make_sae("layers.1"))
    with pytest.raises(hfsae.Refused, match=r"^sae is None; pass an SAE.*hfsae\.load\(folder\)"):
        run(tiny_lm, None)


def test_latents_of_a_text_are_those_of_the_captured_activations(tiny_lm, tiny_tokenizer):
    sae = make_sae("layers.1", "jumprelu")
    out = hfsae.latents(tiny_lm, sae, ["a text", "longer text"], tiny_tokenizer)
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer("longer text")["input_ids"][-11:]]
    assert out.input_ids[1].tolist() == ids and "".join(out.tokens[1][1:]) == "longer text"
    with torch.no_grad(), hfsae.capture(tiny_lm, ["layers.1"]) as activations:
        tiny_lm(torch.tensor([ids]))
    expected = sae.encode(activations["layers.1"][0, 1:])
    torch.testing.assert_close(out.values[1, 1:], expected)
    assert not out.values[:, 0].any() and not out.values[0, 7:].any()  # BOS and padding
    assert out.keep.sum(1).tolist() == [6, 11]
    top = out.top(3)
    assert top[0].activation == float(out.values.max())
    assert out.values[top[0].row, top[0].position, top[0].latent] == top[0].activation
    assert top[0].token == out.tokens[top[0].row][top[0].position]


def test_latents_of_token_ids_need_no_tokenizer(tiny_lm):
    sae, batch = make_sae("layers.1"), tokens()
    out = hfsae.latents(tiny_lm, sae, batch)
    assert out.tokens[0] == [str(i) for i in batch["input_ids"][0].tolist()]
    alone = hfsae.latents(tiny_lm, sae, batch["input_ids"][:1])
    torch.testing.assert_close(out.values[:1], alone.values)
    with pytest.raises(ValueError, match="give tokenizer="):
        hfsae.latents(tiny_lm, sae, "text")


def test_texts_are_evaluated_as_the_rows_that_they_fill(tiny_lm, tiny_tokenizer):
    sae = make_sae("layers.1")
    given = {"dataset": TEXTS, "held_out_fraction": 1.0, "shuffle_documents": False}
    rows = hfsae.PackedRows(
        tiny_tokenizer, hfsae.TextArguments(**given), "test", rows=HarvestArguments().rows
    )
    of_rows = hfsae.evaluate(tiny_lm, sae, rows, ARGS)
    of_texts = hfsae.evaluate(tiny_lm, sae, TEXTS, ARGS, tokenizer=tiny_tokenizer)
    assert of_texts.to_dict() == of_rows.to_dict()
    store = hfsae.collect(tiny_lm, sae, TEXTS, tokenizer=tiny_tokenizer)
    assert store.meta["n_tokens"] == sum(int(batch.keep.sum()) for batch in rows)


def test_evaluation_reads_the_side_that_its_arguments_name(tiny_lm, tiny_tokenizer):
    stories = [f"story number {i}" for i in range(60)]
    text = hfsae.TextArguments(
        stories, context_size=16, held_out_fraction=0.2, validation_fraction=0.3
    )
    for side in ("test", "validation"):
        args = hfsae.EvaluationArguments(bootstrap_samples=9, side=side)
        result = hfsae.evaluate(tiny_lm, make_sae("layers.1"), text, args, tokenizer=tiny_tokenizer)
        assert result.side == side
        assert result.n_documents == sum(1 for _ in documents(text, side))


def test_a_side_that_does_not_exist_is_one_sentence(as_for_users):
    with pytest.raises(ValueError, match=r"evaluation\.side is 'train'; it can be 'test' or"):
        hfsae.EvaluationArguments(side="train")  # pyright: ignore[reportArgumentType]


def test_a_short_list_is_read_whole(tiny_lm, tiny_tokenizer):
    result = hfsae.evaluate(
        tiny_lm, make_sae("layers.1"), ["one", "two words"], ARGS, tokenizer=tiny_tokenizer
    )
    assert result.n_tokens == len("onetwo words")  # a byte each


def test_a_variant_that_was_defined_needs_no_registration(tiny_lm):
    class HalfSAEConfig(hfsae.ReLUSAEConfig):
        model_type = "half_sae"

    class HalfSAE(hfsae.ReLUSAE):
        config_class = HalfSAEConfig

    try:
        recipe = hfsae.Recipe(sae={"model_type": "half_sae", "site": "layers.1", "d_sae": 32})
        config = hfsae.runs.make_configs(recipe, tiny_lm)[""]
        assert type(AutoModel.from_config(config)) is HalfSAE
    finally:  # unknown to other tests
        MODEL_MAPPING._extra_content.pop(HalfSAEConfig, None)
        CONFIG_MAPPING._extra_content.pop("half_sae", None)
        del HalfSAEConfig.model_type


def test_a_list_of_latents_is_ablated(tiny_lm):
    sae, batch = make_sae("layers.1", "jumprelu"), tokens()
    with torch.no_grad(), hfsae.steer(tiny_lm, sae, {1: 0.0, 2: 0.0}, mode="ablate"):
        expected = tiny_lm(**batch).logits
    with torch.no_grad(), hfsae.steer(tiny_lm, sae, [1, 2], mode="ablate"):
        assert torch.equal(tiny_lm(**batch).logits, expected)
    with torch.no_grad(), hfsae.steer(tiny_lm, [sae, sae], [[1], [2]], mode="ablate"):
        assert not torch.equal(tiny_lm(**batch).logits, tiny_lm(**tokens(seed=1)).logits)
    with pytest.raises(ValueError, match=r"with mode=.ablate. a list"):
        hfsae.steer(tiny_lm, sae, [1, 2]).__enter__()


def test_a_target_is_named_by_its_text_or_its_id(tiny_lm, tiny_tokenizer):
    sae, text = make_sae("layers.1", "jumprelu"), "some words"
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer(text, add_special_tokens=False).input_ids]
    a, b = (tiny_tokenizer(t, add_special_tokens=False).input_ids[0] for t in "ab")
    row = {"input_ids": torch.tensor([ids])}
    expected = hfsae.attribute(tiny_lm, sae, row, hfsae.logit(a, b))
    options = {"tokenizer": tiny_tokenizer}
    named = hfsae.attribute(tiny_lm, sae, text, target="a", contrast="b", **options)
    assert torch.equal(named.gradient, expected.gradient) and named.objective == expected.objective
    assert torch.equal(
        hfsae.attribute(tiny_lm, sae, row, target=a, contrast=b).gradient, expected.gradient
    )
    with pytest.raises(ValueError, match=r"is 2 tokens, \['a', 'b'\]"):
        hfsae.attribute(tiny_lm, sae, text, target="ab", **options)
    with pytest.raises(ValueError, match="a target or an objective"):
        hfsae.attribute(tiny_lm, sae, text, **options)


def test_a_splice_spares_special_tokens_unless_told_otherwise(tiny_lm):
    sae, batch = make_sae("layers.1"), tokens()
    with torch.no_grad():
        with hfsae.capture(tiny_lm, ["layers.1"]) as clean:
            tiny_lm(**batch)
        with hfsae.splice(tiny_lm, sae), hfsae.capture(tiny_lm, ["layers.1"]) as spared:
            tiny_lm(**batch)
        whole = hfsae.splice(tiny_lm, sae, spare_tokens=())
        with whole, hfsae.capture(tiny_lm, ["layers.1"]) as everywhere:
            tiny_lm(**batch)
    bos = (clean["layers.1"][:, 0], spared["layers.1"][:, 0], everywhere["layers.1"][:, 0])
    assert torch.equal(bos[0], bos[1]) and not torch.equal(bos[0], bos[2])
    assert torch.equal(spared["layers.1"][0, 1:], everywhere["layers.1"][0, 1:])


def test_one_call_trains_what_the_recipe_would(tmp_path, loads):
    recipe = tiny_recipe(tmp_path / "recipe")
    folders = hfsae.runs.run(recipe)
    fields = {**recipe.sae}
    given = {name: fields.pop(name) for name in ("site", "d_sae", "target_l0")}
    sae = hfsae.train(
        "tiny/gemma", dataset=TEXTS, output_dir=tmp_path / "call", recipe=recipe, **given
    )
    expected = hfsae.load(folders[0])
    pairs = zip(sae.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (tmp_path / "call" / "README.md").is_file()


def test_a_language_model_is_given_to_a_training_by_its_name(tmp_path, loads):
    given = {"site": "layers.1", "dataset": TEXTS, "d_sae": 32, "output_dir": tmp_path / "run"}
    with pytest.raises(hfsae.Refused, match="must be a Hub id or a folder, as text, got a Linear"):
        hfsae.train(torch.nn.Linear(2, 2), **given)
    assert not (tmp_path / "run").exists()
    assert hfsae.runs.LMArguments(tmp_path).name == str(tmp_path)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("output_dir", None, "output_dir must be a folder, such as 'runs/mine', got None"),
        ("n_tokens", "2000", "n_tokens must be a whole number, got '2000'"),
        ("n_tokens", 2000.5, "n_tokens must be a whole number, got 2000.5"),
        ("n_tokens", float("inf"), "n_tokens must be a whole number, got inf"),
    ],
)
def test_a_training_needs_a_folder_and_a_whole_number_of_tokens(
    tmp_path, loads, monkeypatch, name, value, sentence
):
    monkeypatch.chdir(tmp_path)
    given = {"site": "layers.1", "dataset": TEXTS, "d_sae": 32, "output_dir": "run"}
    with pytest.raises(hfsae.Refused, match=sentence):
        hfsae.train("tiny/gemma", **{**given, name: value})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("call", [hfsae.explain, hfsae.probe])
def test_an_sae_is_explained_and_probed_by_its_folder(call):
    with pytest.raises(hfsae.Refused, match=r"source must be a folder, .* got a ReLUSAE"):
        call(make_sae())


def test_a_training_that_is_stopped_is_saved_and_the_same_call_resumes_it(
    tmp_path, loads, monkeypatch
):
    def train(name):
        recipe = tiny_recipe(tmp_path, evaluation=NO_EVALUATION, collect_tokens=0)
        given = {"model": "tiny/gemma", "site": "layers.1", "dataset": TEXTS, "d_sae": 32}
        return hfsae.train(**given, output_dir=tmp_path / name, recipe=recipe)

    step = hfsae.Trainer._step
    for n_steps, number in ((7, signal.SIGINT), (12, signal.SIGTERM)):

        def stop(trainer, bar, n_steps=n_steps, number=number):
            step(trainer, bar)
            if trainer.steps_done == n_steps:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(hfsae.Trainer, "_step", stop)
            train("stopped")
        assert (tmp_path / f"stopped/checkpoints/step-{n_steps:08d}.pt").is_file()
    pairs = zip(train("stopped").parameters(), train("whole").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_one_sae_in_gives_one_sae_back(tmp_path, tiny_lm, tiny_tokenizer):
    text = hfsae.TextArguments(dataset=TEXTS, context_size=16)

    def stream():
        rows = hfsae.PackedRows(tiny_tokenizer, text, "train", rows=8, epochs=None)
        source = TextSource(rows, Harvester(tiny_lm, ["layers.1"], HarvestArguments()))
        return ShuffledActivations(source, ShuffleArguments(320), batch_size=32)

    def args(name):
        return hfsae.TrainingArguments(output_dir=str(tmp_path / name), n_tokens=64, batch_size=32)

    config = {"d_in": 16, "d_sae": 32, "site": "layers.1"}
    sae = hfsae.ReLUSAE(hfsae.ReLUSAEConfig(**config))
    one = hfsae.Trainer(sae, stream(), args("one")).train()
    several = hfsae.Trainer(
        {"a": hfsae.ReLUSAE(hfsae.ReLUSAEConfig(**config))}, stream(), args("several")
    ).train()
    assert isinstance(one, hfsae.ReLUSAE) and list(several) == ["a"]


def test_refusals_are_told_apart_by_class(tmp_path, unreachable_hub):
    with pytest.raises(hfsae.Refused):
        hfsae.JumpReLUSAEConfig(d_in=-1, d_sae=8)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Damaged):
        read_json(tmp_path / "config.json")
    with pytest.raises(HubRefused):
        hfsae.list_saes("someone/saes")
    assert issubclass(Damaged, hfsae.Refused) and issubclass(HubRefused, hfsae.Refused)
    assert issubclass(hfsae.Refused, ValueError)
