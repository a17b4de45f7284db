"""What the pages of scripts/comparisons say of reports is what the reports say."""

import json
import re

import pytest

from .told import (
    FVU,
    HOME,
    LOSS,
    PLACES,
    TITLES,
    agrees,
    of_differences,
    of_report,
    percents,
    rows,
    section,
)

pytestmark = pytest.mark.pages


@pytest.mark.parametrize("title, report", [("The frontier", "frontier"), ("Tuned alike", "equal")])
def test_values_are_the_reports(title, report):
    told = rows(section(title), "FVU / delta LM loss")
    values = of_report(report).partition("\n## Values\n")[2]
    fvu, loss = (rows(values, head) for head in ("FVU", "delta LM loss"))
    assert len(told) > 3
    for arm, cells in told.items():
        name = TITLES.get(arm, arm)
        for l0, cell in cells.items():
            if cell == "-":
                assert fvu[name][l0] == "-"
                continue
            measured = [float(table[name][l0].split(" ")[0]) for table in (fvu, loss)]
            assert [*map(float, cell.split(" / "))] == pytest.approx(measured, abs=6e-4), (arm, l0)


@pytest.mark.parametrize(
    "title, report, metric, arm, words",
    [
        ("The frontier", "frontier", FVU, "TopK", "5 to 18 %"),
        ("The frontier", "frontier", FVU, "Gated (RI-L1)", "4 to 23 %"),
        ("The frontier", "frontier", FVU, "JumpReLU (from scratch)", "3 to 6 %"),
        ("The frontier", "frontier", LOSS, "TopK", "33 to 160 %"),
        ("The frontier", "frontier", LOSS, "Gated (RI-L1)", "18 to 62 %"),
        ("The frontier", "frontier", LOSS, "JumpReLU (from scratch)", "80 alone (30 %)"),
        ("Tuned alike", "equal", FVU, "TopK", "3 to 11 %"),
        ("Tuned alike", "equal", FVU, "Gated (RI-L1)", "4 to 24 %"),
        ("Tuned alike", "equal", FVU, "JumpReLU (from scratch)", "3 to 5 %"),
        ("Tuned alike", "equal", FVU, "dictionary_learning's BatchTopK", "9 to 12 %"),
        ("Tuned alike", "equal", FVU, "SAELens's BatchTopK", "10 to 13 %"),
        ("Tuned alike", "equal", FVU, "sparsify's TopK", "14.5 to 20.5 %"),
    ],
)
def test_differences_that_are_told_are_those_that_count_as_shown(title, report, metric, arm, words):
    cells = dict(of_differences(report, metric)[arm])
    cells.pop("area")
    counted = percents(cells, only=r"\*\*")
    numbers = [float(n) for n in re.findall(r"[\d.]+(?= to| %)", words)]
    assert words in " ".join(section(title).split())
    assert numbers == pytest.approx([min(counted), max(counted)][: len(numbers)], abs=0.55)


@pytest.mark.parametrize(
    "metric, arm, words",
    [
        (FVU, "TopK", "over all L0s by 11 %"),
        (LOSS, "TopK", "over all by 94 %"),
        (FVU, "Gated (RI-L1)", "over all 8 %"),
        (FVU, "JumpReLU (from scratch)", "up to L0 100 (over all 4 %)"),
    ],
)
def test_what_is_told_over_all_l0s_is_the_area(metric, arm, words):
    (value,) = percents({"area": of_differences("frontier", metric)[arm]["area"]}, only=r"\*\*")
    assert words in " ".join(section("The frontier").split())
    assert float(re.findall(r"(\d+) %", words)[0]) == pytest.approx(value, abs=0.55)


def test_where_no_difference_is_told_none_counts_as_shown():
    for metric in (FVU, LOSS):
        for report in ("frontier", "equal"):
            assert not percents(of_differences(report, metric)["BatchTopK"], only=r"\*\*")
    assert "BatchTopK's is not shown to differ at any." in " ".join(section("Tuned alike").split())
    causes = of_report("frontier").partition("Do arms differ?")[2].partition("\n## ")[0]
    assert "corrected by Holm for all 40. No difference is shown: 64 tokens" in causes
    assert "of 40 differences from the warm start none is shown" in section("The frontier")


