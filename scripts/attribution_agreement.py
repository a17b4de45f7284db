"""How well do cheap estimates of latents' effects agree with ablation?

    python scripts/attribution_agreement.py [FOLDER]

For ten prompts, each with a likely next word and another one: effects on the difference of their
logits, of the 40 latents that the gradient finds largest, by gradient, integrated and by ablation,
in float32, for one SAE (the packaged one by default). Prints Pearson's correlation of each estimate
with ablation, and the share of latents with the same sign; then the correlations' range and mean.
"""

import statistics
import sys
from pathlib import Path

import hfsae
from hfsae.packaged import SHIPPED_SAE

PROMPTS = (
    ("We decided to travel by", " train", " car"),
    ("The capital of France is", " Paris", " London"),
    ("She opened the door and saw a", " man", " dog"),
    ("The president addressed the", " nation", " court"),
    ("In winter the lake is covered with", " ice", " water"),
    ("He studied law before he became a", " lawyer", " doctor"),
    ("The army crossed the river and took the", " city", " money"),
    ("Bread is made of flour, water and", " salt", " sugar"),
    ("The patient was taken to the", " hospital", " school"),
    ("Two plus two equals", " four", " five"),
)
N_LATENTS = 40
ESTIMATES = ("gradient", "integrated")


def main(folder: Path) -> None:
    sae = hfsae.load(folder)
    sae.config.model_dtype = None  # float32 is meant
    lm, _, _ = hfsae.load_lm(sae.config.model_name, dtype="float32")
    rows: list[list[float]] = []
    print("prompt", *(f"{name}: r, same sign" for name in ESTIMATES), sep=" | ")
    for prompt, target, contrast in PROMPTS:
        found = hfsae.attribute(lm, sae, prompt, target=target, contrast=contrast, ablate=N_LATENTS)
        agreement = [found.agreement[name] for name in ESTIMATES]
        rows.append([a.pearson for a in agreement])
        cells = (f"{a.pearson:.2f}, {a.same_sign:.2f}" for a in agreement)
        print(f"{prompt} ({target} -{contrast})", *cells, sep=" | ")
    for name, values in zip(ESTIMATES, zip(*rows, strict=True), strict=True):
        mean = statistics.mean(values)
        print(f"{name}: {min(values):.2f} to {max(values):.2f}, mean {mean:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else SHIPPED_SAE)
