"""Are latents of one architecture easier to name than another's? With a judge that can tell.

    python scripts/comparisons/judged.py OUT RUN RUN ... --judge NAME --requests DIR [--answers ...]
    python scripts/comparisons/judged.py OUT        # computes the results again, and asks nothing

Of each RUN (folders of SAEs of one site) as many latents are drawn from each tenth of the densities
of all of them, before anything is named: OUT/plan.json has them, and the plan's hash. Names and
detection go through files of requests, as in `hfsae explain`; the same command with --answers goes
on until nothing is left to ask. The first RUN has the controls: random directions that fire as
often, and an SAE of re-drawn weights. Then OUT/answers.jsonl.gz keeps every question with its
answer, and of each latent where it fires; from it and the plan alone OUT/results.json and
OUT/names.md are written.

Differences are of the AUC of the grades, 0 to 10, by which the judge tells, from a latent's name
alone, texts where it fires from others. Latents stand in ten blocks by density: intervals are
bootstraps within blocks, p is by labels permuted within blocks, corrected by Holm for the number
of pairs.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy import stats
from sklearn.metrics import roc_auc_score

from hfsae import Refused
from hfsae.comparison import holm
from hfsae.explanations import (
    ExplainArguments,
    ScoreArguments,
    json_string,
    order_of,
    read,
    select,
)
from hfsae.explanations.judges import JudgeArguments
from hfsae.io import stamp
from hfsae.runs import (
    ExplainRequest,
    SAEInContext,
    explain_sae,
    limits_of,
    load,
    names_apart,
    of_run,
    read_rows,
)

FEATURES = "features"
N_LEVELS = 10  # grades are whole numbers, 0 to this
N_PERMUTATIONS = 10_000
N_BLOCKS, N_RESAMPLES, LEVEL, POWER = 10, 10_000, 0.05, 0.8
OWN, OTHER = "detection_auc", "shuffled_detection_auc"
BALANCED, ANSWERS = "detection_balanced_accuracy", "answers.jsonl.gz"
BESIDE = ("pearson", "auprc", "auc", "auc_random", "density", "sure")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of SAEs; controls of the first")
    parser.add_argument("--judge", help="its name, as the results have it")
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--answers", nargs="*", default=[])
    parser.add_argument("--n_latents", type=int, default=60, help="of each run; a multiple of 10")
    parser.add_argument("--n_directions", type=int, default=60)
    parser.add_argument("--n_tokens", type=int, default=100_000, help="held-out tokens to read")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.runs and (args.out / ANSWERS).is_file():
        return write_results(args.out, args.seed)
    if args.n_latents % N_BLOCKS or len(args.runs) < 2 or not (args.judge and args.requests):
        parser.error(
            f"give two runs or more, a multiple of {N_BLOCKS} latents, --judge and --requests"
        )
    names = names_apart(args.runs)
    placed = {name: of_run(folder) for name, folder in zip(names, args.runs, strict=True)}
    plan = planned(args, placed)
    waiting = [said for name in names if (said := asked(args, placed[name], plan[name], name))]
    if waiting:
        print("\n".join(waiting))
        return
    record = read_json(placed[names[0]].folder / FEATURES / "explanations.json")
    lines: list[dict[str, Any]] = [{"judge": args.judge, "controls": controls_of(record)}]
    for name in names:
        ids = ids_in((args.requests / name.replace("/", "-")).glob("*.jsonl"))
        calls = [c for c in calls_of(placed[name].folder) if c["call"] in ids]
        lines += [{**latent, "run": name} for latent in answered(placed[name].folder, calls)]
        lines += [{key: call[key] for key in ("call", "messages", "answer")} for call in calls]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (args.out / ANSWERS).write_bytes(gzip.compress(content.encode(), mtime=0))
    write_results(args.out, args.seed)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def calls_of(folder: Path) -> list[dict[str, Any]]:
    """Questions to the judge, with their answers."""
    lines = (folder / FEATURES / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def answered(folder: Path, calls: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each latent of a run that was judged: what else is known of it, and by its own and by
    another's name the call, the answer, and in which of its texts the latent fires."""
    windows: dict[int, dict[str, bool]] = {}
    for row in pq.read_table(
        folder / FEATURES / "evidence.parquet", columns=["latent", "kind", "tokens"]
    ).to_pylist():
        text = json_string("".join(row["tokens"]))
        windows.setdefault(row["latent"], {})[text] = row["kind"] not in ("hard", "random")
    asked = [(call, *call["messages"][-1][1].split("\n")) for call in calls]
    for row in pq.read_table(
        folder / FEATURES / "explanations.parquet", columns=["latent", "explanation", *BESIDE]
    ).to_pylist():
        fires = windows.get(row["latent"], {})
        own, found = f"Description: {json_string(row['explanation'] or '')}", {}
        for call, first, *texts in asked:
            texts = [text.partition(": ")[2] for text in texts]
            if first.startswith("Description: ") and all(text in fires for text in texts):
                answer = {"call": call["call"], "answer": call["answer"]["text"]}
                found[first == own] = answer | {"fires": [fires[text] for text in texts]}
        if True in found:
            yield {**row, "own": found[True], "other": found.get(False, found[True])}


