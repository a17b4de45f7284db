"""An SAE and a model that is not the one it was trained on."""

import copy
import json
import warnings
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedTokenizerFast

import hfsae
from hfsae import JumpReLUSAE, JumpReLUSAEConfig, collect, splice
from hfsae.activations import TokenBatch
from hfsae.activations.token_text import tokenise
from hfsae.evaluation.probing import probe
from hfsae.features.inspection import inspect
from hfsae.lm import cache_name
from hfsae.lm.contract import differences, distance, sketch, terms, tokenizer_hash
from hfsae.runs.preset_search import Model, find_presets

from .tiny import make_sae


@pytest.fixture
def sae(tiny_lm, tiny_tokenizer) -> JumpReLUSAE:
    """As if trained on tiny_lm, called google/tiny."""
    config = JumpReLUSAEConfig(
        d_in=16, d_sae=32, site="layers.1", model_name="google/tiny", model_revision="a" * 40
    )
    for term, value in terms(tiny_lm, tiny_tokenizer, "row").items():
        setattr(config, term, value)
    return JumpReLUSAE(config).eval()


@pytest.fixture
def lm(make_tiny_lm):
    made = make_tiny_lm("gemma2")
    made.name_or_path, made.config._commit_hash = "google/tiny", "a" * 40
    return made


def run(lm, sae, ids=((2, 70, 71), (0, 2, 70))) -> None:
    with torch.no_grad(), splice(lm, sae):
        lm(torch.tensor(ids))


def test_the_model_it_was_trained_on_is_no_difference(lm, sae, tiny_tokenizer):
    assert differences(sae.config, lm, tiny_tokenizer) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lm, sae)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda lm, sae: setattr(lm, "name_or_path", "google/tiny-it"),
            "SAE at layers.1: the model is google/tiny-it, and was google/tiny in training",
        ),
        (
            lambda lm, sae: setattr(lm.config, "_commit_hash", "b" * 40),
            f"its revision is {'b' * 40}, and was {'a' * 40} in training: its weights may differ",
        ),
        (
            lambda lm, sae: setattr(sae.config, "model_attention", "sdpa"),
            "its attention implementation is eager, and was sdpa in training",
        ),
        (
            lambda lm, sae: lm.to(torch.bfloat16),
            "its dtype is bfloat16, and was float32 in training",
        ),
    ],
)
def test_each_difference_is_a_readable_warning(lm, sae, change, sentence):
    change(lm, sae)
    with pytest.warns(UserWarning) as caught:
        run(lm, sae)
    assert len(caught) == 1 and sentence in str(caught[0].message)


