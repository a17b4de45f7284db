"""circuit-tracer's folders, written and computed here without its code or hfsae's."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hfsae
from hfsae.cli import main
from hfsae.convert import save_as, save_set_as
from hfsae.models import SAE, JumpReLUSAE, JumpReLUSAEConfig, ReLUSAE, TopKSAE, TopKSAEConfig

from ..helpers import refused

D_IN, D_SAE, N_LAYERS = 6, 16, 3
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
CONFIG = {"model_name": "meta-llama/Llama-3.2-1B", "model_kind": "transcoder_set", **HOOKS}
KINDS = {"relu": ReLUSAE, "jumprelu": JumpReLUSAE, "topk": TopKSAE}
X = torch.randn(32, D_IN, generator=torch.Generator().manual_seed(5))


def layer(seed: int, kind: str, skip: bool) -> dict[str, torch.Tensor]:
    """The tensors of SingleLayerTranscoder.to_safetensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_SAE, D_IN), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    state = {n: torch.randn(*shape, generator=generator) for n, shape in shapes.items()}
    if kind == "jumprelu":
        threshold = torch.rand(D_SAE, generator=generator)
        state["activation_function.threshold"] = threshold
    if skip:
        state["W_skip"] = torch.randn(D_IN, D_IN, generator=generator)
    return state