def write_results(out: Path, seed: int) -> None:
    """OUT/results.json and OUT/names.md, from the plan and the kept answers."""
    plan = read_json(out / "plan.json")
    with gzip.open(out / ANSWERS, "rt", encoding="utf-8") as file:
        head, *rows = map(json.loads, file)
    runs = {
        name: rows_of([row for row in rows if row.get("run") == name], blocks)
        for name, blocks in plan.items()
        if name not in ("about", "sha256")
    }
    results = compared(runs, seed) | {**head, "plan": plan["sha256"]}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "names.md").write_text(page(results, plan), encoding="utf-8")
    print(page(results, plan))


def planned(args: argparse.Namespace, placed: Mapping[str, SAEInContext]) -> dict[str, Any]:
    """Which latents are named, by run; drawn once, and then read from OUT/plan.json."""
    path = args.out / "plan.json"
    if path.is_file():
        return checked(read_json(path), args, placed)
    densities = {name: densities_of(one, args) for name, one in placed.items()}
    every = np.sort(np.concatenate([np.array([*own.values()]) for own in densities.values()]))
    edges = np.quantile(every, np.arange(1, N_BLOCKS) / N_BLOCKS)
    rng = np.random.default_rng(args.seed)
    plan: dict[str, Any] = {}
    for name, own in densities.items():
        latents, blocks = np.array([*own]), np.searchsorted(edges, [*own.values()], side="right")
        plan[name] = {}
        for block in range(N_BLOCKS):
            inside = latents[blocks == block]
            n = args.n_latents // N_BLOCKS
            if len(inside) < n:
                raise Refused(
                    f"{name} has {len(inside)} latents in tenth {block + 1} of the densities, and "
                    f"{n} are drawn; give fewer --n_latents, or more --n_tokens"
                )
            drawn = sorted(rng.permutation(inside)[:n].tolist())
            plan[name] |= {str(latent): block for latent in drawn}
    plan["about"] = {
        **settings_of(args, placed),
        "edges": edges.tolist(),
        "fitting": {name: len(own) for name, own in densities.items()},
    }
    plan["sha256"] = hash_of(plan)
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return plan


def settings_of(args: argparse.Namespace, placed: Mapping[str, SAEInContext]) -> dict[str, Any]:
    """What a plan is of."""
    numbers = ("n_latents", "n_directions", "n_tokens", "seed")
    return {
        "weights": {name: stamp(one.folder) for name, one in placed.items()},
        "judge": args.judge,
        **{key: getattr(args, key) for key in numbers},
    }


def checked(
    plan: dict[str, Any], args: argparse.Namespace, placed: Mapping[str, SAEInContext]
) -> dict[str, Any]:
    """A plan that was read, if it is of these runs and settings and was not changed."""
    given = settings_of(args, placed)
    changed = [key for key, value in given.items() if plan["about"].get(key) != value]
    if hash_of(plan) != plan["sha256"]:
        changed.append("what was drawn")
    if changed:
        raise Refused(
            f"{args.out}/plan.json is of other runs or settings ({', '.join(changed)}); give "
            "another OUT"
        )
    return plan


