"""Each number that a page of scripts/comparisons tells in a sentence is a report's."""

import ast
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from hfsae.cli import parse_recipe, recipe_parser
from hfsae.comparison import Comparison, Differences, measure
from hfsae.io.files import read_json

from .told import (
    FVU,
    HOME,
    LOSS,
    PAGES,
    PLACES,
    agrees,
    lines,
    of_differences,
    of_report,
    percents,
    rows,
    section,
)

pytestmark = pytest.mark.pages

OVER_PLACES, SCRATCH = ("Gated (RI-L1)", "TopK"), "JumpReLU (from scratch)"
PARTS = ("mlp", "self_attn")
NUMBER = re.compile(r"(?<![\w.])-?\d*\.?\d+(?:e-?\d+)?(?![\w])")


def said(title: str, words: str, *measured: float) -> None:
    """The section says these words, whose numbers are the measured ones, rounded."""
    assert words in " ".join(section(title).split())
    told = NUMBER.findall(words)
    assert len(told) == len(measured), told
    for number, value in zip(told, measured, strict=True):
        base, _, power = number.partition("e")
        digits = len(base.partition(".")[2])
        half = 0.505 * 10 ** (int(power or 0) - digits)
        assert float(number) == pytest.approx(value, abs=half), words


def ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def verdicts(metric: str, arm: str = "", *comparisons: str, only: str = "") -> dict[str, float]:
    """{row: per cent} of the areas of the report on all comparisons."""
    table = rows(of_report("verdict").partition("\n## Verdict\n")[2], metric)
    found = {}
    for row, cells in table.items():
        name, _, own = row.partition(": ")
        is_of = name.split(",")[0] in (comparisons or (name.split(",")[0],))
        if is_of and own == (arm or own) and (value := percents({"": cells["difference"]}, only)):
            found[row] = value[0]
    return found


def test_the_verdict():
    title, places = "The verdict", ("equal", "sites", "gemma")
    head = rows(of_report("verdict"), "comparison")
    n_rows, fvus = sum(int(cells["SAEs"]) for cells in head.values()), []
    for name in head:
        for path in (HOME / name.partition("]")[0].strip("[")).rglob("results.json"):
            fvus += [sae["metrics"]["fvu"] for sae in json.loads(path.read_text())["saes"]]
    assert len(fvus) == n_rows
    said(title, "726 SAEs", len({*fvus}))
    said(title, "(12 stand in two comparisons", n_rows - len({*fvus}))
    n_areas = [len(verdicts(metric)) for metric in (FVU, LOSS)]
    said(title, "for all 48 areas of FVU and 43 of delta loss", *n_areas)
    bold = r"\*\*"
    gated = verdicts(FVU, "Gated (RI-L1)", *places, only=bold)
    assert len(gated) == 8 and "*Gated* is larger at all eight places" in section(title)
    on_attention = gated.pop("sites, layers.15.self_attn: Gated (RI-L1)")
    on_gemma = [gated.pop(row) for row in [*gated] if row.startswith("gemma")]
    words = "by 6 to 8 % on SmolLM2, on attention's output by 48 %, and on Gemma by 20 and 24 %"
    said(title, words, *ends([*gated.values()]), on_attention, *ends(on_gemma))
    topk, shown = (verdicts(FVU, "TopK", *places, only=mark) for mark in ("", bold))
    assert len(topk) == 8 and "at all eight, by" in section(title)
    said(title, "by 2 to 14 %, and shown to be at six", *ends([*topk.values()]))
    assert len(shown) == 6
    assert topk.keys() - shown == {
        "sites, layers.15.mlp: TopK",
        "sites, layers.15.self_attn: TopK",
    }
    of_others = [v for row, v in verdicts(FVU, "", "equal", only=bold).items() if "'s " in row]
    assert len(of_others) == 3
    said(title, "libraries'* are larger by 11 to 18 % in the one", *ends(of_others))
    ((where, larger),) = verdicts(FVU, SCRATCH, *places, only=bold).items()
    assert where == f"sites, layers.15.mlp: {SCRATCH}"
    said(title, "is larger at one place, SmolLM2's MLP, by 3 %;", larger)
    said(title, "areas are 0.1 to 5.2 %", *ends([*verdicts(FVU, SCRATCH, *places).values()]))
    assert not verdicts(FVU, "BatchTopK", *places, only=bold)
    assert "*BatchTopK* is shown to differ nowhere" in section(title)
    words = "its areas are -0.9 to 0.0 %"
    said(title, words, *ends([*verdicts(FVU, "BatchTopK", *places).values()]))
    ablated = verdicts(FVU, "", "ablations_seeds", only=bold)
    assert len(ablated) == 7 and len(verdicts(FVU, "", "ablations_seeds")) == 11
    said(title, "seven of eleven are larger, by 12 to 41 %", *ends([*ablated.values()]))