def permuted(tokenizer):
    """The same tokens with other ids."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = [*range(3), *range(258, 2, -1)]
    spec["model"]["vocab"] = {token: ids[id_] for token, id_ in spec["model"]["vocab"].items()}
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **names)


def test_another_vocabulary_is_an_error_and_tokens_more_are_a_warning(lm, sae, tiny_tokenizer):
    sae.config.tokenizer_hash = "0123456789abcdef"
    with pytest.raises(
        ValueError, match=r"not for this model: the tokenizer's hash is .* text has"
    ):
        collect(lm, sae, [], tokenizer=tiny_tokenizer)
    sae.config.tokenizer_hash = tokenizer_hash(tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["a-token-more", "and-another"])
    with pytest.warns(UserWarning, match=r"were added to the vocabulary after training \(2\)"):
        hfsae.latents(lm, sae, "text", other)
    assert differences(sae.config, lm, permuted(tiny_tokenizer))[0].severity == "error"
    with pytest.raises(ValueError, match="no token is left to collect from"):
        collect(lm, sae, [], tokenizer=tiny_tokenizer)


def test_text_without_bos_is_a_warning_and_generation_none(lm, sae):
    with pytest.warns(UserWarning, match=r"does not begin with BOS \(id 2\).*tokenizer\.bos_token"):
        run(lm, sae, ((2, 70, 71), (72, 70, 71)))
    with warnings.catch_warnings(), torch.no_grad(), splice(lm, sae):
        warnings.simplefilter("error")
        lm.generate(torch.tensor([[2, 70, 71]]), max_new_tokens=3, do_sample=False)
    sae.config.bos = "none"
    run(lm, sae, ((70, 71, 72),))


def test_text_that_goes_on_from_a_cache_needs_no_bos_of_its_own(lm, sae):
    with torch.no_grad():
        cache = lm(torch.tensor([[2, 70]]), use_cache=True)[cache_name(lm)]
        with warnings.catch_warnings(), splice(lm, sae):
            warnings.simplefilter("error")
            lm(input_ids=torch.tensor([[71, 72]]), **{cache_name(lm): cache})


def test_a_site_or_width_of_another_model_is_an_error(lm, sae, make_tiny_lm):
    sae.config.site = "layers.9"
    with pytest.raises(ValueError, match=r"'layers\.9' is past the end"):
        run(lm, sae)
    sae.config.site = "layers.1"
    with pytest.raises(ValueError, match="reads activations of width 16"):
        run(make_tiny_lm("gemma2", hidden_size=24), sae)


def test_what_nobody_recorded_is_no_difference(lm, tiny_tokenizer):
    assert differences(JumpReLUSAEConfig(d_in=16, d_sae=32), lm, tiny_tokenizer) == []


ROW = torch.tensor([[2, 70, 71, 72]])
FEW = hfsae.EvaluationArguments(n_tokens=20, bootstrap_samples=2)


def inside(block, lm) -> None:
    with block, torch.no_grad():
        lm(ROW)


def suggested(lm, sae, tokenizer) -> None:
    hfsae.suggest_strength(
        lm,
        {"input_ids": ROW},
        lambda strength: hfsae.steer(lm, sae, {1: strength}),
        strengths=[1.0],
        n_tokens=2,
        refine=0,
    )


# How each takes a language model, an SAE and a tokenizer. The first ones take text.
OF_TEXT: dict[str, Callable] = {
    "latents": lambda lm, sae, t: hfsae.latents(lm, sae, "a text", t),
    "evaluate": lambda lm, sae, t: hfsae.evaluate(lm, sae, ["a text"] * 9, FEW, tokenizer=t),
    "collect": lambda lm, sae, t: collect(lm, sae, ["a text"] * 9, tokenizer=t),
    "attribute": lambda lm, sae, t: hfsae.attribute(lm, sae, "a text", target=70, tokenizer=t),
    "probe": lambda lm, sae, t: probe(lm, {"an SAE": sae}, [], tokenizer=t),
    "find_presets": lambda lm, sae, t: find_presets(Model(lm, t, sae, None), {}),
}
OF_IDS: dict[str, Callable] = {
    "splice": lambda lm, sae, t: inside(splice(lm, sae), lm),
    "steer": lambda lm, sae, t: inside(hfsae.steer(lm, sae, {1: 2.0}), lm),
    "suggest_strength": suggested,
    "uniformity": lambda lm, sae, t: hfsae.uniformity(lm, sae, ROW),
    "inspect": lambda lm, sae, t: inspect(lm, sae, tokenise(t, "a text")),
}


@pytest.mark.parametrize("call", [*OF_TEXT, *OF_IDS])
def test_every_call_refuses_a_model_of_other_weights(call, sae, make_tiny_lm, tiny_tokenizer):
    other = make_tiny_lm("gemma2", seed=1)
    with pytest.raises(ValueError, match=r"differ from those in training by 1\d\d% of their size"):
        (OF_TEXT | OF_IDS)[call](other, sae, tiny_tokenizer)


@pytest.mark.parametrize("call", OF_TEXT)
def test_every_call_that_takes_text_refuses_a_permuted_vocabulary(call, lm, sae, tiny_tokenizer):
    with pytest.raises(ValueError, match="text has other ids; give the SAE's own tokenizer"):
        OF_TEXT[call](lm, sae, permuted(tiny_tokenizer))


@pytest.mark.parametrize("call", sorted({*OF_TEXT, *OF_IDS} - {"probe", "find_presets"}))
def test_every_call_warns_once_of_weights_that_differ_a_little(call, lm, sae, tiny_tokenizer):
    nudge(lm, 0.02)
    run_it = (OF_TEXT | OF_IDS)[call]
    with pytest.warns(UserWarning, match="by 0.0[12].* of their size, as in a fine-tuned") as told:
        run_it(lm, sae, tiny_tokenizer)
    assert len(told) == 1 and "set sae.config.model_weights = None" in str(told[0].message)
    run_it(lm, sae, tiny_tokenizer)  # warnings are errors here


def nudge(lm, share: float) -> None:
    """Add noise to every matrix: `share` of the root mean square of its numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in lm.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise.to(weight) * share * weight.float().square().mean().sqrt())


