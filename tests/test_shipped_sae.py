"""The small SAE in the package: whole, small, and what its card says."""

import csv
import json
import re
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

import hfsae
from hfsae.cli import main
from hfsae.features import FeatureStore, read_automatic, read_labels
from hfsae.features.labels import DOUBTFUL_PEARSON, DOUBTFUL_SURE
from hfsae.hub.outgoing import licence_notes, licence_of
from hfsae.io.checksums import weights_hash
from hfsae.lm import contract
from hfsae.models.fingerprint import decoder_hash
from hfsae.packaged import SEPARATE_SAES, SHIPPED_SAE

from .conftest import every_lm_is

SCRIPTS = Path(__file__).parent.parent / "scripts"
GEMMA = SEPARATE_SAES["gemma"]


def test_it_is_smaller_than_fourteen_megabytes():
    assert sum(p.stat().st_size for p in SHIPPED_SAE.rglob("*") if p.is_file()) < 14_000_000


@pytest.mark.parametrize("folder", [SHIPPED_SAE, GEMMA.path])
def test_its_weights_are_those_that_were_saved(folder):
    sae = hfsae.load(folder)
    assert sae.verify().ok
    assert sae.threshold.dtype.is_floating_point and str(sae.W_dec.dtype) == "torch.bfloat16"
    store = FeatureStore.load(folder)
    assert store.meta["decoder_sha256"] == decoder_hash(sae.W_dec)
    assert len(store) == sae.config.d_sae == 4096


@pytest.mark.lm
def test_it_is_for_the_packaged_model_and_for_no_other(packaged_lm):
    sae, (lm, tokenizer, _) = hfsae.load(SHIPPED_SAE), packaged_lm
    found = contract.differences(sae.config, lm, tokenizer)
    assert {difference.field for difference in found} <= {"model_dtype", "model_attention"}
    other = AutoModelForCausalLM.from_config(lm.config).eval()
    with pytest.raises(hfsae.Refused, match=r"set sae\.config\.model_weights = None"):
        hfsae.latents(other, sae, "the sea", tokenizer)
    sae.config.model_weights = None
    assert sae.verify().ok, "going on with another model is no damage"


def test_gemmas_comes_under_gemmas_terms_with_names_and_is_small():
    assert sum(p.stat().st_size for p in GEMMA.path.rglob("*") if p.is_file()) < 20_000_000
    assert "subject to the Gemma Terms of Use" in (GEMMA.path / "NOTICE").read_text()
    card = (GEMMA.path / "README.md").read_text(encoding="utf-8")
    assert licence_of(card) == "gemma" and licence_notes([card]) == []
    assert hfsae.load(GEMMA.folder("gemma")).config.model_name == GEMMA.lm
    names = read_automatic(GEMMA.path)
    assert sum(name.source == "lm" for name in names.values()) >= 0.95 * 4096


_STEMS = {
    **{"cities": ["cit"], "companies": ["compan"], "science": ["scien"], "colours": ["color"]},
    **{"the navy": ["nav"], "armies": ["arm"], "taxes": ["tax"], "theories": ["theor"]},
    **{"treaties": ["treat"], "railways": ["rail"], "religion": ["relig"], "galaxies": ["galax"]},
    **{"education": ["educat"], "mathematics": ["mathemat"]},
    "multiple": ["mult"],
    "police and enforcement": ["police", "enforce"],
    "tools and instruments": ["tool", "instrument"],
    "troops and soldiers": ["troop", "soldier"],
}


def test_its_labels_and_presets_are_of_latents_that_fire_on_what_they_say():
    store, labels = FeatureStore.load(SHIPPED_SAE), read_labels(SHIPPED_SAE)
    for latent, label in labels.items():
        word = label.casefold().removeprefix("the ").removesuffix("s")
        stems = _STEMS.get(label, [word])
        tokens = [e.tokens[e.firing] for e in store[latent].examples if e.kind == "top"]
        said = sum(any(stem in token.casefold() for stem in stems) for token in tokens)
        assert said >= len(tokens) / 2, label
    for preset in json.loads((SHIPPED_SAE / "presets.json").read_text()):
        assert preset["name"] and preset["prompt"]
        assert set(map(int, preset["latents"])) <= set(labels)


