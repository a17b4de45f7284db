"""Tables and sentences of pages are what `scripts/pages/write.py` makes of kept results."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hfsae.io.files import read_json

from .comparison.told import rows
from .probed import around, probing_record

pytestmark = pytest.mark.pages

ROOT = Path(__file__).parent.parent
RESULTS = sorted(ROOT.glob("scripts/*/results/*.json"))
MODULES = ("anew", "write", "make", "of_bench", "of_recipes", "of_runs", "kept", "turns", "quality")


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("pages", "bench"):
            patch.syspath_prepend(ROOT / "scripts" / folder)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_pages_are_what_their_results_give(scripts):
    for path, text in scripts.write.from_results().items():
        assert page(path) == text, f"{path}: run scripts/pages/write.py"


def test_each_number_of_a_table_or_a_sentence_is_held(scripts):
    """Whichever of them is another one in the page, the page is not what the script writes."""
    every = scripts.write.told()
    assert len(every) >= 40
    for told in every:
        body = told.text if told.text[0] != "|" else told.text.split("\n", 2)[2]
        numbers = [*re.finditer(scripts.anew.NUMBER, body)]
        assert numbers, told
        for number in numbers[:: max(1, len(numbers) // 3)]:
            wrong = told.text.replace(body, f"{body[: number.start()]}98{body[number.end() :]}")
            changed = scripts.anew.written(page(told.page), told._replace(text=wrong))
            assert changed != page(told.page)
            assert scripts.anew.written(changed, told) == page(told.page)


PAGE = """# Page

## One

On two cores a step
takes 222 ms, 13 x less.

| size 16 | ms |
| --- | ---: |
| a | 1 |
| b | 2 |

## Two

