"""Subject-verb agreement: how few latents keep it? Faithfulness of circuits on other nouns.

    python scripts/bench/agreement_circuit.py FOLDER [--method ig] [--output FILE]

FOLDER holds SAEs, such as those of scripts/recipes/effects.yaml. In 40 pairs of texts, singular and
plural of one subject before a distractor, such as "The key near the boxes" and "The keys near the
boxes", each text is clean once, with the other as its patch; the metric is the logit of the right
verb minus that of the wrong one (" is", " are"). Nodes are ranked on 20 pairs, and circuits told on
the other 20, whose subjects and distractors are others: outside them, latents (and errors) are at
their mean over the patch texts. Three ways of errors: kept in all circuits, ranked like latents,
removed from all; and beside each circuit with errors kept, as many random latents that fire.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

from kept import keep, table

import hfsae
from hfsae.circuits import logit_difference

NOUNS = (
    "key keys,dog dogs,car cars,book books,letter letters,picture pictures,house houses,"
    "window windows,teacher teachers,student students,doctor doctors,friend friends,"
    "brother brothers,sister sisters,king kings,soldier soldiers,river rivers,road roads,"
    "bridge bridges,garden gardens,tree trees,flower flowers,bird birds,horse horses,ship ships,"
    "train trains,machine machines,tool tools,song songs,story stories,village villages,"
    "city cities,school schools,church churches,company companies,office offices,chair chairs,"
    "table tables,bottle bottles,box boxes"
)
DISTRACTORS = (
    ("near the wall", "near the walls", "behind the door", "behind the doors"),
    ("beside the hill", "beside the hills", "above the field", "above the fields"),
)
SIZES = (2, 5, 10, 20, 50, 100, 200, 500)
N_RANDOM = 5


def texts(half: int) -> tuple[list[str], list[str], list[bool]]:
    """Clean and patch texts, and which clean ones are plural: each pair both ways."""
    pairs = [pair.split() for pair in NOUNS.split(",")][half::2]
    rows = []
    for i, (one, many) in enumerate(pairs):
        after = DISTRACTORS[half][i % len(DISTRACTORS[half])]
        both = f"The {one} {after}", f"The {many} {after}"
        rows += [(*both, False), (*both[::-1], True)]
    clean, patch, plural = zip(*rows, strict=True)
    return list(clean), list(patch), list(plural)


def metric_of(tokenizer, plural: list[bool]):
    verbs = [tokenizer(verb, add_special_tokens=False)["input_ids"] for verb in (" is", " are")]
    (one,), (many,) = verbs
    right = [many if is_plural else one for is_plural in plural]
    return logit_difference(right, [one + many - token for token in right])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--method", default="ig")
    parser.add_argument("--output", type=Path, help="file of results")
    args = parser.parse_args()
    start = time.perf_counter()
    saes = hfsae.load_set(args.folder)
    for sae in saes.values():
        sae.config.model_dtype = None  # float32 is meant
    name = next(iter(saes.values())).config.model_name
    lm, tokenizer, _ = hfsae.load_lm(name, dtype="float32")
    given = []
    for half in (0, 1):
        clean, patch, plural = texts(half)
        given.append((clean, patch, metric_of(tokenizer, plural)))
    (clean, patch, metric), (*others, of_others) = given
    options = {"method": args.method, "metric": metric, "batch": 40}
    found = hfsae.effects(lm, saes, clean, patch, **options)
    effect_seconds = time.perf_counter() - start
    held_out = found.on(*others, metric=of_others)
    latents = [node for node in found.nodes if node.latent >= 0]
    rows: list[dict] = []
    for errors in ("keep", "nodes", "remove"):
        for circuit in held_out.curve(SIZES, errors=errors):
            rows.append({"errors": errors, **circuit._asdict()})
    sets = [random.Random(seed).sample(latents, n) for n in SIZES for seed in range(N_RANDOM)]
    controls = held_out.circuits(sets, errors="keep")
    for i, size in enumerate(SIZES):
        own = controls[i * N_RANDOM : (i + 1) * N_RANDOM]
        row = {"errors": "keep, random latents", "n_nodes": size}
        for field in ("faithfulness", "completeness"):
            row[field] = statistics.mean(getattr(circuit, field) for circuit in own)
        rows.append(row | {"most": max(circuit.faithfulness for circuit in own)})
    run = {
        "model": name,
        "sites": [*saes],
        "method": args.method,
        "n_firing": len(latents),
        "metric": {"ranked_on": found.value, "told_on": held_out.value},
        "effect_seconds": round(effect_seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "strongest": [node._asdict() for node in found.nodes[:10]],
        "rows": rows,
    }
    head = ["errors", *map(str, SIZES)]
    kinds = dict.fromkeys(row["errors"] for row in rows)
    shares = {k: [f"{r['faithfulness']:.2f}" for r in rows if r["errors"] == k] for k in kinds}
    print(table([head, *([kind, *own] for kind, own in shares.items())]))
    print({key: value for key, value in run.items() if key != "rows"})
    if args.output is not None:
        keep(args.output, run, ["model", "sites", "method"])


if __name__ == "__main__":
    main()
