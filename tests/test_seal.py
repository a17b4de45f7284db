"""Seals: a record, and the files written with it, are as they were, or the change is noticed."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.dataset
import pytest
import torch

import hfsae
from hfsae.cards import write_card
from hfsae.cli import main
from hfsae.features import CollectArguments, FeatureStore
from hfsae.hub import write_space
from hfsae.hub.outgoing import published
from hfsae.io.checksums import (
    CONTENT,
    changes,
    content_hash,
    is_changed,
    refuse_changed,
    sealed,
    sealed_lines,
    stamp,
)
from hfsae.io.errors import Damaged
from hfsae.io.file_names import CALLS, EVALUATION, EXAMPLES, META, PROBING
from hfsae.runs.stage_probe import with_probing
from tests.planted_tokens import plant
from tests.probed import probing_record

L0 = {"value": 7.5, "low": 7.0, "high": 8.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An SAE's folder with an evaluation and a feature store, of planted latents."""
    home = tmp_path_factory.mktemp("seals") / "sae"
    rows = torch.randint(1, 12, (6, 9), generator=torch.Generator().manual_seed(1))
    planted = plant(torch.diag(1.0 + torch.arange(12)), torch.zeros(9, 12), 0.5, rows)
    planted.sae.save_pretrained(home)
    args = CollectArguments(top=2, window=3)
    collected = hfsae.collect(
        planted.lm, planted.sae, planted.batches(), args, tokenizer=planted.tokenizer
    )
    collected.meta |= stamp(home)
    collected.save(home)
    result = hfsae.evaluate(planted.lm, planted.sae, planted.batches())
    write(home / EVALUATION, with_probing({**result.to_dict(), **stamp(home)}, home))
    return home


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "sae")


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def edit_metric(path: Path) -> None:
    record = json.loads(path.read_text())
    record["metrics"]["fvu"]["value"] = 0.01
    write(path, record)


def test_content_has_one_hash_before_it_is_written_and_when_it_is_read_again():
    content = {"b": (1, 2.5, float("nan")), "a": {10: "ü", 9: "\udc80"}, "c": None}
    read = json.loads(json.dumps(dict(reversed(content.items())), indent=3))
    assert content_hash(read) == content_hash(content)
    assert content_hash({**read, "c": 0}) != content_hash(content)


def test_a_seal_is_renewed_and_its_absence_is_accepted():
    once = sealed({"metrics": {"l0": L0}}, {"a.parquet": "1"})
    assert sealed(once) == once and not is_changed(once)
    assert is_changed({**once, "metrics": {}}) and is_changed({**once, "more": 1})
    assert not is_changed(sealed({**once, "more": 1})) and not is_changed({"metrics": {}})


def test_a_folder_as_it_was_made_has_no_change(folder):
    assert list(changes(folder)) == []
    write_card(folder)
    assert FeatureStore.load(folder).meta["decoder_sha256"]


def test_an_edited_metric_is_told_by_show_and_refused_by_card_push_and_space(folder, capsys):
    edit_metric(folder / EVALUATION)
    why = re.escape(f"it was changed after it was written: its {CONTENT} differs")
    assert main(["show", str(folder)]) == 0
    assert re.search(rf"note: .*evaluation\.json: {why}", capsys.readouterr().out)
    sentence = rf"evaluation\.json is damaged \({why}\); `hfsae evaluate .*` makes it again"
    for verb in (["card", str(folder)], ["push", str(folder), "me/sae", "--dry_run"]):
        assert main(verb) == 2
        assert re.search(sentence, capsys.readouterr().err)
    with pytest.raises(Damaged, match=sentence):
        write_space(folder.parent / "space", str(folder))
    assert not (folder / "README.md").exists() and not (folder.parent / "space").exists()


def test_a_store_is_refused_if_one_of_its_tables_comes_from_another(folder, tmp_path):
    other = FeatureStore.load(folder)
    other.examples = pyarrow.dataset.dataset(other.examples.to_table().slice(1))
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / EXAMPLES, folder / EXAMPLES)
    sentence = r"examples\.parquet is damaged \(it is not the file that was written with meta\.json"
    with pytest.raises(Damaged, match=sentence + r".*`hfsae collect .*` makes it again"):
        FeatureStore.load(folder)
    with pytest.raises(Damaged, match=sentence):
        write_card(folder)


def test_a_probing_merged_into_an_evaluation_leaves_it_sealed(folder):
    write(folder / PROBING, sealed({**probing_record(), **stamp(folder)}))
    merged = with_probing(json.loads((folder / EVALUATION).read_text()), folder)
    assert merged["probing"] and not is_changed(merged)
    edited = json.loads((folder / PROBING).read_text())
    edited["means"] = edited["means"][:1]
    write(folder / PROBING, edited)
    again = with_probing({k: v for k, v in merged.items() if k != "probing"}, folder)
    assert "probing" not in again and not is_changed(again)


def test_the_public_version_of_a_record_is_sealed_again(folder):
    record = json.loads((folder / EVALUATION).read_text())
    note = {"source": "/home/me/sae"}
    write(folder / EVALUATION, sealed({**record, "measured_with": note}))
    sent = json.loads(published(folder / EVALUATION))
    assert sent["measured_with"] == {"source": "./sae"} and not is_changed(sent)
    assert CONTENT in sent


def test_a_changed_line_is_refused_and_half_of_one_is_passed_over(folder):
    lines = [sealed({"call": str(i), "answer": {"text": "yes"}}) for i in range(3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / CALLS).write_text(text + text[:20])
    assert list(sealed_lines(folder / CALLS)) == lines
    refuse_changed(folder)
    (folder / CALLS).write_text(text.replace('"yes"', '"no"', 2))
    sentence = (
        r"calls\.jsonl is damaged \(line 1 was changed after it was written.*; delete the line"
    )
    with pytest.raises(Damaged, match=sentence):
        list(sealed_lines(folder / CALLS))
    with pytest.raises(Damaged, match=sentence):
        hfsae.push(folder, "me/sae", dry_run=True)


def test_records_that_name_files_elsewhere_read_none_of_them(folder):
    write(folder / META, sealed({}, {"../../outside": "0", "gone.parquet": "0"}))
    assert list(changes(folder, [META])) == []