def test_the_verdict_on_delta_loss():
    title, places, bold = "The verdict", ("equal", "sites", "gemma"), r"\*\*"
    in_loss = {row for row in verdicts(LOSS, only=bold) if not row.startswith("ablations_seeds")}
    assert in_loss == {"sites, layers.5: TopK", "equal: TopK", "sites, layers.25: Gated (RI-L1)"}
    assert len(verdicts(LOSS, "", "ablations_seeds", only=bold)) == 6
    told = " ".join(section(title).split())
    words = "larger after block 5 and, with twice the tokens, after block 15, Gated after"
    assert f"{words} block 25, and six of the ablations." in told
    assert "the other libraries on the residual stream lie above 0 as well" in told
    known, above = (verdicts(LOSS, "", *places, only=mark) for mark in ("", r"\*"))
    ours, elsewhere = ("Gated (RI-L1)", "TopK"), ("Batch", "15.", "layernorm")
    stream = [
        row for row in known if row.endswith(ours) and not any(part in row for part in elsewhere)
    ]
    stream += [row for row in known if "'s " in row]
    assert len(set(stream)) == 13 and above.keys() >= set(stream)


def test_which_rows_of_the_verdict_just_miss_the_correction():
    title = "The verdict"
    table = rows(of_report("verdict").partition("\n## Verdict\n")[2], FVU)
    near = {
        row: float(cells["p"])
        for row, cells in table.items()
        if "*" in cells["difference"] and not cells["p"].startswith("<")
        if 0.035 < float(cells["p"]) < 0.08
    }
    said(title, "Six areas miss the correction with a p of .057 or .058", *ends([*near.values()]))
    assert near.keys() == {
        f"equal: {SCRATCH}",
        "sites, layers.5: BatchTopK",
        "sites, layers.15.mlp: TopK",
        "sites, layers.15.self_attn: TopK",
        "ablations_seeds: warm start",
        "gemma, layers.9: BatchTopK",
    }
    said(title, "(p .058 and .057)", *(near[f"sites, layers.15.{s}: TopK"] for s in PARTS))
    warm = percents({"": table["ablations_seeds: warm start"]["difference"]})
    said(title, "the ablations (-0.7 %)", *warm)


def test_areas_that_are_shown_where_a_difference_at_one_l0_is_not():
    told = " ".join(section("The verdict").split())
    by_site, of_gemma = (
        rows(of_report(name).partition("\n## By site and L0\n")[2], FVU)
        for name in ("sites", "gemma")
    )
    table = by_site | {f"gemma {row}": cells for row, cells in of_gemma.items()}
    table |= {f"equal: {arm}": cells for arm, cells in of_differences("equal", FVU).items()}
    not_shown = {
        arm: {
            row.partition(": ")[0]
            for row, cells in table.items()
            if "**" not in cells["L0 20"] and row.partition(": ")[2] == arm
        }
        for arm in OVER_PLACES
    }
    gated, topk = not_shown.values()
    mlps = ("layers.15.mlp", "gemma layers.9.post_feedforward_layernorm")
    assert gated == {"layers.5", "layers.25", "equal"}
    assert topk == {"layers.25", "gemma layers.9", *mlps}
    assert (
        "an L0 of 20 Gated's is not shown to be larger after blocks 5 and 25 and, with twice the "
        "tokens, after block 15, nor TopK's after block 25, after Gemma's block 9 and on both MLPs"
    ) in told
    for mlp in mlps:
        (at_20,) = percents({"": table[f"{mlp}: TopK"]["L0 20"]})
        said("The verdict", "MLPs (-1 % each)", at_20)


def test_the_verdict_over_all_places():
    title, found = "The verdict", {}
    text = of_report("verdict").partition("\n## Over all places\n")[2]
    for metric in (FVU, LOSS):
        for arm, cells in rows(text, metric).items():
            known = (cells[name] for name in ("mean", "95 % interval", "a new place"))
            found[metric, arm] = [
                float(n) for cell in known for n in re.findall(r"[-+][\d.]+", cell)
            ]
            is_significant = arm in OVER_PLACES or (metric == FVU and arm in (SCRATCH, "BatchTopK"))
            assert ("**" in cells["95 % interval"]) == is_significant
    gated, topk, scratch, batch = (found[FVU, arm] for arm in (*OVER_PLACES, SCRATCH, "BatchTopK"))
    assert "[Over all eight places]" in section(title)
    said(title, "larger by 15 % for", gated[0])
    said(title, "Gated (95 % interval 5 to 27)", 95, *gated[1:3])
    said(title, "6 % for TopK (2 to 9) and", *topk[:3])
    said(title, "2 % from scratch (0.6 to 3)", *scratch[:3])
    said(title, "0.5 % smaller for BatchTopK (0.8 to 0.2)", *(-x for x in batch[:3]))
    said(title, "TopK's could be 5 % smaller or 17 % larger", -topk[3], topk[4])
    said(title, "Gated's 14 % smaller or 56 % larger", -gated[3], gated[4])
    said(title, "Gated (27 %, 23 to 32)", *found[LOSS, OVER_PLACES[0]][:3])
    said(title, "TopK (28 %, 11 to 47)", *found[LOSS, OVER_PLACES[1]][:3])
    (twice,) = {site for site in verdicts(FVU, "TopK", "equal")}  # and sites.yaml has it, too
    assert twice == "equal: TopK" and "sites, layers.15: TopK" in verdicts(FVU)
    assert "are of two small models, and block 15 counts twice." in " ".join(section(title).split())