def literal(state: dict[str, torch.Tensor], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and outputs, a latent at a time."""
    z = torch.stack([(X * w).sum(dim=-1) for w in state["W_enc"]], dim=-1) + state["b_enc"]
    if kind == "topk":
        f = z * (z >= z.sort(dim=-1, descending=True).values[:, 3:4])
    else:
        f = z * (z > state.get("activation_function.threshold", torch.zeros(D_SAE)))
    y = sum(f[:, i : i + 1] * state["W_dec"][i] for i in range(D_SAE)) + state["b_dec"]
    if "W_skip" in state:
        y = y + torch.einsum("nd,ed->ne", X, state["W_skip"])
    return f, y


def written(folder: Path, kind: str = "relu", skip: bool = False, **config) -> list[dict]:
    """Their folder, and the tensors of its layers."""
    folder.mkdir()
    layers = [layer(i, kind, skip) for i in range(N_LAYERS)]
    for i, state in enumerate(layers):
        save_file(state, folder / f"layer_{i}.safetensors")
    more = {"activation": "topk", "k": 4} if kind == "topk" else {}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | more | config))
    return layers


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_a_set_of_their_functions_and_goes_back_to_the_bit(kind, skip, tmp_path):
    layers = written(tmp_path / "theirs", kind, skip)
    saes = hfsae.load_set(tmp_path / "theirs")
    assert list(saes) == [f"layer_{i}.safetensors" for i in range(N_LAYERS)]
    for i, (sae, state) in enumerate(zip(saes.values(), layers, strict=True)):
        assert type(sae) is KINDS[kind]
        assert (sae.config.site, sae.config.target_site) == (
            f"layers.{i}.mlp:in",
            f"layers.{i}.mlp",
        )
        f, y = literal(state, kind)
        out = sae(X)
        assert (out.latents - f).abs().max() < 1e-5 and (out.recon - y).abs().max() < 1e-5
        one = hfsae.load(tmp_path / "theirs", layer=i)
        assert torch.equal(one(X).recon, out.recon)
    back = save_set_as(saes, tmp_path / "back", "circuit_tracer")
    for i, state in enumerate(layers):
        ours = load_file(back / f"layer_{i}.safetensors")
        assert ours.keys() == state.keys()
        assert all(torch.equal(ours[name], state[name]) for name in state)
    config = yaml.safe_load((back / "config.yaml").read_text())
    assert config.items() >= CONFIG.items() and config.get("k") == (4 if kind == "topk" else None)


def test_a_folder_is_listed_by_layer_and_converted_by_the_command(tmp_path, capsys):
    written(tmp_path / "theirs")
    entries = hfsae.list_saes(tmp_path / "theirs")
    assert [(e.format, e.layer) for e in entries] == [("circuit_tracer", i) for i in range(3)]
    to = ["--to", "circuit_tracer"]
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "back"), *to]) == 0
    assert "3 SAEs" in capsys.readouterr().out
    own = ["--to", "hfsae", "--layer", "1"]
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "own"), *own]) == 0
    a, b = hfsae.load(tmp_path / "back", layer=1), hfsae.load(tmp_path / "own")
    assert torch.equal(a(X).recon, b(X).recon)
    last = ["convert", str(tmp_path / "theirs"), str(tmp_path / "one"), *to, "--layer", "1"]
    assert "needs one transcoder at each layer from 0, got 1" in refused(last, capsys)


@pytest.mark.parametrize(
    "model_name, hooks, places",
    [
        ("gpt2", ("mlp.hook_in", "mlp.hook_out"), ("h.1.mlp:in", "h.1.mlp")),
        (
            "google/gemma-2-2b",
            ("mlp.hook_in", "hook_mlp_out"),
            ("layers.1.mlp:in", "layers.1.post_feedforward_layernorm"),
        ),
        ("google/gemma-2-2b", ("mlp.hook_in", "mlp.hook_out"), ("layers.1.mlp:in", "layers.1.mlp")),
        (
            "Qwen/Qwen3-0.6B",
            ("hook_resid_mid", "hook_mlp_out"),
            ("layers.1.post_attention_layernorm:in", "layers.1.mlp"),
        ),
        ("google/gemma-2-2b", ("ln2.hook_normalized", "hook_mlp_out"), (None, None)),
        ("somebody/model", ("mlp.hook_in", "hook_mlp_out"), (None, "unknown")),
    ],
)
def test_hooks_of_the_config_are_sites(model_name, hooks, places, tmp_path):
    names = dict(zip(HOOKS, hooks, strict=True))
    written(tmp_path / "theirs", model_name=model_name, **names)
    config = hfsae.load(tmp_path / "theirs", layer=1).config
    assert config.site == places[0] and (places[1] in (None, config.target_site))


def transcoder(i: int, **fields: object) -> SAE:
    return JumpReLUSAE(JumpReLUSAEConfig.from_dict(places(i) | fields))


def places(i: int) -> dict[str, object]:
    place = {"site": f"layers.{i}.mlp:in", "target_site": f"layers.{i}.mlp"}
    return {"d_in": 4, "d_sae": 8, "model_name": "Qwen/Qwen3-0.6B", **place}


def test_the_norms_output_is_what_an_mlp_reads(tmp_path):
    place = {"site": "layers.0.pre_feedforward_layernorm", "model_name": "google/gemma-3-1b-pt"}
    sae = transcoder(0, target_site="layers.0.post_feedforward_layernorm", **place)
    config = yaml.safe_load(
        (save_as(sae, tmp_path / "a", "circuit_tracer") / "config.yaml").read_text()
    )
    assert config.items() >= HOOKS.items()


@pytest.mark.parametrize(
    "saes, sentence",
    [
        (lambda: [transcoder(1)], "at each layer from 0, got 1"),
        (lambda: [transcoder(0), transcoder(2)], "at each layer from 0, got 0, 2"),
        (lambda: [transcoder(0), transcoder(0)], "at each layer from 0, got 0, 0"),
        (lambda: [], "at each layer from 0, got none"),
        (lambda: [transcoder(0), transcoder(1, d_sae=9)], "alike in width, but layer 0 has 8"),
        (lambda: [transcoder(0), transcoder(1, skip_connection=True)], "alike in skip"),
        (lambda: [transcoder(0, target_site=None)], "hold transcoders"),
        (lambda: [transcoder(0, site=None, target_site="x")], "names no layer"),
        (lambda: [transcoder(0, model_name="x/y")], "no TransformerLens hook is known for 'layers"),
        (
            lambda: [TopKSAE(TopKSAEConfig.from_dict(places(0) | {"k": 2}))],
            "negative ones included; this SAE's",
        ),
    ],
)
def test_what_circuit_tracer_could_not_load_is_refused(saes, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as caught:
        save_set_as(saes(), tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_format_of_one_sae_a_folder_is_refused_for_a_set(tmp_path):
    with pytest.raises(ValueError, match=r"holds one SAE; write each by save_as, or to circuit_tr"):
        save_set_as([transcoder(0)], tmp_path / "out", "saelens")


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"model_kind": "something"}, "model_kind 'something' is not transcoder_set"),
        ({"activation": "topk", "k": None}, r"its activation is topk; give k in config\.yaml"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(config, sentence, tmp_path):
    written(tmp_path / "theirs", **config)
    with pytest.raises(ValueError, match=sentence) as caught:
        hfsae.load(tmp_path / "theirs", layer=0)
    assert "layer_0.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "theirs" / "config.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="holds no fields"):
        hfsae.load(tmp_path / "theirs", layer=0)


def test_a_threshold_below_0_is_refused(tmp_path):
    (state, *_) = written(tmp_path / "theirs", "jumprelu")
    state["activation_function.threshold"][3] = -0.5
    save_file(state, tmp_path / "theirs" / "layer_0.safetensors")
    with pytest.raises(ValueError, match=r"threshold of latent 3 is -0\.5"):
        hfsae.load(tmp_path / "theirs", layer=0)