@pytest.mark.parametrize("share", [1e-3, 0.03, 0.5])
def test_the_distance_of_weights_is_that_of_the_noise_on_them(any_lm, share):
    before, own = sketch(any_lm), copy.deepcopy(any_lm)
    assert before is not None and len(before) == 176
    assert distance(own, before, "float32")[0] < 1e-6
    nudge(own, share)
    assert distance(own, before, "float32")[0] == pytest.approx(share, rel=0.5)


def test_the_distance_of_weights_that_were_all_raised_alike_is_no_larger(make_tiny_lm):
    lm = make_tiny_lm("llama")
    before, own = sketch(lm), copy.deepcopy(lm)
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(0.1 * weight.square().mean().sqrt())
    assert 0.05 < distance(own, before, "float32")[0] < 0.2


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("now", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cast_is_not_another_model(make_tiny_lm, trained, now):
    of_training = sketch(make_tiny_lm("llama").to(trained))
    lm, name = make_tiny_lm("llama").to(now), str(trained).removeprefix("torch.")
    for known in (name, None):
        far, tolerance, _ = distance(lm, of_training, known)
        assert far <= tolerance < 0.005
    nudge(lm, 0.02)
    far, tolerance, _ = distance(lm, of_training, name)
    assert far > tolerance


def test_weights_changed_in_place_are_noticed_by_the_next_call(lm, sae, tiny_tokenizer):
    hfsae.latents(lm, sae, "a text", tiny_tokenizer)
    nudge(lm, 0.5)
    with pytest.raises(ValueError, match=r"those of another model: load the SAE's own"):
        hfsae.latents(lm, sae, "a text", tiny_tokenizer)
    sae.config.model_weights = None  # as the sentence offers
    hfsae.latents(lm, sae, "a text", tiny_tokenizer)


def test_an_adapter_is_told_unless_training_had_it(lm, sae):
    layer = lm.model.layers[0].self_attn.q_proj
    wrapped = torch.nn.Module()
    wrapped.base_layer, wrapped.forward = layer, layer.forward
    lm.model.layers[0].self_attn.q_proj = wrapped
    assert differences(sae.config, lm) == []
    wrapped.lora_A = torch.nn.Linear(16, 2, bias=False)
    (difference,) = differences(sae.config, lm)
    assert difference.severity == "warning" and "carries an adapter" in str(difference)
    for layer in lm.model.layers:  # so many that the sketch holds some
        layer.lora_A = torch.nn.ModuleList(torch.nn.Linear(16, 2) for _ in range(8))
    sae.config.model_weights = sketch(lm)
    assert differences(sae.config, lm) == []


def test_a_model_with_other_parameters_is_told(sae, make_tiny_lm):
    gpt2 = make_tiny_lm("gpt2")
    (difference,) = [d for d in differences(sae.config, gpt2) if d.field == "model_weights"]
    assert difference.severity == "warning" and "have other names" in str(difference)


def test_a_folder_from_before_the_sketch_loads_and_a_damaged_sketch_is_refused(tmp_path, sae):
    sae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert AutoModel.from_pretrained(tmp_path).config.model_weights == fields["model_weights"]
    del fields["model_weights"]
    path.write_text(json.dumps(fields))
    assert AutoModel.from_pretrained(tmp_path).config.model_weights is None
    for damaged in ("", "AAAA", "no base64", fields["tokenizer_hash"], "AAAAAAAAAAD" + "/" * 16):
        path.write_text(json.dumps(fields | {"model_weights": damaged}))
        with pytest.raises(ValueError, match="is not a sketch of weights"):
            AutoModel.from_pretrained(tmp_path)
    for several, says in (
        ({"model_weights": {"base": {"b": []}}}, "model_weights must hold a text for each model"),
        ({"model_dtype": {"base": 5}}, "model_dtype must hold a text for each model"),
        ({"model_names": {"base": ["a"]}}, "model_names must hold a text for each model"),
        ({"model_weights": {"base": sae.config.model_weights}}, "needs model_names"),
    ):
        path.write_text(json.dumps(fields | several))
        with pytest.raises(ValueError, match=says):
            AutoModel.from_pretrained(tmp_path)


TWO = r"begins with two BOS tokens \(id 2\)"
WITHOUT = r"does not begin with BOS \(id 2\)"


@pytest.mark.parametrize(
    "bos, ids, sentence",
    [
        ("row", [[2, 2, 70]], TWO),
        ("row", [[0, 2, 2, 70]], TWO),
        ("document", [[2, 2, 70]], TWO),
        ("row", [[70, 2, 71]], WITHOUT),
        ("document", [[70, 71, 72]], WITHOUT),
        ("none", [[2, 70, 71]], r"begins with BOS \(id 2\), unlike .*: leave out BOS"),
        ("row", [[2, 70, 2], [0, 2, 70]], None),
        ("document", [[70, 2, 71]], None),
        ("none", [[70, 71, 72], [0, 70, 71]], None),
    ],
)
@pytest.mark.parametrize("call", ["splice", "latents", "attribute"])
def test_ids_with_bos_elsewhere_than_in_training_are_told(lm, sae, call, bos, ids, sentence):
    sae.config.bos, ids = bos, ids[:1] if call == "attribute" else ids
    tokens = {"input_ids": torch.tensor(ids)}
    calls = {
        "splice": lambda: run(lm, sae, ids),
        "latents": lambda: hfsae.latents(lm, sae, tokens),
        "attribute": lambda: hfsae.attribute(lm, sae, tokens, target=70, ablate=1),
    }
    if sentence is not None:
        with pytest.warns(UserWarning, match=sentence):
            calls[call]()
    calls[call]()  # told once, if at all: here warnings are errors


def test_text_gets_one_bos_even_if_it_spells_it(lm, sae, tiny_tokenizer):
    out = hfsae.latents(lm, sae, ["text", "<bos>text"], tiny_tokenizer)
    assert out.input_ids[0].tolist() == out.input_ids[1].tolist()
    assert (out.input_ids == 2).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    "bos, ids, document, is_told",
    [
        ("row", [[2, 70, 71, 72, 73]], [[0, 0, 0, 1, 1]], False),
        ("row", [[70, 71, 72, 73, 74]], [[0, 0, 0, 1, 1]], True),
        ("document", [[70, 71, 1, 2, 72]], [[0, 0, 0, 1, 1]], False),
        ("document", [[2, 70, 71, 72, 73]], [[0, 0, 0, 1, 1]], True),
        ("none", [[2, 70, 71, 72, 73]], [[0, 0, 0, 0, 0]], True),
    ],
)
@pytest.mark.parametrize("call", ["evaluate", "collect"])
def test_rows_packed_with_bos_elsewhere_are_told(
    lm, sae, tiny_tokenizer, call, bos, ids, document, is_told
):
    sae.config.bos, ids = bos, torch.tensor(ids)
    rows = [TokenBatch(ids, ids > 2, torch.tensor(document))]
    calls = {
        "evaluate": lambda: hfsae.evaluate(lm, sae, rows, FEW),
        "collect": lambda: collect(lm, sae, rows, tokenizer=tiny_tokenizer),
    }
    if is_told:
        with pytest.warns(UserWarning, match="BOS"):
            calls[call]()
    calls[call]()