def test_the_verdict_in_the_readme():
    page, title = " ".join(section("The verdict").split()), "What we found"
    for words, there in {
        "TopK's is larger by 2 to 14 %": "at all eight, by 2 to 14 %",
        "Gated's by 6 to 48 %": "by 6 to 8 % on SmolLM2, on attention's output by 48 %",
        "three libraries' by 11 to 18 %": "libraries'* are larger by 11 to 18 % in the one",
        "from scratch by 0.1 to 5.2 %": "its areas are 0.1 to 5.2 %",
        "is level or better (-0.9 to 0.0 %)": "its areas are -0.9 to 0.0 %",
        "726 SAEs": "726 SAEs",
        "at all eight places": "is larger at all eight places",
    }.items():
        assert there in page, there
        numbers = NUMBER.findall(there)
        if words.startswith("Gated"):
            numbers = [numbers[0], numbers[2]]
        said(title, words, *map(float, numbers))
    of_loss = [len(verdicts(LOSS, "", "equal", "sites", "gemma", only=m)) for m in (r"\*\*", "")]
    assert of_loss[0] <= of_loss[1] / 6 and "Delta losses rarely differ" in " ".join(
        section(title).split()
    )


def test_the_guide_says_in_words_what_the_verdict_shows():
    told, places = " ".join(section("What was found").split()), ("equal", "sites", "gemma")
    every, batch = (verdicts(FVU, arm, *places) for arm in ("", "BatchTopK"))
    assert max(batch.values()) < 0.05 < min(every[row] for row in every.keys() - batch.keys())
    assert "Over all L0s JumpReLU with a warm start and BatchTopK have the smallest FVU" in told
    assert not verdicts(FVU, "BatchTopK", *places, only=r"\*\*")
    assert "and no single place shows a difference between the two." in told
    pooled = rows(of_report("verdict").partition("\n## Over all places\n")[2], FVU)["BatchTopK"]
    assert pooled["mean"].startswith("-0.") and pooled["95 % interval"].startswith("**")
    assert "Over all places together BatchTopK's is slightly smaller." in told
    of_l0s = rows(of_report("sites").partition("\n## By site and L0\n")[2], FVU)
    for row, cells in of_l0s.items():
        by_l0 = percents({l0: cell for l0, cell in cells.items() if l0 != "area"})
        assert "Gated" not in row or by_l0[0] == min(by_l0), row
    assert "Gated most of all where many latents may fire" in told


@pytest.fixture(scope="module")
def from_scratch() -> Differences:
    """The frontier's differences from JumpReLU from scratch, as `--reference` gives them."""
    argv = [str(HOME / "frontier.yaml"), "--reference", "jumprelu_scratch"]
    argv += ["--report", str(HOME / "frontier")]
    comparison, _ = parse_recipe(recipe_parser("compare", Comparison), argv, Comparison)
    return Differences(comparison, measure(comparison))  # all of it is kept


def shown(differences: Differences, metric: str, arm: str) -> dict[float, float]:
    """{L0: per cent} of the differences that are shown; the area stands at 0."""
    cells = zip([*differences.l0s, 0.0], differences.tables[metric][arm], strict=True)
    return {l0: 100 * (2.718281828**e.value - 1) for l0, e in cells if e.is_significant}


def test_what_is_told_of_jumprelu_from_scratch(from_scratch):
    fvu = {arm: shown(from_scratch, "fvu", arm) for arm in ("topk", "gated")}
    area = {arm: of.pop(0.0) for arm, of in fvu.items()}
    said(
        "The frontier",
        "by 4 to 12 %, over all by 7 %",
        *ends([*fvu["topk"].values()]),
        area["topk"],
    )
    assert min(fvu["topk"]) == 40 and "from 40 on from scratch" in section("The frontier")
    at_20, *others = (fvu["gated"][l0] for l0 in sorted(fvu["gated"]))
    said("The frontier", "(5 to 20 %, over all 3.5 %)", *ends(others), area["gated"])
    assert sorted(fvu["gated"])[:2] == [20, 80]
    said("The frontier", "Gated's FVU is 3 % smaller than that of the one from scratch", -at_20)
    of_loss = shown(from_scratch, "delta_loss", "topk")
    said("The frontier", "it is shown at 50 alone (52 %)", 50, of_loss.pop(50.0))
    assert not of_loss and not shown(from_scratch, "delta_loss", "gated")


