"""Sparse probing against regressions written out here, a planted task, and unusable texts."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from hfsae.cards import probing_section
from hfsae.cli import main
from hfsae.evaluation.probing import ProbeArguments, Task, binary_tasks, probe, read_tasks
from hfsae.evaluation.probing import tasks as packaged
from hfsae.evaluation.probing.extract import extract
from hfsae.evaluation.probing.regression import in_row_space, rank, regress, split
from hfsae.evaluation.probing.study import chosen_names, draw, last_tokens
from hfsae.evaluation.untrained import Untrained
from hfsae.io.errors import Refused
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.packaged import PROBES, package_folder
from hfsae.runs import find_saes, probe_saes, run
from hfsae.runs.stage_probe import packed_rows

from ..helpers import refused
from ..planted_tokens import plant
from ..tiny import tiny_recipe
from .planted_letters import probing_task

N_TOKENS = 40


def texts_of(n, name="t"):
    return [f"{name} number {i}" for i in range(n)]


@pytest.fixture(scope="module")
def planted():
    """Latent i fires on token i alone; texts are words, "w12 w13", and token 0 is BOS."""
    embedding = torch.diag(1.0 + torch.arange(N_TOKENS))
    ids = torch.zeros(1, 4, dtype=torch.long)
    planted = plant(embedding, torch.zeros(64, N_TOKENS), 0.5, ids)
    words = Tokenizer(WordLevel({"<s>": 0} | {f"w{i}": i for i in range(1, N_TOKENS)}, "<s>"))
    words.pre_tokenizer = WhitespaceSplit()
    planted.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    return planted


def text_of(ids):
    return " ".join(f"w{i}" for i in ids)


def spoken(rng, last):
    words = rng.integers(12, 30, size=int(rng.integers(2, 9)))
    return [*words.tolist(), last]


@pytest.fixture(scope="module")
def task(planted):
    """Texts that end in word 31, and texts that end in others; 31 may stand before, too."""
    rng = np.random.default_rng(0)
    ids = [spoken(rng, 31) for _ in range(100)] + [spoken(rng, 32 + i % 8) for i in range(100)]
    texts = [text_of(row) for row in ids]
    assert planted.tokenizer(texts[0], add_special_tokens=False)["input_ids"] == ids[0]
    return binary_tasks("ends in 31", texts, [*[1] * 100, *[0] * 100])[0]


def test_one_latent_that_is_the_label_is_found_and_chance_is_chance(planted, task):
    pytest.importorskip("sklearn")
    args = ProbeArguments(n_texts=200, k=[1, 5], bootstrap_samples=100)
    result = probe(planted.lm, {"own": planted.sae}, [task], args, tokenizer=planted.tokenizer)
    of = {(row["features"], row["k"]): row for row in result.rows}
    assert of["own", 1]["latents"][0] == 31
    assert of["own", 1]["auc"] == of["own", 1]["accuracy"] == 1.0
    assert of["untrained", 1]["auc"] < 0.95
    assert of["model's dimensions", 1]["auc"] == 1.0
    assert "| own | 1.000 [1.000, 1.000] |" in result.report
    (gain,) = (
        mean["auc_above_untrained"]
        for mean in result.record["means"]
        if (mean["features"], mean["k"]) == ("own", 1)
    )
    assert gain[0] == pytest.approx(1 - of["untrained", 1]["auc"])


def test_duplicates_go_before_a_split_can_part_them_and_two_labels_of_a_text_drop_it():
    texts = [*texts_of(60, "a"), *texts_of(60, "b"), "a  number 3", "b number 4", "both", "both"]
    labels = [*["x"] * 60, *["y"] * 60, "x", "y", "x", "y"]
    (task,) = binary_tasks("mine", texts, labels)
    assert sorted(task.texts) == sorted([*texts_of(60, "a"), *texts_of(60, "b")])
    assert dict(zip(task.texts, task.labels, strict=True))["b number 4"]  # y: the last in order
    assert task.labels.sum() == 60


def test_several_classes_are_a_task_each_against_the_rest():
    texts = [*texts_of(60, "a"), *texts_of(70, "b"), *texts_of(80, "c"), *texts_of(9, "rare")]
    labels = [*["a"] * 60, *["b"] * 70, *["c"] * 80, *["rare"] * 9]
    tasks = binary_tasks("mine", texts, labels)
    assert [(task.name, int(task.labels.sum())) for task in tasks] == [
        ("mine: c", 80),
        ("mine: b", 70),
        ("mine: a", 60),
    ]


def test_as_many_texts_are_drawn_of_the_class_as_without_it():
    task = Task("mine", texts_of(300), np.arange(300) < 90)
    drawn = draw(task, 400, seed=1)
    assert len({*drawn.texts}) == 180
    assert drawn.labels.sum() == 90
    own = dict(zip(task.texts, task.labels, strict=True))
    assert all(own[t] == has for t, has in zip(drawn.texts, drawn.labels, strict=True))


def ranked_plainly(features, labels):
    tells = []
    for column in features.T:
        active = column[column != 0]
        unit = active.mean() if len(active) else 1.0
        tells.append(-abs((column[labels].mean() - column[~labels].mean()) / unit))
    return np.argsort(tells, kind="stable")


@pytest.fixture(scope="module")
def sparse():
    rng = np.random.default_rng(0)
    features = rng.exponential(size=(200, 30)) * (rng.random((200, 30)) < 0.3)
    features *= rng.exponential(size=30) * 10
    labels = features[:, 4] + rng.normal(size=200) > features[:, 4].mean()
    return features, labels


def test_ranks_are_differences_of_means_in_units_of_the_mean_when_active(sparse):
    features, labels = sparse
    np.testing.assert_array_equal(rank(features, labels), ranked_plainly(features, labels))


def test_the_regression_is_that_of_scikit_learn_with_c_by_the_last_training_rows(sparse):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    features, labels = sparse
    x, y = features[:140, :5], labels[:140]
    aucs = {}
    for c in np.logspace(5, -5, 10):
        model = linear_model.LogisticRegression(C=c, max_iter=1000).fit(x[:112], y[:112])
        aucs[c] = roc_auc_score(y[112:], model.predict_proba(x[112:])[:, 1])
    best = max(aucs, key=lambda c: aucs[c])
    model = linear_model.LogisticRegression(C=best, max_iter=1000).fit(x, y)
    test, truth = features[140:, :5], labels[140:]
    predicted = model.predict(test)
    expected = (
        roc_auc_score(truth, model.predict_proba(test)[:, 1]),
        f1_score(truth, predicted, average="weighted"),
        accuracy_score(truth, predicted),
    )
    np.testing.assert_allclose(regress(x, y, test, truth), expected, atol=1e-6)


def test_more_features_than_rows_are_turned_without_changing_the_fit():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x, test, y = rng.normal(size=(40, 300)), rng.normal(size=(20, 300)), rng.random(40) < 0.5
    options = {"C": 0.1, "max_iter": 5000, "tol": 1e-10}
    plain = linear_model.LogisticRegression(**options).fit(x, y).predict_proba(test)
    turned, turned_test = in_row_space(x, test)
    assert turned.shape[1] <= 40
    ours = linear_model.LogisticRegression(**options).fit(turned, y).predict_proba(turned_test)
    np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_untrained_latents_fire_as_often_as_those_of_the_sae():
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) + 3
    densities = torch.tensor([0.0, 0.002, 0.1, 0.5, 0.9, 1.0])
    latents = Untrained(x, densities, seed=0).encode(x)
    torch.testing.assert_close((latents > 0).float().mean(dim=0), densities, atol=1e-3, rtol=0)
    assert latents.isfinite().all(), "also of a latent that always fires"


def test_the_last_tokens_of_texts_are_those_of_each_text_alone(planted):
    texts = [text_of([15] * n + [20 + n]) for n in (1, 6, 3, 12)]
    how = {"bos": True, "max_tokens": 8}
    acts, tokens, is_read = last_tokens(planted.lm, planted.tokenizer, texts, ["drop"], **how)
    assert [ids[-1] for ids in tokens] == [21, 26, 23, 32]
    assert len(tokens[3]) == 7  # its end, behind a BOS
    assert acts["drop"].argmax(dim=1).tolist() == [21, 26, 23, 32]
    assert is_read == [True] * 4


def test_labels_that_say_nothing_are_at_chance(planted, task):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(5)
    tasks = [Task(f"shuffled {i}", task.texts, rng.permutation(task.labels)) for i in range(8)]
    args = ProbeArguments(n_texts=200, k=[1], bootstrap_samples=100)
    result = probe(planted.lm, {"own": planted.sae}, tasks, args, tokenizer=planted.tokenizer)
    for mean in result.record["means"]:
        assert abs(mean["auc"][0] - 0.5) < 0.1, mean


def test_more_tasks_than_there_are_means_all_of_them_and_says_so(caplog):
    names = ["a", "b", "c"]
    assert chosen_names(names, ProbeArguments(n_tasks=3)) == names and not caplog.text
    assert chosen_names(names, ProbeArguments(n_tasks=1000)) == names
    assert "there are 3 tasks, not 1000: all are taken" in caplog.text
    with pytest.raises(ValueError, match="give numbers of latents, each 1 or more"):
        ProbeArguments(k=[0])


@pytest.mark.skipif(package_folder(PROBES) is None, reason="sae-probes is not installed")
def test_packaged_sets_leave_out_what_is_faulty():
    names = packaged.packaged_names()
    assert len(names) == 113 - len(packaged.FAULTY)
    assert not {name.partition("_")[0] for name in names} & {*packaged.FAULTY}
    few = chosen_names(names, ProbeArguments(n_tasks=2))
    assert [*few] == chosen_names(names, ProbeArguments(n_tasks=2))
    for task in packaged.packaged_tasks(few[:1]):
        assert len({*task.texts}) == len(task.texts) >= 100


GOOD = [{"text": t, "label": i % 2} for i, t in enumerate(texts_of(120))]
BAD = {
    "no_labels": ([{"text": "a"}], "row 1 of .* has no 'label'.*--label_column"),
    "one_class": ([row | {"label": "x"} for row in GOOD], "one class 'x'.*needs two"),
    "few": (GOOD[:60], "30 of '0'.* needs 50 texts of each class"),
    "several": (
        [row | {"label": 0 if i < 30 else i % 5} for i, row in enumerate(GOOD)],
        "has 48 of '0', 18 of '1', 18 of '2' after .* needs 50 texts of each class",
    ),
    "missing": ([GOOD[0], {"text": "a", "label": None}], "row 2 of .* has no 'label'"),
    "nan": ([GOOD[0], {"text": "a", "label": float("nan")}], "row 2 of .* has nan for 'label'"),
    "inf": ([{"text": "a", "label": float("inf")}], "has inf for 'label'; give text or a finite"),
    "a_list": ([{"text": "a", "label": [1]}], r"has \[1\] for 'label'"),
    "not_an_object": ([3], "line 1 of .* is not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_tasks_are_one_sentence(tmp_path, name):
    rows, sentence = BAD[name]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(Refused, match=sentence):
        read_tasks(str(path))


def grouped(n_groups: int) -> list[dict]:
    """Texts whose words tell their source, and nothing else; a source is mostly of one class."""
    rng = np.random.default_rng(0)
    kinds = np.arange(n_groups) % 2
    rows = []
    for i in range(300):
        source = i % n_groups
        label = int(kinds[source] if rng.random() < 0.9 else 1 - kinds[source])
        rows.append({"text": f"{text_of([12 + source])} {i}", "label": label, "by": f"s{source}"})
    return rows


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_texts_of_a_group_are_on_one_side_of_each_split(tmp_path):
    pytest.importorskip("sklearn")
    source = written(tmp_path / "mine.jsonl", grouped(20))
    (task,) = read_tasks(source, group_column="by")
    drawn = draw(task, 200, seed=3)
    of_text = {row["text"]: row["by"] for row in grouped(20)}
    train, n_choosing, test = split(drawn.labels, drawn.groups, seed=0)
    sides = train[:-n_choosing], train[-n_choosing:], test
    fitting, choosing, test = ({of_text[drawn.texts[i]] for i in side} for side in sides)
    assert not fitting & choosing and not fitting & test and not choosing & test
    assert sorted(np.concatenate(sides)) == list(range(len(drawn.texts)))
    assert 0.3 < len(sides[2]) / len(drawn.texts) < 0.5
    assert all(0.2 < drawn.labels[side].mean() < 0.8 for side in sides)


def test_saes_are_probed_together_where_texts_of_all_begin_with_bos_or_of_none(planted, task):
    without = copy.deepcopy(planted.sae)
    without.config.bos = "none"
    saes = {"one": planted.sae, "other": without}
    with pytest.raises(ValueError, match=r"BOS \({'one': True, 'other': False}\); probe each"):
        probe(planted.lm, saes, [task], tokenizer=planted.tokenizer)


def test_texts_keep_two_tokens_or_more():
    assert ProbeArguments(max_tokens=2).max_tokens == 2
    with pytest.raises(ValueError, match="max_tokens"):
        ProbeArguments(max_tokens=1)


def test_without_groups_a_split_is_by_place(tmp_path):
    labels = np.arange(100) % 3 == 0
    train, n_choosing, test = split(labels, None, seed=5)
    assert train.tolist() == list(range(60)) and n_choosing == 12
    assert test.tolist() == list(range(60, 100))


def test_words_of_a_source_tell_nothing_where_its_texts_are_on_one_side(planted, tmp_path):
    pytest.importorskip("sklearn")
    source = written(tmp_path / "mine.jsonl", grouped(16))
    args = ProbeArguments(n_texts=300, k=[1], bootstrap_samples=20)

    def bag(group_column: str | None) -> tuple[float, str]:
        tasks = read_tasks(source, group_column=group_column)
        result = probe(planted.lm, {"own": planted.sae}, tasks, args, tokenizer=planted.tokenizer)
        (row,) = (row for row in result.rows if row["features"] == "bag of tokens")
        return row["auc"], result.record["about"]

    by_row, by_group = bag(None), bag("by")
    assert by_row[0] > 0.8 and "group" not in by_row[1]
    assert by_group[0] < 0.65 and by_group[1].endswith("are all on one side of each split")


def saved_sae(folder: Path) -> Path:
    """An SAE of a language model with the folder's name."""
    config = JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", model_name=folder.name)
    JumpReLUSAE(config).save_pretrained(folder)
    return folder


