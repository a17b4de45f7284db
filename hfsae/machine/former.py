"""Names of former versions: they work for one version more, with a warning."""

import warnings


def warn_of_former(old: str, new: str) -> None:
    """Warn whoever called the caller of this function that `old` has the name `new`."""
    warnings.warn(
        f"{old} has the name {new}: the former name is gone in the next version",
        FutureWarning,
        stacklevel=3,
    )


def former_property(present: str, old: str, new: str) -> property:
    """A property under its former name, which gives the attribute `present`, with a warning."""

    def get(owner: object) -> object:
        warn_of_former(old, new)
        return getattr(owner, present)

    return property(get, doc=f"The former name of `{present}`.")