def test_how_close_batch_topk_is_to_the_frontiers_warm_start():
    values = percents(of_differences("frontier", FVU)["BatchTopK"])
    said("The frontier", "(FVU within 1.2 %)", max(map(abs, values)))
    dead = {line[0]: float(line[3].split(" ")[0]) for line in lines("frontier", "arm | L0 | gamma")}
    said(
        "The frontier",
        "At an L0 of 176 20 % of the latents are dead (from scratch 58 %, BatchTopK 1 %)",
        *(176, dead["JumpReLU (warm start)"], dead["JumpReLU (from scratch)"], dead["BatchTopK"]),
    )
    at_64 = [line for line in lines("frontier", "arm | L0 | pairs of seeds") if line[1][:2] == "64"]
    share = {line[0]: 100 * float(line[4]) for line in at_64}
    said(
        "The frontier",
        "at L0 64 49 % of its latents have a match above a cosine of 0.7 in another seed's "
        "(ReLU 25, JumpReLU 21, TopK 9 %)",
        *(64, share["Gated (RI-L1)"], 0.7, share["ReLU (L1)"]),
        *(share["JumpReLU (warm start)"], share["TopK"]),
    )


def test_which_causal_differences_have_both_intervals_on_one_side():
    table = rows(of_report("frontier").partition("Do arms differ?")[2], "")
    marked = {
        (row, arm) for row, of in table.items() for arm, cell in of.items() if cell[:1] == "*"
    }
    assert {("1 alone", "ReLU (L1)"), ("without 8", "TopK"), ("1 alone", "TopK")} <= marked
    assert (
        "Both intervals of ReLU's (more in its first latents) and TopK's (less) exclude 0 in some"
        in (" ".join(section("The frontier").split()))
    )


def test_how_the_arms_were_tuned():
    text = (HOME.parent / "tuning/equal/report.md").read_text(encoding="utf-8")
    assert text.splitlines()[2].startswith("60 settings of 5 arm(s)")
    told = " ".join(section("Tuned alike").split())
    assert "Twelve settings for each of five arms" in told
    of_arms = [part for part in text.split("\n## ") if "| setting |" in part]
    assert len(of_arms) == 5
    for part in of_arms:
        best = {name.strip("`"): row for name, row in rows(part, "setting").items()}
        rate, scale, decay = (
            float(best[f"training.{name}"]["best"].strip("*"))
            for name in ("learning_rate", "init_encoder_scale", "decay_steps")
        )
        said("Tuned alike", "(rate 2.25e-3, encoder scale 0.074, decay", rate, scale)
        assert decay == 0.5 and "decay over the second half" in told
        edges = [name for name, row in best.items() if "edge" in row[""]]
        assert edges == ["training.threshold_learning_rate"] * part.startswith("jumprelu_scratch")
    assert "thresholds' rate from scratch alone, 1.4e-2" in told
    assert "each trained at `layers.15` of" in text
    assert (
        "hfsae's five arms were tuned alike after block 15 (*equal*, "
        "[how](tuned_alike.md#tuned-alike))"
    ) in " ".join(section("The verdict").split())


def test_of_delta_loss_where_arms_were_tuned_alike():
    title, of_loss = "Tuned alike", of_differences("equal", LOSS)
    cells = {
        (arm, l0.removeprefix("L0 ")): cell
        for arm, of_arm in of_loss.items()
        for l0, cell in of_arm.items()
        if cell != "-"
    }
    found = {key: percents({"": cell})[0] for key, cell in cells.items() if cell[:2] == "**"}
    said(title, "Of delta loss 7 of 40 differences are shown:", len(found), len(cells))
    said(title, "at an L0 of 20 (larger by 10 %)", 20, found.pop(("Gated (RI-L1)", "20")))
    said(title, "TopK's over all L0s (46 %)", found.pop(("TopK", "area")))
    of_50 = found.pop(("dictionary_learning's BatchTopK", "50"))
    said(title, "dictionary_learning's at 50 (51 %)", 50, of_50)
    libraries = [arm for arm in of_loss if re.search("'s (Batch)?TopK", arm)]
    assert found.keys() == {(arm, "40") for arm in ("TopK", *libraries)} and len(libraries) == 3
    words = "at 40 TopK's and all three libraries' (36 to 63 %)"
    said(title, words, 40, *ends([*found.values()]))
    both = ("Gated (RI-L1)", "TopK", *libraries)
    assert all(cell[0] == "*" for (arm, _), cell in cells.items() if arm in both)


def test_hfsaes_topk_is_held_against_sparsifys():
    fvu = rows(of_report("equal").partition("\n## Values\n")[2], FVU)
    pairs = zip(fvu["TopK"].values(), fvu["sparsify's TopK"].values(), strict=True)
    below = [100 * (1 - float(a[:6]) / float(b[:6])) for a, b in pairs if b != "-"]
    assert len(below) == 4
    for percent in ends(below):
        said("Tuned alike", "(hfsae's TopK is 8 % below it)", percent)


