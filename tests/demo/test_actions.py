"""What the app can do, without the app."""

import json
import math
import shutil
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae.cards import probing_facts
from hfsae.demo import Choice, address, open_subject
from hfsae.demo.actions import Actions
from hfsae.demo.address import SETTINGS, Steer
from hfsae.demo.inspect_actions import latent_of, weak_match
from hfsae.demo.pages import SearchPage
from hfsae.demo.pages.health import overview_panel
from hfsae.demo.parts import html
from hfsae.demo.rows import ranked
from hfsae.demo.snippet import of_latent, of_texts
from hfsae.demo.steer_actions import direction
from hfsae.demo.subject import Subject, default_source
from hfsae.evaluation.probing.extract import extract
from hfsae.features.search import Hit
from hfsae.io.checksums import sealed
from hfsae.io.units import TOKEN
from hfsae.packaged import SHIPPED_SAE
from hfsae.runs.preset_search import save_presets

from ..helpers import variants
from ..probed import CAUTION, probing_record
from .conftest import D_SAE, HOSTILE


@pytest.fixture(scope="module")
def actions(subject) -> Actions:
    return Actions(subject)


def last(stream):
    return list(stream)[-1]


def test_inspect_lists_the_latents_of_a_token_and_colours_by_the_first(actions, subject):
    view = actions.inspect("the cat", token=2)
    first = view["on_token"][0]
    assert view["latent"] == first["latent"]
    assert view["tokens"][2]["activation"] == pytest.approx(first["value"])
    largest = float(subject.largest()[first["latent"]])
    assert view["usual_max"] == largest
    assert view["tokens"][2]["share"] == pytest.approx(min(1, first["value"] / largest))
    assert view["tokens"][0]["special"] and view["tokens"][0]["activation"] == 0


def test_answers_are_json(actions):
    answers = [
        actions.inspect("the cat"),
        actions.compare_prompts("the cat", "a dog"),
        actions.feature(3),
        actions.try_text(3, "the cat"),
        actions.search("3", "similar to"),
        last(actions.steer("the", "3:1", max_new_tokens=3)),
        actions.suggest_strength("the", "3:1"),
        actions.why("the c"),
        actions.health(),
        actions.measure("the cat sat"),
        actions.about(),
    ]
    for answer in answers:
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer


@pytest.mark.parametrize("model_type", [config.model_type for config in variants()])
def test_every_variant_opens_and_is_inspected_and_steered(sae_folder, tmp_path, model_type):
    lm = str(sae_folder.parent / "lm")
    given = {"d_in": 16, "d_sae": D_SAE, "site": "layers.1", "model_name": lm, "bos": "row"}
    if "topk" in model_type.replace("_", ""):
        given["k"] = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(model_type, **given)).save_pretrained(tmp_path)
    opened = Actions(open_subject(Choice(str(tmp_path))))
    latent = opened.inspect("the cat")["ranking"][0]["latent"]
    assert last(opened.steer("the cat", f"{latent}:30", unit="norm", max_new_tokens=3))["kl"] > 0
    assert opened.why("the cat")["rows"]


def test_what_fires_in_most_texts_is_apart(actions, subject):
    rare = replace(subject, store=copy(subject.store), labels={})
    shown = [r.latent for r in ranked(subject, subject.inspection("the cat", False))]
    table, density = subject.store.latents, [0.01] * D_SAE
    density[shown[0]] = 0.5
    at = table.column_names.index("density")
    rare.store.latents = table.set_column(at, "density", pa.array(density))
    view = Actions(rare).inspect("the cat")
    assert view["dense"]["n"] == 1 and [r["latent"] for r in view["dense"]["rows"]] == shown[:1]
    ranking = [row["latent"] for row in view["ranking"]]
    order = [r.latent for r in ranked(rare, rare.inspection("the cat", False))]
    assert ranking == [i for i in order if i != shown[0]][:12] and shown[0] in order
    assert view["dense"]["n_rest"] == len(shown) - 1