On two cores a step takes 5 ms, 6 x less.
"""


def test_a_sentence_gets_other_numbers_and_keeps_its_lines(scripts):
    told = scripts.anew.Told("p", "One", "a step takes 1,201 ms, .5 x less.")
    changed = scripts.anew.written(PAGE, told)
    assert changed == PAGE.replace("takes 222 ms, 13 x", "takes 1,201 ms, .5 x")


def test_a_table_is_found_by_its_head_whatever_the_numbers_are(scripts):
    new = scripts.anew.table([["size 32", "ms"], ["c", ""]])
    assert new == "| size 32 | ms |\n| --- | ---: |\n| c | |"
    changed = scripts.anew.written(PAGE, scripts.anew.Told("p", "One", new))
    assert changed == PAGE.replace(PAGE[PAGE.index("| size") : PAGE.index("\n## Two")], f"{new}\n")


@pytest.mark.parametrize(
    ("section", "text", "reason"),
    [
        ("One", "a step costs 222 ms", "no sentence"),
        ("One", "| other | ms |\n| --- | --- |", "no table"),
        ("Three", "a step takes 222 ms", "no section"),
        ("Two", "5", "2 sentence"),
    ],
)
def test_other_words_are_an_error(scripts, section, text, reason):
    with pytest.raises(ValueError, match=reason):
        scripts.anew.written(PAGE, scripts.anew.Told("p", section, text))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_what_made_them(path):
    """A command and a machine; or, where they were taken from a page, since which commit."""
    result = read_json(path)
    assert path.stat().st_size < 50_000
    for run in result.get("runs", [result]):
        script = run["command"].split()[1]
        assert run["command"].startswith("hfsae ") or (ROOT / script).is_file()
        if run.get("transcribed"):
            assert re.fullmatch(r"[0-9a-f]{7}", run["commit"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
        else:
            assert run["machine"]


def test_each_file_of_results_is_read_and_has_a_command_that_makes_it(scripts, monkeypatch):
    read = set()
    for module in (scripts.of_recipes, scripts.of_bench):
        monkeypatch.setattr(module, "read_json", lambda p: read.add(p) or read_json(p))
    scripts.write.told()
    assert read == {*RESULTS}
    by_make = {path.stem for path in RESULTS if path.parents[1].name == "pages"}
    assert by_make == scripts.make.MADE.keys()


COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COUNTS += ["eleven", "twelve", "thirteen", "fourteen"]


def test_the_readme_tells_of_steering_what_the_report_has():
    text = page("scripts/steering_effect.md").partition("## Clamped to 1 x")[2].partition("## ")[0]
    latents = rows(text, "meaning")
    larger = {name: int(row["larger than"].split(" of ")[0]) for name, row in latents.items()}
    above = [n for name, n in larger.items() if latents[name]["effect, nats"][0] == "+" and n >= 19]
    assert f"95 % of its controls: {len(above)} of {len(latents)} latents" in text
    assert {*above} <= {19, 20}
    assert (
        f"Of {COUNTS[len(latents)]} latents with an evident meaning, clamped to their largest "
        f"activation, [{COUNTS[len(above)]} raised the probability of such words]"
        "(scripts/steering_effect.md) more than 19 or 20 of 20 matched random latents did."
    ) in " ".join(page("README.md").split())


def test_the_readme_tells_the_largest_difference_between_libraries():
    text = page("scripts/interop/PARITY.md")
    table = text[text.index("| format | direction |") :].partition("\n\n")[0].splitlines()[2:]
    differences = [float(cell) for line in table for cell in line.strip("| ").split(" | ")[-2:]]
    largest = f"{max(differences):.1e}".replace("e-0", "e-")
    readme = " ".join(page("README.md").split())
    assert f"six formats, differing by [at most {largest}](scripts/interop/PARITY.md)" in readme
    assert len({line.split(" | ")[0] for line in table if "sae.to" not in line}) == 6


def test_the_page_tells_the_quickstart_s_settings_as_the_recipe_has_them():
    recipe = yaml.safe_load(page("scripts/recipes/quickstart.yaml"))
    told = " ".join(rows(page("scripts/recipes/short_runs.md"), "setting | why"))
    settings = re.findall(r"`([a-z_.]+[0-9]?): ([0-9.]+)`", told)
    assert len(settings) >= 12
    sections = {**recipe["sae"], **recipe["training"]}
    sections |= {f"shuffle.{name}": value for name, value in recipe["shuffle"].items()}
    assert {name: float(value) for name, value in settings} == {
        name: float(sections[name]) for name, _ in settings
    }


def test_what_is_told_of_the_order_of_latents():
    text = page("scripts/telling.md")
    orders = rows(text, "order")
    by_activation, own = (orders[name] for name in ("peak activation", "the app's"))
    share, density = (
        [float(row[column].removesuffix(" %")) for row in (own, by_activation)]
        for column in ("on words", "density")
    )
    assert share[0] / share[1] == pytest.approx(2, abs=0.25)
    assert density[1] / density[0] == pytest.approx(20, abs=2.5)
    surprise, word = (orders[f"share x -ln density x {how}"] for how in ("surprise", "word"))
    for column in ("on words", "words of 8"):
        assert float(surprise[column].split()[0]) < float(word[column].split()[0])
    told = " ".join(text.split())
    assert "twice as many latents on words of content as the order by activation" in told
    assert "and its latents are twenty times as rare" in told
    assert "own surprise does worse than a token's frequency" in told


def test_what_the_pages_claim_is_shown_by_their_results(scripts):
    assert len(scripts.write.claims()) >= 11
    assert [*scripts.write.faults()] == []


def test_a_claim_that_results_do_not_show_is_a_fault(scripts, monkeypatch):
    judge = scripts.of_recipes.results("judge")
    judge["scores"]["detection"]["auc"]["own"] = [0.6, 0.55, 0.65]
    judge["scores"]["detection"]["auc"]["difference"] = [0.1, 0.05, 0.2]
    results = scripts.of_recipes.results
    monkeypatch.setattr(
        scripts.of_recipes, "results", lambda name: judge if name == "judge" else results(name)
    )
    (fault,) = scripts.write.faults()
    assert re.search(r"says 'Asked yes or no, .* its results do not show that", fault)


def test_a_claim_that_a_page_does_not_make_is_a_fault(scripts):
    claim = scripts.anew.Claim("p", "One", "a step takes 222 ms", True)
    assert claim.fault(PAGE) is None
    assert "does not say 'a tree'" in claim._replace(words="a tree").fault(PAGE)
    assert "does not say" in claim._replace(section="Two").fault(PAGE)


def test_no_library_has_a_faster_step(scripts):
    steps = scripts.of_bench.Steps()
    for side, (_, to) in scripts.of_bench.SIDES.items():
        assert not to or steps.rows[side]["x"][to] > 1


def test_scores_are_taken_from_a_record_of_explanations(scripts):
    record = read_json(ROOT / "model_cards/quickstart/features/explanations.json")
    made = scripts.make.explained(record)
    value, low, high = made["scores"]["lexical"]["pearson"]["own"]
    card = page("model_cards/quickstart/README.md")
    assert f"| pearson | {value:.3f}, {low:.3f} to {high:.3f} |" in card
    assert made["n_latents"] == 100 and made["seed"] == 0 and "usage" not in made
    record["scores"]["detection"] = {
        "headline": "auc",
        "uniform": {"auc": {"own": around(0.7)}, "f1": {"own": around(0.2)}},
        "chance": 0.5,
        "n_items": 9,
        "n_failed": 1,
    }
    record["usage"] = {"n_calls": 9, "n_failed": 1, "n_tokens_in": 80, "seconds": 3.0}
    record["untrained"] = {"lexical": {"auc": {"untrained": around(0.4), "trained": around(0.6)}}}
    made = scripts.make.explained(record)
    assert scripts.of_recipes.headline(made["scores"]["detection"])["own"] == around(0.7)
    assert made["usage"] == {"n_calls": 9, "n_failed": 1, "n_tokens_in": 80}
    assert made["untrained"] == {"auc": around(0.4)}


def test_figures_are_taken_from_a_record_of_probing(scripts):
    record = probing_record(others=("other",), value=0.6)
    record["arguments"]["seed"] = 3
    record["absorption"]["probe_f1"] = {"layers.1": {"A": 0.5, "B": 0.9}}
    made = scripts.make.probed(record)
    assert made["auc"] == {
        "own": {"1": around(0.6)},
        "gain": {"1": around(0.9 * 0.6)},
        "untrained": {"1": around(0.06)},
        "dimensions": {"1": around(0.7)},
    }
    assert (made["n_tasks"], made["seed"]) == (12, 3)
    assert made["absorption"]["probe_mean_f1"] == pytest.approx(0.7)
    assert made["absorption"]["own"]["n_letters"] == 2
    assert made["absorption"]["untrained"]["full"] == around(0.06)
    assert made["uniformity"] == {"own": around(0.6), "untrained": around(0.06), "n_tokens": 64}


def test_figures_of_arms_are_taken_from_a_record_of_probing(scripts):
    def mean(name, of, auc, **more):
        return {"features": name, "of": of, "k": 1, "auc": around(auc)} | more

    means, rows = [], []
    for arm, gains in {"topk/k_5": (0.2, 0.05), "gated/l0_5": (0.15, 0.3)}.items():
        for seed, gain in enumerate(gains):
            name = arm.replace("/", f"/seed_{seed}/")
            means.append(mean(name, "", 0.5, auc_above_untrained=around(gain)))
            means.append(mean("untrained", name, 0.1 + seed))
            rows += [{"task": t, "features": name, "k": 1, "auc": 0.5} for t in "ab"]
    means += [mean("model's dimensions", "layers.1", 0.9), mean("bag of tokens", "", 0.8)]
    arguments = {"seed": 0, "n_texts": 100, "bootstrap_samples": 9}
    record = {"means": means, "rows": rows, "arguments": arguments, "tasks": {"a": 9, "b": 9}}
    record["saes"] = list(dict.fromkeys(row["features"] for row in rows))
    made = scripts.make.probed_arms(record)
    assert made["arms"] == {
        arm: {
            "auc": {"1": [0.5, 0.5, 0.5]},
            "above_first": {"1": [0, 0, 0]},
            "untrained": {"1": pytest.approx(0.6)},
            "n_above_untrained": {"1": n_above},
        }
        for arm, n_above in (("topk", 1), ("gated", 2))
    }
    assert made["controls"] == {"dimensions": {"1": around(0.9)}, "tokens": {"1": around(0.8)}}
    assert (made["n_tasks"], made["n_texts"]) == (2, 100)


def test_seeds_are_averaged_within_a_task_and_arms_paired_over_tasks(scripts):
    names = [
        "jumprelu/seed_0/l0_50",
        "jumprelu/seed_1/l0_50",
        "topk/seed_0/k_50",
        "topk/seed_1/k_50",
    ]
    aucs = {"war": (0.9, 0.8, 0.6, 0.6), "sea": (0.7, 0.6, 0.7, 0.5)}
    rows = [
        {"task": task, "features": name, "k": 1, "auc": auc}
        for task, of in aucs.items()
        for name, auc in zip(names, of, strict=True)
    ]
    arguments = {"seed": 0, "bootstrap_samples": 200}
    record = {"saes": names, "rows": rows, "arguments": arguments}
    first, second = scripts.make.over_seeds(record).items()
    assert first[0] == ("jumprelu/l0_50", 1) and second[0] == ("topk/k_50", 1)
    assert first[1]["auc"] == pytest.approx([0.75, 0.65, 0.85])
    assert first[1]["above_first"] == [0, 0, 0]
    assert second[1]["above_first"] == pytest.approx([-0.15, -0.25, -0.05])


def test_an_sae_is_measured_as_a_copy_without_what_was_measured_before(
    scripts, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "probing.json", "evaluation.json", "features/calls.jsonl"):
        for arm in ("jumprelu", "gated"):
            path = Path("runs", arm, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def run(made, folders):
        for folder in folders:
            assert [p.name for p in folder.rglob("*") if p.is_file()] == ["config.json"]
        (folders[0] / made.record).write_text("{}")
        return {"cpu_seconds": 60.0, "of": [folder.name for folder in folders]}

    monkeypatch.setattr(scripts.make, "run", run)
    monkeypatch.setattr(scripts.make, "RESULTS", tmp_path / "results")
    several = scripts.make.MADE["probing_arms"]._replace(saes="runs/*", extract=lambda record: {})
    monkeypatch.setitem(scripts.make.MADE, "probing_arms", several)
    scripts.make.main(["probing_arms"])
    made = read_json(tmp_path / "results/probing_arms.json")
    assert made["of"] == ["jumprelu", "gated"] and made["cpu_seconds"] == 60.0
    options = "--n_words 0 --uniformity_tokens 0"
    assert made["command"] == f"hfsae probe runs/jumprelu runs/gated {options}"
    with pytest.raises(SystemExit, match="no SAE in runs/none"):
        scripts.make.main(["probing_arms", "runs/none"])
    with pytest.raises(SystemExit, match="NAME can be judge, names"):
        scripts.make.main(["other"])


def test_results_without_figures_of_absorption_are_not_told(scripts):
    record = probing_record(is_weak=True)
    record["arguments"]["seed"] = 0
    made = scripts.make.probed(record)
    assert "absorption" not in made
    with pytest.raises(ValueError, match="no figures of absorption"):
        list(scripts.of_recipes.letters(made))


def test_figures_are_taken_from_an_evaluation_on_several_texts(scripts):
    def metrics(value):
        metric = dict(zip(("value", "low", "high"), around(value), strict=True))
        return {"metrics": dict.fromkeys(("l0", "fvu", "delta_loss", "kl"), metric), "n_tokens": 7}

    made = scripts.make.on_texts({**metrics(0.5), "seed": 0, "texts": {"code": metrics(0.9)}})
    assert made["texts"]["held-out"]["fvu"] == around(0.5)
    assert made["texts"]["code"] == {
        **dict.fromkeys(("l0", "fvu", "delta_loss"), around(0.9)),
        "n_tokens": 7,
    }


def test_a_run_takes_the_place_of_one_with_the_same_settings(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scripts/bench/step.py", "--peers", "/home/me/peers"])
    path = tmp_path / "results" / "step.json"
    for l0, ms in ((20, 1.0), (50, 2.0), (20, 3.0)):
        scripts.kept.keep(path, {"l0": l0, "ms": ms}, ["l0"])
    runs = json.loads(path.read_text())["runs"]
    assert [(run["l0"], run["ms"]) for run in runs] == [(50, 2.0), (20, 3.0)]
    assert runs[0]["command"] == "python scripts/bench/step.py --peers ./peers"
    assert "thread" in runs[0]["machine"]


def test_a_ratio_is_the_median_over_turns(scripts):
    def side(label, *seconds):
        return SimpleNamespace(label=label, seconds=list(seconds), ask=lambda what: {"L0": 50})

    ours, theirs = side("hfsae.topk", 1.0, 2.0, 4.0), side("sparsify.topk", 3.0, 10.0, 8.0)
    row = scripts.turns._row(theirs, [ours, theirs])
    assert row["x"] == {"hfsae.topk": 3.0} and row["median ms"] == 8000.0
    assert scripts.turns.markdown([row]).splitlines()[0].endswith("| x hfsae.topk | L0 |")


def keep_quality(scripts, folder, *sides) -> None:
    """quality.json of (tokens, library, name, mean FVU), three seeds .01 apart."""
    for tokens, library, name, fvu in sides:
        args = SimpleNamespace(folder=folder, seeds=3, no_search=False, tokens=tokens, passes=1)
        args.d_sae, args.l0, args.recipe = 2048, 50, "quickstart"
        runs = [folder / f"run-{seed}.json" for seed in range(3)]
        for path, d in zip(runs, (-0.01, 0.0, 0.01), strict=True):
            test = {"fvu": fvu + d, "delta_loss": 0.1, "l0": 50.0, "dead": 0.01}
            path.write_text(json.dumps({"test": test, "own_l0": 51.0, "seconds": 2.0}))
        side = scripts.quality.Side(library, name, {3e-3: fvu, 6e-3: fvu + 1}, 3e-3, runs)
        scripts.quality._keep_summary(args, side)
    (folder / "results.json").rename(folder / "quality.json")


def test_the_summary_of_quality_gives_the_table_of_the_page(scripts, tmp_path):
    """FVU with Student's interval over seeds, the better of raw and centred input."""
    theirs = ((1024, "sparsify", "TopK", 0.3), (1024, "sparsify", "TopK, centred", 0.2))
    keep_quality(scripts, tmp_path, (1024, "hfsae", "JumpReLU", 0.15), *theirs)
    quality = scripts.of_bench.Quality(folder=tmp_path)
    half = 4.302653 * 0.01 / 3**0.5  # t of 2 degrees of freedom
    assert scripts.of_bench.quality_table(quality, "tokens").splitlines()[2:] == [
        f"| 1,024 | hfsae, JumpReLU | 0.003 | **0.1500 ± {half:.4f}** | 0.100 | 50.0 | 1.0% |",
        f"| | sparsify, TopK, centred | 0.003 | 0.2000 ± {half:.4f} | 0.100 | 50.0 | 1.0% |",
    ]
    assert quality.lead(1024) == "25"