def test_where_bos_ends_texts_too_it_may_stand_anywhere_behind_the_first(lm, sae):
    lm.config.eos_token_id = 2
    run(lm, sae, ((2, 2, 70),))
    sae.config.bos = "none"
    run(lm, sae, ((2, 70, 71),))


@pytest.mark.parametrize("call", [*OF_TEXT, *OF_IDS])
def test_active_dropout_is_refused_where_numbers_come_out_and_told_in_blocks(
    make_tiny_lm, tiny_tokenizer, call
):
    lm, sae = make_tiny_lm("gpt2").train(), make_sae("h.1")
    call_it = (OF_TEXT | OF_IDS)[call]
    if call in ("splice", "steer", "suggest_strength"):
        with pytest.warns(UserWarning, match=r"dropout is active in .*: call lm\.eval\(\)"):
            return call_it(lm, sae, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"call lm\.eval\(\)"):
        call_it(lm, sae, tiny_tokenizer)


def test_a_model_that_trains_without_dropout_is_no_difference(lm, sae):
    run(lm.train(), sae)
    lm.model.layers[2].self_attn.attention_dropout = 0.1  # a number, no module, in most families
    with pytest.warns(UserWarning, match=r"dropout is active in model\.layers\.2\.self_attn"):
        run(lm, sae)
