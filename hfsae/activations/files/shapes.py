"""What files of activations hold, checked by their headers before anything is read or written."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...machine.refused import Refused, closest
from .arguments import ActivationArguments, paths_of
from .containers import listed_of, open_shards, sites_of
from .rows import KEEP, check_rows
from .shard import FLOATS, Header, Shard


class FileShapes(NamedTuple):
    """What the headers of files say."""

    widths: dict[str, int]
    """By site."""
    dtypes: dict[str, torch.dtype]
    """By site."""
    n_rows: int
    """Of all sides, and with those to leave out."""


class CheckedFiles(NamedTuple):
    """Files whose headers fit each other and the sites."""

    shards: list[Shard]
    tensors: dict[str, str]
    """By site, the tensor or column that holds it."""
    headers: dict[str, list[Header]]
    """By site, one of each shard."""

    @property
    def shapes(self) -> FileShapes:
        """The widths, dtypes and the number of rows."""
        firsts = {site: headers[0] for site, headers in self.headers.items()}
        return FileShapes(
            {site: header.shape[-1] for site, header in firsts.items()},
            {site: FLOATS[header.kind] for site, header in firsts.items()},
            sum(header.n_rows for header in next(iter(self.headers.values()))),
        )


def check_files(args: ActivationArguments, sites: Sequence[str]) -> FileShapes:
    """Widths, dtypes and the number of rows, from headers alone.

    Raises:
        ValueError: a file is damaged or of another format, lacks a site, or differs from the others
            in a site's width or dtype.
    """
    return checked(args, sites).shapes


def sites_in(args: ActivationArguments) -> list[str]:
    """The tensors or columns that can be sites, from headers alone.

    Raises:
        ValueError: no file is there, or one is damaged or of another format.
    """
    return sites_of(paths_of(args))


def tensors_in(args: ActivationArguments, most: int = 3) -> str:
    """The tensors or columns of the first file, in words: name, type and shape."""
    return listed_of(paths_of(args)[0], most)


def checked(args: ActivationArguments, sites: Sequence[str]) -> CheckedFiles:
    """The files, once their headers are checked.

    Raises:
        ValueError: as `check_files`.
    """
    if not sites:
        raise Refused(f"no site is named; the files have {', '.join(sites_in(args)) or 'none'}")
    for site in args.sites:
        if site not in sites:
            raise Refused(
                f"activations.sites has {site!r}, and the sites are {', '.join(sites)}"
                f"{closest(site, sites)}; rename it"
            )
    tensors = {site: args.sites.get(site, site) for site in sites}
    more = [name for name in (args.documents, KEEP) if name]
    shards = open_shards(paths_of(args), tensors, more)
    headers = {site: [shard.header(name) for shard in shards] for site, name in tensors.items()}
    first = headers[sites[0]]
    for site in sites:
        for header, beside in zip(headers[site], first, strict=True):
            _check_site(site, header, headers[site][0], beside)
    check_rows(shards, first, args.documents)
    return CheckedFiles(shards, tensors, headers)


def _check_site(site: str, header: Header, first: Header, beside: Header) -> None:
    """Check one tensor alone, against the first shard's, and against another site's beside it."""
    path, kind, shape, _ = header
    if kind not in FLOATS:
        raise Refused(
            f"{path} holds {kind} at site {site!r}; convert it to float32, float16 or bfloat16"
        )
    if len(shape) not in (2, 3) or 0 in shape:
        raise Refused(
            f"{path} has shape {list(shape)} at site {site!r}; give [n, d] or [rows, ctx, d], "
            "none of them 0"
        )
    if (kind, shape[-1]) != (first.kind, first.shape[-1]):
        raise Refused(
            f"{path} holds {kind} of width {shape[-1]:,} at site {site!r}, and {first.path} "
            f"{first.kind} of width {first.shape[-1]:,}; give all files one dtype and width"
        )
    if header.n_rows != beside.n_rows:
        raise Refused(
            f"{path} has {header.n_rows:,} rows at site {site!r}, and {beside.path} "
            f"{beside.n_rows:,} at another; give all sites the same rows"
        )