def test_chat_reads_the_text_in_its_template(actions):
    texts = [t["text"] for t in actions.inspect("hi", chat=True)["tokens"]]
    assert "".join(texts) == "<bos>user: hi"


def test_a_latent_has_its_examples_numbers_and_neighbours(actions, subject):
    view, known = actions.feature(0), subject.store[0]
    assert view["label"] == HOSTILE.strip() and view["threshold"] == pytest.approx(0.5)
    assert view["groups"][0]["kind"] == "top"
    firing = [t for t in view["groups"][0]["examples"][0]["tokens"] if t["firing"]]
    assert firing[0]["activation"] == pytest.approx(known.max_activation, rel=1e-5)
    assert sum(b["count"] for b in view["histogram"]) == known.n_firings
    assert [n["latent"] for n in view["neighbours"]] == [i for i, _ in known.neighbours]


def test_searches_find_what_they_should(actions, subject):
    strongest = next(e for e in subject.store[3].examples if e.tokens[e.firing].strip())
    word = strongest.tokens[strongest.firing].strip()
    assert word in actions.search(word)["found"][0]["fires_on"]
    assert [r["latent"] for r in actions.search("img", "label")["found"]] == [0]
    assert len(actions.search("e", "promotes")["found"]) > 0
    assert 5 not in [r["latent"] for r in actions.search("5", "similar to")["found"]]
    fires = actions.search("cat", "fires on")["found"]
    assert fires and all(r["value"] > 0 for r in fires)


def test_a_random_latent_is_alive_and_repeatable(actions):
    drawn = {actions.random_latent(seed)["latent"] for seed in range(20)}
    assert len(drawn) > 5 and all(actions.subject.density()[i] > 0 for i in drawn)
    assert actions.random_latent(4) == actions.random_latent(4)


def test_steering_changes_the_text_in_the_scope_that_is_asked_for(actions):
    def steered(**options):
        return last(actions.steer("the cat", "3:8", max_new_tokens=8, **options))

    everywhere = steered()
    assert everywhere["steered"] != everywhere["plain"] and everywhere["kl"] > 0
    assert everywhere["done"] and everywhere["n_plain"] <= 8
    assert steered() == everywhere
    assert steered(scope="generated")["steered"] != everywhere["steered"]
    assert last(actions.steer("the cat", "3:0", max_new_tokens=8))["kl"] < 1e-4


def test_a_word_is_steered_by_the_latent_that_it_finds_and_the_answer_has_which(subject):
    there = replace(subject, labels={**subject.labels, 7: "rain", 9: "the sea"})
    steer = partial(Actions(there).steer, "the", max_new_tokens=2, seed=1)
    done = last(steer("sea:2, 3:-1, rain:0.5"))
    rows = [(row["latent"], row["label"], row["value"]) for row in done.pop("latents")]
    assert rows == [(9, "the sea", 2.0), (3, "", -1.0), (7, "rain", 0.5)]
    assert done.pop("notes") == ["“sea” is taken as latent 9.", "“rain” is taken as latent 7."]
    by_index = last(steer("9:2, 3:-1, 7:0.5"))
    assert by_index | done == by_index
    with pytest.raises(ValueError, match="no latent is found for 'zebra'; write another word"):
        last(Actions(replace(there, store=None)).steer("the", "zebra:1", unit="norm"))
    with pytest.raises(ValueError, match="latent 9 is given twice"):
        last(steer("sea:1, 9:1"))
    found = Actions(there).suggest_strength("the", "rain:1")
    assert [*found["latents"]] == ["7"]


def test_what_an_agent_reads_first_is_short_and_the_card_is_apart(actions):
    shipped = Actions(open_subject(Choice(str(SHIPPED_SAE)), with_lm=False))
    for each in (actions, shipped):
        assert len(json.dumps(each.about(), ensure_ascii=False)) <= 2000
        assert each.card() == {"card": each.subject.card} and each.subject.card


