"""Cross-layer dictionaries in the folders of Gemma Scope 2 and circuit-tracer, written here."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hfsae
from hfsae.convert import save_as
from hfsae.models import BatchTopKCLT, BatchTopKCLTConfig, JumpReLUCLT

N, W, D = 3, 5, 8
X = torch.randn(40, N, W, generator=torch.Generator().manual_seed(7))
CLT = Path("gemma-scope-2-270m-pt/clt/width_24_l0_medium")
CROSSCODER = Path("gemma-scope-2-1b-it/crosscoder/layer_7_13_17_width_24_l0_medium")


def weights(skip: bool = False, relu: bool = False) -> list[dict[str, torch.Tensor]]:
    """By source, in Gemma Scope 2's names and shapes; rows to earlier targets are 0."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w_enc": (W, D), "b_enc": (D,), "threshold": (D,), "w_dec": (D, N, W), "b_dec": (W,)}
    shapes |= {"affine_skip_connection": (W, W)} if skip else {}
    sources = [
        {n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(N)
    ]
    for s, source in enumerate(sources):
        source["w_dec"][:, :s] = 0
        source["threshold"] = 0 * source["threshold"] if relu else source["threshold"].abs()
    return sources


def literal(sources: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """y^t = sum over s <= t, latent by latent, in float64."""
    x = X.double()
    z = [x[:, s] @ source["w_enc"].double() + source["b_enc"] for s, source in enumerate(sources)]
    f = [each * (each > source["threshold"]) for each, source in zip(z, sources, strict=True)]
    y = torch.zeros(len(x), N, W, dtype=torch.float64)
    for t in range(N):
        y[:, t] += sources[t]["b_dec"]
        for s in range(t + 1):
            for i in range(D):
                y[:, t] += f[s][:, i : i + 1] * sources[s]["w_dec"][i, t]
        if "affine_skip_connection" in sources[t]:
            y[:, t] += x[:, t] @ sources[t]["affine_skip_connection"].double()
    return torch.cat(f, dim=-1), y.flatten(1)


def gemma(
    folder: Path, sources: list, numbers: Iterable[int] = range(N), config: dict | None = None
) -> Path:
    folder.mkdir(parents=True)
    for i, source in zip(numbers, sources, strict=True):
        save_file(source, folder / f"params_layer_{i}.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
CONFIG = {"model_name": "meta-llama/Llama-3.2-1B", "model_kind": "cross_layer_transcoder", **HOOKS}


def circuit_tracer(folder: Path, sources: list, relu: bool = False) -> Path:
    """As CrossLayerTranscoder.to_safetensors writes it."""
    folder.mkdir(parents=True)
    for i, source in enumerate(sources):
        read = {f"W_enc_{i}": source["w_enc"].T.contiguous()}
        read |= {f"{name}_{i}": source[name] for name in ("b_enc", "b_dec")}
        if not relu:
            read[f"threshold_{i}"] = source["threshold"]
        save_file(read, folder / f"W_enc_{i}.safetensors")
        rows = source["w_dec"][:, i:].contiguous()
        save_file({f"W_dec_{i}": rows}, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def agree(sae, sources: list) -> None:
    f, y = literal(sources)
    out = sae(X.flatten(1))
    assert isinstance(sae, JumpReLUCLT) and 0.1 < (f > 0).double().mean() < 0.6
    assert (out.latents - f).abs().max() < 1e-5 and (out.recon - y).abs().max() < 1e-5


def same_tensors(one: Path, other: Path) -> bool:
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors"))
    for name in files:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        if not all(torch.equal(a[n], b[n]) for n in a):
            return False
    return True


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "path, numbers", [(CLT, (0, 1, 2)), (CROSSCODER, (0, 1, 2)), (CROSSCODER, (7, 13, 17))]
)
def test_gemma_scope_2s_folders_are_their_formula_and_go_back_to_the_bit(
    path, numbers, skip, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    gemma(path, sources := weights(skip), numbers)
    sae = hfsae.load(path)
    agree(sae, sources)
    if path == CLT:
        assert sae.config.sites == [f"layers.{i}.pre_feedforward_layernorm" for i in range(N)]
        assert sae.config.targets == [f"layers.{i}.post_feedforward_layernorm" for i in range(N)]
        assert sae.config.model_name == "google/gemma-3-270m-pt"
    else:
        assert sae.config.sites == sae.config.targets == ["layers.7", "layers.13", "layers.17"]
        assert sae.config.model_name == "google/gemma-3-1b-it"
    back = save_as(sae, tmp_path / "back", "gemma_scope_2_layers")
    again = hfsae.load(back)
    assert (again.config.sites, again.config.targets) == (sae.config.sites, sae.config.targets)
    assert again.config.model_name == sae.config.model_name
    if numbers[0] == 0:
        assert same_tensors(path, back)
    assert torch.equal(again(X.flatten(1)).recon, sae(X.flatten(1)).recon)


@pytest.mark.parametrize("relu", [False, True])
def test_circuit_tracers_folder_is_its_formula_and_goes_back_to_the_bit(relu, tmp_path):
    folder = circuit_tracer(tmp_path / "theirs", sources := weights(relu=relu), relu)
    (entry,) = hfsae.list_saes(folder)
    assert entry.format == "circuit_tracer_clt"
    sae = hfsae.load(folder)
    agree(sae, sources)
    assert sae.config.sites == [f"layers.{i}.mlp:in" for i in range(N)]
    assert sae.config.targets == [f"layers.{i}.mlp" for i in range(N)]
    back = save_as(sae, tmp_path / "back", "circuit_tracer_clt")
    assert same_tensors(folder, back)
    assert yaml.safe_load((back / "config.yaml").read_text()).items() >= CONFIG.items()


def test_a_skip_connection_in_circuit_tracers_files_is_applied_as_its_class_does(tmp_path):
    folder = circuit_tracer(tmp_path / "theirs", sources := weights(skip=True))
    for i, source in enumerate(sources):
        path = folder / f"W_enc_{i}.safetensors"
        save_file(load_file(path) | {f"W_skip_{i}": source["affine_skip_connection"]}, path)
    sae = hfsae.load(folder)
    agree(sae, sources)
    with pytest.raises(ValueError, match=r"does not read .* skip connection"):
        save_as(sae, tmp_path / "back", "circuit_tracer_clt")


@pytest.mark.parametrize("to", ["gemma_scope_2_layers", "circuit_tracer_clt"])
def test_one_in_its_own_units_is_written_as_the_same_function(to, tmp_path):
    fields = {"sites": [f"layers.{i}.mlp:in" for i in range(N)], "site_scales": [1.0, 3.0, 9.0]}
    fields |= {"target_sites": [f"layers.{i}.mlp" for i in range(N)], "k": 6}
    fields |= {"activation_scale": 2.0, "target_scales": [0.5, 1.0, 2.0], "target_scale": 2.5}
    torch.manual_seed(0)
    config = BatchTopKCLTConfig(
        d_in=N * W, d_sae=N * D, model_name="meta-llama/Llama-3.2-1B", **fields
    )
    sae = BatchTopKCLT(config).eval()
    with torch.no_grad():
        sae.b_enc.uniform_(-0.1, 0.1)
        sae.b_dec.uniform_(-0.1, 0.1)
        sae.threshold.fill_(0.3)
    back = hfsae.load(save_as(sae, tmp_path / "a", to))
    x = torch.randn(64, N, W, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[1.0], [3], [9]]
    )
    ours, theirs = sae(x.flatten(1)), back(x.flatten(1))
    assert 0.05 < (ours.latents > 0).float().mean() < 0.6
    assert (ours.latents - theirs.latents).abs().max() < 1e-5
    assert (ours.recon - theirs.recon).abs().max() < 1e-5
    assert (back.config.sites, back.config.targets) == (sae.config.sites, sae.config.targets)


@pytest.mark.parametrize("missing", range(N))
def test_a_folder_with_a_layer_missing_is_refused_by_name(missing, tmp_path):
    gemma(tmp_path / CLT, weights())
    (tmp_path / CLT / f"params_layer_{missing}.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"no params_layer_{missing}\.safetensors: a layer is"):
        hfsae.load(tmp_path / CLT)
    for kind in ("W_enc", "W_dec"):
        folder = circuit_tracer(tmp_path / kind, weights())
        (folder / f"{kind}_{missing}.safetensors").unlink()
        with pytest.raises(ValueError, match=rf"no {kind}_{missing}\.safetensors: a layer is"):
            hfsae.load(folder)
    (folder / f"W_enc_{missing}.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"no W_(enc|dec)_{missing}\.safetensors: a layer is"):
        hfsae.load(folder)


def test_a_crosscoder_with_a_layer_missing_or_one_too_many_is_refused_by_name(tmp_path):
    folder = gemma(tmp_path / CROSSCODER, weights(), (7, 13, 17))
    (folder / "params_layer_13.safetensors").rename(folder / "params_layer_14.safetensors")
    with pytest.raises(ValueError, match=r"no params_layer_\d+\.safetensors"):
        hfsae.load(folder)
    folder = gemma(tmp_path / "more" / CLT, weights())
    shutil.copy(folder / "params_layer_2.safetensors", folder / "params_layer_3.safetensors")
    with pytest.raises(ValueError, match=r"has params_layer_3\.safetensors, but its files write"):
        hfsae.load(folder)


def test_rows_to_earlier_targets_are_refused_by_file_unless_they_are_about_0(tmp_path):
    sources = weights()
    sources[1]["w_dec"][2, 0, 3] = 1e-5
    agree_about(hfsae.load(gemma(tmp_path / "a" / CLT, sources)), weights())
    sources[1]["w_dec"][2, 0, 3] = 0.1
    with pytest.raises(ValueError, match=r"params_layer_1\.safetensors writes to layers before"):
        hfsae.load(gemma(tmp_path / "b" / CLT, sources))


def agree_about(sae, sources: list) -> None:
    assert (sae(X.flatten(1)).recon - literal(sources)[1]).abs().max() < 1e-4


def test_a_path_that_names_nothing_leaves_sites_to_the_user(tmp_path):
    sae = hfsae.load(gemma(tmp_path / "mine", weights(), config={"model_name": "gemma-v3-1b-pt"}))
    assert sae.config.sites == ["unknown/0", "unknown/1", "unknown/2"]
    assert sae.config.model_name == "google/gemma-3-1b-pt"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: s[1].pop("b_dec"), r"params_layer_1\.safetensors lacks b_dec"),
        (lambda s: s[0].pop("w_dec"), "w_dec"),
        (lambda s: s[1].update(b_enc=torch.zeros(D + 1)), "b_enc has shape"),
        (lambda s: s[2].update(w_dec=torch.zeros(D, N + 1, W)), "W_dec_2 has shape"),
        (lambda s: s[0].update(w_dec=torch.zeros(D, W)), r"not \[D, n, d\]"),
        (lambda s: s[1].update(b_enc=s[1]["b_enc"] / 0), "NaN or infinite"),
        (lambda s: s[0].update(affine_skip_connection=torch.zeros(W, W)), "it lacks 'W_skip'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, sentence, tmp_path):
    sources = weights()
    change(sources)
    with pytest.raises(ValueError, match=sentence) as caught:
        hfsae.load(gemma(tmp_path / CLT, sources))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_saes_and_other_formats_are_refused(tmp_path):
    sae = hfsae.load(gemma(tmp_path / CLT, weights()))
    for to in ("saelens", "gemma_scope_2", "dictionary_learning", "sparsify", "circuit_tracer"):
        with pytest.raises(ValueError, match=r"several sites|TopK SAEs|no layer"):
            save_as(sae, tmp_path / to, to)
    with pytest.raises(ValueError, match=r"layers are all, from 0|no TransformerLens hook"):
        moved = hfsae.load(gemma(tmp_path / CROSSCODER, weights()))
        save_as(moved, tmp_path / "a", "circuit_tracer_clt")
    plain = hfsae.JumpReLUSAE(hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8))
    for to in ("gemma_scope_2_layers", "circuit_tracer_clt"):
        with pytest.raises(ValueError, match=r"write at later targets too .*not a JumpReLUSAE"):
            save_as(plain, tmp_path / to, to)