@pytest.mark.parametrize(
    "head, l0, column, told",
    [
        ("arm | L0 | gamma", "17", 3, {"JumpReLU (warm start)": 20, "BatchTopK": 1}),
        ("arm | L0 | gamma", "17", 3, {"JumpReLU (from scratch)": 58}),
        ("arm | L0 | pairs of seeds", "6", 4, {"Gated (RI-L1)": 49, "ReLU (L1)": 25}),
        ("arm | L0 | pairs of seeds", "6", 4, {"JumpReLU (warm start)": 21, "TopK": 9}),
    ],
)
def test_dead_latents_and_the_agreement_of_seeds_are_the_reports(head, l0, column, told):
    text = of_report("frontier").partition(f"| {head} |")[2].partition("\n\n")[0]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    for arm, percent in told.items():
        (cell,) = (line[column] for line in lines if line[0] == arm and line[1].startswith(l0))
        value = float(cell.split(" ")[0])
        assert percent == pytest.approx(
            100 * value if value < 1 and column == 4 else value, abs=0.6
        )
        assert re.search(rf"\b{percent}\b", section("The frontier"))


def test_the_table_of_five_sites_is_the_report():
    told = rows(section("At other sites"), "FVU / delta LM loss, %")
    text = of_report("sites").partition("\n## By site and L0\n")[2]
    tables = [rows(text, metric) for metric in (FVU, LOSS)]
    assert len(told) == 20
    names = {"Gated": "Gated (RI-L1)", "from scratch": "JumpReLU (from scratch)"}
    for row, cells in told.items():
        place, _, arm = row.partition(": ")
        name = f"{PLACES[place]}: {names.get(arm, arm)}"
        for column, cell in cells.items():
            pair = [table[name][column] for table in tables]
            for part, measured in zip(cell.split(" / "), pair, strict=True):
                assert agrees(part.removesuffix("°"), [measured]), (row, column)
                is_significant = measured == "-" or measured.startswith("**")
                assert part.endswith("°") != is_significant, (row, column)


@pytest.mark.parametrize(
    "arm, mean, of_these, of_all",
    [
        ("Gated (RI-L1)", "14 % for Gated", "(14.2 to 14.5", "-4 to 37 %"),
        ("TopK", "7 % for TopK", "(6.3 to 6.9)", "1 to 13 %"),
        ("JumpReLU (from scratch)", "2 % from scratch", "(1.4 to 2.8)", "-0.4 to 4.7 %"),
    ],
)
def test_what_is_told_over_sites_is_the_report(arm, mean, of_these, of_all):
    text = of_report("sites").partition("\n## Over all sites\n")[2]
    cells, told = rows(text, FVU)[arm], " ".join(section("At other sites").split())
    assert agrees(mean.partition(" ")[0], [cells["mean"]]) and mean in told
    for words, column, within in (
        (of_these, "these sites", 0.05),
        (of_all, "sites like these", 0.55),
    ):
        ends, numbers = (re.findall(r"-?[\d.]+", part) for part in (cells[column], words))
        assert [*map(float, numbers)] == pytest.approx([*map(float, ends)], abs=within)
        assert words in told
    assert not cells["sites like these"].startswith("**")


def test_what_auxk_does_is_the_report():
    told = rows(section("Reviving latents on sublayers"), "site: arm")
    text = of_report("auxk")
    silent = rows(text.partition("\n## Silent latents\n")[2], "arm")
    fvu = rows(text.partition("\n## By site and L0\n")[2], FVU)
    assert len(told) == 4
    for row, (sparse, dense, difference) in ((row, cells.values()) for row, cells in told.items()):
        place, _, arm = row.partition(": ")
        site = PLACES[place]
        assert silent[arm][site] == f"{sparse}, {dense}".replace(" %", ""), row
        if difference:
            measured = fvu[f"{site}: {arm}"]["L0 50"]
            assert agrees(difference.removesuffix("°"), [measured]), row
            assert difference.endswith("°") != measured.startswith("**"), row


def test_all_arms_that_were_tuned_alike_saw_the_same_activations_to_the_bit():
    saes = json.loads((HOME / "equal/results.json").read_text(encoding="utf-8"))["saes"]
    hashes = {sae["harvested"]["digests"]["layers.15"] for sae in saes}
    assert len(hashes) == len({sae["machine"] for sae in saes}) == 1 and len(saes) == 108
    said = f"All saw the same activations, to the bit (hash {hashes.pop()})."
    assert said in of_report("equal")
    told = " ".join(section("Tuned alike").split())
    assert "All 108 SAEs are of one machine, and of the same activations to the bit" in told


