"""The README's code runs, in order, on the real model; its commands are ones that exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import hfsae
from hfsae import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.cli import _VERBS, _parse_recipe, _recipe_parser, _train_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.lm
@pytest.mark.slow
def test_python_blocks_run_in_order(tmp_path, monkeypatch, packaged_lm):
    """`runs/quickstart` is an untrained SAE of the same shape, with what it fires on."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = JumpReLUSAEConfig(d_in=576, d_sae=4096, site="layers.12", initial_threshold=5.0)
    sae = JumpReLUSAE(config)
    sae.save_pretrained("runs/quickstart")
    text = hfsae.TextArguments(
        dataset=["The president addressed Congress. " * 9], context_size=32, held_out_fraction=0.0
    )
    rows = hfsae.PackedRows(packaged_lm.tokenizer, text, "train", rows=1)
    hfsae.collect(sae, packaged_lm.lm, packaged_lm.tokenizer, rows).save("runs/quickstart")
    names: dict = {}
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        exec(block, names)
    assert names["latents"].shape[-1] == 4096
    assert (tmp_path / "runs/by-hand/model.safetensors").exists()
    assert names["trained"].config.d_sae == 1024
    assert len(names["suggestion"].trials) >= 3
    assert names["search"].by_token("Congress", k=1)


def test_bash_blocks_name_verbs_fields_and_files_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        for word in words:
            if "/" in word and word.startswith("scripts/"):
                assert (ROOT / word).is_file(), word
        if words[0] != "hfsae":
            continue
        assert words[1] in _VERBS
        if words[1] == "train":
            _parse_recipe(_train_parser(), words[2:])
        if words[1] == "evaluate":
            _parse_recipe(_recipe_parser("evaluate"), words[3:])


def test_no_placeholder_is_left():
    assert "@@" not in README


def test_links_and_named_files_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`?((?:scripts|tests|hfsae)/[\w./]+\.(?:py|sh|yaml))`?", README)
    assert len(links) >= 3 and len(named) >= 4
    for path in {*links, *named}:
        assert (ROOT / path).exists(), path
