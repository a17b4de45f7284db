"""Code in READMEs runs, in order, on the real model; commands, files and numbers are there.

The pages: the root's README.md, and those beside what they describe, in scripts/; reports apart.
"""

import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import hfsae
import hfsae.runs
import hfsae.training
from hfsae import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.cli.table import VERBS
from hfsae.comparison import Comparison

from .tiny_encoders import save_encoder

ROOT = Path(__file__).parent.parent
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GUIDES = [ROOT / "scripts" / name / "README.md" for name in ("recipes", "comparisons")]
BESIDE = sorted({*ROOT.glob("scripts/*.md"), *ROOT.glob("scripts/*/*.md")})
PAGES = [ROOT / "README.md", *BESIDE]
README, *OTHERS = (path.read_text(encoding="utf-8") for path in PAGES)


def blocks(language: str, *texts: str) -> list[str]:
    return [
        block
        for text in texts
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


@pytest.mark.lm
@pytest.mark.slow
@pytest.mark.renders
def test_python_blocks_run_in_order(tmp_path, monkeypatch, packaged_lm, capsys):
    """Those of the README, but for its training, and those of the others.

    `runs/quickstart` is an untrained SAE of the same shape.
    """
    monkeypatch.chdir(tmp_path)
    ran: list = []

    def run(recipe: hfsae.Recipe, command: str) -> list[Path]:
        ran.append(recipe)
        return [hfsae.packaged.SHIPPED_SAE]

    def load_lm(name: str, **options) -> hfsae.LoadedLM:  # reading it takes seconds
        assert (name, options) == (NAME, {"dtype": "bfloat16"})
        return packaged_lm

    monkeypatch.setattr("hfsae.runs.calls.run", run)
    monkeypatch.setattr(hfsae, "load_lm", load_lm)
    few = {"n_tokens": 3, "doublings": 1, "refine": 0}
    monkeypatch.setattr(hfsae, "suggest_strength", partial(hfsae.suggest_strength, **few))
    names: dict = {}
    of_readme = blocks("python", README)
    assert len(of_readme) == 3
    for block in of_readme:
        exec(block, names)
    assert names["out"].values.shape == (1, 7, 4096)
    printed = capsys.readouterr().out.splitlines()
    shown = blocks("text", README)[0].splitlines()
    assert printed[: len(shown)] == shown
    beside = re.findall(r"^print\(.+\)  # (\[[\d, ]+\])$", of_readme[2], re.MULTILINE)
    assert printed[-len(beside) :] == beside and len(beside) == 1
    assert ran[0].sae["target_l0"] == 50 and ran[0].text.dataset == "my.jsonl"
    assert len(names["suggestion"].trials) >= 3

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=576, d_sae=4096, site="layers.12"))
    sae.save_pretrained("runs/quickstart")
    speech = save_encoder("wav2vec2", tmp_path / "speech")
    waves = np.random.default_rng(0).normal(size=(3, 3200))
    for page in (*OTHERS, hfsae.training.__doc__ or ""):
        own: dict = {"waves": waves}
        for block in blocks("python", page):
            if "wav2vec2" in block:  # a tiny one, of three blocks
                block = block.replace("facebook/wav2vec2-base", speech).replace("s.8", "s.1")
            exec(block, own)
    assert own["trained"].config.d_sae == 1024
    assert (tmp_path / "runs/by-hand/model.safetensors").exists()
    assert (tmp_path / "runs/for-saelens").is_dir()


def test_bash_blocks_name_verbs_fields_and_files_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    joined = (block.replace("\\\n", " ") for block in blocks("bash", README, *OTHERS))
    lines = [line for block in joined for line in block.strip().splitlines()]
    assert len(lines) >= 20
    for line in lines:
        words = shlex.split(line)
        for word in words:
            if "/" in word and word.startswith("scripts/"):
                assert (ROOT / word).exists(), word
        if words[0] != "hfsae":
            continue
        assert words[1] in VERBS
        if words[1] == "train":
            parse_recipe(recipe_parser("train"), words[2:])
        if words[1] == "evaluate":
            parse_recipe(recipe_parser("evaluate"), words[3:])
        if words[1] == "compare":
            parse_recipe(recipe_parser("compare", Comparison), words[2:], Comparison)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(path):
    text = path.read_text(encoding="utf-8")
    assert "@@" not in text
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        at, _, heading = link.partition("#")
        target = path if not at else path.parent / at
        assert "://" in link or target.exists(), link
        if heading and "://" not in link:
            assert heading in headings(target.read_text(encoding="utf-8")), link
    named = re.findall(r"(?<![\w/.])((?:scripts|tests|hfsae)/[\w./]+\.(?:py|sh|yaml))\b", text)
    for name in named:
        assert (ROOT / name).exists(), name


def headings(text: str) -> set[str]:
    """As GitHub names them in links."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_wrapped():
    assert len(README.encode()) <= 12_000
    wide = [line for line in README.splitlines() if len(line) > 100 and line[0] != "|"]
    assert not wide


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.parent.name)
def test_a_guide_is_short_and_leads_to_every_page_beside_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= 10_000
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)}
    beside = {page.name for page in path.parent.glob("*.md")} - {path.name}
    if path.parent.name == "comparisons":
        beside -= {"threshold_gradients.md"}  # which ablations.md links
    assert beside <= links and len(beside) >= 6


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_begins_with_its_title_and_a_sentence(path):
    title, _, first = path.read_text(encoding="utf-8").split("\n", 2)
    assert re.match(r"# \w", title) and re.match(r"[A-Z]|`[^`]", first), first[:80]


def test_pictures_of_the_readme_are_light():
    pictures = re.findall(r"^!\[[^]]+\]\(([^)]+\.png)\)$", README, re.MULTILINE)
    assert len(pictures) == 3
    assert all((ROOT / path).stat().st_size < 300_000 for path in pictures)


def test_numbers_of_the_quickstart_are_those_of_its_page():
    """The README shows some lines of what the quickstart's page shows whole."""
    whole = (ROOT / "scripts/recipes/quickstart.md").read_text(encoding="utf-8").splitlines()
    shown = [line for block in blocks("text", README) for line in block.splitlines()]
    metrics = [line for line in shown if re.match(r"[a-z_0-9]+ +[\d.]+ +[\d.]+ to [\d.]+", line)]
    assert metrics and all(line in whole for line in metrics)
