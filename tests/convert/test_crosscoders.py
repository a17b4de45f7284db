"""Crosscoders in the files of two other libraries, against their formulas in numpy."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hfsae
from hfsae.convert import save_as
from hfsae.models import BatchTopKSAE, JumpReLUSAE, ReLUSAE

L, D_IN, D_SAE, N = 2, 6, 20, 64
IDS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}


def tensors(kind: str | None = None, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state dict of science-of-finetuning's crosscoder; of BatchTopK, if a kind is given."""
    rng = np.random.default_rng(0)
    shapes = {"encoder.weight": (L, D_IN, D_SAE), "encoder.bias": (D_SAE,)}
    shapes |= {"decoder.weight": (L, D_SAE, D_IN), "decoder.bias": (L, D_IN)}
    state = {n: torch.tensor(rng.normal(size=s), dtype=torch.float32) for n, s in shapes.items()}
    state["decoder.weight"] *= torch.linspace(0.1, 2, D_SAE)[:, None]
    state["decoder.weight"][1, :5] = 0
    if kind is not None:
        state |= {"code_normalization_id": torch.tensor(IDS[kind]), "k": torch.tensor(4)}
        state["threshold"] = torch.tensor(2.5)
    return state | more


def written(folder: Path, state: dict, config: dict, name: str = "model_final") -> Path:
    folder.mkdir(parents=True)
    (folder / ("cfg.json" if name == "cc_weights" else "config.json")).write_text(
        json.dumps(config)
    )
    save_file({n: t.contiguous() for n, t in state.items()}, folder / f"{name}.safetensors")
    return folder


def of_norm(kind: str, D: np.ndarray) -> np.ndarray:
    """Their get_code_normalization, latent by latent."""
    sae = np.array([np.linalg.norm(D[:, i]) for i in range(D_SAE)])
    crosscoder = np.array([sum(np.linalg.norm(D[s, i]) for s in range(L)) for i in range(D_SAE)])
    mixed, none = 1.0 * sae + 0.1 * crosscoder, np.ones(D_SAE)
    return {"SAE": sae, "CROSSCODER": crosscoder, "MIXED": mixed, "NONE": none}[kind]