def hash_of(plan: Mapping[str, Any]) -> str:
    content = {key: value for key, value in plan.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def densities_of(placed: SAEInContext, args: argparse.Namespace) -> dict[int, float]:
    """By latent that has windows enough on both halves of the text, the share of tokens on which it
    fires."""
    every = ExplainArguments(n_latents="all", n_tokens=args.n_tokens, seed=args.seed)
    loaded = load(placed.recipe.lm, "cpu")
    reading = read(
        loaded.lm,
        placed.sae,
        read_rows(placed.recipe, loaded, "test", args.n_tokens),
        order_of(every, placed.sae.config.d_sae),
        n_directions=0,
        keep_all=True,
        seed=args.seed,
        norm_limits=limits_of(placed, loaded),
        harvest=placed.recipe.harvest,
    )
    return {e.latent: e.density for e in select(reading, every).latents}


def asked(
    args: argparse.Namespace, placed: SAEInContext, latents: Mapping[str, int], name: str
) -> str:
    """Names and detection of a run's latents in its folder; what waits for answers, or ""."""
    is_first = placed.folder == args.runs[0]
    requests = args.requests / name.replace("/", "-")
    answers = [path for path in args.answers if ids_in([path]) & ids_in(requests.glob("*.jsonl"))]
    judge = JudgeArguments(model=args.judge, requests=str(requests), answers=answers)
    scores = ScoreArguments(("detection",), directions=args.n_directions if is_first else 0)
    chosen = ExplainArguments(
        latents=[int(latent) for latent in latents], n_tokens=args.n_tokens, seed=args.seed
    )
    controls = ("untrained",) if is_first else ()
    request = ExplainRequest("lm", scores=scores, judge=judge, controls=controls)
    result = explain_sae(placed, chosen, request)
    return "" if result.rows else result.report


def ids_in(paths: Iterable[Path | str]) -> set[str]:
    """The ids of requests or answers."""
    lines = (line for path in paths for line in Path(path).read_text().splitlines() if line)
    return {json.loads(line)["custom_id"] for line in lines}


def rows_of(latents: Sequence[Mapping[str, Any]], blocks: Mapping[str, int]) -> dict[str, Any]:
    """[latents] AUC and balanced accuracy of the kept answers, facts beside, and the block."""
    rows = [row for row in latents if str(row["latent"]) in blocks]
    values = {c: np.array([np.nan if r[c] is None else r[c] for r in rows]) for c in BESIDE}
    for which, column in (("own", OWN), ("other", OTHER)):
        pairs = [(np.array(grades_in(r[which])), np.array(r[which]["fires"])) for r in rows]
        values[column] = np.array([auc(grades, fires) for grades, fires in pairs])
        if which == "own":
            above = [(grades > N_LEVELS / 2, fires) for grades, fires in pairs]
            shares = [(yes[fires].mean(), yes[~fires].mean()) for yes, fires in above]
            values[BALANCED] = np.array([(hits + 1 - alarms) / 2 for hits, alarms in shares])
    return values | {"block": np.array([blocks[str(row["latent"])] for row in rows])}


def auc(grades: np.ndarray, fires: np.ndarray) -> float:
    """NaN where all windows are alike."""
    return float(roc_auc_score(fires, grades)) if 0 < fires.sum() < len(fires) else float("nan")


def grades_in(answer: Mapping[str, Any]) -> list[int]:
    text = answer["answer"]
    start = min(at for at in (text.find("{"), text.find("[")) if at >= 0)
    value, _ = json.JSONDecoder().raw_decode(text, start)
    return value["grades"] if isinstance(value, dict) else value


class Pair(NamedTuple):
    """One run's mean AUC minus another's."""

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    holm: float
    least: float
    """the smallest true difference that this many latents show with a probability of 80 %"""


def compared(runs: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, Any]:
    """Means by run, differences of all pairs, and what goes along with the AUC."""
    means = {
        name: {
            "n_latents": len(rows[OWN]),
            "own": within_blocks(rows[OWN], rows["block"], seed),
            "balanced_accuracy": within_blocks(rows[BALANCED], rows["block"], seed),
            "other": within_blocks(rows[OTHER], rows["block"], seed),
            "own_minus_other": within_blocks(rows[OWN] - rows[OTHER], rows["block"], seed),
        }
        for name, rows in runs.items()
    }
    pairs = [*itertools.combinations(runs, 2)]
    differences = [difference(runs[a], runs[b], seed) for a, b in pairs]
    corrected = holm([d["p"] for d in differences])
    level = LEVEL / len(pairs)
    found = [
        Pair(a, b, **d, holm=p, least=smallest_shown(runs[a], runs[b], level))._asdict()
        for (a, b), d, p in zip(pairs, differences, corrected, strict=True)
    ]
    return {"runs": means, "pairs": found, "beside": correlations(runs, seed)}


def difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int) -> Any:
    values = np.concatenate([one[OWN], other[OWN]])
    is_first = np.arange(len(values)) < len(one[OWN])
    blocks = np.concatenate([one["block"], other["block"]])
    p = permutation_p(values, is_first, blocks, seed)
    draws = _draws(one[OWN], one["block"], seed) - _draws(other[OWN], other["block"], seed + 1)
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return {"value": float(one[OWN].mean() - other[OWN].mean()), "low": low, "high": high, "p": p}


