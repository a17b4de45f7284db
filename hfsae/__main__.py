"""`hfsae` and `python -m hfsae`: the command line, or one sentence if its packages are missing."""

import sys


def main() -> int:
    try:
        from . import cli
    except ModuleNotFoundError as error:
        print(
            f"hfsae: error: the command line needs {error.name}: pip install 'hfsae[train]'",
            file=sys.stderr,
        )
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
