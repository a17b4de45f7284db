"""The table of claims of papers that cite JumpReLU's, on the page of scripts/citing."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from anew import Claim, Told, table
from of_bench import runs_of

PAGE, SECTION = "scripts/citing/README.md", "Claims tested by a script"
EQUAL, REPORT = "At equal L0", Path(__file__).parents[1] / "citing" / "comparison" / "report.md"
CLAIM_OF = {  # by an arm's title: the end of its row before the figure
    "SoftSAE": "a number of latents for each token reconstructs better at equal mean L0",
    "Tree SAE": "latents in trees, with parents that explain their children",
    "AEN-SAE": "fewer dead latents than an L1 penalty, where latents are correlated",
    "sparsemax": "a threshold for each token does better than a fixed number",
}
RESULTS = Path(__file__).parents[1] / "citing" / "results"
SHOWN, NOT_HERE = "*shown here*", "*not shown at this size*"
CONTRADICTED, UNTESTED = "*contradicted here*", "*cannot be tested here*"
NAMES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M", "google/gemma-3-270m": "Gemma"}
ORDER = ("none", "latents", "PCA", "dimensions", "static")
MASKS = "Python gains and texts of the own kinds lose"
RECURRENT = (
    "the strongest latent does better than ablation in most documents and than controls, but far "
    "under 92 %, and one that just fires does no better"
)
ARMS = {
    "free": "free",
    "random_start": "from a random start",
    "dropout": "hidden layers",
    "shared": "shared profiles",
}
COHERENCE = (
    "free latents are read from all three layers nearly alike, much as random rows are, and those "
    "of shared profiles less so"
)
STARTS = (
    "decoder rows stay near their concept's direction and their latents tell it more than shuffled "
    "ones do, but less than the best latent of another start"
)
TRANSCODERS = {
    "clt": "CLT",
    "per_layer": "transcoders, as many latents,",
    "wide": "transcoders, as many weights,",
}
VISION = (
    "in the place of the later half of MLPs accuracy is kept, not improved; the CLT changes the "
    "output less than transcoders for each MLP do, wider ones too"
)
GRAPHS = (
    "graphs tell the kinds of tokens apart better than decoder rows, and a histogram of tokens "
    "better than graphs; on kinds of texts no gain over decoder rows is seen"
)
PROBED = ("AUC, k = 1", "AUC, k = 16", "absorption, full", "F1 of main latents")
OTHER, TRUE = "other's, to", "by_text, of the reference's, "
Json = dict[str, Any]


def told() -> Iterator[Told]:
    head = ["paper", "claim", "run", "figure [95 % interval] beside control", "verdict"]
    rows = (violations, dimensionality, signal, confounded, tools, echo, phase)
    rows += (motifs, masks, layers, vision, starts, recurrent)
    lines = [head, ["---"] * len(head), *(row() for row in rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    yield Told(PAGE, SECTION, text)
    yield from at_equal_l0()
    (run,) = runs_of("recurrent_states", RESULTS)
    fvu = [f"{row['fvu'][0]:.2f}"[1:] for row in run["rows"] if row["of"] == "states"]
    words = (
        f"FVU {fvu[0]}, of TopK with as many weights {fvu[2]}, as wide (eleven times the weights) "
    )
    yield Told(PAGE, EQUAL, words + fvu[1])
    files = [runs_of(path.stem, RESULTS) for path in sorted(RESULTS.glob("*.json"))]
    minutes = sum(run["seconds"] for runs in files for run in runs) / 60
    yield Told(PAGE, SECTION, f"the kept runs took {minutes:.0f} minutes in sum")


def at_equal_l0() -> Iterator[Told]:
    """The tables of the comparison's report, and each paper's FVU over all L0s."""
    report = REPORT.read_text(encoding="utf-8")
    by_l0 = "L0 25 | L0 40 | L0 60 | L0 90 | area"
    for head in (f"FVU | {by_l0}", f"delta LM loss | {by_l0}", "arm | L0 | gamma"):
        (text,) = re.findall(rf"^\| {re.escape(head)}.*\n(?:\|.*\n)+", report, re.MULTILINE)
        yield Told(PAGE, EQUAL, text)
    dead = {}  # per cent, of each arm's SAEs of the lowest L0
    for title, _, _, share, *_ in (row.strip("| ").split(" | ") for row in text.split("\n")[2:-1]):
        dead.setdefault(title.split(" (")[0], f"{float(share.split()[0]):.1f} %")
    own, jumprelu, batch_topk = (dead[name] for name in ("AEN-SAE", "JumpReLU", "BatchTopK"))
    silent = f"{own} beside JumpReLU's {jumprelu} and BatchTopK's {batch_topk}"
    yield Told(PAGE, EQUAL, f"dead at the lowest L0 {silent}")
    yield Told(PAGE, EQUAL, of_probing(report))
    rows = report[report.index(f"| FVU | {by_l0}") :].split("\n\n")[0].split("\n")
    for title, *_, area in (row.strip("| ").split(" | ") for row in rows[2:]):
        name = title.split(" (")[0]
        if name in CLAIM_OF:  # such as "**+9.8 %** (+9.6 to +10.0; +8.9 to +10.5)"
            value, low, high = re.findall(r"[+-][\d.]+", area)[:3]
            ends = f"[{low.lstrip('+')}, {high.lstrip('+')}]"
            yield Told(PAGE, EQUAL, f"{CLAIM_OF[name]} | FVU {value} % {ends}")


def of_probing(report: str) -> str:
    """Of the report's table at an L0 of 40 some columns, each arm's difference beside its value."""
    (text,) = re.findall(r"^\| arm \| seeds .*\n(?:\|.*\n)+", report, re.MULTILINE)
    head, _, *rows = (
        [c.strip() for c in line.strip("| ").split(" | ")] for line in text.split("\n")[:-1]
    )
    columns = [head.index(name) for name in PROBED]
    of = {row[0]: [row[i] for i in columns] for row in rows}
    lines = [["own / random directions; own less JumpReLU's", *PROBED]]
    for arm, values in of.items():
        if " minus " not in arm:
            less = of.get(f"{arm} minus JumpReLU (warm start)", [""] * len(values))
            pairs = zip(values, less, strict=True)
            lines.append([arm, *(f"{own}; {more}" if more else own for own, more in pairs)])
    return table(lines)


def claims() -> Iterator[Claim]:
    """Verdicts that stand in the table, and whether the results show them."""
    words = "After Holm's correction no difference is left"
    yield Claim(PAGE, EQUAL, words, "**" not in of_probing(REPORT.read_text(encoding="utf-8")))
    shared = [
        run["latents"][key]
        for key in ("of_all_rules", "of_all_rules_and_facts")
        for _, run in of_models("constraint_violations")
    ]
    half = len(shared) // 2
    words = "one of Gemma passes, and on false facts, too"
    yield Claim(PAGE, SECTION, words, shared[:half] == shared[half:] == [0, 1])
    falls = []
    for _, run in of_models("causal_dimensionality"):
        first, *_, last = run["rows"]
        falls.append(last["ratio"][2] < first["ratio"][1] and last["unit"][2] < first["unit"][1])
    yield Claim(PAGE, SECTION, "*contradicted here*: it falls with depth", all(falls))
    (wave,) = runs_of("phase_rotation", RESULTS)
    best = wave["rows"]["PCA"][2] < wave["rows"]["latents"][1]
    fails = wave["rows"]["static"][1] > 0.9
    yield Claim(PAGE, SECTION, "PCA is the better basis, and constants do fail", best and fails)
    for _, run in of_models("echo"):
        beyond = run["choice, difference"]["BC - random"]
        yield Claim(PAGE, SECTION, "random latents do as much", beyond[1] <= 0)
    for _, run in of_models("tool_switching"):
        row = best_site(run)
        least, most = row["switched"][1], row["switched"][2]
        holds = max(row["random, to"][2], row[OTHER][2]) < least and most < 0.77
        yield Claim(PAGE, SECTION, "to its tool more than controls do, but under 77 %", holds)
    for _, run in of_models("class_signal"):
        latents, dimensions = (run["rows"][kind] for kind in ("latents", "dimensions"))
        holds = latents[0] > dimensions[0] and latents[2] / dimensions[1] < 12.7
        yield Claim(PAGE, SECTION, "(their measure may differ)", holds)
    for _, run in of_models("confounded_labels"):
        rows = run["rows"]
        plain, partial = rows["by_length, plain"], rows["by_length, partial"]
        holds = partial[2] < plain[1] and partial[0] < 0.05
        yield Claim(
            PAGE, SECTION, "a label of length alone passes unless length is taken out", holds
        )
    for _, run in of_models("masked_tokens"):
        relative = run["rows"]["0.1"]["relative"]
        holds = relative["other"][2] < 0 < relative["same"][1] and relative["gap"][2] < 0
        yield Claim(PAGE, SECTION, MASKS, holds)
    for _, run in of_models("coherence"):
        free, shared = run["rows"]["free"], run["rows"]["shared"]
        holds = free["coherence"][1] > 2.3 and free["below 2"][2] < 0.2 and shared["more"][2] < 0
        holds = holds and abs(free["coherence"][0] - free["random"][0]) < 0.1
        yield Claim(PAGE, SECTION, COHERENCE, holds)
    for _, run in of_models("concept_start"):
        row, shuffled = run["rows"]["concepts"], run["rows"]["shuffled"]
        holds = row["cosine"][1] > 0.7 and row["own"][1] > shuffled["own"][2]
        yield Claim(PAGE, SECTION, STARTS, holds and row["own, more"][2] < 0)
    (run,) = runs_of("vision_clt", RESULTS)
    rows = run["rows"]
    low, high = (rows["none"]["accuracy"] + by for by in (-0.03, 0.01))
    holds = low < rows["clt"]["accuracy"][1] and rows["clt"]["accuracy"][2] < high
    less = (rows[arm]["the CLT's change less this"][2] for arm in ("per_layer", "wide"))
    yield Claim(PAGE, SECTION, VISION, holds and max(less) < 0)
    for _, run in of_models("motifs"):
        token, text = (run[about] for about in ("token", "text"))
        holds = all(row["graph - histogram"][2] < 0 for row in (token, text))
        is_gain = text["graph - decoder rows"][1] > 0
        yield Claim(
            PAGE, SECTION, GRAPHS, holds and token["graph - decoder rows"][1] > 0 and not is_gain
        )
    (run,) = runs_of("recurrent_states", RESULTS)
    for wins in (row[p] for row in run["rows"] if row["arm"] == "rank1" for p in ("at", "after")):
        strongest, some = wins["strongest < ablation"], wins["any < ablation"]
        others = min(wins[f"strongest < {name}"][1] for name in ("silent", "shuffled", "outer"))
        holds = strongest[1] > 0.5 and strongest[2] < 0.8 and some[0] < 0.5 and others > 0.5
        yield Claim(PAGE, SECTION, RECURRENT, holds)


def of_models(name: str) -> Iterator[tuple[str, Json]]:
    """The runs of a script, SmolLM2's first, by the short name of their model."""
    runs = {NAMES[run["model"]]: run for run in runs_of(name, RESULTS)}
    yield from sorted(runs.items(), reverse=True)


