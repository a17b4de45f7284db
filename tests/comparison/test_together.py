"""Several comparisons in one report, with a verdict that is corrected for all of their arms."""

import re
import shlex

import pytest
import yaml
from comparisons import figures
from comparisons.__main__ import parsed
from comparisons.experiment import Experiment, compare, compare_together
from comparisons.pooled import Verdict

from hfsae.comparison import Estimate

from ..tiny import tiny_fields
from .told import HOME, PAGES


def comparison(folder, **fields) -> Experiment:
    given = tiny_fields(folder, collect_tokens=0)
    if "at_sites" in fields:
        given["sae"] = {"d_sae": given["sae"]["d_sae"]}
    arms = {"jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [3, 6]}}}
    for name, values in (("topk", [3, 6]), ("one", [4])):
        arms[name] = {"sae": {"model_type": "topk_sae"}, "sweep": {"k": values}}
        arms[name]["training"] = {"warm_start_steps": 0}
    return Experiment(**{**given, "arms": arms, "seeds": [0, 1], "at_l0": [4.0, 5.0], **fields})


def test_the_verdict_is_corrected_for_all_arms_of_all_comparisons(tmp_path, loads):
    home = {name: str(tmp_path / "reports" / name) for name in ("first", "second")}
    first = comparison(tmp_path / "a", report=home["first"])
    two = {"only": ["jumprelu", "topk"], "at_sites": ["layers.0", "layers.1.mlp"]}
    second = comparison(tmp_path / "b", report=home["second"], **two)
    commands = {"hfsae compare first.yaml": first, "hfsae compare second.yaml": second}
    folder = compare_together(commands, tmp_path / "reports" / "all", "hfsae compare both")
    text = (folder / "report.md").read_text()

    assert "# 2 comparisons and their verdict" in text and "hfsae compare both" in text
    assert "| [first](../first) | layers.1 | 10 |" in text
    assert "| [second](../second) | layers.0, layers.1.mlp | 16 |" in text
    assert re.findall(r"^\| \[\w+\]\(.*\| (\w+) \|$", text, re.MULTILINE) == ["1", "1"], "harvests"
    assert "rows of the metric that have a value (4 and " in text
    rows = re.findall(r"^\| (first|second, [\w.]+): (\w+) \| ([\d to]+) \|", text, re.MULTILINE)
    assert ("second, layers.1.mlp", "topk", "4 to 5") in rows
    assert (folder / "figures" / "verdict.png").is_file()
    over_places = text.partition("\n## Over all places\n")[2].partition("\n## ")[0]
    assert re.search(r"^\| topk \| JumpReLU \| 3 \|", over_places, re.MULTILINE)
    assert "\n| one |" not in over_places and (folder / "figures" / "places.png").is_file()
    assert "## Over the sites of second" in text and "[Its report](../second)" in text

    page = (folder / "report.html").read_text()
    for part in (home["first"], home["second"], f"{home['second']}/layers.1.mlp"):
        assert (tmp_path / part / "report.md").is_file()
    assert page.count("<h3>Every SAE</h3>") == 3 and "data:image/png;base64" in page
    assert 'href="../second/layers.0"' in page

    loads.clear()  # alone, a comparison writes the same report; and nothing is trained again
    before = (tmp_path / "reports/first/report.md").read_text()
    compare(first, "hfsae compare first.yaml")
    assert (tmp_path / "reports/first/report.md").read_text() == before and not loads


def test_one_arm_alone_has_no_verdict_and_a_report(tmp_path, loads):
    report = str(tmp_path / "report")
    alone = comparison(tmp_path / "a", report=report, only=["topk"], seeds=[0])
    folder = compare_together({"hfsae compare a.yaml": alone}, tmp_path / "all", "")
    assert "None: no two arms of a comparison" in (folder / "report.md").read_text()
    assert not [*(folder / "figures").iterdir()] and (folder / "report.html").is_file()


def test_the_verdicts_of_one_seed_lie_inside_their_figure():
    unknown = (float("nan"), float("nan"))
    verdict = Verdict("a", "TopK", [4.0], Estimate(0.4, unknown, (0.3, 0.5)), 0, "JumpReLU", 1)
    figure = figures.verdicts_figure({"fvu": [verdict], "delta_loss": []})
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 < high
    assert figure.axes[0].get_xlim()[1] > 0.4


def test_two_reports_in_one_folder_are_refused_before_anything_is_trained(tmp_path, loads):
    report = str(tmp_path / "report")
    both = {name: comparison(tmp_path / name, report=report) for name in "ab"}
    with pytest.raises(ValueError, match=r"two of these reports would be written to one folder"):
        compare_together(both, tmp_path / "all", "")
    one = {"a": comparison(tmp_path / "a", report=report)}
    with pytest.raises(ValueError, match=r"written to one folder .*report is the one on all"):
        compare_together(one, tmp_path / "report", "")
    assert not loads and not (tmp_path / "a").exists() and not (tmp_path / "all").exists()


def files(tmp_path, *names: str) -> list[str]:
    for name in names:
        content = {"report": str(tmp_path / name), "arms": {"a": {"sweep": {"k": [4]}}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return [str(tmp_path / f"{name}.yaml") for name in names]


def test_each_comparison_has_the_command_that_makes_it_alone(tmp_path):
    first, second = files(tmp_path, "first", "second")
    argv = [first, second, "--together", "all", "--seeds", "[0]", "--explain"]
    comparisons, folder = parsed(argv)
    assert str(folder) == "all"
    assert [shlex.split(command)[4:] for command in comparisons] == [
        [file, "--seeds", "[0]", "--explain"] for file in (first, second)
    ]
    for own in comparisons.values():
        assert own.seeds == [0] and own.explain.n_latents == 100
    ((command, _),), none = (
        parsed([first])[0].items(),
        parsed([first])[1],
    )
    assert command == f"PYTHONPATH=scripts python -m comparisons {first}" and none is None


def test_commands_of_the_pages_are_read(monkeypatch):
    monkeypatch.chdir(HOME.parents[1])
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    commands = re.findall("^PYTHONPATH=scripts python -m comparisons (.+)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert parsed(shlex.split(command))[0]


def test_several_comparisons_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"got 2 comparisons; give --together FOLDER, where"):
        parsed(files(tmp_path, "first", "second"))
    absent = str(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"there is no comparison .*absent\.yaml"):
        parsed([*files(tmp_path, "first"), absent, "--together", "x"])
