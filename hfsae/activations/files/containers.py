"""Files of activations, by format.

    .safetensors   a tensor a site
    .npy           one tensor a file, named by the file; acts-part1 and acts-part2 are both `acts`
    .parquet       a column of lists of numbers a site

Nothing is unpickled: pickles are refused by their suffix, arrays of objects by their header.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ...machine.refused import Refused, closest
from .arrays import ArrayShard, numpy_header, safetensors_shard
from .shard import FLOATS, Shard, is_like_documents
from .tables import TableShard

SUFFIXES = (".safetensors", ".npy", ".parquet")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
# A shard's number in the name of a .npy file: acts-part1, acts-00001-of-00004.
_NUMBER = re.compile(r"(?<=.)([-_.](part|shard)[-_]?\d+|-\d+-of-\d+)$")
CONVERTIBLE = (*_PICKLES, ".npz")
"""Suffixes of files that often hold activations, but are not read."""


def natural(path: Path) -> list[str | int]:
    """A sorting key that puts part2 before part10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def open_shards(
    paths: Sequence[Path], tensors: Mapping[str, str], more: Sequence[str] = ()
) -> list[Shard]:
    """The shards in these files, in their order; each holds all sites.

    Args:
        tensors: by site, the tensor or column that holds it; of .npy files, the file's name without
            the number of its shard, or a pattern of the names of all its shards.
        more: names of tensors that may be absent.

    Raises:
        ValueError: a file is damaged, of an unknown format, or lacks a site.
    """
    if _format_of(paths) == ".npy":
        return [*_numpy_shards(paths, tensors, more)]
    shards = [_open(path) for path in paths]
    for shard in shards:
        for site, name in tensors.items():
            if name not in shard.names:
                of = f"site {site!r}" if site == name else f"{name!r}, for site {site!r}"
                near = _rename(site, name, [at for at in shard.names if at not in more])
                raise Refused(f"{shard.path} does not hold {of}{near}")
    return shards


def sites_of(paths: Sequence[Path]) -> list[str]:
    """The names of the tensors or columns that can be sites: of all .npy files, of others' first.

    Raises:
        ValueError: a file is damaged, or of an unknown format.
    """
    if _format_of(paths) == ".npy":
        headers = {_NUMBER.sub("", path.stem): numpy_header(path) for path in paths}
    else:
        first = _open(paths[0])
        headers = {}
        for name in first.names:
            with suppress(Refused):  # lists of different lengths are something else than a site
                headers[name] = first.header(name)
    return [
        name for name, one in headers.items() if one.kind in FLOATS and len(one.shape) in (2, 3)
    ]


def listed_of(path: Path, most: int) -> str:
    """What a file holds, in words; the reason why where its shape is not to be had."""
    if _format_of([path]) == ".npy":
        one = numpy_header(path)
        return f"{path} is {one.kind} {list(one.shape)}"
    shard, parts = _open(path), []
    for name in shard.names[:most]:
        try:
            one = shard.header(name)
            parts.append(f"{name!r} {one.kind} {list(one.shape)}")
        except Refused as why:
            parts.append(f"{name!r} of which {why}")
    more = len(shard.names) - most
    return f"{path} has {', '.join(parts)}" + (f" and {more} more" if more > 0 else "")


def _open(path: Path) -> Shard:
    return TableShard(path) if path.suffix.lower() == ".parquet" else safetensors_shard(path)


def _rename(site: str, name: str, names: Sequence[str]) -> str:
    near = closest(name, names, cutoff=0.0)
    return f"{near}; give its name by activations.sites: {{{site}: NAME}}"


def _format_of(paths: Sequence[Path]) -> str:
    """The suffix that all files have."""
    for path in paths:
        refuse_other_formats(path)
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise Refused(
            f"{paths[0].parent} has {' and '.join(suffixes)} files; name those of one format, as "
            f"in {paths[0].parent / '*'}{suffixes[0]}"
        )
    return suffixes[0]


def refuse_other_formats(path: Path) -> None:
    """Check that a file's suffix is that of a format that is read.

    Raises:
        ValueError: it is a pickle, an archive or unknown; the sentence says how to convert it.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        converted = path.with_suffix(".safetensors")
        raise Refused(
            f"{path} is a pickle, which can run any code, and is never read; convert it: "
            f'`tensor = torch.load("{path}", weights_only=True)`, then '
            f'`safetensors.torch.save_file({{"SITE": tensor}}, "{converted}")`'
        )
    if suffix == ".npz":
        raise Refused(
            f"{path} is an archive, whose rows cannot be read without unpacking all; save each "
            f'array by itself: `numpy.save("SITE.npy", numpy.load("{path}")["NAME"])`'
        )
    if suffix not in SUFFIXES:
        raise Refused(
            f"{path} cannot be read as activations; give .safetensors, .npy or .parquet files"
        )


def _numpy_shards(
    paths: Sequence[Path], tensors: Mapping[str, str], more: Sequence[str]
) -> Iterator[Shard]:
    """The first file of each site makes a shard, the second of each the next, and so on."""
    names = [*dict.fromkeys(_NUMBER.sub("", path.stem) for path in paths)]
    first = next(iter(tensors.values()))
    files = {
        name: [path for path in paths if fnmatchcase(_NUMBER.sub("", path.stem), name)]
        for name in tensors.values()
    }
    for name in more:  # these have one file for each shard, whatever its number looks like
        patterns = (name, f"{name}[-_]*")
        files[name] = [p for p in paths if any(fnmatchcase(p.stem, one) for one in patterns)]
    others = [name for name in names if name not in more]
    for site, name in tensors.items():
        if not files[name]:
            raise Refused(
                f"no .npy file is called {name}, for site {site!r}{_rename(site, name, others)}, "
                f"or by {{{site}: 'part*'}} if several files are its shards"
            )
    files = {name: found for name, found in files.items() if found}
    for name, found in files.items():
        if len(found) != len(files[first]):
            raise Refused(
                f"{found[0].parent} has {len(files[first])} files for {first!r} and {len(found)} "
                f"for {name!r}; give as many of each"
            )
    used = {path for found in files.values() for path in found}
    for name in names:  # `like_documents` tells of one that is not read
        found = [path for path in paths if _NUMBER.sub("", path.stem) == name]
        if is_like_documents(name) and used.isdisjoint(found) and len(found) == len(files[first]):
            files[name] = found
    for i, path in enumerate(files[first]):
        yield ArrayShard(path, {name: numpy_header(found[i]) for name, found in files.items()})
