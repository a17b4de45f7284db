"""Objects that Python users have at hand: data sets in memory, layers as numbers, device maps."""

import sys
from typing import Any

import datasets
import pytest
import torch

import hfsae
from hfsae.activations.arguments import in_memory_texts, text_list

from .tiny import TEXTS, make_sae, tiny_recipe

ARGS = hfsae.EvaluationArguments(n_tokens=300, bootstrap_samples=10)
DATA = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})


def test_a_data_set_in_memory_is_read_like_the_list_of_its_texts(tiny_lm, tiny_tokenizer):
    sae, few = make_sae("layers.1"), DATA.select(range(40))
    by_list = hfsae.evaluate(tiny_lm, sae, TEXTS[:40], ARGS, tokenizer=tiny_tokenizer)
    for given in (few, few["text"], tuple(TEXTS[:40])):
        result = hfsae.evaluate(tiny_lm, sae, given, ARGS, tokenizer=tiny_tokenizer)
        assert result.to_dict() == by_list.to_dict()
    stores = [hfsae.collect(tiny_lm, sae, t, tokenizer=tiny_tokenizer) for t in (few, TEXTS[:40])]
    assert stores[0].latents.equals(stores[1].latents)
    values = [hfsae.latents(tiny_lm, sae, t, tiny_tokenizer).values for t in (few, TEXTS[:40])]
    assert torch.equal(*values)


def test_a_training_takes_a_data_set_and_the_column_that_its_recipe_names(tmp_path, loads):
    recipe = tiny_recipe(tmp_path, collect_tokens=0, evaluation=hfsae.EvaluationArguments(0))
    recipe.text.text_column = "words"
    given: Any = {"model": "tiny/gemma", "site": "layers.1", "d_sae": 32, "recipe": recipe}
    ours = DATA.rename_column("text", "words")
    saes = [
        hfsae.train(**given, dataset=data, output_dir=tmp_path / name)
        for name, data in (("list", TEXTS), ("data", ours))
    ]
    assert all(torch.equal(*pair) for pair in zip(*(s.parameters() for s in saes), strict=True))
    with pytest.raises(hfsae.Refused, match=r"no column 'words'; its columns: text, id; data\.ren"):
        hfsae.train(**given, dataset=DATA, output_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "given, sentence",
    [
        (
            datasets.DatasetDict(train=DATA, test=DATA),
            r"splits: train, test; give one, such as data\['",
        ),
        (DATA.rename_column("text", "words"), "no column 'text'; its columns: words, id; "),
        (DATA.rename_column("id", "text_").remove_columns("text"), "its columns: text_; "),
        (["a", 1], "the data set is a list of int; give a file"),
        (5, "the data set is a int"),
        ({"text": TEXTS}, "the data set is a dict"),
    ],
)
def test_what_is_no_text_is_one_sentence(given, sentence, tiny_lm, tiny_tokenizer, as_for_users):
    with pytest.raises(hfsae.Refused, match=sentence):
        hfsae.evaluate(tiny_lm, make_sae("layers.1"), given, tokenizer=tiny_tokenizer)
    with pytest.raises(hfsae.Refused, match=sentence):
        hfsae.TextArguments(dataset=given)


def test_a_text_that_is_null_is_named_by_its_field(as_for_users):
    with pytest.raises(
        hfsae.Refused, match=r"^text\.dataset is null; name a file, a folder, a Hub"
    ):
        hfsae.TextArguments(dataset=None)


def test_token_ids_are_attributed_as_a_tensor_and_refused_where_rows_of_documents_are_needed(
    tiny_lm, tiny_tokenizer, as_for_users
):
    sae, ids = make_sae("layers.1"), tiny_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    by_name = hfsae.attribute(tiny_lm, sae, {"input_ids": ids}, target=5, ablate=2)
    for given in (ids, ids[0]):
        result = hfsae.attribute(tiny_lm, sae, given, target=5, ablate=2)
        assert torch.equal(result.gradient, by_name.gradient)
    with pytest.raises(hfsae.Refused, match="the text is a list; give one text, token ids as a t"):
        hfsae.attribute(tiny_lm, sae, ids[0].tolist(), target=5)
    for verb in (hfsae.evaluate, hfsae.collect):
        with pytest.raises(hfsae.Refused, match="the text is a tensor; give texts, or rows of tok"):
            verb(tiny_lm, sae, ids, tokenizer=tiny_tokenizer)


def test_a_column_without_text_is_one_sentence_and_missing_texts_are_empty(tmp_path):
    with pytest.raises(hfsae.Refused, match="column 'id' of the data set holds int, not text"):
        in_memory_texts(DATA, "id")
    assert in_memory_texts(datasets.Dataset.from_dict({"text": ["a", None]}), "text") == ["a", ""]
    assert in_memory_texts(tmp_path, "text") == str(tmp_path)
    with pytest.raises(hfsae.Refused, match=r"is a path; hfsae\.TextArguments\(dataset="):
        text_list(tmp_path)


@pytest.mark.parametrize("sites", [[12], 12, ["layers.1", 12], {12}])
def test_a_layers_number_is_no_site(sites, tiny_lm, as_for_users):
    with (
        pytest.raises(
            hfsae.Refused, match=r"site 12 is not text; a site is a path, such as 'layers.12'"
        ),
        hfsae.capture(tiny_lm, sites),
    ):
        pass
    with pytest.raises(hfsae.Refused, match="site 12 is not text"), hfsae.patch(tiny_lm, {12: abs}):
        pass


def test_latents_are_a_table_of_pandas(tiny_lm, tiny_tokenizer, monkeypatch):
    store = hfsae.collect(tiny_lm, make_sae("layers.1"), TEXTS[:40], tokenizer=tiny_tokenizer)
    table = store.to_pandas()
    assert table["density"].tolist() == store.latents["density"].to_pylist()
    assert list(table["promoted_tokens"][3]) == [token for token, _ in store[3].promoted]
    assert {*table.columns} == {*hfsae.features.store.COLUMNS["latents"]}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(hfsae.Refused, match="a table needs pandas: pip install pandas"):
        store.to_pandas()


def test_a_device_map_is_one_device(tmp_path):
    make_sae("layers.1").save_pretrained(tmp_path)
    for device_map in ("cpu", torch.device("cpu")):
        assert hfsae.load(tmp_path, device_map=device_map).device.type == "cpu"
    kind = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert hfsae.load(tmp_path, device_map="auto").device.type == kind.type
    refused: Any = (
        ({"device_map": "cpu", "device": "cpu"}, "; give device"),
        ({"device_map": {"W_enc": 0}}, "is not here; this machine has 'cpu'"),
        ({"device_map": "balanced"}, "is not here; this machine has 'cpu'"),
    )
    for more, sentence in refused:
        with pytest.raises(hfsae.Refused, match=sentence):
            hfsae.load(tmp_path, **more)


def test_the_base_class_loads_the_variant_that_a_config_names(tmp_path):
    sae = make_sae("layers.1", "jumprelu")
    sae.save_pretrained(tmp_path / "sae")
    loaded = hfsae.SAE.from_pretrained(tmp_path / "sae")
    assert type(loaded) is hfsae.JumpReLUSAE and torch.equal(loaded.W_dec, sae.W_dec)
    others = {'{"model_type": "gpt2"}': "'gpt2' model, not an SAE", "{}": "holds no SAE"}
    for content, sentence in others.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(hfsae.Refused, match=sentence):
            hfsae.SAE.from_pretrained(tmp_path)
