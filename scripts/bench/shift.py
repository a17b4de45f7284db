"""SHIFT: a probe that took gender for an occupation, mended by removing latents (arXiv 2403.19647).

    python scripts/bench/shift.py [FOLDER] [--output FILE]

A probe of a site at a text's last token is trained where all nurses are women and all professors
men, and tested where both are independent, on other names and work. Latents are ranked by
`hfsae.effects` on its logit; of the first 50 those are removed that tell women from men in texts
about neither (means more than a standard deviation apart). No balanced text chooses them, and the
probe stays as it is. Beside it: as many random latents that fire, and the same probe trained on
balanced texts. FOLDER: SAEs below the site; by default the one that comes with hfsae. Block and
token were chosen, of eighteen, for a probe far below the oracle, before anything was removed.
"""

import argparse
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from kept import keep, table
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import hfsae

SITE, FIRST, N, SEEDS = "layers.20", 50, 64, (0, 1, 2)
WORDS = {
    "she": "Mary/Anna/Emma/Sarah/Lisa/Jane/Laura/Julia/Alice/Helen/Kate/Susan",
    "he": "John/Peter/David/Mark/Paul/James/Robert/Tom/George/Henry/Jack/Frank",
    "nurse": "took blood/washed the wound/gave the child a vaccine/measured the pulse/"
    "checked the fever/changed the bandages/worked on the hospital ward/helped the sick",
    "professor": "gave a lecture on algebra/wrote a paper/graded the exams/taught a seminar/"
    "supervised a thesis/spoke at the university/explained the theorem/reviewed the essays",
    "neither": "walked the dog/cooked some rice/bought a blue car/went to the sea/slept/"
    "painted the fence/watched the rain/sold the house/lost the keys/ate an apple",
}
BIASED, NEUTRAL = ["nurse she", "professor he"], ["neither she", "neither he"]
BALANCED = ["nurse she", "nurse he", "professor she", "professor he"]


def texts_of(cells: list[str], words: dict[str, list[str]], rng: random.Random) -> list[str]:
    """N texts, as many of each cell; the first half has the first label."""
    texts = []
    for work, who in (cell.split() for cell in cells for _ in range(N // len(cells))):
        own = {"she": "herself", "he": "himself"}[who]
        name, job = rng.choice(words[who]), rng.choice(words[work])
        texts.append(f"{name} {job}, and then {who} did the rest by {own}")
    return texts


def acts_of(lm, tokenizer, texts: list[str], site: str) -> list[Tensor]:
    """[tokens, d] of each text, without BOS."""
    rows = [tokenizer.bos_token + text for text in texts]
    ids = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad(), hfsae.capture(lm, [site], stop_early=True) as acts:
        lm(**ids)
    return [x[1:n] for x, n in zip(acts[site], ids["attention_mask"].sum(dim=1), strict=True)]


def ranked(lm, tokenizer, saes: dict, texts: list[str], weight: Tensor) -> list[tuple[str, int]]:
    """Latents by their effect on the probe's logit, in texts of the most common length."""
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    length = statistics.mode(lengths)
    some = [text for text, n in zip(texts, lengths, strict=True) if n == length]
    with hfsae.capture(lm, [SITE]) as acts:

        def metric(logits: Tensor, rows: Tensor) -> Tensor:
            return acts[SITE][:, -1] @ weight

        found = hfsae.effects(lm, saes, some, metric=metric, method="attrib", batch=32)
    return [(name, latent) for name, _, latent, _ in found.nodes if latent >= 0]


def row_of(lm, tokenizer, saes: dict, seed: int) -> dict:
    """Accuracies on balanced texts, of one seed."""
    rng, start, label = random.Random(seed), time.perf_counter(), torch.arange(N) < N // 2
    drawn = {k: rng.sample(words.split("/"), words.count("/") + 1) for k, words in WORDS.items()}
    train, other = ({k: words[half::2] for k, words in drawn.items()} for half in (0, 1))
    biased, test = texts_of(BIASED, train, rng), texts_of(BALANCED, other, rng)

    def pooled(texts: list[str], removed: list[tuple[str, int]]) -> Tensor:
        with ExitStack() as stack:
            for name, sae in saes.items():
                if own := [latent for of, latent in removed if of == name]:
                    stack.enter_context(hfsae.steer(lm, sae, own, mode="ablate"))
            return torch.stack([x[-1] for x in acts_of(lm, tokenizer, texts, SITE)])

    def probe(x: Tensor) -> tuple[Tensor, float]:
        mean, std = x.mean(dim=0), x.std(dim=0)
        fit = LogisticRegression(max_iter=1000).fit((x - mean) / std, label)
        weight = torch.tensor(fit.coef_[0], dtype=x.dtype) / std
        return weight, float(fit.intercept_[0] - weight @ mean)

    def accuracy(probe: tuple[Tensor, float], x: Tensor) -> float:
        return float(((x @ probe[0] + probe[1] > 0) == label).float().mean())

    first = probe(pooled(biased, []))
    oracle = probe(pooled(texts_of(BALANCED, train, rng), []))
    neutral, named = texts_of(NEUTRAL, train, rng), list[tuple[str, int]]()
    by_effect = ranked(lm, tokenizer, saes, biased, first[0])
    for name, sae in saes.items():
        acts = acts_of(lm, tokenizer, neutral, sae.config.site)
        she, he = torch.stack([sae.encode(x).mean(dim=0) for x in acts]).chunk(2)
        tells = (she.mean(0) - he.mean(0)).abs() > (she.std(0) + he.std(0)) / 2 + 1e-6
        named += [key for key in by_effect[:FIRST] if key[0] == name and tells[key[1]]]
    chance = rng.sample([key for key in by_effect if key not in named], len(named))
    x = pooled(test, [])
    row = {"seed": seed, "latents": len(named), "biased": accuracy(first, x)}
    row |= {"removed": accuracy(first, pooled(test, named))}
    row |= {"random": accuracy(first, pooled(test, chance)), "oracle": accuracy(oracle, x)}
    return row | {"named": named, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=hfsae.packaged.SHIPPED_SAE)
    parser.add_argument("--output", type=Path, help="file of results")
    args = parser.parse_args()
    saes = hfsae.load_set(args.folder)
    for sae in saes.values():
        sae.config.model_dtype = None  # float32 is meant
    name = next(iter(saes.values())).config.model_name
    lm, tokenizer, _ = hfsae.load_lm(name, dtype="float32")
    rows = [row_of(lm, tokenizer, saes, seed) for seed in SEEDS]
    shown = ("seed", "latents", "biased", "removed", "random", "oracle")
    print(table([shown, *([f"{row[key]:.3g}" for key in shown] for row in rows)]))
    if args.output is not None:
        run = {"model": name, "sites": [sae.config.site for sae in saes.values()], "probe": SITE}
        keep(args.output, run | {"rows": rows}, [*run])


if __name__ == "__main__":
    main()
