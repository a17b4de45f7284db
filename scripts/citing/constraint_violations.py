"""Do latents encode that a rule of grammar is broken? "Do language models encode knowledge of
linguistic constraint violations?" (arXiv:2605.12055) found no latent that all rules share.

    python scripts/citing/constraint_violations.py [--quick] OUT.json

200 minimal pairs of five rules, in quartets (minimal_pairs.yaml): two contexts by two last words,
each word once right and once wrong, so that latents of a word or a context have a contrast of 0,
the sum over wrong texts less that over right ones, at the last token. For each latent with a
contrast in 8 or more of a rule's 20 quartets a sign-flip permutation test (65,536 choices),
Benjamini-Hochberg at 5 %. Controls: right and wrong exchanged at random (100 times), the model's
dimensions, and facts: good grammar that is false. Then the rule that is left out: contrasts of four
rules over their spread weight those of the fifth; the share of its quartets that are told right
(chance .5), beside weights of the same rule's other quartets, and of all five rules on facts. The
paper's ablations are left out: their formulas are not public to us.
"""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
import yaml
from claim import Run, Subject, activations, mean, subjects, to_file
from scipy.stats import false_discovery_control

PAIRS = yaml.safe_load((Path(__file__).parent / "minimal_pairs.yaml").read_text("utf-8"))
RULES = [name for name in PAIRS if name != "facts"]
LEAST, RATE, N_FLIPS = 8, 0.05, 2**16


def quartets(rule: str) -> list[tuple[str, str, str, str]]:
    """Two right texts, then two wrong ones, of the same two contexts and the same two words."""
    rows = []
    for item in PAIRS[rule]["items"].split(","):
        one, two = (context.format(*item.split()) for context in PAIRS[rule]["contexts"])
        a, b = (word.format(*item.split()) for word in PAIRS[rule]["words"])
        rows.append((one + a, two + b, one + b, two + a))
    return rows


def sign_flip(contrasts: np.ndarray, signs: np.ndarray, seed: int = 0) -> np.ndarray:
    """[k, m] two-sided p-values of m sums over n quartets, for k choices of their signs, by random
    others: contrasts [n, m], signs [k, n]."""
    flips = np.random.default_rng(seed).choice(np.float32([-1, 1]), (N_FLIPS, len(contrasts)))
    p = np.empty((len(signs), contrasts.shape[1]))
    for i, column in enumerate(contrasts.T.astype(np.float32)):
        sums = np.sort(np.abs(flips @ column))
        own = np.abs(signs.astype(np.float32) @ column) - 1e-5 * np.abs(column).sum()  # ties count
        p[:, i] = (1 + N_FLIPS - np.searchsorted(sums, own)) / (1 + N_FLIPS)
    return p


def discoveries(contrasts: np.ndarray, n_shuffles: int) -> Run:
    """Which units pass, with their sign; and how many do with exchanged labels, on average."""
    tested = np.flatnonzero((contrasts != 0).sum(0) >= min(LEAST, len(contrasts)))
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (n_shuffles, len(contrasts)))
    p = sign_flip(contrasts[:, tested], np.vstack([np.ones(len(contrasts)), signs]))
    passes = [false_discovery_control(row) < RATE if len(row) else row > 0 for row in p]
    own = tested[np.flatnonzero(passes[0])].tolist()
    return {
        "tested": len(tested),
        "passed": [(unit, float(np.sign(contrasts[:, unit].mean()))) for unit in own],
        "shuffled": float(np.mean([row.sum() for row in passes[1:]])),
    }


def told_right(fitted: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] whether the other quartets' contrasts, weighted by fitted ones, tell wrong from right."""
    weight = fitted.mean(0) / (fitted.var(0) + 1e-3 * (fitted**2).mean() + 1e-12)
    return (other @ weight > 0).astype(float)


def of_units(by_rule: dict[str, np.ndarray], n_shuffles: int) -> Run:
    """What latents, or dimensions, show: contrasts [quartets, units] of each rule, and of facts."""
    rows = {rule: discoveries(x, n_shuffles) for rule, x in by_rule.items()}
    passed = [{*rows[rule]["passed"]} for rule in RULES]
    most = max((sum(one in own for own in passed) for one in chain(*passed)), default=0)
    shared = set[tuple[int, float]].intersection(*passed)
    even = {rule: x / (x.std() + 1e-12) for rule, x in by_rule.items()}
    across, same = [], []
    for rule in RULES:
        others = np.concatenate([even[other] for other in RULES if other != rule])
        across.append(told_right(others, even[rule]))
        x = even[rule]
        same += [told_right(np.delete(x, i, 0), x[[i]]) for i in range(len(x))]
    on_facts = told_right(np.concatenate([even[rule] for rule in RULES]), even["facts"])
    return {
        "rules": {rule: row | {"passed": len(row["passed"])} for rule, row in rows.items()},
        "most_rules_of_a_unit": most,
        "of_all_rules": len(shared),
        "of_all_rules_and_facts": len(shared & {*rows["facts"]["passed"]}),
        "rule_left_out": mean(np.concatenate(across).tolist()),
        "same_rule": mean(np.concatenate(same).tolist()),
        "facts": mean(on_facts.tolist()),
    }


def contrasts(subject: Subject, rule: str, n: int) -> list[np.ndarray]:
    """Of latents and of dimensions at the last token, [quartets, units]."""
    texts = [text for four in quartets(rule)[:n] for text in four]
    x = torch.stack([rows[-1] for rows in activations(subject, texts)])
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    units = subject.sae.encode(x).detach(), x
    return [
        torch.einsum("nqu,q->nu", u.float().unflatten(0, (-1, 4)), signs).numpy() for u in units
    ]


def measure(quick: bool):
    n, n_shuffles = (8, 3) if quick else (20, 100)
    for subject in subjects(quick):
        both = {rule: contrasts(subject, rule, n) for rule in PAIRS}
        run = {"model": subject.name, "site": subject.sae.config.site, "pairs": 2 * n * len(RULES)}
        for i, kind in enumerate(("latents", "dimensions")):
            run[kind] = of_units({rule: x[i] for rule, x in both.items()}, n_shuffles)
        yield run


if __name__ == "__main__":
    to_file(__doc__, measure)