def test_what_other_texts_do():
    text = of_report("equal").partition("\n### At an L0 of 50\n")[2]
    table = rows(text, "arm")
    read = {
        (arm, name): [float(n) for n in re.findall(r"[\d.]+", cells[name])]
        for arm, cells in table.items()
        for name in ("code", "news")
    }
    news, code = ([v for (_, name), v in read.items() if name == side] for side in ("news", "code"))
    said(
        "Tuned alike",
        "FVU is 1.4 to 1.5 times that of held-out documents on news, 2.7 to 2.9 times on Python "
        "code (delta loss 0.4 to 0.6 and 1.9 to 2.4 nats)",
        *(*ends([v[3] for v in news]), *ends([v[3] for v in code])),
        *(*ends([v[1] for v in news]), *ends([v[1] for v in code])),
    )
    more = [
        100 * (v[2] / 50 - 1)
        for (arm, _), v in read.items()
        if not arm.endswith("TopK") or "Batch" in arm
    ]
    said("Tuned alike", "23 to 36 % more latents fire", *ends(more))


def test_rates():
    saes = [
        sae
        for report in ("rates", "warm_start")
        for sae in read_json(HOME / report / "results.json")["saes"]
    ]
    fvu, loss, dead = (
        {sae["arm"]: sae["metrics"][name] for sae in saes}
        for name in ("fvu", "delta_loss", "dead_share")
    )
    scratch = [fvu[f"jumprelu_scratch_{rate}"] for rate in ("1e-3", "8e-3")]
    said("Rates", "FVU of JumpReLU from scratch falls from 0.159 to 0.119", *scratch)
    said("Rates", "(0.138 against 0.129)", fvu["jumprelu_scratch_2e-3"], fvu["topk_2e-3"])
    for words, arm in (
        ("3e-3 for JumpReLU with a warm start (FVU 0.1147)", "three_quarters_3e-3"),
        ("for BatchTopK (0.1145)", "batch_topk_3e-3"),
        ("8e-3 from scratch (0.1193)", "jumprelu_scratch_8e-3"),
        ("2e-3 for Gated (0.1225)", "gated_2e-3"),
        ("4e-3 for TopK (0.1281)", "topk_4e-3"),
        ("which trains at 2e-3 (0.1288)", "topk_2e-3"),
        ("ReLU trains at 8e-3 (0.1655)", "relu_8e-3"),
        ("at 1.6e-2 (0.1635)", "relu_16e-3"),
    ):
        rates = [float(rate) for rate in re.findall(r"[\d.]+e-\d", words)]
        said("Rates", words, *rates, fvu[arm])
        family = [
            of for name, of in fvu.items() if name.rpartition("_")[0] == arm.rpartition("_")[0]
        ]
        assert fvu[arm] == min(family) or arm in ("topk_2e-3", "relu_8e-3")
    said("Rates", "(0.080 instead of 0.090)", loss["topk_2e-3"], loss["topk_4e-3"])
    said("Rates", "12 % of its latents are dead", 100 * dead["relu_16e-3"])


def areas(metric: str) -> dict[tuple[str, str], dict[str, str]]:
    """{(site, arm): {column: cell}} of the report over sites."""
    table = rows(of_report("sites").partition("\n## By site and L0\n")[2], metric)
    split = {tuple(row.split(": ")): cells for row, cells in table.items()}
    return {(row[0], row[1]): cells for row, cells in split.items()}


def at_sites(metric: str, arm: str, column: str, *left_out: str, only: str = "") -> list[float]:
    cells = {s: c[column] for (s, a), c in areas(metric).items() if a == arm and s not in left_out}
    return percents(cells, only)


def test_what_the_order_of_arms_depends_on():
    title, attention = "At other sites", "layers.15.self_attn"
    gated, topk, scratch = "Gated (RI-L1)", "TopK", "JumpReLU (from scratch)"
    on_attention = percents({"": areas(FVU)[attention, gated]["area"]})
    said(
        title,
        "larger by 6 to 8 % at four sites and by 48 % on attention's output",
        *(*ends(at_sites(FVU, gated, "area", attention)), *on_attention),
    )
    of = {site: percents({"": areas(FVU)[site, topk]["area"]})[0] for site in PLACES.values()}
    said(title, "TopK's by 14 % after block 5", of["layers.5"], 5)
    late = max(of["layers.25"], of["layers.15.mlp"])
    said(title, "by 2 % after block 25 and on the MLP", late, 25)
    shown = {s for (s, arm), c in areas(FVU).items() if arm == scratch and c["area"][:2] == "**"}
    assert shown == {"layers.15", "layers.15.mlp"}
    said(title, "2 to 3 % after block 15", *ends(at_sites(FVU, scratch, "area", only=r"\*\*")), 15)
    at_20 = {key: percents({"": cells["L0 20"]})[0] for key, cells in areas(FVU).items()}
    at_20.pop((attention, gated))
    said(title, "(at 20 at most 8 %", 20, max(map(abs, at_20.values())))
    said(title, "up to 1 % larger at 20", max(at_sites(FVU, "BatchTopK", "L0 20")), 20)
    at_160 = at_sites(FVU, "BatchTopK", "L0 160")
    said(title, "2 to 3 % smaller at 160", -max(at_160), -min(at_160), 160)
    cells = [areas(LOSS)[f"layers.{n}", arm]["area"] for n in (5, 15, 25) for arm in (gated, topk)]
    said(title, "are 18 to 55 % larger", *ends(percents(dict(enumerate(cells)))))
    assert all(c[0] == "*" for c in cells) and sum(c[:2] == "**" for c in cells) == 2
    assert "two of the six survive" in section(title)
    overall = rows(of_report("sites").partition("\n## Over all sites\n")[2], LOSS)
    both = [overall[arm] for arm in (gated, topk)]
    means = [percents({"": cells["mean"]})[0] for cells in both]
    said(title, "is 24 % for Gated and 34.5 % for TopK", *means)
    intervals = [n for cells in both for n in re.findall(r"[\d.]+", cells["sites like these"])]
    said(title, "like these (17 to 32 and 12 to 62 %)", *map(float, intervals))
    assert all(cells["sites like these"].startswith("**") for cells in both)