def permutation_p(values: np.ndarray, is_first: np.ndarray, blocks: np.ndarray, seed: int) -> float:
    """Two-sided p of a difference of means, by labels permuted within blocks."""
    rng = np.random.default_rng(seed)
    by_block = np.argsort(blocks, kind="stable")
    keys = blocks[by_block] + rng.random((N_PERMUTATIONS, len(blocks)))
    drawn = np.empty((N_PERMUTATIONS, len(blocks)), dtype=bool)
    drawn[:, by_block] = is_first[by_block][np.argsort(keys, axis=1)]

    def differences(labels: np.ndarray) -> np.ndarray:
        sums, n = labels @ values, labels.sum(axis=1)
        return sums / n - (values.sum() - sums) / (len(values) - n)

    own = abs(differences(is_first[None])[0])
    n_as_far = int((np.abs(differences(drawn)) >= own - 1e-12).sum())
    return (n_as_far + 1) / (N_PERMUTATIONS + 1)


def within_blocks(values: np.ndarray, blocks: np.ndarray, seed: int) -> list[float]:
    """[mean, low, high]: a bootstrap over latents, each block on its own."""
    limits = np.percentile(_draws(values, blocks, seed), [2.5, 97.5]).tolist()
    return [float(values.mean()), *limits]


def _draws(values: np.ndarray, blocks: np.ndarray, seed: int) -> np.ndarray:
    """[N_RESAMPLES] means of latents drawn anew within blocks. A bootstrap of n values varies by
    (n - 1) / n of what their mean does, and blocks are small: deviations are as much larger, and
    by Student's quantile over the normal one."""
    rng = np.random.default_rng(seed)
    sums, each = np.zeros(N_RESAMPLES), np.unique(blocks)
    for block in each:
        inside = values[blocks == block]
        n = len(inside)
        drawn = inside[rng.integers(n, size=(N_RESAMPLES, n))].mean(axis=1) - inside.mean()
        sums += n * drawn * np.sqrt(n / (n - 1))
    df = len(values) - len(each)
    factor = stats.t.ppf(0.975, df) / stats.norm.ppf(0.975)
    return values.mean() + factor * sums / len(values)


def smallest_shown(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], level: float
) -> float:
    """The true difference of two means that a test at this level shows with probability `POWER`,
    from the spread of latents within blocks: (z(1 - level / 2) + z(POWER)) x standard error."""
    squares = [_error(rows[OWN], rows["block"]) ** 2 for rows in (one, other)]
    quantiles = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(POWER)
    return float(quantiles * np.sqrt(sum(squares)))


