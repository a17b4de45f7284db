"""Comparisons of SAEs that read no text: by FVU alone, in words of rows or patches."""

import json
import re
from pathlib import Path

import pytest
import torch
from comparisons.experiment import (
    CausalArguments,
    Experiment,
    InterpretArguments,
    compare,
    compare_together,
)
from safetensors.torch import save_file

from hfsae.activations import ActivationArguments, ImageArguments
from hfsae.runs import LMArguments

from ..tiny import tiny_fields
from ..tiny_encoders import block, save_encoder, save_pictures, whole_model

SITES = ["early", "late"]
OF_A_MODEL = re.compile(r"delta|\bLM\b|language model|\bloss|\btokens?\b|\btexts?\b")


@pytest.fixture(scope="module")
def acts(tmp_path_factory) -> Path:
    """1,000 rows of 100 documents, at two sites."""
    path = tmp_path_factory.mktemp("files") / "acts.safetensors"
    g = torch.Generator().manual_seed(0)
    tensors = {site: torch.randn(1000, 8, generator=g) ** 3 for site in SITES}
    save_file({**tensors, "document": torch.arange(1000) // 10}, path)
    return path


def comparison(folder: Path, **fields) -> Experiment:
    given = tiny_fields(folder, collect_tokens=0)
    own = {"d_sae": 16, "bandwidth": 0.1, "log_threshold": False}
    given["sae"] = own | fields.pop("sae", {})
    arms = {"jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [2, 4]}}}
    arms["topk"] = {"sae": {"model_type": "topk_sae"}, "sweep": {"k": [2, 4]}}
    arms["topk"]["training"] = {"warm_start_steps": 0}
    return Experiment(**{**given, "arms": arms, "seeds": [0, 1], "at_l0": [2.5, 3.0], **fields})


def of_files(folder: Path, path: Path, **fields) -> Experiment:
    files = ActivationArguments(files=str(path), held_out_fraction=0.2)
    return comparison(folder, activations=files, **fields)


def prose(report: Path) -> str:
    """A report without settings and paths, whose names may speak of tokens."""
    return re.sub(r"```.*?```|`[^`]*`", "", (report / "report.md").read_text(), flags=re.DOTALL)


def test_arms_on_files_are_compared_by_fvu_at_each_site_and_together(tmp_path, acts):
    first = of_files(tmp_path / "a", acts, at_sites=SITES, report=str(tmp_path / "r/first"))
    folder = compare_together({"hfsae compare x.yaml": first}, tmp_path / "r/all", "")
    reports = [folder, tmp_path / "r/first", *(tmp_path / "r/first" / site for site in SITES)]
    for report in reports:
        text = prose(report)
        assert not (found := OF_A_MODEL.search(text)), (report, found)
        assert re.search(r"^\| FVU \|", text, re.MULTILINE)
        for image in re.findall(r"\]\((figures/\w+\.png)\)", text):
            assert (report / image).is_file()

    of_site = tmp_path / "r/first/late"
    evaluation = json.loads((tmp_path / "a/late/topk/seed_1/k_4/evaluation.json").read_text())
    l0, fvu = (evaluation["metrics"][name]["value"] for name in ("l0", "fvu"))
    assert f"| topk | k_4 | 1 | {l0:.4g} | {fvu:.4g} |" in prose(of_site)
    n = evaluation["n_tokens"]
    assert n < 300, "fewer rows are held out than evaluation.n_tokens"
    assert f"Evaluated on {n} held-out rows." in prose(of_site)
    assert "All saw the same activations, to the bit" in prose(of_site)
    assert re.search(r"repeats included: \d+ kept, 0 left out", prose(of_site))
    assert f"fire on none of {n} held-out rows" in prose(tmp_path / "r/first")
    assert "| topk | JumpReLU | 2 |" in prose(folder).partition("## Over all places")[2]


def test_files_that_changed_between_arms_are_told(tmp_path, acts):
    own = tmp_path / "own.safetensors"
    own.write_bytes(acts.read_bytes())
    given = {"sae": {"site": "early"}, "seeds": [0]}
    compare(of_files(tmp_path / "c", own, only=["jumprelu"], **given))
    g = torch.Generator().manual_seed(1)
    document = torch.arange(1000) // 10
    save_file({"early": torch.randn(1000, 8, generator=g), "document": document}, own)
    text = prose(compare(of_files(tmp_path / "c", own, **given)))
    found = re.search(r"with 2 different results \(.*: 2 SAEs: \w{16}; 2 SAEs: ", text)
    assert found


def test_arms_on_pictures_are_compared_in_words_of_patches(tmp_path):
    pytest.importorskip("PIL")
    save_pictures(tmp_path / "pictures", 40)
    lm = LMArguments(name=save_encoder("vit", tmp_path / "vit"), kind="auto", dtype="float32")
    images = ImageArguments(folder=str(tmp_path / "pictures"), held_out_fraction=0.2)
    sae = {"site": block(whole_model("vit"), 1), "d_sae": 32}
    given = {"lm": lm, "images": images, "sae": sae, "seeds": [0]}
    text = prose(compare(comparison(tmp_path / "c", **given)))
    assert not (found := OF_A_MODEL.search(text)), found
    assert f"of {lm.name} (float32), each" in text
    assert re.search(r"Evaluated on \d+ held-out patches\.", text)
    assert re.search(r"Patches read in training, .*: \d+ kept, \d+ left out", text)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"causal": CausalArguments(n_tokens=6)}, "causal.n_tokens is 6, but that needs"),
        (
            {"explain": InterpretArguments(n_latents=90)},
            "explain.n_latents (--explain) is 90, but that needs",
        ),
    ],
)
def test_what_needs_a_language_model_is_refused_before_anything_is_trained(
    tmp_path, acts, fields, sentence
):
    given = {"sae": {"site": "early"}, **fields}
    with pytest.raises(ValueError, match=re.escape(sentence) + " a language model"):
        compare(of_files(tmp_path / "c", acts, **given))
    assert not (tmp_path / "c").exists()