def test_a_number_opens_its_latent_and_is_the_first_that_a_search_finds(actions):
    with gr.Blocks():
        page = SearchPage(actions)
    assert page._search(" 7 ", "word") == address.Feature(7)
    for query, by in (("48", "word"), ("7", "promotes"), ("7 seas", "word")):
        assert page._search(query, by) == address.Search(query, by)
    found = actions.search("7")["found"]
    assert (found[0]["latent"], found[0]["why"]) == (7, "has this number")
    assert all(row["why"] != "has this number" for row in actions.search("48")["found"])


@pytest.mark.parametrize("mode", ["add", "clamp", "scale", "ablate", "orthogonal", "cap"])
@pytest.mark.parametrize("unit", ["max", "norm", "raw"])
def test_every_mode_and_unit_runs(actions, mode, unit):
    done = last(actions.steer("the", "3:2", mode=mode, unit=unit, max_new_tokens=2))
    assert math.isfinite(done["kl"])


def test_a_strength_is_suggested_within_the_budget(actions):
    found = actions.suggest_strength("the cat", "3:1", max_kl=1.0, max_repetition=1.0)
    within = [t for t in found["trials"] if t["within"]]
    assert found["strength"] == max(t["strength"] for t in within)
    assert found["latents"]["3"] == pytest.approx(found["strength"], abs=1e-3)
    assert found["passed"]


def test_a_search_doubles_up_to_the_apps_limit_and_says_that_the_budget_was_not_passed(actions):
    wide, told = {"max_kl": 20, "max_repetition": 1}, []
    progress = lambda *far: told.append(far)  # noqa: E731
    found = actions.sweep("the cat", "3:1", Steer(), **wide, progress=progress)
    assert [t["strength"] for t in found["trials"]] == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert found["strength"] == 16 and not found["passed"]
    assert all(done < n for done, n in told) and told[-1] == (8, 9)
    both = actions.sweep("the cat", "3:3,4:-1.5", Steer(), **wide)
    assert both["latents"] == {"3": 16, "4": -8}
    only = actions.sweep("the cat", "3:3,4:-1.5", Steer(), **wide, only=4)
    assert only["latents"] == {"3": 3, "4": -16}
    shown = {"unit_name": "times", "only": None, "max_kl": 20, "max_repetition": 1, "n_tokens": 24}
    assert "None that was tried is over it" in html("suggestion", {**found, **shown})
    assert "None that was tried" not in html("suggestion", {**found, **shown, "passed": True})


def test_a_strength_is_looked_for_under_the_settings_it_is_for(actions):
    def kls(**settings):
        found = actions.suggest_strength("the cat", "3:1", max_repetition=1.0, **settings)
        return [trial["kl"] for trial in found["trials"]]

    everywhere = kls()
    others = {"scope": "prompt"}, {"scope": "generated"}, {"error_term": False}, {"chat": True}
    for settings in others:
        assert kls(**settings) != everywhere, settings
    assert kls(scope="all", error_term=True, chat=False) == everywhere


def test_a_sweep_tells_how_far_it_is(actions):
    told = []
    actions.sweep("the cat", "3:1", Steer(), progress=lambda *far: told.append(far))
    assert told[0] == (0, 7) and [done for done, _ in told] == list(range(len(told)))


def test_why_measures_by_ablation_what_the_gradient_estimates(actions):
    view = actions.why("the c", target="a", contrast="o")
    assert view["target"]["token"] == "a" and view["contrast"]["token"] == "o"
    checked = [r for r in view["rows"] if r["ablation"] is not None]
    assert len(checked) == 4
    row = view["rows"][5]
    found = actions.check_ablation("the c", row["latent"], "a", "o")
    assert found["gradient"] == pytest.approx(row["value"], rel=1e-4)
    assert math.isfinite(found["ablation"])