def test_what_is_told_of_batch_topk_over_sites():
    row = rows(of_report("sites").partition("\n## Over all sites\n")[2], FVU)["BatchTopK"]
    numbers = (float(n) for n in re.findall(r"-?[\d.]+", row["mean"] + row["these sites"]))
    said("At other sites", "BatchTopK's is -0.4 % (-0.5 to -0.3)", *numbers)
    assert row["between sites"] == "0.3"


def of_ablations(report: str, *arms: str) -> list[float]:
    table = of_differences(report, FVU)
    return [
        n for arm in arms for n in percents({k: v for k, v in table[arm].items() if k != "area"})
    ]


def test_what_is_told_of_ablations():
    title, short, longer = "What of it matters", "ablations_seeds", "ablations"
    jump = ("JumpReLU, L1 (H.2)", "shifted ReLU, L0, STE to inputs too (H.2)", "ReLU, L1 (H.2)")
    both = (*ends(of_ablations(short, *jump)), *ends(of_ablations(longer, *jump)))
    said(title, "by 26 to 43 % (longer: 18 to 35 %)", *both)
    terms = ("STE in the L0 term only", "STE in the reconstruction term only")
    said(title, "alone by 15 to 72 %", *ends(of_ablations(short, *terms)))
    kernels = [f"{k} kernel (H.3)" for k in ("triangle", "Epanechnikov", "Gaussian")]
    said(
        title, "A kernel changes FVU by 1 % at most", max(map(abs, of_ablations(longer, *kernels)))
    )
    narrow = "bandwidth 0.001, the paper's"
    dead = {
        report: [
            (line[0], float(line[3].split(" ")[0])) for line in lines(report, "arm | L0 | gamma")
        ]
        for report in (short, longer)
    }
    of = {
        (r, arm): [d for name, d in dead[r] if name == arm]
        for r in dead
        for arm in (narrow, "JumpReLU")
    }
    said(
        title,
        "it 11 to 13 % larger in 512 steps, with 53 to 56 % of latents silent instead of 8 to 15 %",
        *(
            *ends(of_ablations(short, narrow)),
            512,
            *ends(of[short, narrow]),
            *ends(of[short, "JumpReLU"]),
        ),
    )
    assert max(of_ablations(longer, narrow)) <= 1.5
    said(
        title,
        "with 10 % silent at L0 50 instead of 0.8 %",
        *(of[longer, narrow][1], 50, of[longer, "JumpReLU"][1]),
    )
    frozen = [
        float(line[2]) for line in lines(short, "arm | L0 | 1 %") if line[0] == "thresholds frozen"
    ]
    said(title, "Frozen at one value for all (0.03 to 0.06", *ends(frozen))
    said(
        title,
        "up to 3 % worse, and BatchTopK 5 to 6 % better",
        max(of_ablations(longer, "thresholds frozen")),
        *reversed(
            [-n for n in ends(of_ablations(longer, "one threshold, after training (BatchTopK)"))]
        ),
    )
    said(title, "FVU is 2 % larger at L0 25", of_ablations(short, "STE to inputs too (H.1)")[0], 25)
    shifted = {r: [d for name, d in dead[r] if name == jump[1]] for r in dead}
    said(
        title,
        "66 to 68 % of its latents are silent (longer: 60 to 77 %)",
        *(*ends(shifted[short]), *ends(shifted[longer])),
    )


def test_what_is_told_of_gradients():
    text = (HOME / "threshold_gradients.md").read_text(encoding="utf-8")
    of = {
        (cells[1], cells[2]): [float(n) for n in cells[3:]]
        for cells in ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
        if cells[0] == "rectangle"
    }
    wide, narrow = [of["0.03", batch] for batch in ("1,024", "4,096")], of["0.003", "1,024"]
    title = "What of it matters"
    told = " ".join(section(title).split())
    assert "is 0.15 for 1,024 tokens and 0.26 for 4,096" in told
    assert [round(row[2], 2) for row in wide] == [0.15, 0.26]
    said(title, "signs are right in 55 and 60 % of cases", *(100 * row[4] for row in wide))
    assert "100,000 tokens it is 0.48, with a bandwidth of 0.003 0.77" in told
    assert [round(wide[0][3], 2), round(narrow[3], 2)] == [0.48, 0.77]
    agree = float(re.findall(r"agree with a cosine of ([\d.]+)", text)[0])
    said(title, "(two halves of the text agree by 0.91)", agree)


