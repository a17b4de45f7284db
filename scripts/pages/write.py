"""Write the tables and numbers of pages again, from the results that lie beside them.

    python scripts/pages/write.py

of_recipes.py, of_bench.py, of_claims.py and of_runs.py have the tables and the sentences. Results
are made by `make.py` and the scripts of scripts/bench and scripts/citing; cards and comparisons are
results, too. A sentence whose words are not those of its page is an error: what it says may hold no
more. So is a claim that the results do not show: change the page's words, and the claim.
tests/test_pages.py holds pages to all of this.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import of_bench
import of_claims
import of_recipes
import of_runs
from anew import Claim, Told, read_json, written

ROOT = Path(__file__).parents[2]


def main() -> None:
    try:
        pages = from_results()
    except ValueError as error:
        sys.exit(f"write.py: {error}")
    for path, text in pages.items():
        if (ROOT / path).read_text(encoding="utf-8") != text:
            (ROOT / path).write_text(text, encoding="utf-8", newline="\n")
            print(path)
    for path in transcribed():
        print(f"{path} holds figures that were taken from a page, not from a run")
    if wrong := [*faults()]:
        sys.exit("\n".join(wrong))


def transcribed() -> Iterator[Path]:
    """Results, or some runs in them, that were taken from a page, as nothing else kept them."""
    for path in sorted(ROOT.glob("scripts/*/results/*.json")):
        result = read_json(path)
        if any(run.get("transcribed") for run in result.get("runs", [result])):
            yield path.relative_to(ROOT)


def claims() -> list[Claim]:
    return [*of_bench.claims(), *of_claims.claims(), *of_recipes.claims()]


def faults() -> Iterator[str]:
    """Sentences on claims that results do not show, or that their page does not make."""
    for claim in claims():
        if fault := claim.fault((ROOT / claim.page).read_text(encoding="utf-8")):
            yield fault


def told() -> list[Told]:
    return [*of_bench.told(), *of_claims.told(), *of_recipes.told(), *of_runs.told()]


def from_results(every: Iterable[Told] | None = None) -> dict[str, str]:
    """The pages, by their paths, as the results have them.

    Raises:
        ValueError: a page lacks a table, or a sentence's words.
    """
    pages: dict[str, str] = {}
    for each in told() if every is None else every:
        page = pages.get(each.page) or (ROOT / each.page).read_text(encoding="utf-8")
        pages[each.page] = written(page, each)
    return pages


if __name__ == "__main__":
    main()