def test_pages_count_its_presets_as_they_are():
    page = (SCRIPTS / "presets.md").read_text(encoding="utf-8")
    with (SCRIPTS / "packaged/presets_tried.csv").open(encoding="utf-8") as file:
        tried = list(csv.DictReader(file))
    offered = {row["latent"] for row in tried if row["offered"] == "yes"}
    presets = json.loads((SHIPPED_SAE / "presets.json").read_text())
    assert offered == {latent for preset in presets for latent in preset["latents"]}
    assert offered == {*re.findall(r"^\| (\d+) ", page, re.MULTILINE)}
    shown = {(latent, preset["prompt"]) for preset in presets for latent in preset["latents"]}
    others = [
        row["words"].partition(",")[0]
        for row in tried
        if row["offered"] and (row["latent"], row["prompt"]) not in shown
    ]
    assert f"another prompt for {others[0]}, {others[1]} and {others[2]}." in page
    assert f"after {len(read_labels(SHIPPED_SAE))} latents were labelled" in page
    n_steered = sum(row["seeds"] == "3 of 3" for row in tried)
    assert (
        f"Of [{len(tried)} latents tried](packaged/presets_tried.csv) {n_steered} steer the texts "
        f"of all three seeds at their best attempt, and {_WORDS[len(offered)]} are offered"
    ) in " ".join(page.split())


_WORDS = {8: "eight", 9: "nine", 10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen"}
_TEXTS = {"wiki,sotu": "encyclopedia, speeches"}
_TEXTS |= {text: text for text in ("news", "medicine", "messages")}


def test_the_page_of_its_training_has_what_was_measured():
    page = SCRIPTS / "packaged.md"
    measured = json.loads((SCRIPTS / "packaged" / "successor.json").read_text())["texts"]
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    for text, title in _TEXTS.items():
        (row,) = (row for row in rows if row.startswith(f"| {title} |"))
        cells = []
        for of in (measured[text][metric] for metric in ("fvu", "delta_loss")):
            cells += [f"{of[side]:.3f}".lstrip("0") for side in ("before", "after")]
            low, high = (100 * end for end in of["interval"])
            cells.append(f"{100 * of['less_by']:.1f} % [{low:.1f}, {high:.1f}]")
        assert row.strip("| ").split(" | ")[2:] == cells


def test_its_latents_have_names_that_a_judge_tells_from_others():
    record = json.loads((SHIPPED_SAE / "features/explanations.json").read_text())
    rows = pq.read_table(SHIPPED_SAE / "features/explanations.parquet").to_pylist()
    alive = sum(density > 0 for density in FeatureStore.load(SHIPPED_SAE).densities.tolist())
    named = [row for row in rows if row["source"] == "lm"]
    assert len(named) >= 0.99 * alive and all(len(r["explanation"].split()) <= 8 for r in named)
    detection = record["scores"]["detection"]
    assert detection["n_latents"] == 300 and detection["uniform"]["auc"]["difference"][1] > 0
    assert record["untrained"]["detection"]["auc"]
    card = (SHIPPED_SAE / "README.md").read_text()
    assert "Given a latent's own name, a large language model" in card.replace("&#39;", "'")
    page = " ".join((SCRIPTS / "packaged.md").read_text(encoding="utf-8").split())
    n_unclear = sum(row["explanation"] == "unclear" for row in rows)
    assert f"{len(rows):,} of 4,096 latents have a name, {n_unclear} of them `unclear`" in page
    means, drawn = detection["uniform"]["auc"], record["untrained"]["detection"]["auc"]
    columns = [means["own"], detection["by_frequency"]["auc"]["own"]]
    columns += [means[key] for key in ("shuffled", "difference", "direction")]
    columns += [drawn["untrained"], drawn["trained_minus_untrained"]]
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*interval) for interval in columns]
    assert f"| `detection` AUC | {' | '.join(cells)} |".replace("0.", ".") in page