def test_the_words_on_quality_say_which_models_and_the_smaller_lead_first(scripts, tmp_path):
    ours = [(tokens, "hfsae", "JumpReLU", fvu) for tokens, fvu in ((1, 0.15), (4, 0.12))]
    theirs = [(tokens, library, "TopK", 0.2) for tokens in (1, 4) for library in ("a", "b")]
    of_gemma = [(1, "hfsae", "JumpReLU", 0.12), (1, "a", "TopK", 0.2)]
    of_gemma += [(4, "hfsae", "JumpReLU", 0.11), (4, "a", "TopK", 0.12)]
    keep_quality(scripts, tmp_path, *ours, *theirs)
    quality = scripts.of_bench.Quality(folder=tmp_path)
    keep_quality(scripts, tmp_path, *of_gemma)
    gemma = scripts.of_bench.Quality(folder=tmp_path)
    words = "two models: 25 to 40 % at 1 (of a alone), 8 to 40 % at 4 (of a alone)."
    assert words in scripts.of_bench.quality_in_short(quality, gemma)
    assert "SmolLM2 and on Gemma, by 25 and 40 % at 1, 40 and 8 % at 4" in " ".join(
        scripts.of_bench.of_quality(quality, gemma)
    )


def test_the_share_of_tokens_is_where_the_fvu_is_the_others(scripts, tmp_path):
    """FVU that falls by a third with four times the tokens: a half of them has its square root."""
    ours = [(tokens, "hfsae", "JumpReLU", fvu) for tokens, fvu in ((100, 0.18), (400, 0.12))]
    theirs = [(tokens, "a", "TopK", (0.18 * 0.12) ** 0.5) for tokens in (100, 400)]
    keep_quality(scripts, tmp_path, *ours, *theirs)
    assert scripts.of_bench.Quality(folder=tmp_path).share_of_tokens(400) == pytest.approx(0.5)