def test_what_is_told_of_explanations():
    title = "Are latents of one architecture easier to explain?"
    text = of_report("interpretability").partition("\n## Interpretability\n")[2]
    scores, told = rows(text, "arm"), " ".join(section(title).split())
    pearson = {arm: float(cells["Pearson"].split(" ")[0]) for arm, cells in scores.items()}
    gaps = [pearson["JumpReLU"] - pearson[arm] for arm in ("Gated (RI-L1)", "TopK")]
    said(title, "mean is lower by .07 and .05", *gaps)
    cells = [
        c
        for arm in ("BatchTopK", "Gated (RI-L1)", "TopK")
        for c in rows(text, "minus JumpReLU")[arm].values()
    ]
    assert (
        len(cells) == 15 and [c[:1] for c in cells].count("*") == 1 and "**" not in "".join(cells)
    )
    assert "*-0.057* (-0.086 to -0.028" in next(c for c in cells if c[0] == "*")
    assert "Of fifteen differences" in told and "(-.057, -.086 to -.028)" in told


def test_what_is_told_of_a_judge_that_can_tell():
    title = "Are latents of one architecture easier to explain?"
    home = HOME / "interpretability" / "judged"
    found = json.loads((home / "results.json").read_text())
    plan = json.loads((home / "plan.json").read_text())
    controls, pairs = found["controls"], found["pairs"]
    least, most = ends([pair["least"] for pair in pairs])
    said(title, "60 latents of each, as many", plan["about"]["n_latents"])
    with gzip.open(home / "answers.jsonl.gz", "rt", encoding="utf-8") as file:
        n_calls = sum(line.startswith('{"call"') for line in file)
    said(title, "files of 1,011 requests", *divmod(n_calls, 1000))
    study = json.loads((HOME.parent / "studies" / "named" / "plan.json").read_text())
    weights = {sae["name"]: {"weights_sha256": sae["weights_sha256"]} for sae in study["saes"]}
    assert weights == plan["about"]["weights"], "the same SAEs are rated"
    said(title, "L0s of 47.9, 47.8, 48.5 and 50.0", *(sae["l0"] for sae in study["saes"]))
    own, other, balanced = (
        [of[key][0] for of in found["runs"].values()]
        for key in ("own", "other", "balanced_accuracy")
    )
    said(title, "the grades is .745, .808, .685 and .701", *own)
    said(title, "accuracy .664, .707, .642 and .624", *balanced)
    said(title, "another latent's name .47 to .51", *ends(other))
    directions, drawn, above = (of[0] for of in controls.values())
    assert [*controls][:2] == ["random directions", "re-drawn weights"]
    said(title, "it is .580, and .080 above another's", drawn, above)
    said(title, "of random directions it is .574", directions)
    shown = {(p["first"], p["second"]): p for p in pairs if p["holm"] < 0.05}
    batch, gated, topk = "batch_topk/k_50", "gated/target_l0_50", "topk/k_50"
    assert len(pairs) == 6 and [*shown] == [(batch, gated), (batch, topk)]
    values = [pair["value"] for pair in shown.values()]
    said(title, "than Gated's by .123 and than TopK's by .107", *values)
    said(title, "(p .001 each", max(pair["holm"] for pair in shown.values()))
    of_jumprelu = [pair for pair in pairs if pair["first"] == "jumprelu/target_l0_50"]
    largest = max(of_jumprelu, key=lambda pair: abs(pair["value"]))
    assert len(of_jumprelu) == 3 and largest["second"] == batch
    values = [largest[key] for key in ("value", "p", "holm")]
    said(title, "is -.064, to BatchTopK (p .017, corrected .068)", *values)
    said(title, "true difference of .087 to .094", least, most)
    values = [balanced[1] - balanced[2], balanced[1] - balanced[3]]
    said(title, "balanced accuracy the two are .065 and .083", *values)
    said(title, "`auc_random` .565", found["beside"]["auc_random"][0])
    said(title, "worse ones (-.306)", found["beside"]["density"][0])
    assert found["plan"] == plan["sha256"]
    rated = (HOME.parent / "studies" / "named" / "report.md").read_text(encoding="utf-8")
    beside = next(x for x in rated.splitlines() if x.startswith("| `detection_auc` | all |"))
    n, spearman = beside.split(" | ")[2:4]
    said(title, "Two blind passes over 100 latents of that former pass", int(n))
    said(title, "its balanced accuracy (Spearman .35)", float(spearman.split(" ")[0]))