def test_names_that_are_marked_as_doubtful_are_those_that_a_judge_hardly_tells():
    names, page = read_automatic(SHIPPED_SAE), (SCRIPTS / "packaged.md").read_text(encoding="utf-8")
    doubtful = {latent for latent, name in names.items() if name.is_doubtful}
    assert f"marks {len(doubtful)} names ({len(doubtful) / len(names):.0%})" in page.replace(
        " %", "%"
    )
    rows = pq.read_table(SHIPPED_SAE / "features/explanations.parquet").to_pylist()
    more, n_failed = {True: [], False: []}, 0
    for row in rows:
        if row["detection_auc"] is not None:
            gain = row["detection_auc"] - row["shuffled_detection_auc"]
            by_bounds = row["sure"] < DOUBTFUL_SURE or row["pearson"] < DOUBTFUL_PEARSON
            more[by_bounds].append(gain)
            n_failed += gain <= 0 and not by_bounds
            assert (row["latent"] in doubtful) == (by_bounds or gain <= 0)
    assert f"Of the others {n_failed} are marked because" in " ".join(page.split())
    told = {key: f"{sum(gains) / len(gains):.3f}".lstrip("0") for key, gains in more.items()}
    assert f"{len(more[True])} are marked, and their AUC is {told[True]} [" in page
    assert f"that of the other {len(more[False])}, {told[False]} [" in " ".join(page.split())


def test_its_card_is_honest_about_its_size():
    card = (SHIPPED_SAE / "README.md").read_text()
    assert "4,096 sparse latents" in card and "For work, train a larger one" in card
    metrics = json.loads((SHIPPED_SAE / "evaluation.json").read_text())["metrics"]
    assert f"{metrics['l0']['value']:.4f}".rstrip("0") in card


@pytest.mark.lm
def test_a_preset_changes_what_the_model_says(packaged_lm):
    pytest.importorskip("gradio")
    from hfsae.demo import Choice, open_subject
    from hfsae.demo.actions import Actions

    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    subject.loaded = packaged_lm
    presets = json.loads((SHIPPED_SAE / "presets.json").read_text())
    preset = next(preset for preset in presets if preset["name"] == "food")
    latents = ", ".join(f"{i}:{strength}" for i, strength in preset["latents"].items())
    *_, done = Actions(subject).steer(preset["prompt"], latents, preset["mode"], max_new_tokens=24)
    assert preset["name"] in done["steered"] and preset["name"] not in done["plain"]


FOUND = {  # a word, and the words that latents fire on
    "ocean": {" sea", " Ocean"},
    "the sea": {" sea", " Sea"},
    "taxes": {" taxes", " tax", " taxation"},
    "music": {" art", " sound"},
    "climate change": {" environment", " change"},
    "war": {" war", " War"},
    "medicine": {" medical", " disease", " diseases"},
    "Paris": {" Paris", " French"},
    "poetry": {" literature", " Literature", " art", " poet"},
    "election": {" election", " elections", " vote"},
    "school": {" college", " school", " education"},
    "computers": {" computer", " technology"},
    "electricity": {" energy", " electrical"},
    "dogs": {" animals", " animal"},
    "cooking": {" food"},
    "stock market": {" market", " markets"},
    "the economy": {" economy", " economic"},
    "church": {" religious", " religion"},
    "football": {" football", " game", " sports", " sport"},
    "gold": {" gold"},
}


@pytest.mark.lm
@pytest.mark.filterwarnings("ignore")
def test_twenty_words_find_what_a_person_expects(packaged_lm):
    """The first three latents are about it; of a made-up word there is nothing."""
    pytest.importorskip("gradio")
    from hfsae.demo import Choice, open_subject
    from hfsae.demo.word_search import find

    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    subject.loaded = packaged_lm
    for query, words in FOUND.items():
        first = [hit.latent for hit in find(subject, query)[:3]]
        firings = subject.store.firings(pc.field("latent").isin(first))
        assert words & {*firings.token}, query
    assert [hit.latent for hit in find(subject, "london")] and find(subject, "xylophone") == []
    small, capital = (find(subject, word)[0].latent for word in ("london", "London"))
    assert small == capital


