"""Does steering a latent raise what it stands for? A table in Markdown, for one trained SAE.

    python scripts/steering_effect.py runs/quickstart --strength 1 > scripts/steering_effect.md

The latents, their related words and the neutral prompts are in steering_effect.yaml, which says how
they were chosen. A latent is clamped to `strength` times its maximal activation at every token of a
prompt; measured is the mean log-probability of its related words as the next word, less that of the
model as it is, in nats. The controls are random latents, matched in density (within a factor of 2)
and maximal activation (within 1.25), clamped to as many times their own maxima, and measured on the
same words: a push in any direction moves all probabilities, and that is not what is asked about.
"""

import argparse
import random
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

import hfsae
from hfsae.features import FeatureSearch, FeatureStore

PLAN = Path(__file__).with_suffix(".yaml")


class Row(NamedTuple):
    """One latent's result, nats."""

    meaning: str
    latent: int
    effect: list[float]
    """Of each prompt."""
    controls: list[float]
    """Of each control, the mean over prompts."""

    @property
    def beaten(self) -> int:
        """Controls with a smaller effect."""
        return sum(control < mean(self.effect) for control in self.controls)

    def markdown(self) -> str:
        cells = (
            f"{self.meaning}",
            f"{self.latent}",
            f"{mean(self.effect):+.2f} ± {stdev(self.effect):.2f}",
            f"{mean(self.controls):+.2f} ± {stdev(self.controls):.2f}",
            f"{self.beaten} of {len(self.controls)}",
        )
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of an SAE with its features/")
    parser.add_argument(
        "--strength", type=float, nargs="+", default=[1.0, 2.0], help="times the maximal activation"
    )
    parser.add_argument("--controls", type=int, default=20, help="random latents for each")
    args = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    sae, store = hfsae.load(args.run), FeatureStore.load(args.run)
    lm, tokenizer, _ = hfsae.load_lm(sae.config.model_name, dtype=sae.config.model_dtype or "auto")
    entries = plan["latents"]
    latents = [find(store, entry["fires_on"]) for entry in entries]
    controls = [matched(store, latent, args.controls, spared=latents) for latent in latents]
    print(f"# What steering raises, in {sae.config.model_name} at {sae.config.site}\n")
    print("Whether a clamped latent makes words of its meaning likelier than random latents do.\n")
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    for strength in args.strength:
        effect = Effect(lm, tokenizer, sae, store, plan["prompts"], strength)
        report(effect, entries, latents, controls)


def report(
    effect: "Effect", entries: list[dict], latents: list[int], controls: list[list[int]]
) -> None:
    print(f"\n## Clamped to {effect.strength:g} x the maximal activation\n")
    print("| meaning | latent | effect, nats | of matched random latents | larger than |")
    print("|---|---|---|---|---|")
    rows = []
    for entry, latent, others in zip(entries, latents, controls, strict=True):
        ids = related_ids(effect.tokenizer, entry["related"])
        means = [mean(effect.of(other, ids)) for other in others]
        rows.append(Row(entry["meaning"], latent, effect.of(latent, ids), means))
        print(rows[-1].markdown(), flush=True)
    margins = [mean(row.effect) - mean(row.controls) for row in rows]
    raised = [r for r in rows if mean(r.effect) > 0 and r.beaten >= 0.95 * len(r.controls)]
    above_all = sum(row.beaten == len(row.controls) for row in raised)
    print("\nMean ± standard deviation: of the effect over prompts, of the controls over latents.")
    print(
        f"Above 0 and above at least 95 % of its controls: {len(raised)} of {len(rows)} latents,\n"
        f"{above_all} of them above all. Above the mean of its controls: "
        f"{sum(m > 0 for m in margins)}, by {mean(margins):.2f} nats on average."
    )


class Effect:
    """Change of the mean log-probability of words after each prompt."""

    def __init__(self, lm, tokenizer, sae, store, prompts: list[str], strength: float):
        self.lm, self.tokenizer, self.sae, self.strength = lm, tokenizer, sae, strength
        self.maxima = store.max_activations
        tokenizer.padding_side = "left"
        bos = tokenizer.bos_token or ""
        texts = [bos + prompt for prompt in prompts]
        self.tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        self.clean = self._log_probabilities()

    def of(self, latent: int, ids: list[int]) -> list[float]:
        with hfsae.steer(
            self.lm,
            self.sae,
            {latent: self.strength},
            mode="clamp",
            unit="max",
            max_activations=self.maxima,
        ):
            steered = self._log_probabilities()
        return (steered - self.clean)[:, ids].mean(dim=1).tolist()

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        """[prompts, vocab] of the next token."""
        mask = self.tokens["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.lm(**self.tokens, position_ids=positions).logits[:, -1]
        return logits.float().log_softmax(dim=-1)


def find(store: FeatureStore, words: list[str]) -> int:
    """The latent of whose examples most, and the strongest, fire on these words."""
    search, scores = FeatureSearch(store), {}
    for word in words:
        for hit in search.by_token(word, k=len(store)):
            scores[hit.latent] = scores.get(hit.latent, 0.0) + hit.score
    if not scores:
        raise ValueError(f"no latent of this SAE has an example that fires on {words}.")
    # of equals, the one that fires most: it is the general one
    return max(scores, key=lambda latent: (scores[latent], float(store.densities[latent])))


def related_ids(tokenizer, words: list[str]) -> list[int]:
    """Ids of the words' first tokens, with the space before them."""
    return [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]


def matched(store: FeatureStore, latent: int, n: int, spared: list[int]) -> list[int]:
    density, most = store.densities, store.max_activations
    near = (density / density[latent]).log().abs() < torch.tensor(2.0).log()
    near &= (most / most[latent]).log().abs() < torch.tensor(1.25).log()
    fitting = [i for i in near.nonzero().squeeze(1).tolist() if i not in spared]
    return random.Random(latent).sample(fitting, min(n, len(fitting)))


if __name__ == "__main__":
    main()
