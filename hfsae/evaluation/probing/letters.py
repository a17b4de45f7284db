"""First-letter absorption of SAEs beside untrained latents, on one reading of words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...models import SAE
from ..untrained import Untrained
from .absorption import LEAST_F1, LEAST_LETTERS, Coder, Letter, Truth, letters_of, truth_of
from .arguments import LEAST_WORDS
from .words import LETTERS, Words

CAUTION = (
    "Small language models and small SAEs say little here: SAEBench advises models of "
    "at least 1 billion parameters and SAEs of at least 16k latents. Where the F1 of "
    "the main latents is low, as it is for untrained ones, they stand for no letter, "
    "and the rate does not measure absorption"
)
ABOUT = (
    "Chanin et al. 2024 (arXiv:2409.14507), both formulas of SAEBench 0.6.0: of the words whose "
    "first letter a probe of the model's activations gets right, the share on which the letter's "
    "main latents are silent and another latent has 0.4 or more of the probe's projection (full), "
    "and the mean share of the projection of main and absorbing latents that the latter have "
    "(fraction); means over letters with 95 % bootstrap intervals over letters"
)


def first_letters(
    words: Words,
    saes: Mapping[str, SAE],
    untrained: str,
    controls: Mapping[str, Untrained],
    mean: Callable[[list[float]], Any],
) -> dict[str, Any]:
    """The record of absorption: what the probe at each site knows, and rows of SAEs and controls,
    or why there are none.

    Args:
        untrained: the name of the controls.
        controls: of each SAE.
        mean: of values over letters, with an interval.
    """
    sites = {name: sae.config.reads.only_site for name, sae in saes.items()}
    truths = {site: truth_of(words, site) for site in dict.fromkeys(sites.values())}
    rows = []
    for name, sae in saes.items():
        truth = truths[sites[name]]
        refused = too_weak(truth) or _unfit(sae)
        if refused is not None:
            rows.append({"features": name, "of": "", "refused": refused})
            continue
        for features, of, coder in (
            (name, "", Coder(_encoding(sae), sae.W_dec.detach())),
            (untrained, name, Coder(controls[name].encode, controls[name].directions)),
        ):
            letters = letters_of(words, sites[name], truth, coder)
            rows.append({"features": features, "of": of, **_figures(letters, mean)})
    f1s = {site: dict(zip(LETTERS, truth.f1, strict=True)) for site, truth in truths.items()}
    n_words = {"train": words.n_train, "test": len(words.tokens) - words.n_train}
    return {"n_words": n_words, "probe_f1": f1s, "rows": rows, "about": ABOUT, "caution": CAUTION}


def no_letters(saes: Iterable[str], n_words: int) -> dict[str, Any]:
    """The record for a vocabulary with too few words."""
    reason = (
        f"the vocabulary has {n_words} tokens of the letters A to Z alone, and {LEAST_WORDS} are "
        "needed; give a model of a language with these letters"
    )
    rows = [{"features": name, "of": "", "refused": reason} for name in saes]
    return {"n_words": {"train": 0, "test": 0}, "probe_f1": {}, "rows": rows} | {
        "about": ABOUT,
        "caution": CAUTION,
    }


def too_weak(truth: Truth) -> str | None:
    """Why a probe cannot be the ground truth; None where it can."""
    n = len(truth.letters)
    if n >= LEAST_LETTERS:
        return None
    return (
        f"a probe of the model's activations has an F1 above {LEAST_F1} for {n} of 26 letters "
        f"(mean F1 {np.mean(truth.f1):.2f}), and SAEBench asks for {LEAST_LETTERS}: it is too weak "
        "a baseline for latents; more words (n_words), another site or a larger model may do"
    )


def _unfit(sae: SAE) -> str | None:
    if sae.config.is_transcoder:
        return "latents of a transcoder write at another site than they read; give an SAE"
    if sae.config.token_norm != "none":
        return f"token_norm is {sae.config.token_norm}: latents are not in the activation's unit"
    return None


def _encoding(sae: SAE) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: sae.encode(x.to(sae.W_dec)).float().cpu()


def _figures(letters: Sequence[Letter], mean: Callable[[list[float]], Any]) -> dict[str, Any]:
    """Means over letters, and each letter."""
    return {
        "full": mean([each.full for each in letters]),
        "fraction": mean([each.fraction for each in letters]),
        "f1_of_main": mean([each.f1 for each in letters]),
        "n_main": float(np.mean([len(each.latents) for each in letters])),
        "letters": [each._asdict() for each in letters],
    }