def with_interval(value: Sequence[float], digits: int = 2) -> str:
    """Such as ".66 [.57, .75]"."""
    own, low, high = (re.sub(r"^(-?)0\.", r"\1.", f"{x:.{digits}f}") for x in value)
    return f"{own} [{low}, {high}]"


def best_site(run: Json) -> Json:
    """Of tool switching: the site whose direction switches most calls."""
    return max(run["rows"], key=lambda row: row["switched"][0])


def paper(number: str, script: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number}) `{script}.py`"


def trained_by(script: str) -> tuple[str, str, int]:
    """How large its recipe's training is: "32,768", "2,048 latents" and its steps."""
    recipe = yaml.safe_load((RESULTS.parent / f"{script}.yaml").read_text("utf-8"))
    n, latents = recipe["training"]["n_tokens"], recipe["sae"].get("d_sae", 0)
    return f"{n:,}", f"{latents:,} latents", n // recipe["training"]["batch_size"]


def violations() -> list[str]:
    figures = []
    for name, run in of_models("constraint_violations"):
        own, dimensions = run["latents"], run["dimensions"]
        figures.append(
            f"{name}: latents that pass in all five rules {own['of_all_rules']} (dimensions "
            f"{dimensions['of_all_rules']}), of them on facts {own['of_all_rules_and_facts']}; "
            f"a rule left out is told by latents {with_interval(own['rule_left_out'])}, by "
            f"dimensions {with_interval(dimensions['rule_left_out'])}, and so are facts: "
            f"{with_interval(own['facts'])}, {with_interval(dimensions['facts'])}"
        )
    return [
        paper("2605.12055", "constraint_violations"),
        "no latent is shared by violations of all rules of grammar",
        "200 pairs of 5 rules, facts as control, shuffled labels: under one latent passes a rule",
        "; ".join(figures),
        f"{SHOWN} on SmolLM2: none passes; one of Gemma passes, and on false facts, too",
    ]