def test_what_two_machines_make_of_one_seed_differs_as_is_told():
    elsewhere = json.loads((HOME / "sites/elsewhere.json").read_text(encoding="utf-8"))
    apart, of_means = [], []
    for site, of_saes in elsewhere["fvu"].items():
        here = own_fvus(f"sites/{site}")
        for sae, of_seeds in of_saes.items():
            ours = [here[sae, seed] for seed in of_seeds]
            apart += [abs(a / b - 1) for a, b in zip(ours, of_seeds.values(), strict=True)]
            of_means.append(abs(sum(ours) / sum(of_seeds.values()) - 1))
    assert len(apart) == 75 and [max(apart), max(of_means)] == pytest.approx(
        [0.028, 0.005], abs=5e-4
    )
    told = " ".join(section("At other sites").split())
    assert "seed's differs by up to 2.8 %, means over seeds by up to 0.5 %." in told
    machines = {
        sae["machine"]
        for site in PLACES.values()
        for sae in json.loads((HOME / f"sites/{site}/results.json").read_text())["saes"]
    }
    assert len(machines) == 1 and "All 375 SAEs are of one machine" in told
    assert elsewhere["machine"] not in machines


def test_the_arm_without_auxk_is_that_of_the_sites_bit_for_bit():
    for site in ("layers.15.mlp", "layers.15.self_attn"):
        both = own_fvus(f"auxk/{site}"), own_fvus(f"sites/{site}")
        assert all(both[1][key] == fvu for key, fvu in both[0].items()) and len(both[0]) == 6
    assert "those of the table above, bit for bit" in section("Reviving latents on sublayers")


def own_fvus(report: str) -> dict[tuple[str, str], float]:
    """{(SAE, seed): FVU} of the arm "jumprelu"."""
    saes = json.loads((HOME / report / "results.json").read_text(encoding="utf-8"))["saes"]
    own = (sae for sae in saes if sae["arm"] == "jumprelu")
    return {(sae["sae"], str(sae["seed"])): sae["metrics"]["fvu"] for sae in own}


def test_beyond_the_search_a_rate_of_thresholds_does_what_is_told():
    areas = of_differences("threshold_rates", FVU)
    for rate, words in (
        ("2.8e-2", "twice that rate makes FVU 0.2 % larger"),
        ("5.5e-2", "four times 6 %, with half of the latents silent"),
        ("2.8e-3", "a fifth of it 0.3 %"),
    ):
        told, within = float(re.findall(r"([\d.]+) %", words)[0]), 0.05 if "0." in words else 0.5
        measured = percents({"area": areas[f"thresholds at {rate}"]["area"]})
        assert measured == pytest.approx([told], abs=within)
        assert words in " ".join(section("Tuned alike").split())


def test_the_order_of_arms_at_five_sites_is_as_told():
    places = rows(of_report("sites").partition("\n## Order of the arms\n")[2], "arm")
    warm, batch, scratch = ("JumpReLU (warm start)", "BatchTopK", "JumpReLU (from scratch)")
    for name, site in PLACES.items():
        at = {
            arm: [int(place) for place in cells[site].split(", ")] for arm, cells in places.items()
        }
        for l0 in (1, 2, 3):  # 50, 100, 160
            ahead = {arm for arm in at if at[arm][l0] <= 2}
            together = name == "block 25" and ahead == {batch, scratch}
            assert ahead == {warm, batch} or together, (site, l0)
            (third,) = (arm for arm in at if at[arm][l0] == 3)
            assert third == ("TopK" if name == "MLP" else scratch) or together, (site, l0)
        assert (at["Gated (RI-L1)"][1] < at["TopK"][1]) == (name == "block 5")


@pytest.mark.parametrize(
    "arm, words",
    [
        ("JumpReLU (warm start)", "26 to 36 % at 16"),
        ("JumpReLU (from scratch)", "from scratch 15 to 17, 21 and 67 % at 16"),
        ("BatchTopK", "BatchTopK 16 to 25, 30 and 53 %"),
        ("TopK", "TopK 8 to 14, 12 and 34 %"),
        ("Gated (RI-L1)", "Gated 2 to 3, 6 and 22 %"),
    ],
)
def test_silent_latents_at_five_sites_are_the_reports(arm, words):
    told = " ".join(section("At other sites").split())
    own = rows(of_report("sites").partition("\n## Silent latents\n")[2], "arm")[arm]
    sparsest = [int(cell.split(", ")[0]) for cell in own.values()]
    measured = [min(sparsest[:3]), max(sparsest[:3]), *sparsest[3:]]
    numbers = [int(n) for n in re.findall(r"\d+", words.removesuffix(" at 16"))]
    assert words in told and numbers == measured[: len(numbers)]