def test_a_latent_is_named_by_its_number_or_by_a_word(sae_folder):
    subject = open_subject(Choice(str(sae_folder)), with_lm=False)
    subject.presets = [{"name": "gold", "prompt": "the", "latents": {"7": 2.0}}]
    subject.labels, subject.automatic = {3: "the sea"}, {4: "sailing ships", 5: "the sea"}
    typed = {"12": 12, "Gold": 7, "sea": 3, "The sea": 3, "ships": 4}
    assert weak_match(subject, "sea") == weak_match(subject, "12") == ""
    assert {word: latent_of(subject, word) for word in typed} == typed
    first = Actions(subject).search("e")["found"][0]["latent"]
    subject.labels = {(first + 1) % D_SAE: "e, a letter"}
    assert latent_of(subject, "e") == first  # as on the page of searches
    subject.labels = {(first + 1) % D_SAE: "E"}
    assert latent_of(subject, "e") == (first + 1) % D_SAE
    with pytest.raises(ValueError, match="no latent is found for 'quartz'; write another word"):
        latent_of(subject, "quartz")


@pytest.mark.parametrize("score, said", [(0.29, True), (0.3, False)])
def test_a_word_that_no_latent_is_about_is_said_so(score, said):
    search = SimpleNamespace(by_token=lambda word, k: [Hit(7, score, word)] * (word == "church"))
    subject = SimpleNamespace(
        presets=[],
        labels={},
        automatic={},
        sources={},
        loaded=None,
        d_sae=8,
        density=lambda: [0.0] * 8,
        store=object(),
        unit=TOKEN,
        label_rows=[],
        feature_search=search,
        names={},
    )
    assert (
        "No latent is found that is mainly about “church”: latent 7, the nearest"
        in weak_match(subject, "church")
    ) == said


def test_a_latent_of_a_near_word_is_told_whatever_its_match(subject, monkeypatch):
    hit = Hit(7, 0.9, "fires near it, on “church”")
    monkeypatch.setattr("hfsae.demo.inspect_actions.find", lambda *_: [hit])
    assert "No latent is found that is mainly about “car”: latent 7" in weak_match(subject, "car")


def test_health_tells_metrics_and_histograms(actions, subject):
    view = actions.health()
    assert {m["name"] for m in view["metrics"]} >= {"l0", "fvu", "delta_loss"}
    assert sum(b["count"] for b in view["density"]) + view["dead"] == D_SAE
    assert sum(b["count"] for b in view["thresholds"]) == D_SAE
    assert sum(b["count"] for b in view["l0"]) == subject.evaluation["n_tokens"]


def test_health_has_absorption_and_uniformity_of_an_evaluation_beside_untrained_latents(subject):
    assert "untrained latents" not in overview_panel(Actions(subject).health())
    probed = copy(subject)
    record = probing_record(is_weak=True)
    probed.evaluation = subject.evaluation | {"probing": extract(record)}
    view = Actions(probed).health()
    page = overview_panel(view)
    assert json.loads(json.dumps(view["probing"])) == view["probing"] == probing_facts(record)
    cells = "<td>0.500, 0.400 to 0.600</td><td>0.050, -0.050 to 0.150</td><td>64 tokens</td>"
    assert f"<td>uniformity of effects</td>{cells}" in page
    assert "no figures, since" in page and "absorption, full" not in page
    probed.evaluation["probing"] = extract(probing_record())
    page = overview_panel(Actions(probed).health())
    assert page.count("<td>2 letters</td>") == 3 and CAUTION in page


