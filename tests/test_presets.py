"""The search for presets: which latents are tried, what counts as seen, what is written."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.dataset
import pytest
import torch

import hfsae
from hfsae.features import CollectArguments, FeatureStore
from hfsae.packaged import SHIPPED_SAE
from hfsae.runs.preset_search import (
    PROMPTS,
    Attempt,
    Candidate,
    Model,
    PresetArguments,
    attempts_of,
    candidates,
    find_presets,
    plain_texts,
    save_presets,
    surprise_of,
    surprises,
    table,
    texts_at_once,
    works,
)

from .helpers import refused

ARGS = PresetArguments(n_candidates=2, strengths=(1.0, 4.0), n_tokens=4)


def store(latents: list[tuple[float, list[str]]]) -> FeatureStore:
    """Of a density and the tokens of the strongest examples."""
    rows = [
        {"latent": i, "kind": "top", "rank": r, "activation": 1.0, "firing": 0, "tokens": [token]}
        for i, (_, tokens) in enumerate(latents)
        for r, token in enumerate(tokens)
    ]
    columns = {"density": [density for density, _ in latents]}
    return FeatureStore(pa.table(columns), pyarrow.dataset.dataset(pa.Table.from_pylist(rows)), {})


@pytest.fixture
def model(make_tiny_lm, tiny_tokenizer):
    lm = make_tiny_lm("llama")
    config = hfsae.JumpReLUSAEConfig(d_in=16, d_sae=24, site="layers.1", initial_threshold=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sae = hfsae.JumpReLUSAE(config).requires_grad_(False)
    text = hfsae.TextArguments(dataset=["the sea " * 40], context_size=32, held_out_fraction=0.0)
    rows = hfsae.PackedRows(tiny_tokenizer, text, "train", rows=4)
    collected = CollectArguments(top=2, quantiles=1, per_quantile=1, reservoir=4, window=4)
    features = hfsae.collect(lm, sae, rows, collected, tokenizer=tiny_tokenizer)
    return Model(lm, tiny_tokenizer, sae, features)


def test_a_search_tries_each_candidate_at_each_prompt(model):
    firing, lines = model.store.pick(1, max_density=1.0)[0], []
    presets, attempts = find_presets(model, {firing: "seas"}, ARGS, lines.append)
    tried = [a for a in attempts if a.candidate.latent == firing]
    assert sorted(a.prompt for a in tried) == sorted(PROMPTS)
    assert {a.candidate.strength for a in tried} <= {*ARGS.strengths}
    assert all(a.kl > 0 and 0 <= a.n_seeds <= 3 for a in attempts)
    assert f"| {firing} | seas |" in table(presets, attempts) and lines
    kept = ARGS._replace(max_kl=1e9, max_repetition=1.0)
    for preset in find_presets(model, {firing: "seas"}, kept, lines.append)[0]:
        assert preset["name"] == "seas" and preset["plain"] != preset["steered"]


def test_candidates_fire_on_few_words_of_content_or_have_a_label():
    latents = [
        (1e-3, [" war", " War", "s", " battle"]),
        (1e-3, [" a", " of", ".", " sea"]),
        (0.2, [" ship", " ship"]),
        (0.2, [" kings", "kings"]),
        (1e-3, [" also", " Also", " because"]),
        (1e-3, ["inating", "inating", "llium"]),
    ]
    rows = candidates(store(latents), {3: "Kings and queens"})
    assert [(c.latent, c.words) for c in rows] == [
        (0, ("war", "battle")),
        (3, ("kings", "queens")),
    ]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"n_seeds": 2}, False),
        ({"kl": 3.1}, False),
        ({"repetition": 0.4}, False),
    ],
)
def test_a_preset_works_with_every_seed_and_within_bounds(changes, expected):
    attempt = Attempt(Candidate(3, ("sea",)), PROMPTS[0], 1.0, 0.1, 2.0, 3)
    assert works(attempt._replace(**changes), ARGS) is expected


def test_texts_are_as_surprising_as_the_model_as_it_is_finds_them(model):
    """Token by token, of one row."""
    latent = model.store.pick(1, max_density=1.0)[0]
    prompts, plain = texts = plain_texts(model, 4)
    for strength in (0.0, 8.0):
        ((tried),) = attempts_of(model, [Candidate(latent, ("sea",), strength)], texts, 4)
        assert {a.surprise for a in tried} == {tried[0].surprise}, "the mean over all prompts"
        assert [a.prompt for a in tried] == list(PROMPTS)
    row, losses = model.ids(PROMPTS[1]), []
    for new in plain[3].tolist():
        with torch.no_grad():
            log = model.lm(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)
        losses.append(float((log.exp() * log).sum() - log[new]))  # less the entropy
        row = [*row, new]
    one = {name: rows[3:4] for name, rows in prompts.items()}
    mean = pytest.approx(sum(losses) / 4, abs=1e-4)
    assert float(surprises(model, one, plain[3:4])) == mean
    text = model.tokenizer.decode(plain[3])
    if model.tokenizer(text, add_special_tokens=False)["input_ids"] == plain[3].tolist():
        assert surprise_of(model, PROMPTS[1], text) == mean


def test_the_table_begins_with_what_is_seen_most_and_changes_other_text_least():
    loud, near, far = (Candidate(i, ("sea",)) for i in range(3))
    attempts = [
        Attempt(far, PROMPTS[0], 2.0, 0.1, 2.0, 3),
        Attempt(near, PROMPTS[0], 1.0, 0.1, 2.0, 3),
        Attempt(loud, PROMPTS[0], 1.5, 0.1, 9.0, 3),
        Attempt(loud, PROMPTS[1], 0.5, 0.1, 1.0, 1),
    ]
    rows = table([], attempts).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 0", "| 1", "| 2"]
    assert "+9.0" in rows[0], "the best attempt of a latent"


def test_what_people_wrote_is_kept_and_what_was_found_before_is_replaced(tmp_path):
    own = {"name": "mine", "prompt": "the", "latents": {"1": 2.0}}
    save_presets(tmp_path, [{"name": "old", "seeds": 3}])
    (tmp_path / "presets.json").write_text(json.dumps([{"name": "old", "seeds": 3}, own]))
    save_presets(tmp_path, [{"name": "new", "seeds": 3}])
    assert [p["name"] for p in json.loads((tmp_path / "presets.json").read_text())] == [
        "new",
        "mine",
    ]


def test_in_a_batch_each_row_has_a_latent_of_its_own(model):
    """As by `hfsae.steer`, row by row."""
    ids = torch.tensor([model.ids(PROMPTS[0])])
    latents = model.store.pick(3, max_density=1.0)
    with torch.no_grad(), model.each_steered(latents, 2.0):
        rows = model.lm(input_ids=ids.expand(len(latents), -1)).logits
    for latent, row in zip(latents, rows, strict=True):
        with torch.no_grad(), model.steered(latent, 2.0):
            alone = model.lm(input_ids=ids).logits[0]
        assert torch.allclose(row, alone, atol=1e-4)
        assert not torch.allclose(row, model.lm(input_ids=ids).logits[0], atol=1e-2)


@pytest.mark.gpu
def test_presets_are_found_on_a_gpu(model):
    firing = model.store.pick(1, max_density=1.0)[0]
    on_gpu = model._replace(lm=model.lm.to("cuda"), sae=model.sae.to("cuda"))
    assert find_presets(on_gpu, {firing: "seas"}, ARGS)[1]


def test_texts_of_a_large_vocabulary_are_written_by_fewer_at_once():
    assert [texts_at_once(n, 30) for n in (49_152, 262_144, 10**7)] == [4, 2, 1]


def test_without_time_left_nothing_is_tried(model):
    firing = model.store.pick(1, max_density=1.0)[0]
    found = find_presets(model, {firing: "seas"}, ARGS._replace(max_seconds=1e-9))
    assert found == ([], [])
    with pytest.raises(ValueError, match="max_seconds is 0; it must be larger than 0"):
        find_presets(model, {}, ARGS._replace(max_seconds=0))


def test_features_and_labels_of_other_weights_are_refused_before_a_model_loads(tmp_path, capsys):
    folder = shutil.copytree(SHIPPED_SAE, tmp_path / "sae")
    meta = folder / "features" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "weights_sha256": "0" * 64}))
    argv = ["presets", str(folder), "--lm.name", "no/model"]
    sentence = refused(argv, capsys)
    assert re.search(r"meta\.json was made with other weights .*hfsae coll", sentence)
    labels = folder / "features" / "labels.json"
    labels.write_text(json.dumps({"weights_sha256": "0" * 64, "labels": {"1": "the sea"}}))
    assert "labels.json was made with other weights" in refused(argv, capsys)


def test_a_folder_without_examples_says_what_to_run(tmp_path, capsys):
    config = hfsae.JumpReLUSAEConfig(d_in=16, d_sae=24, site="layers.1", model_name="tiny/gemma")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path)
    assert f"`hfsae collect {tmp_path}` makes them" in refused(["presets", str(tmp_path)], capsys)
    named = ["--layer", "1", "--lm.name", "other/lm"]
    sentence = refused(["presets", str(tmp_path), *named], capsys)
    assert f"`hfsae collect {tmp_path} --layer 1 --lm.name other/lm` makes them" in sentence


@pytest.mark.parametrize(
    "option, value, sentence",
    [
        ("n_presets", "0", "n_presets is 0; it must be 1 or more"),
        ("n_candidates", "-1", "n_candidates is -1; it must be 0 or more"),
        ("max_kl", "0", "max_kl is 0.0; it must be larger than 0"),
        ("max_repetition", "2", "max_repetition is 2.0; it must be from 0 to 1"),
    ],
)
def test_numbers_with_which_no_preset_can_be_found_are_refused_before_a_model_loads(
    capsys, option, value, sentence
):
    argv = ["presets", str(SHIPPED_SAE), f"--{option}", value, "--lm.name", "no/model"]
    assert sentence in refused(argv, capsys)
