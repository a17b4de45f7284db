"""Tiny random models of pictures, and one of sound, in folders with their processors; pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

SIDE, PATCH, RATE, D = 28, 7, 16_000, 16
N_PATCHES = (SIDE // PATCH) ** 2
_SIZES = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 2}
_WIDE = _SIZES | {"intermediate_size": 32}
_VISION = _WIDE | {"image_size": SIDE, "patch_size": PATCH}
_DINO = _SIZES | {"image_size": SIDE, "patch_size": PATCH}
_TEXT = _WIDE | {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_TOWERS = {"text_config": _TEXT, "vision_config": _VISION}
_CONVS = {"conv_dim": (8, 8), "conv_kernel": (80, 9), "conv_stride": (40, 8)}
_SPEECH = _WIDE | _CONVS | {"num_feat_extract_layers": 2, "vocab_size": 10}
_SPEECH |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}

_SQUARE = {"height": SIDE, "width": SIDE}
_CUT = {"size": {"shortest_edge": 32}, "crop_size": _SQUARE}
_FIXED = {"size": _SQUARE}

# family -> (model, its config and sizes, its processor and settings, tokens before the patches)
VISION = {
    "vit": ("ViTModel", "ViTConfig", _VISION, "ViTImageProcessor", _FIXED, 1),
    "clip": ("CLIPModel", "CLIPConfig", _TOWERS, "CLIPImageProcessor", _CUT, 1),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        _TOWERS,
        "SiglipImageProcessor",
        {"size": _SQUARE},
        0,
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", _DINO, "BitImageProcessor", _CUT, 1),
    "registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        _DINO,
        "BitImageProcessor",
        _CUT,
        5,
    ),
}
AUDIO = {
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        _SPEECH,
        "Wav2Vec2FeatureExtractor",
        {"sampling_rate": RATE},
        0,
    ),
}
FAMILIES = VISION | AUDIO


def whole_model(family: str, seed: int = 0) -> PreTrainedModel:
    """With both towers, if it has two."""
    model, config, sizes, *_ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(transformers, model)(getattr(transformers, config)(**sizes))
        # at the usual initial 0.02 blocks add next to nothing
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def save_processor(family: str, folder: Path, **settings: Any) -> None:
    *_, processor, defaults, _ = FAMILIES[family]
    name = processor + "Pil" if family in VISION else processor
    getattr(transformers, name)(**defaults | settings).save_pretrained(folder)


def save_encoder(family: str, folder: Path, seed: int = 0) -> str:
    """A folder as the Hub has it; its name."""
    whole_model(family, seed).save_pretrained(folder)
    save_processor(family, folder)
    return str(folder)


def block(model: nn.Module, number: int) -> str:
    """The path of a block, which versions of transformers spell in different ways."""
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layer", "layers")
    ]
    return f"{stacks[0]}.{number}"


def save_pictures(
    folder: Path, n: int, size: tuple[int, int] = (40, 33), seed: int = 0
) -> list[np.ndarray]:
    """Random pictures 0.png, 1.png and so on, and their pixels [height, width, 3]."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(n)]
    folder.mkdir(exist_ok=True, parents=True)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i}.png")
    return pixels