def _error(values: np.ndarray, blocks: np.ndarray) -> float:
    """Standard error of the mean of values that are drawn block by block."""
    each = [values[blocks == block] for block in np.unique(blocks)]
    variance = sum(len(own) * own.var(ddof=1) for own in each if len(own) > 1)
    return float(np.sqrt(variance) / len(values))


def correlations(runs: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, list[float]]:
    """Spearman's correlation of the AUC with other facts of a latent, over all runs."""
    own = np.concatenate([rows[OWN] for rows in runs.values()])
    rng = np.random.default_rng(seed)
    found = {}
    for name in BESIDE:
        values = np.concatenate([rows[name] for rows in runs.values()])
        known = ~np.isnan(values)
        x, y = own[known], values[known]
        if len(x) < N_BLOCKS:
            continue
        draws = []
        for at in rng.integers(len(x), size=(2000, len(x))):
            draws.append(stats.spearmanr(x[at], y[at]).statistic)
        found[name] = [
            float(stats.spearmanr(x, y).statistic),
            *np.nanpercentile(draws, [2.5, 97.5]),
        ]
    return found


def controls_of(record: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Of the first run: means of the AUC of random directions, and of re-drawn weights."""
    drawn = record["untrained"].get("detection", {}).get("auc", {})
    uniform = record["scores"]["detection"]["uniform"]["auc"]
    return {
        "random directions": uniform["direction"],
        "re-drawn weights": drawn.get("untrained", []),
        "re-drawn weights, own minus another's": drawn.get("untrained_minus_control", []),
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; the first row is its head."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def page(results: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    about = plan["about"]
    keys = ("own", "other", "own_minus_other", "balanced_accuracy")
    means = [["", "latents", "AUC by its own name", "by another latent's", "own minus another's"]]
    means[0].append("balanced accuracy, own name")
    for name, of in results["runs"].items():
        cells = [_shown(of[key]) for key in keys]
        means.append([name, str(of["n_latents"]), *cells])
    for name, values in results["controls"].items():
        means.append([name, "", _shown(values), "", "", ""])
    pairs = [["pair", "difference", "p", "p, Holm", "could have been shown"]]
    for pair in results["pairs"]:
        shown = _shown([pair["value"], pair["low"], pair["high"]], signed=True)
        numbers = [f"{pair[key]:.3f}" for key in ("p", "holm", "least")]
        pairs.append([f"{pair['first']} - {pair['second']}", shown, *numbers])
    beside = [["beside", "Spearman"]]
    beside += [[name, _shown(values, signed=True)] for name, values in results["beside"].items()]
    return (
        f"# Names by {results['judge']}, tested\n\n"
        f"{results['judge']} grades windows, 0 to 10, by a name alone. AUC: how well the grades "
        "tell windows in which a latent fires from others, ties one half; balanced accuracy: of "
        f"grades above {N_LEVELS // 2}. {about['n_latents']} latents of each SAE, as many from "
        "each tenth of "
        f"the densities of all, drawn before anything was named (seed {about['seed']}; plan "
        f"`{results['plan'][:16]}`). Names come from one half of {about['n_tokens']:,} held-out "
        "tokens, windows from the other. 95 % bootstraps within blocks of density; controls are "
        f"of the first SAE, with intervals over latents.\n\n{table(means)}\n\n"
        f"{table(pairs)}\n\np: labels permuted within blocks of density, then corrected for the "
        f"{len(results['pairs'])} pairs (Holm). Last column: the smallest true difference that "
        f"these latents would have shown with a probability of {POWER:.0%}, at the strictest "
        f"level of the correction.\n\n{table(beside)}\n\nOf the AUC with other facts of the same "
        "latents, all SAEs together: lexical scores of the windows' tokens, density, and how sure "
        "the namer was.\n"
    )


def _shown(values: Sequence[float | None], signed: bool = False) -> str:
    if not values or None in values:
        return "-"
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(*values)


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        print(f"judged.py: error: {error}", file=sys.stderr)
        sys.exit(2)