def test_too_few_groups_and_groups_of_packaged_sets_are_one_sentence(tmp_path):
    source = written(tmp_path / "mine.jsonl", grouped(4))
    with pytest.raises(Refused, match="50 texts of each class from 5 groups or more"):
        read_tasks(source, group_column="by")
    with pytest.raises(Refused, match=r"row 1 of .* has no 'author'"):
        read_tasks(source, group_column="author")
    an_sae = find_saes([{"source": str(saved_sae(tmp_path / "sae"))}])
    with pytest.raises(Refused, match="packaged sets have no groups"):
        probe_saes(an_sae, ProbeArguments(), "packaged", group_column="by")


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [("missing.jsonl", "cannot be read"), ("texts.csv", "neither a JSONL file nor a Hub data")],
)
def test_what_is_not_there_is_one_sentence(tasks, sentence):
    with pytest.raises(Refused, match=sentence):
        read_tasks(tasks)


def test_sets_that_are_not_installed_name_their_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_probes", None)
    with pytest.raises(Refused, match=r"pip install --no-deps sae-probes==0\.4\.2"):
        packaged.packaged_names()


@pytest.mark.parametrize("options", [{"k": []}, {"k": [0, 2]}, {"n_texts": 60}, {"n_tasks": 0}])
def test_arguments_are_checked(options):
    with pytest.raises(Refused):
        ProbeArguments(**options)


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    texts = [f"text {i} " + ("abc " if i % 3 else "ghij ") * (1 + i % 4) for i in range(200)]
    rows = [{"said": t, "kind": "many" if i % 3 else "few"} for i, t in enumerate(texts)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_saes_in_folders_are_probed_side_by_side(tmp_path, loads, jsonl, capsys):
    pytest.importorskip("sklearn")
    a, b = run(tiny_recipe(tmp_path / "out", saes={"a": {"target_l0": 3}, "b": {"target_l0": 5}}))
    argv = [
        "probe",
        str(a),
        str(b),
        str(a),
        "--tasks",
        str(jsonl),
        "--n_texts",
        "100",
        "--k",
        "1",
        "3",
    ]
    argv += ["--k", "1", "3", "--uniformity_tokens", "9"]
    assert main([*argv, "--text_column", "said", "--label_column", "kind"]) == 0
    shown = capsys.readouterr().out
    records = [json.loads((folder / "probing.json").read_text()) for folder in (a, b)]
    assert records[0]["means"] == records[1]["means"]
    assert [record["sae"] for record in records] == ["a", "b"], "one that is named twice, once"
    assert records[0]["saes"] == ["a", "b"]
    (one, *_) = probing_section(b)["rows"]
    own = next(m for m in records[1]["means"] if (m["features"], m["k"]) == ("b", 1))
    assert one["own"].split(",")[0] == f"{own['auc'][0]:.3f}"
    assert one["shown"] == "too few tasks to tell"
    card = (b / "README.md").read_text()
    assert "## Sparse probing" in card and f"| 1 | {one['own']} |" in card
    own = records[1]["uniformity"]["saes"]["b"]
    assert 0 < own["mean"][0] <= 1 and own["n_tokens"] <= 9
    absorption, uniform = probing_section(b)["notes"]  # a vocabulary of few words
    assert "no figures, since the vocabulary has" in absorption and absorption in card
    assert uniform in card and 0 < own["untrained"][0] <= 1
    even = [f"{own[key][0]:.3f}, " for key in ("mean", "untrained")]
    assert all(part in card.partition("uniformity of effects")[2] for part in even)
    evaluation = json.loads((b / "evaluation.json").read_text())
    assert evaluation["probing"] == extract(records[1])
    assert "SCR and TPP are left out" in shown and "## Uniformity of effects" in shown
    assert records[0]["weights_sha256"] != records[1]["weights_sha256"]
    assert {row["features"] for row in records[0]["rows"]} >= {"a", "b", "untrained"}
    assert (a / "probing.md").read_text() in shown
    assert "row 1 of" in refused(argv, capsys)
    assert main(["evaluate", str(b), "--evaluation.n_tokens", "150"]) == 0
    again = json.loads((b / "evaluation.json").read_text())
    assert again["n_tokens"] < evaluation["n_tokens"]
    assert again["probing"] == evaluation["probing"]
    (b / "probing.json").write_text(json.dumps({**records[1], "sae": None, "tasks": 3}))
    with pytest.raises(Refused, match=r"probing\.json"):
        probing_section(b)


def test_rows_for_uniformity_are_the_texts_in_turn_behind_a_bos_token(planted):
    texts = [text_of([12 + i] * 5) for i in range(4)]
    rows = packed_rows(planted.tokenizer, texts, 7, bos=True, seed=0)
    assert rows.shape == (3, 7) and (rows[:, 0] == 0).all()
    order = np.random.default_rng(0).permutation(4)
    assert rows[:, 1:].flatten().tolist() == [12 + int(i) for i in order for _ in range(5)][:18]
    assert packed_rows(planted.tokenizer, texts[:1], 50, bos=False, seed=0).shape == (1, 5)


def test_saes_of_two_models_are_not_probed_together(tmp_path, jsonl):
    folders = [saved_sae(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(Refused, match="two belongs to two and one to one"):
        probe_saes(find_saes([{"source": str(f)} for f in folders]), ProbeArguments(), str(jsonl))


SAE_PROBES = json.loads((Path(__file__).parent / "sae_probes.json").read_text())


def test_ranking_and_regression_are_those_of_sae_probes_own_code():
    """What it makes of the same latents, written by scripts/interop/write_sae_probes.py."""
    pytest.importorskip("sklearn")
    train, labels, test, test_labels = probing_task()
    order = rank(train, labels)
    assert order.tolist() == SAE_PROBES["order"]
    for k, scores in SAE_PROBES["scores"].items():
        chosen = order[: int(k)]
        own = regress(train[:, chosen], labels, test[:, chosen], test_labels)
        # sixteen latents nearly part the classes: a processor's rounding moves where the fit stops
        within = 0.01 if k == "16" else 1e-6
        assert own == pytest.approx(tuple(scores), abs=within)
