"""TransformerLens hook names <-> sites (module paths of transformers), for the families in use.

A hook inside a module (after `hook_q`'s rotation, between a norm's division and its gain) has no
site: None.
"""

import re

_SITES = {  # of Llama and its like, GPT-2, and GPT-NeoX, whose attention and MLP run side by side
    "hook_embed": ("embed_tokens", "wte", "embed_in"),
    "blocks.{}.hook_resid_pre": ("layers.{}:in", "h.{}:in", "layers.{}:in"),
    "blocks.{}.hook_resid_mid": ("layers.{}.post_attention_layernorm:in", "h.{}.ln_2:in", None),
    "blocks.{}.hook_resid_post": ("layers.{}", "h.{}", "layers.{}"),
    "blocks.{}.attn.hook_z": (
        "layers.{}.self_attn.o_proj:in",
        "h.{}.attn.c_proj:in",
        "layers.{}.attention.dense:in",
    ),
    "blocks.{}.hook_attn_out": (
        "layers.{}.self_attn.o_proj",
        "h.{}.attn.c_proj",
        "layers.{}.attention.dense",
    ),
    "blocks.{}.mlp.hook_in": ("layers.{}.mlp:in", "h.{}.mlp:in", "layers.{}.mlp:in"),
    "blocks.{}.hook_mlp_out": ("layers.{}.mlp", "h.{}.mlp", "layers.{}.mlp"),
    "blocks.{}.mlp.hook_post": (
        "layers.{}.mlp.down_proj:in",
        "h.{}.mlp.c_proj:in",
        "layers.{}.mlp.dense_4h_to_h:in",
    ),
}
_LLAMA, _GPT2, _NEOX = (
    {hook: sites[i] for hook, sites in _SITES.items() if sites[i] is not None} for i in range(3)
)
# Gemma 2 and 3 norm what a sublayer returns before it is added to the residual stream.
_GEMMA = _LLAMA | {
    "blocks.{}.hook_resid_mid": "layers.{}.pre_feedforward_layernorm:in",
    "blocks.{}.hook_attn_out": "layers.{}.post_attention_layernorm",
    "blocks.{}.hook_mlp_out": "layers.{}.post_feedforward_layernorm",
}
_FAMILIES = [
    (r"gemma-?(v)?[23]-", _GEMMA),
    (r"gpt-?neox|pythia", _NEOX),
    (r"gpt-?2", _GPT2),
    (r"llama|smollm|qwen|mistral|gemma", _LLAMA),
]
# TransformerLens' short names -> Hub ids
_MODELS = [
    (r"gpt2-small", "openai-community/gpt2"),
    (r"(gpt2(?:-medium|-large|-xl)?)", r"openai-community/\1"),
    (r"(pythia-.+)", r"EleutherAI/\1"),
    (r"gemma-v3-(.+)", r"google/gemma-3-\1"),
    (r"(gemma-.+)", r"google/\1"),
    (r"(qwen[\d.]*-.+)", r"Qwen/\1"),
]


def family(model_name: str | None) -> dict[str, str] | None:
    """Hook -> site, with {} for the layer, for the family in a model's name; or None."""
    name = (model_name or "").lower()
    return next((hooks for pattern, hooks in _FAMILIES if re.search(pattern, name)), None)


def hub_id(model_name: str | None) -> str | None:
    """The Hub id of a model with a short name in TransformerLens."""
    if not model_name or "/" in model_name:
        return model_name
    for pattern, replacement in _MODELS:
        if re.fullmatch(pattern, model_name, re.IGNORECASE):
            return re.sub(pattern, replacement, model_name, flags=re.IGNORECASE)
    return model_name


def to_site(hook: str | None, model_name: str | None) -> str | None:
    """The site of a TransformerLens hook; None if it has none, or the family is unknown."""
    layer = re.search(r"(?<=\.)\d+(?=\.)", hook or "")
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", hook or "", count=1)
    site = (family(model_name) or {}).get(pattern)
    return site.format(layer[0]) if site and layer else site


def to_hook(site: str | None, model_name: str | None) -> str | None:
    """The TransformerLens hook at a site; None if it has none, or the family is unknown."""
    site = re.sub(r"^(model|transformer|gpt_neox)\.", "", site or "")  # from the whole model's root
    layer = re.search(r"(?<=\.)\d+", site)
    pattern = re.sub(r"(?<=\.)\d+", "{}", site, count=1)
    hooks = {pattern: hook for hook, pattern in (family(model_name) or {}).items()}
    hook = hooks.get(pattern)
    return hook.format(layer[0]) if hook and layer else hook