def dimensionality() -> list[str]:
    figures = []
    for name, run in of_models("causal_dimensionality"):
        first, last = run["rows"][0], run["rows"][-1]
        random = [row["random"][0] for row in run["rows"]]
        figures.append(
            f"{name}, width {run['width']}: {with_interval(first['ratio'], 0)} after the first "
            f"block, {with_interval(last['ratio'], 0)} near the last; of unit norm "
            f"{with_interval(first['unit'], 0)}, {with_interval(last['unit'], 0)}; random "
            f"directions {min(random):.0f} to {max(random):.0f}"
        )
    return [
        paper("2605.08740", "causal_dimensionality"),
        "the causal dimension of a layer is the same at all depths",
        f"eight depths, a token of each of {run['texts']} texts; participation ratio alone",
        "; ".join(figures),
        f"{CONTRADICTED}: it falls with depth (smaller models than the paper's)",
    ]


def signal() -> list[str]:
    figures, times = [], []
    for name, run in of_models("class_signal"):
        parts = [f"{kind} {with_interval(value)}" for kind, value in run["rows"].items()]
        figures.append(f"{name}: {', '.join(parts)}")
        times.append(run["rows"]["latents"][0] / run["rows"]["dimensions"][0])
    return [
        paper("2604.19031", "class_signal"),
        "classes have 12.7 times as much signal to noise on latents as on activations",
        f"{run['texts']} news of 4 classes; the 20 best units of one half, on the other",
        "; ".join(figures),
        f"{NOT_HERE}: at most {max(times):.1f} times as high (their measure may differ)",
    ]


