"""Is one SAE better than another of the same site, on documents that neither was trained on?

    python scripts/bench/successor.py FORMER NEW [--l0 40] [--tokens 10000] [--output FILE]

Both are folders of SAEs of the same language model and site. On the test side of each
text thresholds are multiplied by one factor, found on that text, at which the SAE has the same L0;
then FVU and delta loss on the same positions, their ratio, and a 95 % interval of it: a bootstrap
over documents. News, medicine and messages come in a Python package (see `hfsae.packaged`);
an SAE that was trained on other documents of them has it easier there.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from kept import table
from torch import Tensor

import hfsae
from hfsae.activations import HarvestArguments, Harvester, PackedRows, TextArguments
from hfsae.evaluation import (
    FIDELITY,
    LOSSES,
    EvaluationArguments,
    EvaluationResult,
    bootstrap_weights,
    evaluate_all,
)
from hfsae.models import SAE
from hfsae.runs import norm_limits

TEXTS = ("wiki,sotu", "news", "medicine", "messages")
N_BOOTSTRAP, SIDE = 2000, "test"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("former")
    parser.add_argument("new")
    parser.add_argument("--l0", type=float, default=40.0)
    parser.add_argument("--tokens", type=int, default=10_000, help="of each text, at most")
    parser.add_argument("--texts", nargs="*", default=TEXTS, help="packaged texts")
    parser.add_argument("--output", type=Path, help="a JSON file that keeps the results, too")
    args = parser.parse_args()
    saes = {name: hfsae.load(getattr(args, name)) for name in ("former", "new")}
    limits = norm_limits(saes["new"], Path(args.new))
    lm, tokenizer, _ = hfsae.load_lm(saes["new"].config.model_name, dtype="bfloat16")
    rows_of_table, kept = [["text", "tokens", *HEAD]], {}
    for text in args.texts:
        dataset = TextArguments(dataset=f"packaged:{text}", max_document_chars=2000)
        rows = PackedRows(tokenizer, dataset, SIDE, rows=16, max_tokens=args.tokens)
        at_l0 = {
            name: scaled(sae, activations(lm, sae, rows, limits), args.l0)
            for name, sae in saes.items()
        }
        results = evaluate_all(
            lm, at_l0, rows, EvaluationArguments(n_tokens=args.tokens), norm_limits=limits
        )
        kept[text] = compared(results)
        rows_of_table.append([text, f"{results['new'].n_tokens:,}", *cells(kept[text])])
        print(*rows_of_table[-1], sep="  ", flush=True)
    print(f"\n{table(rows_of_table)}")
    if args.output:
        settings = {"l0": args.l0, "tokens": args.tokens, "texts": kept}
        args.output.write_text(json.dumps(settings, indent=1) + "\n")


METRICS = {"fvu": ("fidelity", FIDELITY["fvu"]), "delta_loss": ("losses", LOSSES["delta_loss"])}
HEAD = ("FVU before", "after", "less by", "delta loss before", "after", "less by", "L0", "silent")


@torch.no_grad()
def activations(
    lm: torch.nn.Module, sae: SAE, rows: PackedRows, limits: dict[str, float]
) -> Tensor:
    """[n, d_in], of the positions that are counted."""
    site = sae.config.site
    harvester = Harvester(lm, [site], HarvestArguments(), norm_limits=limits)
    return torch.cat([harvester(batch).activations[site].float() for batch in rows])


@torch.no_grad()
def scaled(sae: SAE, x: Tensor, l0: float) -> SAE:
    """The SAE with thresholds times the factor at which its L0 on x is `l0`, by bisection."""
    sae, low, high = copy.deepcopy(sae), 1e-2, 1e2
    first = sae.threshold.detach().clone()
    for _ in range(25):
        factor = (low * high) ** 0.5
        sae.threshold.copy_(first * factor)
        n = sum((sae.encode(part.to(sae.dtype)) > 0).sum() for part in x.split(2048))
        low, high = (factor, high) if n > l0 * len(x) else (low, factor)
    return sae


def compared(results: dict[str, EvaluationResult]) -> dict[str, dict[str, Any]]:
    """By metric: before, after, and by what share it is smaller, with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for metric, (kind, definition) in METRICS.items():
        sums = [results[name].of_documents[kind] for name in ("former", "new")]
        n = len(sums[0]["tokens"])
        weights = torch.cat([*bootstrap_weights(n, N_BOOTSTRAP, seed=0)])
        drawn = [definition.of({key: weights @ of for key, of in s.items()}) for s in sums]
        before, after = (definition.of({key: of.sum() for key, of in s.items()}) for s in sums)
        sides = (1 - drawn[1] / drawn[0]).quantile(torch.tensor([0.025, 0.975]).double())
        less = {"less_by": float(1 - after / before), "interval": sides.tolist()}
        found[metric] = {"before": float(before), "after": float(after), **less}
    metrics = results["new"].metrics
    found["new"] = {"l0": metrics["l0"].value, "silent": metrics["dead_share"].value}
    return found


def cells(found: dict[str, dict[str, Any]]) -> list[str]:
    made = []
    for metric in METRICS:
        of = found[metric]
        low, high = of["interval"]
        made += [f"{of['before']:.4f}", f"{of['after']:.4f}"]
        made.append(f"{of['less_by']:.0%} [{low:.0%}, {high:.0%}]")
    return [*made, f"{found['new']['l0']:.1f}", f"{found['new']['silent']:.1%}"]


if __name__ == "__main__":
    main()
