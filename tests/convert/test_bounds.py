"""Weights whose dtype or declared size is absurd are refused before memory is taken for them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import hfsae
from hfsae.cards import shown_latents
from hfsae.features import FeatureStore
from hfsae.io.checksums import unsealed
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.packaged import SHIPPED_SAE


@pytest.fixture
def saved(tmp_path):
    JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8)).save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def change(folder, **tensors):
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, {"format": "pt"})


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float8_e4m3fn", "uint8"])
def test_weights_of_a_dtype_that_is_no_weights_are_refused(saved, dtype):
    change(saved, b_enc=torch.ones(8).to(getattr(torch, dtype)))
    for load in (AutoModel.from_pretrained, JumpReLUSAE.from_pretrained, hfsae.load):
        with pytest.raises(ValueError, match=r"b_enc is stored as .*; weights of an SAE are F32"):
            load(saved)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_foreign_weights_of_such_a_dtype_are_refused_too(tmp_path, dtype):
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8))
    state = {name: t.detach().contiguous() for name, t in sae.state_dict().items()}
    state = {name.replace("W_", "w_"): tensor for name, tensor in state.items()}
    state["b_dec"] = torch.ones(4).to(dtype)
    save_file(state, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="b_dec is stored as torch"):
        hfsae.load(tmp_path)


def test_a_config_may_claim_any_width_and_no_memory_is_taken(saved, monkeypatch):
    (saved / "model.safetensors").unlink()
    save_file({"b_dec": torch.zeros(4)}, saved / "model.safetensors", {"format": "pt"})
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "d_sae": 10**9}))
    with pytest.raises(ValueError, match="missing weights"):  # 32 GB, were it to be made
        AutoModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "renamed, sentence",
    [
        ({"b_enc": "b_dec"}, r"is not a JumpReLUSAE: missing weights \['b_enc'\]"),
        ({"^b_enc$": "b_dec", "^b_dec$": "b_enc"}, r"b_enc has shape \[4\] in the file, but the"),
    ],
)
def test_weights_that_a_caller_renames_are_looked_at_again_once_they_are_loaded(
    saved, renamed, sentence
):
    for load in (AutoModel.from_pretrained, JumpReLUSAE.from_pretrained):
        with pytest.raises(hfsae.Refused, match=sentence):  # transformers gives random weights
            load(saved, key_mapping=renamed)


def sharded(folder, names):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in set(names.values()):
        if "/" not in name:
            shard = {key: tensors[key] for key, file in names.items() if file == name}
            save_file(shard, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_looked_at_before_they_are_loaded(saved):
    weights = load_file(saved / "model.safetensors")
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    sharded(saved, {name: files[i % 2] for i, name in enumerate(sorted(weights))})
    loaded = AutoModel.from_pretrained(saved)
    assert torch.equal(loaded.W_dec, weights["W_dec"])
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "d_sae": 10**9}))
    with pytest.raises(ValueError, match="but the config asks for"):
        AutoModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 3]
)
def test_an_index_names_files_beside_it_alone(saved, name):
    names = dict.fromkeys(load_file(saved / "model.safetensors"), name)
    index = {"metadata": {}, "weight_map": names}
    shutil.copy(saved / "model.safetensors", saved.parent)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"is not a shard beside it|damaged"):
        AutoModel.from_pretrained(saved)


def test_an_encrypted_npz_is_one_sentence(tmp_path):
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    np.savez(tmp_path / "params.npz", **{name: np.zeros(3, dtype="f4") for name in names})
    content = bytearray((tmp_path / "params.npz").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + offset] |= 1  # the flag that says so
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as gemma_scope: .* is encrypted"):
        hfsae.load(tmp_path)


@pytest.mark.parametrize("dtype", ["i4", "c8", "U3", "?"])
def test_numbers_of_another_kind_in_an_npz_are_refused(tmp_path, dtype):
    shapes = {"W_enc": (3, 4), "W_dec": (4, 3), "b_enc": 4, "b_dec": 3, "threshold": 4}
    arrays = {name: np.zeros(shape, "f4") for name, shape in shapes.items()}
    np.savez(tmp_path / "params.npz", **arrays | {"b_dec": np.zeros(3, dtype)})
    with pytest.raises(ValueError, match=r"b_dec holds .*, not floating-point numbers"):
        hfsae.load(tmp_path)


def copy_without_seal(folder):
    """The packaged store, whose tables may be changed without a word about their hashes."""
    shutil.copytree(SHIPPED_SAE / "features", folder / "features")
    path = folder / "features" / "meta.json"
    path.write_text(json.dumps(unsealed(json.loads(path.read_text()))))


def test_a_table_without_a_column_is_refused(tmp_path):
    copy_without_seal(tmp_path)
    path = tmp_path / "features" / "latents.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["density"]), path)
    with pytest.raises(ValueError, match="lacks the columns density"):
        FeatureStore.load(tmp_path)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_a_store_whose_latents_are_mostly_silent_is_read(tmp_path):
    copy_without_seal(tmp_path)
    store = FeatureStore.load(tmp_path)
    n_bins, n = len(store.meta["histogram_edges"]) - 1, len(store)
    bins = np.zeros((n, n_bins), dtype=np.int64)
    bins[: n // 10] = 1
    flat = pa.array(bins.ravel())
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * n_bins)
    silent = with_column(store.latents, "histogram", pa.ListArray.from_arrays(offsets, flat))
    FeatureStore(silent, store.examples, store.meta).save(tmp_path / "silent")
    assert FeatureStore.load(tmp_path / "silent")[n - 1].histogram == [0] * n_bins
    assert list(shown_latents(tmp_path / "silent"))


def test_a_sparse_tensor_is_refused_by_its_name(tmp_path):
    torch.save(
        {"pre_bias": torch.eye(4).to_sparse(), "latent_bias": torch.ones(4)}, tmp_path / "sae.pt"
    )
    with pytest.raises(ValueError, match="pre_bias is a sparse tensor; save it as a dense one"):
        hfsae.load(tmp_path / "sae.pt")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", "nonsense"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_config_names_a_dtype_of_weights_alone(saved, dtype, key):
    config = json.loads((saved / "config.json").read_text())
    config.pop("dtype")
    (saved / "config.json").write_text(json.dumps({**config, key: dtype}))
    with pytest.raises(ValueError, match=f"dtype must be one of float32, .*, got '{dtype}'"):
        AutoModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"W_enc": torch.ones(4, 8, dtype=torch.int32)}, "W_enc is stored as torch.int32"),
        ({"W_dec": torch.ones(100_000, 4)}, "W_dec has shape .*, but W_enc has"),
        ({"b_enc": torch.ones(1)}, r"b_enc has shape \[1\], but W_enc has \[8\]"),
        ({"b_dec": torch.ones(4, 1)}, "b_dec has shape .*, too many dimensions"),
    ],
)
def test_tensors_are_looked_at_before_they_are_multiplied(tmp_path, change, sentence):
    state = {"W_enc": torch.ones(4, 8), "W_dec": torch.ones(8, 4)}
    state |= {"b_enc": torch.ones(8), "b_dec": torch.ones(4), **change}
    save_file(state, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": 4, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "none"}))
    with pytest.raises(ValueError, match=sentence):
        hfsae.load(tmp_path)