def confounded() -> list[str]:
    figures = []
    for name, run in of_models("confounded_labels"):
        rows = {key: with_interval(value) for key, value in run["rows"].items()}
        figures.append(
            f"{name}: share of latents that pass for a label of length alone "
            f"{rows['by_length, plain']}, with length out {rows['by_length, partial']}; for one of "
            f"text, of the latents that go with it in a balanced table {rows[TRUE + 'plain']} and "
            f"{rows[TRUE + 'partial']}, of the others {rows['by_text, of others, plain']} and "
            f"{rows['by_text, of others, partial']}"
        )
    return [
        paper("2605.01829", "confounded_labels"),
        "labels of latents need the confounder (age) taken out",
        f"{run['texts']} news, {run['plantings']} planted tables; length is the confounder",
        "; ".join(figures),
        f"{SHOWN}: a label of length alone passes unless length is taken out",
    ]


def tools() -> list[str]:
    figures = []
    for name, run in of_models("tool_switching"):
        best = best_site(run)
        figures.append(
            f"{name}, {best['site']}: called rightly {with_interval(best['right'])}; of these "
            f"switched {with_interval(best['switched'])}, by a random vector "
            f"{with_interval(best['random, to'])} (to any other tool "
            f"{with_interval(best['random, any'])}), by another tool's "
            f"{with_interval(best[OTHER])}"
        )
    return [
        paper("2605.07990", "tool_switching"),
        "the difference of two tools' means switches 77 to 100 % of calls, a random vector none",
        "4 tools, 24 requests to call, best of 3 sites",
        "; ".join(figures),
        f"{NOT_HERE}: the direction switches to its tool more than controls do, but under 77 %",
    ]


def echo() -> list[str]:
    figures = []
    for name, run in of_models("echo"):
        good, by = run["good"], run["choice, difference"]
        figures.append(
            f"{name}: good choices A {with_interval(good['A'])}, B {with_interval(good['B'])}, C "
            f"{with_interval(good['C'])}, BC {with_interval(good['BC'])}; in nats BC less B "
            f"{with_interval(by['BC - B'])}, BC less random latents "
            f"{with_interval(by['BC - random'])}; slope of threat, C less A "
            f"{with_interval(run['slope, difference']['C - A'])}"
        )
    return [
        paper("2605.08611", "echo"),
        "an echo of fear makes knowledge (B) into good choices (BC), alone (C) it does nothing",
        f"{run['events']} events",
        "; ".join(figures),
        f"{NOT_HERE}: random latents do as much",
    ]


