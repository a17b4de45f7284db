"""Write the tables and numbers of pages again, from the results that lie beside them.

    python scripts/pages/write.py

of_recipes.py, of_bench.py and of_runs.py have the tables and the sentences. Results are made by
`make.py` and the scripts of scripts/bench; cards and comparisons are results, too. A sentence whose
words are not those of its page is an error: what it claims may hold no more. tests/test_pages.py
holds the pages to this.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import of_bench
import of_recipes
import of_runs
from anew import Told, written

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


def told() -> list[Told]:
    return [*of_bench.told(), *of_recipes.told(), *of_runs.told()]


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