def test_which_variant_costs_what():
    title, attention = "Which variant", "layers.15.self_attn"
    cells = [
        v
        for (_, arm), c in areas(FVU).items()
        if arm == "JumpReLU (from scratch)"
        for v in c.values()
    ]
    mean = rows(of_report("sites").partition("\n## Over all sites\n")[2], FVU)
    said(
        title,
        "some 2 % of FVU (by site and L0 -1 to 8 %)",
        *percents({"": mean["JumpReLU (from scratch)"]["mean"]}),
        *ends(percents(dict(enumerate(cells)))),
    )
    of_rates = of_differences("threshold_rates", FVU)
    assert (
        max(percents({r: of_rates[f"thresholds at {r}"]["area"] for r in ("2.8e-3", "2.8e-2")}))
        < 0.5
    )
    assert "3e-3, 1.4e-2 and 2.8e-2 came out alike" in section(title)
    assert "at 5.5e-2 half of the latents fall silent" in section(title)
    topk = {
        site: percents({"": c["area"]})[0] for (site, arm), c in areas(FVU).items() if arm == "TopK"
    }
    late = max(topk["layers.25"], topk["layers.15.mlp"])
    said(title, "2 % late in the model and on the MLP's output, 14 % early", late, topk["layers.5"])
    gated = {
        s: percents({"": c["area"]})[0]
        for (s, arm), c in areas(FVU).items()
        if arm == "Gated (RI-L1)"
    }
    on_attention = gated.pop(attention)
    said(
        title,
        "6 to 8 % over all L0s, on attention's output 48 %",
        *ends([*gated.values()]),
        on_attention,
    )
    relu = dict(of_differences("frontier", FVU)["ReLU (L1)"])
    relu.pop("area")
    said(title, "costs 43 to 75 %", *ends(percents(relu)))


def test_other_texts_to_train_on():
    title, reports = "On other texts", {"code": "texts", "prose": "texts.prose"}
    told = rows(section(title), "FVU / delta LM loss, %")
    assert len(told) == 6
    for side, report in reports.items():
        assert "All saw the same activations, to the bit" in of_report(report)
        of = {metric: of_differences(report, metric) for metric in (FVU, LOSS)}
        for arm, cells in told.items():
            name = "Gated (RI-L1)" if arm == "Gated" else arm
            for difference, metric in zip(cells[side].split(" / "), (FVU, LOSS), strict=True):
                measured = of[metric][name]["L0 64"]
                assert agrees(difference.removesuffix("°"), [measured]), (arm, side)
                assert difference.endswith("°") != measured.startswith("**"), (arm, side)
    fvu = {
        side: {
            arm: float(cells["L0 64"].split(" ")[0])
            for arm, cells in rows(of_report(report).partition("## Values")[2], FVU).items()
        }
        for side, report in reports.items()
    }
    below = [
        100 * (1 - of["JumpReLU (warm start)"] / min(of[arm] for arm in of if "'s " in arm))
        for of in fvu.values()
    ]
    said(title, "JumpReLU's FVU is 11 % below", below[0])
    said(title, "best of three libraries on code, 13 % on prose", below[1])
    below = [100 * (1 - of["TopK"] / of["sparsify's TopK"]) for of in fvu.values()]
    said(title, "TopK's is 9 and 10 % below sparsify's", *below)


# Sentences on settings and on how to read a table, not on results.
_GIVEN = (
    "activations",
    "tokens",
    "at an L0 of",
    "95 % intervals",
    "Holm's correction",
    "In per cent",
)
_GIVEN += (
    "The paper claims",
    "(from scratch, logarithmic thresholds",
    "Lower rates",
    "over all L0s):",
)
_GIVEN += ("names 100 latents of each SAE",)


def test_every_sentence_with_a_measured_number_is_held_to_a_report():
    """Held is a sentence where a test of this folder names words of it, with their number."""
    sources = (
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_told*.py")
    )
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    held = [" ".join(w.split()) for w in words if re.search(r"\d", w) and len(w) > 5]
    every = [s for path in PAGES for s in sentences(path)]
    assert len(every) >= 90
    loose = [s for s in every if not any(part in s for part in (*held, *_GIVEN))]
    assert not loose, "\n".join(loose)


def sentences(page: Path) -> list[str]:
    """Sentences of a page that hold a number; no tables, and nothing on probing, to which
    tests/test_pages.py holds it."""
    text = page.read_text(encoding="utf-8").partition("\n## Do latents tell texts apart?\n")[0]
    found = []
    for block in text.split("\n\n"):
        if not block.startswith(("|", "```", "![", "#")):
            for item in re.split(r"\n(?=- )", block):
                flat = re.sub(r"\]\([^)]*\)", "]", " ".join(item.split()))
                flat = re.sub(r"`[^`]*`", "", flat)
                found += re.split(r"(?<=[.:;])\s+(?=[A-Z*\[])", flat)
    return [s for s in found if re.search(r"(?<![A-Za-z\d])\d", s)]  # L0 is a name