OUT = Path("runs/foreign")
LATENTS = [
    str(i)
    for i, density in enumerate(FeatureStore.load(SHIPPED_SAE).latents["density"].to_pylist())
    if 0.03 < density < 0.1
][:8]


@pytest.fixture(scope="module")
def collected(packaged_lm, tmp_path_factory) -> Path:
    """A folder with the packaged SAE in another library's files, and with its examples in runs/.

    No file of that library names the text. Files of others go through the same verbs with small
    models (test_sources.py).
    """
    folder = tmp_path_factory.mktemp("saelens")
    text = ["--text.dataset", "packaged:sotu", "--text.max_document_chars", "2000"]
    text += ["--harvest.rows", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        every_lm_is(packaged_lm.lm, packaged_lm.tokenizer, patch)
        hfsae.save_as(hfsae.load(SHIPPED_SAE), "foreign", "saelens")
        assert main(["collect", "foreign", *text, "--collect_tokens", "1500"]) == 0
    return folder


@pytest.fixture
def foreign(collected, packaged_lm, monkeypatch) -> str:
    """That SAE's name, in its folder."""
    monkeypatch.chdir(collected)
    every_lm_is(packaged_lm.lm, packaged_lm.tokenizer, monkeypatch)
    return "foreign"


@pytest.mark.lm
def test_its_weights_in_another_library_s_files_are_evaluated_and_pushed(foreign, capsys):
    few = ["--evaluation.n_tokens", "300", "--evaluation.bootstrap_samples", "20"]
    assert main(["evaluate", foreign, *few]) == 0
    metrics = json.loads((OUT / "evaluation.json").read_text())["metrics"]
    assert 0.1 < metrics["fvu"]["value"] < 0.5 and metrics["delta_loss"]["value"] < 1.5
    assert "reads packaged:sotu; results go to runs/foreign" in capsys.readouterr().out
    assert main(["push", foreign, "me/sae", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "features/examples.parquet" in said and "evaluation.json" in said


@pytest.mark.lm
def test_its_weights_in_another_library_s_files_tell_texts_apart(foreign, capsys):
    pytest.importorskip("sklearn")
    about = ("The ships sailed across the open sea", "He paid his taxes and the state's debt")
    rows = [{"text": f"In {1800 + i}. {about[i % 2]}", "label": i % 2} for i in range(120)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ["--n_texts", "100", "--k", "1", "--n_words", "0", "--uniformity_tokens", "0"]
    assert main(["probe", foreign, "--tasks", "tasks.jsonl", *few]) == 0
    assert "Results: probing.json and probing.md in runs/foreign." in capsys.readouterr().out
    means = json.loads((OUT / "probing.json").read_text())["means"]
    auc = {row["features"]: row["auc"][0] for row in means if row["k"] == 1}
    assert auc["foreign"] > 0.95


@pytest.mark.lm
def test_its_weights_in_another_library_s_files_open_in_the_app_with_their_examples(
    foreign, packaged_lm, launches
):
    from hfsae.demo import Choice, open_subject
    from hfsae.demo.actions import Actions

    assert main(["demo", foreign]) == 0 and [args for args, _ in launches] == [(str(OUT),)]
    subject = open_subject(Choice(str(OUT)), with_lm=False)
    subject.loaded = packaged_lm
    actions = Actions(subject)
    page = actions.feature(int(LATENTS[0]))
    assert page["groups"] and not subject.notes
    assert actions.promoted(int(LATENTS[0]))
    seen = actions.inspect("They sailed across the open sea")
    assert 1774 in {row["latent"] for row in seen["ranking"]}
    assert main(["space", foreign, "--output", "space"]) == 0
    assert weights_hash(Path("space/sae")) == weights_hash(OUT)
    assert (Path("space/sae") / "features/examples.parquet").is_file()