def phase() -> list[str]:
    (run,) = runs_of("phase_rotation", RESULTS)
    parts = [f"{kind} {with_interval(run['rows'][kind])}" for kind in ORDER]
    return [
        paper("2604.04946", "phase_rotation"),
        "latents are the better basis to rotate phases; constant factors fail",
        f"simulated wave, {run['seeds']} seeds",
        f"error after a period: {', '.join(parts)}",
        f"{UNTESTED} (no fluid model); on this wave, by our pairing, PCA is the better basis, and "
        "constants do fail",
    ]


def motifs() -> list[str]:
    figures = []
    for name, run in of_models("motifs"):
        parts = []
        for about in ("token", "text"):
            kinds = ("graph", "shape", "histogram", "decoder rows")
            of = [with_interval(run[about][kind]["purity"]) for kind in kinds]
            more = with_interval(run[about]["graph - decoder rows"])
            chance = with_interval([run[about]["graph"]["chance"]] * 3).partition(" ")[0]
            parts.append(
                f"kind of {about}: graphs {of[0]} (by chance {chance}, less decoder rows {more}), "
                f"their shape alone {of[1]}, histogram {of[2]}, decoder rows {of[3]}"
            )
        figures.append(f"{name}: {'; '.join(parts)}")
    return [
        paper("2605.06494", "motifs"),
        "graphs of tokens near firings show families of latents that decoder rows do not; a "
        "histogram of tokens has the higher purity",
        f"{run['texts']} texts of six kinds, 12 clusters; purity; kernel and families are ours",
        "; ".join(figures),
        f"{SHOWN}: {GRAPHS}",
    ]


def masks() -> list[str]:
    (tokens, latents, steps), figures = trained_by("masked_tokens"), []
    for name, run in of_models("masked_tokens"):
        parts = []
        for share in ("0.1", "0.3"):
            relative = run["rows"][share]["relative"]
            of = {key: with_interval(value, 1) for key, value in relative.items()}
            parts.append(
                f"{100 * float(share):.0f} % masked: {of['same']} % on the same kinds, "
                f"{of['other']} % on Python, gap {of['gap']} %"
            )
        same, other = (run["rows"]["0.0"][f"fvu, {kind}"] for kind in ("same", "other"))
        no_mask = f"FVU {with_interval(same)} and on Python {with_interval(other)}"
        figures.append(f"{name}: {no_mask}; {'; '.join(parts)}")
    return [
        paper("2604.06495", "masked_tokens"),
        "masking tokens while training makes the gap to other texts smaller, by 2.4 %",
        f"{run['seeds']} seeds, {tokens} tokens, {latents}; log ratios to no mask",
        "; ".join(figures),
        f"{SHOWN}: at 10 % {MASKS} ({steps} steps; absorption not measured)",
    ]


def layers() -> list[str]:
    (tokens, latents, steps), figures = trained_by("coherence"), []
    for name, run in of_models("coherence"):
        parts = []
        for arm, row in run["rows"].items():
            of = {key: with_interval(row[key]) for key in ("coherence", "below 2")}
            cost = f", FVU {row['fvu, relative'][0]:+.0f} %" if arm != "free" else ""
            parts.append(f"{ARMS[arm]} {of['coherence']} (below 2 {of['below 2']}{cost})")
        free = {key: with_interval(value) for key, value in run["rows"]["free"].items()}
        controls = f"another latent's rows {free['shuffled']}, random rows {free['random']}"
        figures.append(f"{name}: {'; '.join(parts)}; of free ones {controls}")
    return [
        paper("2605.09438", "coherence"),
        "latents of a crosscoder are driven by one or two layers; shared profiles mend it",
        f"crosscoders of three layers, {run['seeds']} seeds, {tokens} tokens, {latents}; from 1, "
        "a layer alone, to 3, all alike; what is shared is ours (two profiles), as the paper's is "
        "not known to us",
        "; ".join(figures),
        f"{NOT_HERE}: {COHERENCE} ({steps} steps, one learning rate for all arms)",
    ]


