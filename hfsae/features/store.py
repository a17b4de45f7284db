"""FeatureStore: the firings of each latent of an SAE, in memory and as two parquet files.

`features/latents.parquet` has a row per latent, `features/examples.parquet` a row per example, and
`features/meta.json` records their origin and the meaning of each column (COLUMNS), and seals the
two (`hfsae.io.checksums`).
"""

import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.checksums import file_hash, refuse_changed, refuse_mixture, sealed, unsealed
from ..io.errors import Damaged, Refused
from ..io.file_names import EXAMPLES, FEATURES, LATENTS, META
from ..io.files import (
    check_columns,
    damaged,
    printable,
    read_json,
    read_table,
    reading,
    replacing,
    text_columns,
    write_whole,
)
from ..io.units import UNITS as _KINDS_OF_UNITS
from ..models.fingerprint import DECODER, marked

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import pyarrow.dataset

COLUMNS = {
    "latents": {
        "latent": "index of the latent: row of W_dec",
        "density": "share of the tokens read (special tokens apart) on which the latent is above 0",
        "n_firings": "number of those tokens",
        "max_activation": "largest activation, in the SAE's units; 0 if it never fired",
        "mean_activation": "mean over the tokens on which it fired; 0 if it never did",
        "histogram": "tokens per bin of activation; edges in meta.json, outer bins are open-ended",
        "promoted_tokens": "tokens with the largest logits under the logit lens, largest first",
        "promoted_logits": "their logits, per unit of activation",
        "suppressed_tokens": "tokens with the smallest logits, smallest first",
        "suppressed_logits": "their logits",
        "neighbours": "latents with the most similar decoder rows, most similar first",
        "neighbour_cosines": "their cosines",
        "map_x": "place on a map where latents with similar decoder rows are near each other",
        "map_y": "its other coordinate",
    },
    "examples": {
        "latent": "index of the latent",
        "kind": "'top', or 'quantile_q': drawn from the q-th of equal groups (1: the weakest) of "
        "a uniform sample of the rows it fires in, by largest activation; no top examples",
        "rank": "place within latent and kind, 0 = largest activation",
        "document": "running number of the document that the firing token comes from",
        "row": "running number of the row of tokens; a latent has at most one example from a row",
        "position": "position of the firing token in its row",
        "activation": "activation at the firing token: the largest of its row",
        "firing": "index of the firing token in the three lists below",
        "tokens": "text of each token of the window; a character spelt by several tokens stands at "
        "one of them (the firing one, if it is among them), the others are empty",
        "token_ids": "its token ids",
        "activations": "the latent at each token; 0 also where none was computed (special tokens)",
    },
}
UNITS = {unit.one: unit.many for unit in _KINDS_OF_UNITS.values()}
"""What a store's latents were read at, meta.json's `unit`, and its plural. Stores of text have no
unit, and read as "token"."""
_MAP = {"map_x", "map_y"}  # columns that a store has where a map was made
_KINDS: dict[str, str] = dict.fromkeys(("latent", "n_firings", "histogram", "neighbours"), "whole")
_KINDS |= dict.fromkeys(("rank", "document", "row", "position", "firing", "token_ids"), "whole")
_KINDS |= dict.fromkeys(("kind", "promoted_tokens", "suppressed_tokens", "tokens"), "text")
_KINDS |= {name: "number" for table in COLUMNS.values() for name in table if name not in _KINDS}
_LISTS = {"histogram", "tokens", "token_ids", "activations", "neighbours", "neighbour_cosines"}
_LISTS |= {f"{one}_{what}" for one in ("promoted", "suppressed") for what in ("tokens", "logits")}
_ROWS_PER_GROUP = 16384  # the unit that looking up one latent reads from disk, some 20 ms
_OF_TOKENS = ("tokens", "promoted_tokens", "suppressed_tokens")
_PACKED: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 9,
    "row_group_size": _ROWS_PER_GROUP,
    "use_dictionary": ["latent", "kind", *(f"{name}.list.element" for name in _OF_TOKENS)],
}
"""How tables are written: numbers that hardly recur are larger with a dictionary."""