def literal(state: dict, x: np.ndarray, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Their BatchTopKCrossCoder.encode and decode, use_threshold=True: f, and what it writes."""
    E, b, D, c = (state[n].double().numpy() for n in list(tensors())[:4])
    is_normal = "activation_mean" in state and not state["activation_mean"].isnan().any()
    if is_normal:
        mean, gain = (state[f"activation_{n}"].numpy() for n in ("mean", "global_scale"))
        x = (x - mean) * gain[:, None]
    f = np.maximum(sum(x[:, s] @ E[s] for s in range(L)) + b, 0)
    if kind is not None:
        f = f * (f * of_norm(kind, D) > float(state["threshold"]))
    recon = np.stack([f @ D[s] + c[s] for s in range(L)], axis=1)
    return f, recon / (gain[:, None] + 1e-8) + mean if is_normal else recon


def inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, L, D_IN))


def agree(sae, state: dict, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Check that reconstructions and firing latents are theirs; returns both sides' latents."""
    x = inputs()
    f, recon = literal(state, x, kind)
    out = sae(torch.tensor(x, dtype=torch.float32).flatten(1))
    assert 0.05 < (f > 0).mean() < 0.7
    assert (out.latents.detach().numpy() > 0).tolist() == (f > 0).tolist()
    assert np.abs(out.recon.detach().numpy() - recon.reshape(N, -1)).max() < 2e-5
    return out.latents.detach().numpy(), f


NORMALISER = {
    "activation_mean": torch.linspace(-1, 1, L * D_IN).reshape(L, D_IN),
    "activation_std": torch.linspace(0.5, 2, L * D_IN).reshape(L, D_IN),
    "activation_global_scale": torch.tensor([0.9, 0.35]),
    "target_rms": torch.tensor(1.5),
}


@pytest.mark.parametrize("normaliser", [{}, NORMALISER], ids=["plain", "normalised"])
@pytest.mark.parametrize("kind", ["CROSSCODER", "SAE", "MIXED", "NONE"])
def test_a_batchtopk_crosscoder_keeps_the_latents_that_theirs_keeps(kind, normaliser, tmp_path):
    state = tensors(kind, **normaliser)
    config = {"trainer": {"dict_class": "BatchTopKCrossCoder", "layer": 13, "k": 4}}
    folder = written(tmp_path / "run", state, config)
    (entry,) = hfsae.list_saes(folder)
    assert entry.format == "crosscoder"
    sae = hfsae.load(folder)
    assert sae.config.sites == ["base/layers.13", "chat/layers.13"]
    assert type(sae) is (BatchTopKSAE if kind in ("CROSSCODER", "SAE") else JumpReLUSAE)
    ours, f = agree(sae, state, kind)
    D = state["decoder.weight"].numpy()
    size = 1 / (NORMALISER["activation_global_scale"].numpy() + 1e-8) if normaliser else np.ones(L)
    unit = np.sqrt((size**2).mean())
    norm = of_norm("SAE" if kind == "SAE" else "CROSSCODER", D)
    assert np.abs(ours - f * norm * unit).max() < 1e-4 * unit
    shares = np.stack([np.linalg.norm(D[s], axis=-1) for s in range(L)], axis=-1)
    assert np.allclose(sae.shares, shares / shares.sum(axis=-1, keepdims=True), atol=1e-5)
    if kind != "SAE":
        assert torch.allclose(sae.row_norms(sae.W_dec), torch.ones(D_SAE), atol=1e-5)
    if normaliser:
        assert np.allclose(sae.config.site_scales or 0, 1.5 * size)


def test_a_crosscoder_with_an_l1_penalty_is_relu_with_rows_of_norm_1(tmp_path):
    state = tensors(activation_mean=torch.full((L, D_IN), torch.nan))
    state["activation_std"] = state[
        "activation_mean"
    ].clone()  # as they save it without a normaliser
    state = {f"_orig_mod.{name}": t for name, t in state.items()}
    folder = written(tmp_path / "runs" / "cc-l7", state, {"trainer": {}}, "ae")
    sae = hfsae.load(folder)
    assert type(sae) is ReLUSAE and sae.config.penalty == "ri_l1"
    assert sae.config.sites == ["base/layers.7", "chat/layers.7"]
    ours, f = agree(sae, tensors(), None)
    assert np.allclose(
        ours, f * of_norm("CROSSCODER", tensors()["decoder.weight"].numpy()), atol=1e-4
    )
    back = hfsae.load(save_as(sae, tmp_path / "back", "hfsae"))
    assert {n: t.tolist() for n, t in back.state_dict().items()} == {
        n: t.tolist() for n, t in sae.state_dict().items()
    }


def test_one_from_the_hub_has_the_file_names_of_hfsae_and_is_told_apart(tmp_path):
    state = tensors("CROSSCODER")
    config = {"activation_dim": D_IN, "dict_size": D_SAE, "num_layers": L, "k": 4}
    folder = written(tmp_path / "crosscoder-l13", state, config, "model")
    (entry,) = hfsae.list_saes(folder)
    assert (entry.width, entry.l0) == (D_SAE, 4)
    agree(hfsae.load(folder), state, "CROSSCODER")


def test_ckkissanes_crosscoder_is_the_same_function_and_its_factors_can_be_set(tmp_path):
    state = tensors()
    theirs = {"W_enc": state["encoder.weight"], "b_enc": state["encoder.bias"]}
    theirs |= {"W_dec": state["decoder.weight"].transpose(0, 1), "b_dec": state["decoder.bias"]}
    config = {"model_name": "gemma-2-2b", "hook_point": "blocks.14.hook_resid_pre"}
    folder = written(tmp_path / "14", theirs, config | {"dict_size": D_SAE}, "cc_weights")
    (entry,) = hfsae.list_saes(folder)
    assert (entry.format, entry.layer, entry.width) == ("model_diff", 14, D_SAE)
    with pytest.warns(UserWarning, match="times a factor for each model that its files do not"):
        sae = hfsae.load(folder)
    assert sae.config.sites == ["base/layers.14:in", "chat/layers.14:in"]
    agree(sae, state, None)
    factors = np.array([0.3, 0.25])
    sae.config.activation_scale = 1
    sae.config.site_scales = [1 / (factor * L**0.5) for factor in factors]
    f, recon = literal(state, inputs() * factors[:, None], None)
    out = sae(torch.tensor(inputs(), dtype=torch.float32).flatten(1))
    recon = recon / factors[:, None]
    assert np.abs(out.recon.detach().numpy() - recon.reshape(N, -1)).max() < 1e-4
    assert (out.latents.detach().numpy() > 0).tolist() == (f > 0).tolist()


def test_a_pickle_is_refused_with_two_lines_that_convert_it(tmp_path):
    for name, config in (("model_final", "config.json"), ("cc_weights", "cfg.json")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / config).write_text("{}")
        state = tensors()
        if name == "cc_weights":
            state = {"W_enc": state["encoder.weight"], "b_enc": state["encoder.bias"]}
            state["W_dec"] = tensors()["decoder.weight"].transpose(0, 1)  # not contiguous
            state["b_dec"] = tensors()["decoder.bias"]
        torch.save(state, folder / f"{name}.pt")
        with pytest.raises(
            ValueError, match=r"is a pickle, .* never read; convert it by"
        ) as caught:
            hfsae.load(folder)
        assert "\n" not in str(caught.value)
        lines = str(caught.value).split("`")[1::2]
        import safetensors

        exec("\n".join(lines), {"torch": torch, "safetensors": safetensors})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            agree(hfsae.load(folder), tensors(), None)


def test_a_crosscoder_in_ae_pt_is_refused_with_the_same_lines(tmp_path):
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "CrossCoder"}}')
    torch.save(tensors(), tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt is a pickle.*ae\.safetensors"):
        hfsae.load(tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: s.pop("decoder.bias"), r"it lacks 'decoder\.bias'"),
        (lambda s: s.update({"decoder.bias": torch.zeros(D_IN)}), r"decoder\.bias is .* \[2, 6\]"),
        (lambda s: s.update({"encoder.bias": torch.zeros(D_SAE).int()}), "torch.int32"),
        (lambda s: s.update({"encoder.weight": torch.zeros(3, 4)}), r"not \[L, d, D\]"),
        (lambda s: s.update(code_normalization_id=torch.tensor(5)), "DECOUPLED"),
        (lambda s: s.update(threshold=torch.zeros(2)), "DECOUPLED"),
        (lambda s: s.update(code_normalization_id=torch.tensor(9)), "'unknown' is unknown"),
        (lambda s: s.update({"encoder.bias": s["encoder.bias"] / 0}), "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_the_folder(change, sentence, tmp_path):
    state = tensors("CROSSCODER")
    change(state)
    folder = written(tmp_path / "cc", state, {"trainer": {}})
    with pytest.raises(ValueError, match=sentence) as caught:
        hfsae.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_other_formats_refuse_several_sites(tmp_path):
    sae = hfsae.load(written(tmp_path / "cc", tensors("CROSSCODER"), {"trainer": {"layer": 1}}))
    for to in ("saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning", "circuit_tracer"):
        with pytest.raises(ValueError, match=r"several sites|no layer|transcoder at each"):
            save_as(sae, tmp_path / to, to)


def test_a_crosscoder_as_jumprelu_keeps_its_sites_and_models(tmp_path):
    state = tensors("CROSSCODER", **NORMALISER)
    sae = hfsae.load(written(tmp_path / "cc", state, {"trainer": {"layer": 1}}))
    sae.config.model_names = {"base": "a", "chat": "b"}
    sae.config.model_dtype = {"base": "float32", "chat": "bfloat16"}
    jump = hfsae.convert.to_jumprelu(sae)
    assert jump.config.sites == sae.config.sites
    assert jump.config.model_names == sae.config.model_names
    assert jump.config.model_dtype == sae.config.model_dtype
    assert torch.allclose(jump.shares, sae.shares)
    agree(jump, state, "CROSSCODER")