def vision() -> list[str]:
    (run,) = runs_of("vision_clt", RESULTS)
    (positions, _, steps), rows, figures = trained_by("vision_clt"), run["rows"], []
    first, last = (run["mlps"][i].split(".")[2] for i in (0, -1))
    for arm, title in TRANSCODERS.items():
        fvu, change = (with_interval(rows[arm][key], 3) for key in ("fvu", "change"))
        accuracy, l0 = with_interval(rows[arm]["accuracy"]), rows[arm]["l0"][0]
        figures.append(f"{title} {accuracy}, change {change} (FVU {fvu}, L0 {l0:.0f} in sum)")
    model, means = (f"{rows[arm]['accuracy']:.2f}"[1:] for arm in ("none", "means"))
    return [
        paper("2604.13304", "vision_clt"),
        "a CLT takes the place of CLIP's MLPs and keeps zero-shot accuracy or improves it, above "
        "all in later layers",
        f"DINOv2-small, MLPs of blocks {first} to {last} at once, {run['seeds']} seeds, "
        f"{positions} positions of handwritten digits; {run['digits']} held out; accuracy by means "
        "of classes, as it has no names; change is 1 - cosine of the output",
        f"accuracy: the model {model}; with means of MLPs {means}, change "
        f"{rows['means']['change']:.3f}; ".replace(" 0.", " .")
        + "; ".join(figures),
        f"{SHOWN}: {VISION} (one model and data set, {steps} steps, one learning rate for all "
        "arms; the earlier half was not run; intervals are over seeds alone)",
    ]


def starts() -> list[str]:
    (tokens, latents, steps), figures = trained_by("concept_start"), []
    for name, run in of_models("concept_start"):
        straight, dimension, *arms = run["rows"].values()
        clusters, concepts, shuffled = (
            {key: with_interval(value) for key, value in arm.items()} for arm in arms
        )
        cost = arms[1]["fvu, relative"][0]
        figures.append(
            f"{name}: direction {with_interval(straight['own'])}, best dimension "
            f"{with_interval(dimension['best'])}, best latent of clusters {clusters['best']}; "
            f"concepts' own latents {concepts['own']} (less the latter {concepts['own, more']}, "
            f"cosine {concepts['cosine']}), their best {concepts['best']}; shuffled, own "
            f"{shuffled['own']}, best {shuffled['best']}; FVU of concepts {cost:+.0f} %, of "
            f"shuffled {arms[2]['fvu, relative'][0]:+.0f} %, as other latents start at random there"
        )
    return [
        paper("2604.08846", "concept_start"),
        "decoder rows that start at annotated directions keep their meaning, so that latents have "
        "names at once",
        f"{len(run['concepts'])} concepts of {run['texts']} texts, {run['seeds']} seeds, {tokens} "
        f"tokens, {latents}; AUC on texts held out, at the last token, where silent latents tie",
        "; ".join(figures),
        f"{NOT_HERE}: {STARTS} ({steps} steps, one learning rate; the paper's models see and read, "
        "and are far larger)",
    ]


def recurrent() -> list[str]:
    (run,) = runs_of("recurrent_states", RESULTS)
    loss, figures = run["loss"], []
    for kind in ("states", "writes"):
        rank1, topk, few = (row for row in run["rows"] if row["of"] == kind)
        fvu = [with_interval(row["fvu"]) for row in (rank1, topk, few)]
        at, after, of_topk = (
            {key: with_interval(value) for key, value in row.items() if key != "kl"}
            for row in (rank1["at"], rank1["after"], topk["at"])
        )
        figures.append(
            f"{kind}: FVU {fvu[0]}, of TopK as wide {fvu[1]}, with as many weights {fvu[2]}; less "
            f"change than ablation by the strongest latent {at['strongest < ablation']} (at the 8 "
            f"bytes behind {after['strongest < ablation']}), by any that fires "
            f"{at['any < ablation']}, by a silent one {at['silent < ablation']}, by another "
            f"write's {at['shuffled < ablation']}, by Gaussians {at['outer < ablation']}, by "
            f"TopK's strongest {of_topk['strongest < ablation']}; strongest before silent "
            f"{at['strongest < silent']}"
        )
    return [
        paper("2605.12770", "recurrent_states"),
        "an outer product in a write's place changes the next token less than ablation: 92.4 %",
        f"a model that we trained, gated delta rule, {run['parameters'] / 1e6:.1f} million "
        f"parameters, {run['bytes'] / 1e6:.1f} million bytes: {loss['model']:.2f} nats a byte "
        f"(pairs of bytes {loss['bigram']:.2f}, bytes {loss['unigram']:.2f}); "
        f"{run['documents']} documents, 3 seeds of SAEs",
        "; ".join(figures),
        f"{NOT_HERE}: {RECURRENT} (our model is tiny; the paper's {UNTESTED[1:-1]})",
    ]