class Example(NamedTuple):
    """A window of tokens around the strongest firing of a latent in one row (fields: COLUMNS)."""

    kind: str
    rank: int
    document: int
    row: int
    position: int
    activation: float
    firing: int
    tokens: list[str]
    token_ids: list[int]
    activations: list[float]


class Latent(NamedTuple):
    """Everything known about one latent; pairs are (token, logit) and (latent, cosine)."""

    index: int
    density: float
    n_firings: int
    max_activation: float
    mean_activation: float
    histogram: list[int]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    neighbours: list[tuple[int, float]]
    examples: list[Example]
    unit: str = "token"
    """what it was read at: one of UNITS"""


class Firings(NamedTuple):
    """Examples in the order of latents: the latent, its rank, the activation, the token."""

    latent: list[int]
    rank: list[int]
    activation: list[float]
    token: list[str]


@dataclass
class FeatureStore:
    """`store[i]` is latent i as a `Latent`; `len(store)` the number of latents."""

    latents: "pyarrow.Table"
    examples: "pyarrow.dataset.Dataset"
    meta: dict[str, Any]

    def __len__(self) -> int:
        return self.latents.num_rows

    def __getitem__(self, index: int) -> Latent:
        """One latent with its examples.

        Raises:
            ValueError: the examples on disk are damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"latent {index} is not in this store: it has 0 to {len(self) - 1}")
        return self.between(index, index + 1)[0]

    def between(self, first: int, end: int) -> list[Latent]:
        """Latents from `first` to before `end`, read at once: faster than one by one.

        Raises:
            ValueError: as for one latent.
        """
        import pyarrow.compute as pc

        examples: dict[int, list[Example]] = {i: [] for i in range(first, end)}
        with reading(self._examples_path):
            which, columns = pc.field("latent"), list(Example._fields)
            which = (which >= first) & (which < end)
            table = self.examples.to_table(columns=["latent", *columns], filter=which)
            _refuse_misfits(self._examples_path, table)
            for row in table.to_pylist():
                index = row.pop("latent")
                example = Example(**row)
                if not 0 <= example.firing < len(example.tokens) == len(example.activations):
                    raise Refused(f"an example of latent {index} has lists that do not fit")
                examples[index].append(example)
        return [
            Latent(
                *(row[name] for name in ("latent", *Latent._fields[1:6])),
                promoted=_pairs(row["promoted_tokens"], row["promoted_logits"]),
                suppressed=_pairs(row["suppressed_tokens"], row["suppressed_logits"]),
                neighbours=_pairs(row["neighbours"], row["neighbour_cosines"]),
                examples=examples[row["latent"]],
                unit=self.unit,
            )
            for row in self.latents.slice(first, end - first).to_pylist()
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """The table of latents, a row each; its columns are explained in `COLUMNS`.

        Raises:
            ValueError: pandas is not installed.
        """
        try:
            return self.latents.to_pandas()
        except ModuleNotFoundError as error:
            raise Refused("a table needs pandas: pip install pandas") from error

    @property
    def unit(self) -> str:
        """What latents were read at: "token", or "row" or "patch" where there is no text
        (UNITS has the plurals)."""
        return self.meta.get("unit", "token")

    @property
    def max_activations(self) -> Float[Tensor, " d_sae"]:
        """Each latent's largest activation, raw units; 0 if it never fired. Steering takes it for
        the unit "max", and refuses it with another SAE."""
        most = torch.from_numpy(self.latents["max_activation"].to_numpy().astype("float32"))
        return marked(most, self.meta.get(DECODER))

    @property
    def densities(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each latent fires."""
        return torch.from_numpy(self.latents["density"].to_numpy().astype("float32"))

    @property
    def places(self) -> Float[Tensor, "d_sae 2"] | None:
        """Each latent's place on the map, mostly -1 to 1; None if it was not made."""
        if not {*self.latents.column_names} >= _MAP:
            return None
        columns = [self.latents[name].to_numpy().astype("float32") for name in ("map_x", "map_y")]
        return torch.nan_to_num(torch.stack([torch.from_numpy(c) for c in columns], dim=1))

    def firings(self, which: "pyarrow.dataset.Expression | None" = None) -> "Firings":
        """The token that each example fires on; `which` selects some of the examples."""
        import pyarrow as pa

        columns = ["latent", "rank", "activation", "firing", "tokens"]
        with reading(self._examples_path):
            table = self.examples.to_table(columns=columns, filter=which).combine_chunks()
            _refuse_misfits(self._examples_path, table)
            lists, latents = table["tokens"].combine_chunks(), table["latent"].to_numpy()
            firing, lengths = table["firing"].to_numpy(), lists.value_lengths().to_numpy()
            if ((firing < 0) | (firing >= lengths)).any():
                raise Refused("the firing token of an example lies outside its window")
            if ((latents < 0) | (latents >= len(self))).any():
                raise Refused(f"an example belongs to a latent that is not among the {len(self):,}")
            fired = lists.values.take(pa.array(lists.offsets.to_numpy()[:-1] + firing))
            tokens = fired.to_pylist()
        ranks, activations = (table[name].to_pylist() for name in columns[1:3])
        return Firings(latents.tolist(), ranks, activations, tokens)

    @property
    def _examples_path(self) -> Path:
        """For messages about the examples; those just collected are in memory."""
        return Path(*getattr(self.examples, "files", ())[:1])

    def pick(
        self, n: int, seed: int = 0, *, min_density: float = 1e-4, max_density: float = 0.1
    ) -> list[int]:
        """n latents, uniformly at random among the alive ones within these densities.

        A random choice shows typical latents, not chosen ones. If fewer than n qualify, all of them
        come, shuffled.
        """
        densities = self.latents["density"].to_pylist()
        fitting = [i for i, d in enumerate(densities) if d > 0 and min_density <= d <= max_density]
        return random.Random(seed).sample(fitting, min(n, len(fitting)))

    def save(self, folder: str | Path) -> None:
        """Write `features/` under folder. Everything is written before an older store is touched;
        its meta.json is removed first and the new one comes last, with the tables' hashes, so that
        a mixture is never mistaken for a store."""
        import pyarrow.parquet as pq

        home = Path(folder)
        (home / FEATURES).mkdir(parents=True, exist_ok=True)
        tables = {LATENTS: self.latents, EXAMPLES: self.examples.to_table()}
        hashes = {}
        with ExitStack() as written:
            for name, table in tables.items():
                path = written.enter_context(replacing(home / name))
                pq.write_table(table, path, **_PACKED)
                hashes[Path(name).name] = file_hash(path)  # not of what another run puts there
            (home / META).unlink(missing_ok=True)
        write_whole(home / META, json.dumps(sealed(self.meta, hashes), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureStore":
        """The store that `save` wrote to a folder. Examples stay on disk, read latent by latent.

        Raises:
            ValueError: there is no store, it belongs to other weights than the folder's, its files
                were not written together, or one is damaged.
        """
        import pyarrow.dataset
        import pyarrow.parquet as pq

        home = Path(folder)
        for name in (META, LATENTS, EXAMPLES):
            if not (home / name).is_file():
                raise Refused(
                    f"no feature store in {str(folder)!r}: {name} is missing; "
                    f"`hfsae collect {folder}` writes one"
                )
        refuse_mixture(home, [META])
        refuse_changed(home, [META])
        path = home / LATENTS
        with reading(path):
            there = pq.read_schema(path).names
        columns = [name for name in COLUMNS["latents"] if name in there or name not in _MAP]
        latents = read_table(path, columns)
        _refuse_misfits(path, latents)
        path = home / EXAMPLES
        check_columns(path, COLUMNS["examples"])
        options = pyarrow.dataset.ParquetReadOptions(dictionary_columns=text_columns())
        layout = pyarrow.dataset.ParquetFileFormat(read_options=options)
        try:
            examples = pyarrow.dataset.dataset(path, format=layout)
            _refuse_misfits(path, examples.schema.empty_table())
        except (pyarrow.ArrowException, OSError) as error:
            raise Damaged(damaged(path, error)) from error
        meta = read_json(home / META)
        with reading(home / META):  # shown on pages
            edges = torch.tensor(meta["histogram_edges"], dtype=torch.float64)
            if edges.ndim != 1 or not (edges.diff() > 0).all():
                raise Refused("histogram_edges are not rising numbers")
            int(meta["arguments"]["quantiles"])
            if (unit := meta.get("unit", "token")) not in UNITS:
                raise Refused(f"the unit is {unit!r}, not one of {', '.join(UNITS)}")
        with reading(home / LATENTS):
            if latents["latent"].to_pylist() != list(range(len(latents))):
                raise Refused("its rows are not those of latents 0, 1, 2 and so on")
            n_bins = {*latents["histogram"].combine_chunks().value_lengths().to_pylist()}
            density = latents["density"].to_numpy()
            if n_bins - {len(edges) - 1} or not ((density >= 0) & (density <= 1)).all():
                n = f"{len(edges) - 1:,}"
                raise Refused(f"density and histogram are not shares, and counts in {n} bins")
        return cls(latents, examples, meta=unsealed(meta))


def _refuse_misfits(path: Path, table: "pyarrow.Table") -> None:
    """Refuse columns of other types than `FeatureStore.save` writes, and missing values."""
    import pyarrow as pa

    kinds: dict[str, Callable[[Any], bool]] = {
        "number": pa.types.is_floating,
        "whole": pa.types.is_integer,
        "text": lambda kind: pa.types.is_string(getattr(kind, "value_type", kind)),
    }
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind, is_list = _KINDS.get(name), name in _LISTS
        if kind is None:
            continue  # a column that others added
        inner, n_missing = column.type, column.null_count
        if is_list and pa.types.is_list(inner):
            inner, flat = inner.value_type, [chunk.flatten() for chunk in column.chunks]
            n_missing += sum(part.null_count for part in flat)
        elif is_list:
            raise Damaged(damaged(path, f"{name} holds {inner}, not lists"))
        if not kinds[kind](inner):
            raise Damaged(damaged(path, f"{name} holds {inner}"))
        if n_missing:
            raise Damaged(damaged(path, f"{n_missing:,} values of {name} are missing"))


def _pairs(first: list, second: list) -> list[tuple]:
    return list(zip(first, second, strict=True))


PLAIN = ("«", "»")
ANSI = ("\x1b[1;30;43m", "\x1b[0m")


def show(latent: Latent, highlight: tuple[str, str] = PLAIN, *, width: int = 100) -> str:
    """Lines of text: numbers, tokens, then one line an example with the firing token highlighted.

    Without text an example is a row or patch, with the activations of others around it.

    Args:
        highlight: put before and after the firing token: PLAIN, or ANSI on a colour terminal.
        width: characters of an example's line, at most (but for a longer firing token).
    """
    lines = [
        f"latent {latent.index}: fires on {latent.density:.3%} of {UNITS[latent.unit]} "
        f"({latent.n_firings:,}), max {latent.max_activation:.3g}, "
        f"mean when active {latent.mean_activation:.3g}",
    ]
    if latent.unit == "token":
        lines.append(f"  promotes    {_token_line(latent.promoted)}")
        lines.append(f"  suppresses  {_token_line(latent.suppressed)}")
    kind = None
    for example in latent.examples:
        if example.kind != kind:
            kind = example.kind
            lines.append(f"  {printable(kind.replace('_', ' '))}")
        token = printable(example.tokens[example.firing])
        room, left, right = max(0, width - 13 - len(token) - 2), "", ""
        if latent.unit == "token":
            left = printable("".join(example.tokens[: example.firing]))
            left = left[max(0, len(left) - room // 2) :]
            right = printable("".join(example.tokens[example.firing + 1 :]))[: room - len(left)]
        elif latent.unit != "patch":  # people know a picture's patches by row and column
            around = zip(example.token_ids, example.activations, strict=True)
            also = [f"{at} ({a:.3g})" for at, a in around if a > 0 and at != example.position]
            right = f"  also at {', '.join(also)}"[:room] if also else ""
        line = f"{left}{highlight[0]}{token}{highlight[1]}{right}"
        lines.append(f"  {example.activation:>9.3g}  {line}")
    return "\n".join(lines)


def _token_line(pairs: list[tuple[str, float]]) -> str:
    return "  ".join(f"'{printable(token)}' {logit:+.2f}" for token, logit in pairs) or "-"
