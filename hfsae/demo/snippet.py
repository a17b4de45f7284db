"""Python code that does what a page shows: the same model, tokens and strengths."""

from dataclasses import fields
from typing import Any

from ..steering.pair import Sampling
from .address import Steer
from .parts import document
from .rows import largest_of
from .subject import Subject


def of_latent(subject: Subject, latent: int) -> str:
    """A text with a latent steered as strongly as it ever fires, the likeliest token each time; of
    an SAE that reads no text, or the text of several models, the latent's activations."""
    config = subject.sae.config
    kind = "several" if subject.unit.is_text and config.model_names else subject.unit.one
    sites = list(config.reads.names) if config.where else ["SITE"]
    return _code(subject, kind, latent=latent, largest=largest_of(subject, latent), sites=sites)


def of_texts(subject: Subject, how: Steer) -> str:
    """Both texts of the steer page, token for token."""
    unit = "raw" if how.mode in ("scale", "ablate") else how.unit
    strengths = how.latents  # in raw units, per cent of the norm, or factors
    if unit == "max":
        strengths = {i: s * (largest_of(subject, i) or 0.0) for i, s in how.latents.items()}
    shown = ", ".join(f"{i}: {strength:.9g}" for i, strength in strengths.items())
    sampling = Sampling(**{f.name: getattr(how, f.name) for f in fields(Sampling)})
    options = {"how": how, "unit": unit, "strengths": f"{{{shown}}}", "sampling": repr(sampling)}
    return _code(subject, "texts", **options)


def _code(subject: Subject, kind: str, **values: Any) -> str:
    # the language model as it was loaded: another dtype gives other activations
    config, loaded = subject.sae.config, subject.loaded
    dtype = config.model_dtype if loaded is None else str(loaded.lm.dtype).removeprefix("torch.")
    options = {"dtype": dtype}
    if subject.lm_name == config.model_name:
        options |= {"revision": config.model_revision}
        options |= {"attn_implementation": config.model_attention}
    has_bos = loaded is None or subject.tokenizer.bos_token_id is not None
    return document(
        "snippet.jinja",
        kind=kind,
        sae=subject.in_python,
        model=subject.shown_lm_name or "NAME",
        options={name: value for name, value in options.items() if value is not None},
        has_bos=config.bos != "none" and has_bos,
        config=config,
        many=subject.unit.many,
        **values,
    )
