"""Names of former versions: they work for one version more, with a warning."""

import warnings


def warn_of_former(old: str, new: str) -> None:
    """Warn whoever called the caller of this function that `old` has the name `new`."""
    warnings.warn(
        f"{old} has the name {new}: the former name is gone in the next version",
        FutureWarning,
        stacklevel=3,
    )