def test_two_saes_are_compared(actions, sae_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(sae_folder, tmp_path / "other")
    path = other / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["metrics"]["fvu"]["value"] = 0.123
    path.write_text(json.dumps(evaluation))
    rows = {r["name"]: r for r in actions.compare_saes(str(other))["rows"]}
    own = {m["name"]: m["value"] for m in actions.health()["metrics"]}
    assert rows["fvu"]["second"]["value"] == 0.123
    assert all(r["first"]["value"] == own[name] for name, r in rows.items())
    same = [name for name, r in rows.items() if r["first"]["value"] == r["second"]["value"]]
    assert {*rows} - {*same} == {"fvu"}
    assert actions.compare_saes("other")["rows"]


def test_no_folder_but_that_of_an_sae_below_the_working_directory_is_read(
    actions, sae_folder, tmp_path, monkeypatch
):
    """Whatever lies elsewhere, the answer is the same, and names nothing that it did not get."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    shutil.copytree(sae_folder, elsewhere / "sae")
    (here / "deep" / "secret-name").mkdir(parents=True)
    (here / "link").symlink_to(elsewhere / "sae")
    monkeypatch.chdir(here)
    monkeypatch.setattr("os.walk", lambda root: pytest.fail(f"{root} is walked"))
    outside = [str(elsewhere / "sae"), "../elsewhere/sae", "link", "/", ".", "deep", "~", str(here)]
    for asked in outside:
        with pytest.raises(ValueError) as refused:
            actions.compare_saes(asked)
        assert str(refused.value) == (
            f"{asked!r} is not an SAE that can be read from here; name the folder of an SAE below "
            "the one that the app was started in, as others may reach this app, or a repository on "
            "the Hub as name/repository"
        )
    with pytest.raises(ValueError, match=r"cannot read deep/secret-name"):  # a repository's name
        actions.compare_saes("deep/secret-name")
    assert actions.compare_saes(str(sae_folder))["rows"], "the one that the app shows"


def test_a_vector_can_be_taken_away(actions, tmp_path):
    from hfsae.steering import load_steering_vector

    _, vector, _ = load_steering_vector(direction(actions.subject, 3))
    assert torch.allclose(vector, actions.subject.sae.W_dec[3].detach(), atol=1e-6)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda a: a.inspect(" "), "there is no text"),
        (lambda a: a.inspect("x" * 100_000), "100,000 characters"),
        (lambda a: a.inspect("x" * 600), "601 tokens; at most 512"),
        (lambda a: a.inspect("the", latent=D_SAE), f"no latent {D_SAE}"),
        (lambda a: a.inspect("the", token=99), "token is 99"),
        (lambda a: a.feature(-1), "no latent -1"),
        (lambda a: a.search("zz", "promotes"), "is not one token"),
        (lambda a: a.search("x", "smell"), "by is 'smell'; it can be word, fires on"),
        (lambda a: a.search("99", "similar to"), "no latent 99"),
        (lambda a: last(a.steer("the", "3:nan")), "strength of latent 3 is nan"),
        (lambda a: last(a.steer("the", "3:1", mode="shake")), "mode is 'shake'"),
        (lambda a: last(a.steer("the", "3:1", temperature=math.inf)), "temperature is inf"),
        (lambda a: last(a.steer("the", "3:1", max_new_tokens=9999)), "max_new_tokens is 9999"),
        (lambda a: a.suggest_strength("the", "3:0"), "all strengths are 0"),
        (lambda a: a.suggest_strength("the", "3:1", mode="ablate"), "mode is 'ablate'"),
        (lambda a: a.why("the", "a", "a"), "the same token"),
        (lambda a: a.save_label(3, "x\ny"), "one line of printable text"),
        (lambda a: a.save_label(D_SAE, "x"), f"no latent {D_SAE}"),
        (lambda a: a.compare_saes("/nowhere"), "/nowhere"),
        (lambda a: a.measure(""), "there is no text"),
        (lambda a: a.measure("a"), "^this text is too short to measure; write some sentences$"),
    ],
)
def test_what_cannot_be_gets_a_sentence(actions, call, sentence):
    labels = dict(actions.subject.labels)
    with pytest.raises(ValueError, match=sentence):
        call(actions)
    assert actions.subject.labels == labels


def test_a_label_is_kept_beside_the_sae_and_can_be_taken_away(sae_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sae_folder, copy)
    actions = Actions(open_subject(Choice(str(copy)), with_lm=False))
    assert actions.save_label(7, " rain ") == {"latent": 7, "label": "rain"}
    assert hfsae.features.read_labels(copy)[7] == "rain"
    actions.save_label(7, "")
    assert 7 not in hfsae.features.read_labels(copy) and 7 not in actions.subject.labels


def test_labels_of_the_packaged_sae_stay_out_of_the_package_by_whatever_path_it_is_opened(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HFSAE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(SHIPPED_SAE.parent)
    (tmp_path / "link").symlink_to(SHIPPED_SAE)
    for source in (SHIPPED_SAE.name, str(tmp_path / "link"), str(SHIPPED_SAE)):
        subject = open_subject(Choice(source), with_lm=False)
        assert subject.label_home == tmp_path / "home" / "labels" / "shipped", source
        assert subject.in_python == "hfsae.load(hfsae.packaged.SHIPPED_SAE)"


def test_ones_own_labels_of_an_earlier_packaged_sae_do_not_stop_new_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HFSAE_HOME", str(tmp_path))
    own = tmp_path / "labels" / "shipped" / "features" / "labels.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"labels": {"1": "old"}, "weights_sha256": "0" * 64}))
    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    assert "labels that you gave another version of it" in subject.notes[0]
    assert Actions(subject).save_label(1, "new")["label"] == "new"
    assert own.with_name("labels-000000000000.json").is_file() and "new" in own.read_text()


def test_labels_of_a_repository_are_shown_and_ones_own_go_before_them(
    hub, sae_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HFSAE_HOME", str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(sae_folder, copy)
    (copy / "features" / "labels.json").write_text('{"labels": {"1": "a", "2": "b", "3": "c"}}')
    for subfolder in ("", "layers.1"):
        hfsae.push(copy, "alice/sae", token="hf_write", private=False, subfolder=subfolder)

    def opened(**which) -> Actions:
        return Actions(open_subject(Choice("alice/sae", **which), with_lm=False))

    actions = opened()
    assert actions.subject.labels == {1: "a", 2: "b", 3: "c"}
    actions.save_label(2, "mine")
    actions.save_label(3, "")
    actions.save_label(4, "new")
    actions.save_label(4, "")
    assert actions.subject.labels == {1: "a", 2: "mine"} == opened().subject.labels
    assert opened(layer=1).subject.labels == {1: "a", 2: "b", 3: "c"}  # another SAE's
    actions.save_label(3, "again")
    assert opened().subject.labels == {1: "a", 2: "mine", 3: "again"}


def test_the_code_that_loads_it_names_what_was_opened(sae_folder, monkeypatch):
    monkeypatch.chdir(sae_folder.parent)
    code = f"hfsae.load({str(sae_folder.resolve())!r})"
    assert open_subject(Choice(sae_folder.name), with_lm=False).in_python == code
    monkeypatch.setenv("SPACE_ID", "me/space")  # whose folders are nobody else's
    assert open_subject(Choice(sae_folder.name), with_lm=False).in_python == (
        f"hfsae.load({sae_folder.name!r})"
    )


def test_the_code_on_a_latents_page_names_no_folder_of_a_space(sae_folder, actions, monkeypatch):
    lm = sae_folder.parent / "lm"
    assert f"hfsae.load_lm({str(lm)!r}, " in of_latent(actions.subject, 3)
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert "hfsae.load_lm('./lm', " in of_latent(actions.subject, 3)


def run(code: str, capsys) -> str:
    """What a script prints; the warnings of tests are errors. The type checks that these tests put
    on every function hide from `torch.no_grad` which of them are generators."""
    capsys.readouterr()
    with torch.no_grad():
        exec(compile(code, "snippet.py", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_code_on_a_latents_page_warns_of_nothing_and_steers_by_its_largest_activation(
    actions, capsys
):
    as_code = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 30}
    latent, prompt = 3, "Once upon a time"
    shown = last(actions.steer(prompt, f"{latent}:1", **as_code))
    printed = run(of_latent(actions.subject, latent), capsys)
    assert printed == f"<bos>{prompt}{shown['steered']}\n" and shown["steered"] != shown["plain"]


@pytest.mark.parametrize(
    "how",
    [
        Steer(),
        Steer(mode="clamp", scope="prompt", temperature=0.0, seed=3),
        Steer(mode="scale", unit="raw", error_term=False, chat=True, repetition_penalty=1.3),
        Steer(unit="norm", scope="generated", max_new_tokens=5),
    ],
)
def test_the_code_beside_steered_texts_prints_these_texts(actions, capsys, how):
    latents, prompt = {3: 2.0, 5: 1.5}, 'it\'s "the" cat'
    settings = {name: getattr(how, name) for name in SETTINGS}
    shown = last(actions.steer(prompt, "3:2, 5:1.5", **settings))
    how = replace(how, prompt=prompt, latents=latents)
    printed = run(of_texts(actions.subject, how), capsys)
    assert printed == f"{shown['plain']}\n\n{shown['steered']}\n"


def test_a_models_folder_with_the_form_of_a_hub_id_is_shown_as_a_folder(actions, monkeypatch):
    subject = copy(actions.subject)
    subject.loaded = subject.loaded._replace(origin="folder secret/gemma")
    subject.lm_name = "secret/gemma"
    about = Actions(subject).about()
    assert (about["model"], about["model_origin"]) == ("./gemma", "folder ./gemma")


def test_on_a_space_labels_are_not_kept_and_folders_not_read(sae_folder, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/space")
    actions = Actions(open_subject(Choice(str(sae_folder)), with_lm=False))
    with pytest.raises(ValueError, match="not kept here"):
        actions.save_label(7, "rain")
    with pytest.raises(ValueError, match="name a repository on the Hub as name/repository"):
        actions.compare_saes(str(sae_folder))


def test_without_a_model_what_needs_none_still_works(sae_folder):
    actions = Actions(open_subject(Choice(str(sae_folder)), with_lm=False))
    assert actions.feature(3)["collected"] and actions.health()["metrics"]
    assert actions.search("3", "similar to")["found"]
    with pytest.raises(ValueError, match=r"needs the language model.*leave out --no_model"):
        actions.inspect("the cat")


def test_a_model_that_cannot_be_had_is_told_and_the_rest_opens(sae_folder, tmp_path):
    sae = hfsae.load(sae_folder)
    sae.config.model_name = str(tmp_path / "gone")
    sae.save_pretrained(tmp_path / "sae")
    subject = open_subject(Choice(str(tmp_path / "sae")))
    assert "gone" in subject.why_no_lm and "with --model" in subject.why_no_lm
    assert Actions(subject).feature(3) == {
        "latent": 3,
        "label": "",
        "auto": None,
        "threshold": pytest.approx(0.5),
        "reads": "",
        "sites": [],
        "goes_with": [],
        "collected": False,
    }


def test_about_names_a_language_models_folder_without_its_place(actions, sae_folder, tmp_path):
    about = actions.about()
    assert (about["model"], about["model_origin"]) == ("./lm", "folder ./lm")
    sae = hfsae.load(sae_folder)
    sae.config.model_name = str(tmp_path / "gone" / "lm")
    sae.save_pretrained(tmp_path / "sae")
    about = Actions(open_subject(Choice(str(tmp_path / "sae")))).about()
    assert about["model"] == "./lm" and "./lm" in about["model_missing"]
    assert str(tmp_path) not in json.dumps(about)


def test_a_folder_with_results_of_other_weights_is_not_opened(sae_folder, tmp_path):
    folder = shutil.copytree(sae_folder, tmp_path / "sae")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"evaluation\.json was made with other weights than"):
        open_subject(Choice(str(folder)), with_lm=False)
    path.unlink()
    open_subject(Choice(str(folder)), with_lm=False)


def test_what_was_changed_or_is_of_other_weights_is_a_sentence_beside_the_page(
    sae_folder, tmp_path
):
    folder = shutil.copytree(sae_folder, tmp_path / "sae")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text())) | {"n_tokens": 1}))
    path = folder / "features" / "labels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    table = pq.read_table(folder / "features" / "examples.parquet")
    pq.write_table(table.slice(1), folder / "features" / "examples.parquet")
    subject = open_subject(Choice(str(folder)), with_lm=False)
    assert subject.store is None and subject.labels == {}
    assert subject.notes[0].startswith("its labels are left out: ")
    assert subject.notes[1:] == [
        "do not trust its evaluation.json: it was changed after it was written: its "
        "content_sha256 differs",
        "its features/ are left out because of examples.parquet: it is not the file that was "
        "written with meta.json: its hash differs",
    ]
    with pytest.raises(ValueError, match=r"labels\.json was made with other weights"):
        Actions(subject).save_label(1, "mine")


def test_presets_found_for_other_weights_are_left_out_with_a_word(sae_folder, tmp_path):
    folder = shutil.copytree(sae_folder, tmp_path / "sae")
    own = {"name": "mine", "prompt": "the", "latents": {"1": 2.0}}
    (folder / "presets.json").write_text(json.dumps([own]))
    save_presets(folder, [{**own, "name": "found", "seeds": 3}])
    subject = open_subject(Choice(str(folder)), with_lm=False)
    assert [preset["name"] for preset in subject.presets] == ["found", "mine"]
    presets = json.loads((folder / "presets.json").read_text())
    presets[0]["weights_sha256"] = "0" * 64
    (folder / "presets.json").write_text(json.dumps(presets))
    subject = open_subject(Choice(str(folder)), with_lm=False)
    assert [preset["name"] for preset in subject.presets] == ["mine"]
    assert "1 of its presets are left out: they were found for other weights" in subject.notes


def test_metrics_that_were_changed_are_not_compared(sae_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(sae_folder, tmp_path / "other")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text())) | {"n_tokens": 1}))
    actions = Actions(open_subject(Choice(str(sae_folder)), with_lm=False))
    with pytest.raises(ValueError, match=r"evaluation\.json of other cannot be compared"):
        actions.compare_saes("other")


def test_a_store_of_another_sae_is_left_out_with_a_word(sae_folder, tmp_path):
    config = hfsae.JumpReLUSAEConfig(d_in=16, d_sae=8, site="layers.1")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path / "sae")
    shutil.copytree(sae_folder / "features", tmp_path / "sae" / "features")
    subject: Subject = open_subject(Choice(str(tmp_path / "sae")), with_lm=False)
    assert subject.store is None and "has 48 latents" in subject.notes[-1]


def test_the_default_is_the_quickstarts_sae_else_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_source().endswith("shipped_sae")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "config.json").write_text("{}")
    assert default_source() == "runs/quickstart"


def test_on_zero_gpu_every_run_of_a_model_is_one_process_with_a_gpu(subject, monkeypatch):
    """With a stand-in for the package `spaces`: arguments travel, no call is within another."""
    import pickle
    import sys
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    running = []

    def gpu(function):
        def called(*args, **kwargs):
            pickle.dumps((args, kwargs))
            assert not running, f"{function} within {running[0]}"
            running.append(function)
            answer = function(*args, **kwargs)
            answer = list(answer) if hasattr(answer, "send") else answer
            running.clear()
            return pickle.loads(pickle.dumps(answer))

        return called

    spaces = ModuleType("spaces")
    spaces.GPU, spaces.__spec__ = gpu, ModuleSpec("spaces", None)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    there = Actions(subject)
    there.inspect("the cat"), there.compare_prompts("a", "b"), there.try_text(3, "the")
    there.search("e", "promotes"), there.next_tokens("the"), there.why("the c")
    there.check_ablation("the c", there.why("the c")["rows"][0]["latent"])
    there.measure("the cat"), there.suggest_strength("the", "3:1")
    assert list(there.steer("the", "3:1", max_new_tokens=2))[-1]["done"]
