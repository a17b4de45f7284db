"""Vision models, loaded from folders, and what is read at their sites."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from hfsae.io.errors import HubRefused
from hfsae.lm import (
    LoadedEncoder,
    capture,
    contract,
    empty_encoder,
    empty_lm,
    forward,
    load_encoder,
    load_lm,
    load_tokenizer,
    n_positions,
    site_width,
    smallest_inputs,
)

from ..tiny_encoders import (
    N_PATCHES,
    SIDE,
    VISION,
    D,
    block,
    save_processor,
    whole_model,
)
from ..tiny_encoders import save_encoder as save

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {family: save(family, root / family) for family in (*VISION, "wav2vec2")}


@pytest.fixture(scope="module")
def load(folders) -> Callable[[str], LoadedEncoder]:
    return lambda family: load_encoder(folders[family], device="cpu")


def inputs_for(model: PreTrainedModel, rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(rows, 3, SIDE, SIDE, generator=generator)}


def hidden_states(family: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """By the model's own means: of the whole of it, where only a tower is loaded."""
    model = whole_model(family)
    tower = model.vision_model if family in ("clip", "siglip") else model
    return tower(**inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", VISION)
def test_what_is_captured_at_a_block_is_its_hidden_state(family, load):
    model = load(family).model
    inputs = inputs_for(model)
    with torch.no_grad():
        expected = hidden_states(family, inputs)
        for number in (0, 1):
            site = block(model, number)
            with capture(model, [site], stop_early=True) as acts:
                forward(model, inputs)
            assert torch.equal(acts[site], expected[number + 1]), site


@pytest.mark.parametrize("family", VISION)
def test_an_encoder_loads_frozen_with_its_processor(family, load, folders):
    loaded = load(family)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.origin == f"folder {folders[family]}"
    assert type(loaded.processor).__name__.removesuffix("Pil") == VISION[family][3]
    assert site_width(loaded.model, block(loaded.model, 2)) == D
    empty = empty_encoder(folders[family])
    assert empty.device.type == "meta" and type(empty) is type(loaded.model)
    assert site_width(empty, block(empty, 0)) == D


def test_of_two_towers_the_one_of_pictures_is_loaded_and_nothing_is_said_of_the_other(
    folders, caplog
):
    for family, kind in (("clip", CLIPVisionModel), ("siglip", SiglipVisionModel)):
        assert isinstance(load_encoder(folders[family]).model, kind)
    assert "UNEXPECTED" not in caplog.text and "text_model" not in caplog.text


def test_dtype_is_a_name_and_inputs_are_cast_to_it(folders):
    model = load_encoder(folders["clip"], dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert forward(model, inputs_for(model)).last_hidden_state.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'bf17' does not exist"):
        load_encoder(folders["vit"], dtype="bf17")


@pytest.mark.parametrize("family", VISION)
def test_positions_are_counted_without_a_picture(family, load):
    model = load(family).model
    sites = [block(model, 0), block(model, 2)]
    n = N_PATCHES + VISION[family][5]
    assert n_positions(model, sites, smallest_inputs(model)) == n
    assert n_positions(model, sites, inputs_for(model)) == n


def test_sites_that_are_no_sequence_of_vectors_are_refused(load):
    model = load("vit").model
    with pytest.raises(ValueError, match=r"site 'pooler' has activations of shape \[1, 16\]"):
        site_width(model, "pooler")
    with pytest.raises(ValueError, match=r"site 'layers.9' is"):
        site_width(model, "layers.9")


def test_inputs_of_another_size_than_the_model_takes_are_one_sentence(load):
    model = load("vit").model
    with pytest.raises(ValueError, match=r"ViTModel does not take pixel_values \(1, 3, 14, 14\)"):
        n_positions(model, [block(model, 0)], {"pixel_values": torch.zeros(1, 3, 14, 14)})


def test_a_pooling_layer_that_the_files_lack_is_left_out(folders, tmp_path, caplog):
    folder = Path(save("vit", tmp_path / "vit"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", logger="hfsae.lm"):
        model = load_encoder(str(folder)).model
    output = forward(model, inputs_for(model))
    whole = load_encoder(folders["vit"]).model
    assert output.pooler_output is None and "pooling layer, which is left out" in caplog.text
    assert torch.equal(
        output.last_hidden_state, forward(whole, inputs_for(whole)).last_hidden_state
    )


def test_missing_weights_are_refused_and_not_made_at_random(tmp_path):
    folder = Path(save("dinov2", tmp_path / "dino"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp.fc1.weight" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot be loaded: its files lack .*fc1.weight, which"):
        load_encoder(str(folder))


def test_a_folder_without_a_processor_is_refused_with_the_remedy(tmp_path):
    whole_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"comes without a processor .*save_pretrained\(folder\)"):
        load_encoder(str(tmp_path))
    save_processor("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*preprocessor_config.json") as caught:
        load_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"is a local path, but the folder '.*' holds no 'vit'"):
        load_encoder(str(tmp_path / "vit"))
    with pytest.raises(HubRefused, match=r"'no/such-encoder' \(not a local folder\) cannot be"):
        load_encoder("no/such-encoder")
    with pytest.raises(ValueError, match="device 'cuda:99' is not here"):
        load_encoder("no/such-encoder", device="cuda:99")


def test_a_language_model_is_not_an_encoder(tmp_path, make_tiny_lm, tiny_tokenizer):
    make_tiny_lm("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for call in (load_encoder, empty_encoder):
        with pytest.raises(ValueError, match=r"is a llama, which reads no pictures; leave"):
            call(str(tmp_path))


@pytest.mark.parametrize("family", ["vit", "clip", "wav2vec2"])
def test_a_language_model_is_wanted_and_an_encoder_found(family, folders):
    sentence = r"reads no text; set lm.kind to 'auto' and name its pictures under images"
    if family == "wav2vec2":
        sentence = r"reads no text; train on files of its activations \(activations.files\)"
        for call in (load_encoder, empty_encoder):
            with pytest.raises(
                ValueError, match=r"is a wav2vec2, which reads no pictures; .* train"
            ):
                call(folders[family])
    for call in (load_lm, empty_lm, load_tokenizer):
        with pytest.raises(ValueError, match=sentence) as caught:
            call(folders[family])
        assert "\n" not in str(caught.value)


def test_an_encoder_s_weights_have_a_sketch_that_tells_another_encoder_s(load, folders, tmp_path):
    for family in ("vit", "clip"):
        model = load(family).model
        terms = contract.terms(model)
        assert terms["model_weights"] and terms["tokenizer_hash"] is terms["bos"] is None
        other = load_encoder(save(family, tmp_path / family, seed=1)).model
        assert contract.terms(other)["model_weights"] != terms["model_weights"]
    again = contract.terms(load_encoder(folders["clip"]).model)
    assert again == terms


def test_a_packaged_config_alone_is_enough_for_an_empty_encoder(folders, tmp_path):
    config = json.loads((Path(folders["siglip"]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    empty = empty_encoder(str(tmp_path))
    assert isinstance(empty, SiglipVisionModel)
    assert sum(p.numel() for p in empty.parameters()) == sum(
        p.numel() for p in AutoModel.from_pretrained(folders["siglip"]).vision_model.parameters()
    )


def test_the_processor_is_that_of_pillow(load):
    from PIL import Image

    grey = np.full((50, 40, 3), 128, np.uint8)
    made = load("vit").processor(images=[Image.fromarray(grey)], return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert made["pixel_values"].unique().tolist() == pytest.approx([1 / 255], rel=1e-4)


def test_an_encoder_of_the_hub_loads_and_again_without_a_connection(hub, folders, go_offline):
    for file in Path(folders["clip"]).iterdir():
        hub.add_file("a/clip", file.name, file.read_bytes())
    first = load_encoder("a/clip")
    assert first.origin.startswith("Hugging Face Hub at ")
    assert first.model.name_or_path == "a/clip"
    inputs = inputs_for(first.model)
    expected = forward(load_encoder(folders["clip"]).model, inputs).pooler_output
    assert torch.equal(forward(first.model, inputs).pooler_output, expected)
    go_offline()
    again = load_encoder("a/clip")
    assert torch.equal(forward(again.model, inputs).pooler_output, expected)


def test_what_the_hub_refuses_of_an_encoder_is_one_sentence(hub, folders):
    hub.add_repo("a/gated", gated="auto")
    for file in ("config.json", "model.safetensors"):
        hub.add_file("a/bare", file, (Path(folders["vit"]) / file).read_bytes())
    for name, sentence in (
        ("a/gated", "it is gated; ask for access at"),
        ("a/missing", "there is no such repository"),
        ("a/bare", "it comes without a processor"),
    ):
        with pytest.raises(ValueError, match=rf"^model '{name}' .*: {sentence}") as caught:
            load_encoder(name)
        assert "\n" not in str(caught.value)