def test_the_papers_own_settings_end_where_it_is_told():
    every = of_report("equal").partition("\n## Every SAE\n")[2]
    told = " ".join(section("Tuned alike").split())
    for arm, l0s, fvus in (
        ("paper", "514 to 517", "0.22 to 0.23"),
        ("paper_rate", "430 to 433", "0.09 to 0.10"),
    ):
        own = [row.split(" | ") for row in every.splitlines() if row.startswith(f"| {arm} |")]
        assert len(own) == 3 and l0s in told and fvus in told
        for words, at, within in ((l0s, 3, 0.5), (fvus, 4, 0.006)):
            measured = sorted(float(row[at]) for row in own)
            ends = [float(part) for part in words.split("to")]
            assert ends == pytest.approx([measured[0], measured[-1]], abs=within)


ABLATIONS = {
    "JumpReLU with L1": ["JumpReLU, L1 (H.2)"],
    "shifted ReLU with L0 (STE to inputs too)": ["shifted ReLU, L0, STE to inputs too (H.2)"],
    "ReLU with L1": ["ReLU, L1 (H.2)"],
    "one threshold, set after training (BatchTopK)": ["one threshold, after training (BatchTopK)"],
    "STE to inputs too": ["STE to inputs too (H.1)"],
    "triangle, Epanechnikov, Gaussian kernel": [
        f"{kernel} kernel (H.3)" for kernel in ("triangle", "Epanechnikov", "Gaussian")
    ],
    "bandwidth 0.001 instead of 0.03": ["bandwidth 0.001, the paper's"],
    "bandwidth 0.003, 0.01": ["bandwidth 0.003", "bandwidth 0.01"],
}


@pytest.mark.parametrize("longer, report", [(False, "ablations_seeds"), (True, "ablations")])
def test_the_table_of_ablations_is_the_reports(longer, report):
    told = rows(section("What of it matters"), "FVU / delta LM loss, %")
    tables = [of_differences(report, metric) for metric in (FVU, LOSS)]
    arms = {name: ABLATIONS.get(name, [name]) for name in told}
    assert {arm for each in arms.values() for arm in each} >= tables[0].keys()
    for name, cells in told.items():
        for column, cell in cells.items():
            if column.startswith("longer: ") != longer:
                continue
            if cell == "-":
                assert not tables[0].keys() & {*arms[name]}, name
                continue
            for part, table in zip(cell.split(" / "), tables, strict=True):
                own = [table[arm][column.removeprefix("longer: ")] for arm in arms[name]]
                assert agrees(part.removesuffix("°"), own), (name, column)
                is_significant = longer or own[0].startswith("**")
                assert part.endswith("°") != is_significant, (name, column)


def test_longer_runs_are_compared_with_the_reports():
    words = " ".join(section("The frontier").split())
    for metric, before, after in (
        (FVU, "from 5, 7 and 20", "to 5, 10 and 18"),
        (LOSS, "from 24, 37 and 80", "to 33, 79 and 160"),
    ):
        assert f"{before} {after}" in words
        for report, part in (("small_budget", before), ("frontier", after)):
            table = of_differences(report, metric)
            cells = table.get("TopK") or table["TopK, 2e-3"]
            measured = percents({l0: cells[f"L0 {l0}"] for l0 in (20, 50, 100)})
            assert [*map(float, re.findall(r"\d+", part))] == pytest.approx(measured, abs=0.55)


def test_interpretability_is_the_reports():
    text = of_report("interpretability")
    values = text.partition("\n## Values\n")[2]
    fvu, loss = (rows(values, metric) for metric in (FVU, LOSS))
    scores = rows(text.partition("\n## Interpretability\n")[2], "arm")
    told = rows(section("Are latents of one architecture easier to explain?"), "arm")
    for arm in ("JumpReLU", "BatchTopK", "Gated (RI-L1)", "TopK"):
        for metric, table in ((FVU, fvu), (LOSS, loss)):
            own, measured = told[arm][metric], table[arm]["L0 50"]
            for a, b in zip(own.split(" ± "), measured.split(" ± "), strict=True):
                assert float(a) == pytest.approx(float(b), abs=6e-4)
        for mine, name in (("Pearson", "Pearson"), ("token ceiling", "token ceiling, Pearson")):
            assert told[arm][mine] == scores[arm][name].replace("0.", ".")
