"""Files that each library wrote itself, and what its own code makes of them.

scripts/interop/write_fixtures_*.py wrote `fixtures/`, each with the library it is named after.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae.convert import FORMATS, WRITTEN, load_folder, save_as
from hfsae.convert.formats import find
from hfsae.convert.saelens import to_saelens
from hfsae.io.errors import Refused
from hfsae.models import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

FIXTURES = Path(__file__).parent / "fixtures"
FOUND = find(str(p.relative_to(FIXTURES)) for p in FIXTURES.rglob("*") if p.is_file())
EXPECTED = {}
for path in FOUND:
    folder = FIXTURES / path
    file = (folder if folder.is_dir() else folder.parent) / "expected.safetensors"
    if file.is_file():
        EXPECTED[path] = file
EMBEDDING = "gemma_scope/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_9"
PARAMS = f"{EMBEDDING}/params.npz"
TRANSCODER = "gemma_scope/gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_8"
REFUSED = {
    "openai/refuse_identity/refuse_identity.pt": "activation Identity .* is unknown",
    "openai/refuse_tied/refuse_tied.pt": r"it lacks 'decoder\.weight'",
    "saelens/checkpoint_gated_whitened": "export it from SAELens first",
    "saelens/checkpoint_standard_whitened": "export it from SAELens first",
    "saelens/refuse_abstopk": "hfsae has no 'abstopk' SAEs; it reads standard, gated, topk",
    "saelens/refuse_covariance_whitening": "export it from SAELens first",
    "saelens/refuse_finetuning_scaling_factor": "fine-tuned with a scaling_factor",
    "saelens/refuse_matching_pursuit": "no 'matching_pursuit' SAEs",
    "saelens/refuse_temporal": "no 'temporal' SAEs",
    "saelens/skip_transcoder_layer_norm": "no skip_transcoder with normalize_activations='layer_n",
    "sparsify/refuse_signed": "signed=True",
    "sparsify/refuse_without_decoder": "W_dec is missing, or is not a matrix",
}


UNSCALED = {"saelens/older_normalize_true", "saelens/standard_expected_average_only_in"}


def load(path: str) -> SAE:
    if path in UNSCALED:
        with pytest.warns(UserWarning, match="a scale that its files do not hold"):
            return load_folder(FIXTURES / path, FOUND[path], path)
    return load_folder(FIXTURES / path, FOUND[path], path)


@pytest.mark.parametrize("path", sorted(set(EXPECTED) - set(REFUSED) - {EMBEDDING}))
def test_latents_and_reconstructions_are_those_of_the_librarys_own_code(path):
    expected, sae = load_file(EXPECTED[path]), load(path).float()
    out = sae(expected["x"])
    assert (out.latents - expected["latents"]).abs().max() < 1e-5
    assert (out.recon - expected["recon"]).abs().max() < 1e-5
    assert not sae.training and all(p.requires_grad for p in sae.parameters())


def test_every_fixture_is_recognised_as_what_it_is():
    assert {*EXPECTED.values()} == {*FIXTURES.rglob("expected.safetensors")}
    for path, name in FOUND.items():
        assert path.split("/")[0] == name
    assert {path for path in FOUND if path not in EXPECTED} <= set(REFUSED)


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_what_hfsae_does_not_have_is_refused_in_one_sentence(path):
    with pytest.raises(ValueError, match=REFUSED[path]) as caught:
        load(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_embedding_saes_read_the_scaled_embeddings_that_gemma_2_makes():
    """The published tensors are for embeddings before the factor; all of the SAE moves with it."""
    expected, sae = load_file(EXPECTED[EMBEDDING]), load(EMBEDDING)
    x, scale = expected["x"], 12**0.5
    assert sae.config.site == "embed_tokens"
    assert (sae.encode(scale * x) - expected["latents_published"]).abs().max() < 1e-5
    assert (sae(scale * x).recon - scale * expected["recon_published"]).abs().max() < 1e-5


def test_gemma_scope_transcoders_take_the_norms_gain_into_their_encoder():
    expected, gain = load_file(EXPECTED[TRANSCODER]), torch.linspace(0.5, 2, 12)
    without = load(TRANSCODER)
    sae = load_folder(FIXTURES / TRANSCODER, "gemma_scope", TRANSCODER, norm_gain=gain)
    with pytest.raises(ValueError, match=r"norm_gain has shape \[3\], but .*; give `1 \+ weight`"):
        load_folder(FIXTURES / TRANSCODER, "gemma_scope", TRANSCODER, norm_gain=gain[:3])
    assert without.config.site is None
    assert sae.config.site == "layers.1.pre_feedforward_layernorm"
    assert sae.config.target_site == "layers.1.post_feedforward_layernorm"
    assert (sae(expected["x"] * gain).latents - expected["latents"]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "path, variant, site, model_name",
    [
        ("saelens/topk", TopKSAE, "h.1", "openai-community/gpt2"),
        ("saelens/jumprelu_hook_z", JumpReLUSAE, "h.1.attn.c_proj:in", "openai-community/gpt2"),
        ("sparsify/run/layers.1.mlp", TopKSAE, "layers.1.mlp", None),
        (
            "dictionary_learning/gated/trainer_0",
            GatedSAE,
            "layers.1",
            "EleutherAI/pythia-70m-deduped",
        ),
        ("openai/relu/relu.pt", ReLUSAE, None, None),
        (
            "gemma_scope/gemma-scope-2b-pt-mlp/layer_1/width_16k/average_l0_6",
            JumpReLUSAE,
            "layers.1.post_feedforward_layernorm",
            "google/gemma-2-2b",
        ),
        (
            "gemma_scope_2/gemma-scope-2-1b-pt/attn_out/layer_1_width_16k_l0_small",
            JumpReLUSAE,
            "layers.1.self_attn.o_proj:in",
            "google/gemma-3-1b-pt",
        ),
    ],
)
def test_files_say_where_they_belong(path, variant, site, model_name):
    sae = load(path)
    assert type(sae) is variant
    assert (sae.config.site, sae.config.model_name) == (site, model_name)


# Which formats hold which SAE: by fixture, the formats that must refuse it.
ROUND_TRIPS = {
    "saelens/standard": {"sparsify"},
    "saelens/jumprelu": {"sparsify", "openai"},
    "saelens/gated": {"sparsify", "openai"},
    "saelens/topk": {"gemma_scope", "gemma_scope_2", "openai"},
    "saelens/topk_layer_norm": set(FORMATS) - {"hfsae", "saelens", "openai"},
    "saelens/standard_constant_norm_rescale": set(FORMATS) - {"hfsae", "saelens"},
    "saelens/transcoder": {"sparsify", "dictionary_learning", "openai"},
    "saelens/jumprelu_skip_transcoder": {
        "sparsify",
        "dictionary_learning",
        "openai",
        "gemma_scope",
    },
    "sparsify/groupmax": set(FORMATS) - {"hfsae", "sparsify"},
    "sparsify/skip_connection": set(FORMATS) - {"hfsae", "sparsify"},
    "sparsify/transcode_skip_connection": set(FORMATS) - {"hfsae", "sparsify"},
    "openai/topk_identity/topk_identity.pt": set(FORMATS) - {"hfsae", "openai"},
}


# Crosscoders are read only, and circuit-tracer's folder holds transcoders of all layers.
FOR_SEVERAL = {"crosscoder", "model_diff", "circuit_tracer"}
FOR_SEVERAL |= {"gemma_scope_2_layers", "circuit_tracer_clt"}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("path", ROUND_TRIPS)
def test_an_sae_in_another_format_is_the_same_function_or_refused(path, to, tmp_path):
    sae, x = load(path), load_file(EXPECTED[path])["x"]
    destination = tmp_path / "layers.1"
    if to in ROUND_TRIPS[path] | FOR_SEVERAL:
        with pytest.raises(ValueError) as caught:
            save_as(sae, destination, to)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
        return
    written = save_as(sae, destination, to)
    back = load_folder(written, to, str(written))
    out, ours = back(x), sae(x)
    assert (out.latents - ours.latents).abs().max() < 1e-5
    assert (out.recon - ours.recon).abs().max() < 1e-5
    assert list(tmp_path.iterdir()) == [written]


FREE = [(ReLUSAE, {"penalty": "ri_l1"}), (GatedSAE, {"penalty": "ri_l1"})]
FREE += [(JumpReLUSAE, {"penalty": "tanh"}), (JumpReLUSAE, {"activation": "shifted"})]


@pytest.mark.parametrize("to", ["hfsae", "saelens", "dictionary_learning", "gemma_scope"])
@pytest.mark.parametrize("variant, option", FREE, ids=lambda v: str(v))
def test_what_training_leaves_free_is_written_as_any_format_has_it(variant, option, to, tmp_path):
    """Rows of unit norm, a jump at the threshold: what each latent writes stays the same."""
    fields = {"activation_scale": 3.0, "subtract_b_dec": True, "site": "layers.1"}
    torch.manual_seed(0)
    sae = variant(variant.config_class(d_in=12, d_sae=24, **fields, **option))
    with torch.no_grad():
        for name in {"b_enc", "b_dec", "b_mag", "r_mag"} & set(sae.state_dict()):
            getattr(sae, name).uniform_(-0.1, 0.1)
        if not sae.config.unit_norm_decoder:
            sae.W_dec *= torch.linspace(0.5, 20, 24)[:, None]
    back = load_folder(save_as(sae, tmp_path / "layers.1", to), to, to)
    x = torch.randn(100, 12)
    written = sae.encode(x) * sae.W_dec.norm(dim=-1)
    assert torch.allclose(back.W_dec.norm(dim=-1), torch.ones(24), atol=1e-5)
    assert torch.allclose(back.encode(x), written, rtol=1e-5, atol=1e-5)
    assert torch.allclose(back(x).recon, sae(x).recon, rtol=1e-5, atol=1e-5)
    assert 0.05 < (written > 0).float().mean() < 0.95


@pytest.mark.parametrize("variant", [ReLUSAE, JumpReLUSAE])
def test_saelens_has_skip_connections_in_transcoders_only_so_an_sae_is_written_as_one(
    variant, tmp_path
):
    place = {"site": "layers.1", "model_name": "google/gemma-3-1b-pt"}
    sae = variant(variant.config_class(d_in=4, d_sae=8, skip_connection=True, **place))
    torch.nn.init.eye_(sae.W_skip)
    written = save_as(sae, tmp_path / "sae", "saelens")
    config = json.loads((written / "cfg.json").read_text())
    assert config["architecture"].endswith("skip_transcoder") and config["d_out"] == 4
    assert config["metadata"]["hook_name"] == config["metadata"]["hook_name_out"]
    back, x = load_folder(written, "saelens", "sae"), torch.randn(3, 4)
    assert not back.config.is_transcoder and (back(x).recon - sae(x).recon).abs().max() < 1e-5


OURS = {
    "batch_topk_sae": {"k": 5},
    "matryoshka_batch_topk_sae": {"k": 5, "prefixes": [6, 12, 24]},
    "matryoshka_jumprelu_sae": {"prefixes": [6, 24]},
}
PLACE = {"site": "layers.1", "model_name": "google/gemma-3-1b-pt"}


def ours(model_type: str, **fields) -> SAE:
    """In its own units, with b_dec taken off the input: everything that has to be folded."""
    fields = {"activation_scale": 3.0, "subtract_b_dec": True} | OURS[model_type] | fields
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, d_in=12, d_sae=24, **PLACE, **fields)
    sae = AutoModel.from_config(config).eval()
    with torch.no_grad():
        sae.threshold.fill_(0.2)
        for name in ("b_enc", "b_dec"):
            getattr(sae, name).uniform_(-0.1, 0.1)
    return sae


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("model_type", OURS)
def test_saes_of_one_threshold_are_the_same_function_in_every_format_but_topk_ones(
    model_type, to, tmp_path
):
    sae, x = ours(model_type), 3 * torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    destination = tmp_path / "layers.1"
    if to in {"sparsify", "openai"} | FOR_SEVERAL:
        with pytest.raises(
            ValueError, match=r"(TopK|ReLU) SAEs|read and not|transcoder at each|targets too"
        ):
            save_as(sae, destination, to)
        return
    written = save_as(sae, destination, to)
    back, out = load_folder(written, to, str(written)), sae(x)
    kept = (out.latents > 0).float().mean()
    assert 0.05 < kept < 0.5
    assert (back(x).latents - out.latents).abs().max() < 1e-5
    assert (back(x).recon - out.recon).abs().max() < 1e-5
    assert type(back) is (type(sae) if to == "hfsae" else JumpReLUSAE)
    assert torch.allclose(back.threshold, torch.full_like(back.threshold, 0.6))


def test_saelens_gets_batchtopk_as_it_writes_it_itself(tmp_path):
    """As jumprelu, with a constant threshold for every latent."""
    for model_type in OURS:
        written = save_as(ours(model_type), tmp_path / model_type, "saelens")
        config = json.loads((written / "cfg.json").read_text())
        state = load_file(written / "sae_weights.safetensors")
        assert config["architecture"] == "jumprelu" and not config["apply_b_dec_to_input"]
        assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
        assert state["threshold"].shape == (24,)
        assert torch.allclose(state["threshold"], torch.full((24,), 0.6))


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_dictionary_learning_gets_its_own_classes_with_its_own_tensors(name, tmp_path):
    theirs = FIXTURES / "dictionary_learning" / name / "trainer_0"
    model_type = {"matryoshka": "matryoshka_batch_topk_sae"}.get(name, "batch_topk_sae")
    written = save_as(ours(model_type), tmp_path / name, "dictionary_learning")
    tensors = [torch.load(f / "ae.pt", weights_only=True) for f in (written, theirs)]
    config = [json.loads((f / "config.json").read_text())["trainer"] for f in (written, theirs)]
    for key in ("dict_class", "trainer_class", "k", "group_sizes", "activation_dim", "dict_size"):
        assert config[0].get(key) == config[1].get(key), key
    assert {k: (t.shape, t.dtype) for k, t in tensors[0].items()} == {
        k: (t.shape, t.dtype) for k, t in tensors[1].items()
    }
    assert all(t.is_contiguous() for t in tensors[0].values())
    x, state = 3 * torch.randn(64, 12, generator=torch.Generator().manual_seed(1)), tensors[0]
    W_enc = state["W_enc"] if name == "matryoshka" else state["encoder.weight"].T
    bias = state["b_enc"] if name == "matryoshka" else state["encoder.bias"]
    post = ((x - state["b_dec"]) @ W_enc + bias).relu()  # as its encode(use_threshold=True)
    latents = post * (post > state["threshold"])
    assert (latents - ours(model_type).encode(x)).abs().max() < 1e-5


def test_the_table_in_the_docstring_is_that_of_the_formats():
    rows = re.findall(
        r"^\| (\w+) \| .* \| yes \| (yes|no) \|$", hfsae.convert.__doc__, re.MULTILINE
    )
    assert [name for name, _ in rows] == [*FORMATS]
    assert [name for name, is_written in rows if is_written == "yes"] == [*WRITTEN]
    assert [name for name, form in FORMATS.items() if form.save is not None] == [*WRITTEN]


@pytest.mark.parametrize(("bos", "is_prepended"), [("row", True), ("none", False)])
def test_saelens_is_told_whether_texts_began_with_bos(bos, is_prepended):
    config = JumpReLUSAE.config_class(d_in=4, d_sae=8, bos=bos, **PLACE)
    assert to_saelens(JumpReLUSAE(config))[0]["metadata"]["prepend_bos"] is is_prepended


def test_an_older_sparsify_file_without_a_word_of_transcoding_is_an_sae(tmp_path):
    folder = tmp_path / "layers.1"
    save_as(load("sparsify/run/layers.1"), folder, "sparsify")
    config = json.loads((folder / "cfg.json").read_text())
    assert config.pop("transcode") is False
    (folder / "cfg.json").write_text(json.dumps(config))
    sae = load_folder(folder, "sparsify", "layers.1")
    assert (sae.config.site, sae.config.target_site) == ("layers.1", None)


def test_approximate_topk_fits_no_format_but_ours(tmp_path):
    config = TopKSAE.config_class(d_in=4, d_sae=8, k=2, selection="approximate", **PLACE)
    for to in set(FORMATS) - {"hfsae"}:
        with pytest.raises(ValueError) as caught:
            save_as(TopKSAE(config), tmp_path / to, to)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_sparsify_has_one_width_for_what_is_read_and_what_is_written(tmp_path):
    place = {"site": "layers.1.mlp:in", "target_site": "layers.1.mlp"}
    sae = TopKSAE(TopKSAE.config_class(d_in=4, d_sae=8, d_out=6, k=2, **place))
    with pytest.raises(ValueError, match="as wide as their input, 4, not 6"):
        save_as(sae, tmp_path / "layers.1.mlp", "sparsify")


def test_sites_survive_the_round_trip(tmp_path):
    for to in ("saelens", "gemma_scope_2", "dictionary_learning"):
        sae = load("dictionary_learning/jumprelu/trainer_0")
        written = save_as(sae, tmp_path / to, to)
        assert load_folder(written, to, to).config.site == "layers.1"


def test_a_destination_that_is_taken_is_left_alone(tmp_path):
    sae = load("saelens/standard")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists; give another path"):
        save_as(sae, tmp_path, "saelens")
    with pytest.raises(ValueError, match="format 'gguf' is unknown; known: hfsae, gemma_scope"):
        save_as(sae, tmp_path / "new", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def edited(path: str, to: Path, change) -> Path:
    """A copy of a fixture with its tensors changed."""
    shutil.copytree(FIXTURES / path, to)
    file = next(p for p in to.glob("*.safetensors") if p.name != "expected.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return to


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.pop("b_enc"), r"missing tensors \['b_enc'\]"),
        (lambda t: t.update(odd=torch.zeros(2)), r"unexpected tensors \['odd'\]"),
        (lambda t: t.update(b_enc=torch.zeros(3)), r"b_enc has shape \[3\].*\[24\]"),
        (lambda t: t.update(b_dec=t["b_dec"] / 0), "b_dec holds values that are NaN or infinite"),
        (lambda t: t.pop("W_enc"), "W_enc"),
    ],
)
def test_tensors_that_do_not_fit_are_one_sentence(change, sentence, tmp_path):
    folder = edited("saelens/standard", tmp_path / "sae", change)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_folder(folder, "saelens", "somebody/sae")
    assert "somebody/sae" in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_archive_is_one_sentence(tmp_path):
    arrays = dict(np.load(FIXTURES / PARAMS))
    np.savez_compressed(tmp_path / "params.npz", **arrays)
    sound = (tmp_path / "params.npz").read_bytes()
    start = sound.index(b"W_enc.npy") + len("W_enc.npy") + 40
    for place in range(start, start + 200, 5):  # of deflated data
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        (tmp_path / "params.npz").write_bytes(damaged)
        with pytest.raises(Refused, match="somebody/sae cannot be read as gemma_scope: "):
            load_folder(tmp_path, "gemma_scope", "somebody/sae")


@pytest.mark.parametrize("header", [b"{'descr': '<f4', (", b"{'descr': [[[[[[[[", b"L" * 40])
def test_an_array_with_a_damaged_header_is_one_sentence(tmp_path, header):
    np.savez(tmp_path / "params.npz", **np.load(FIXTURES / PARAMS))
    with zipfile.ZipFile(tmp_path / "params.npz") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        for name, content in files.items():
            at = content.index(b"{")
            archive.writestr(name, content[:at] + header + content[at + len(header) :])
    with pytest.raises(Refused, match="somebody/sae cannot be read as gemma_scope: "):
        load_folder(tmp_path, "gemma_scope", "somebody/sae")


def test_a_damaged_file_is_one_sentence(tmp_path):
    folder = edited("saelens/standard", tmp_path / "sae", lambda t: None)
    (folder / "sae_weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="somebody/sae cannot be read as saelens"):
        load_folder(folder, "saelens", "somebody/sae")
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="somebody/sae cannot be read as saelens"):
        load_folder(folder, "saelens", "somebody/sae")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk"}))
    with pytest.raises(ValueError, match="somebody/sae cannot be read as saelens"):
        load_folder(folder, "saelens", "somebody/sae")


def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing(tmp_path, full_disk):
    sae = hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=40, d_sae=80))
    with pytest.raises(ValueError, match=r"cannot be written .* MB free\); make room") as caught:
        save_as(sae, tmp_path / "out", "saelens")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"file/x cannot be created \(.*\); give another path"):
        save_as(sae, tmp_path / "file" / "x", "saelens")


def test_an_saes_checkpoints_are_no_saes_and_one_that_is_named_is_it():
    paths = ["a/config.json", "a/model.safetensors", "a/checkpoints/step-00000010.pt", "b/relu.pt"]
    assert find(paths) == {"a": "hfsae", "b/relu.pt": "openai"}
    trained = [
        f"t/{folder}{name}" for folder in ("", "checkpoints/") for name in ("ae.pt", "config.json")
    ]
    assert "t" in find(trained)


def test_converted_files_may_be_read_by_others(tmp_path):
    sae = load_folder(FIXTURES / TRANSCODER, "gemma_scope", TRANSCODER)
    (tmp_path / "any").touch()
    mode = (tmp_path / "any").stat().st_mode
    done = save_as(sae, tmp_path / "hfsae", "hfsae")
    assert {path.stat().st_mode for path in done.iterdir()} == {mode}


def test_a_long_width_in_a_config_is_cut_in_its_sentence(tmp_path):
    folder = shutil.copytree(FIXTURES / "saelens" / "jumprelu", tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": "9" * 5000}))
    with pytest.raises(ValueError, match=r"its config has d_in '99.* wide") as caught:
        hfsae.load(folder)
    assert len(str(caught.value)) < 400
