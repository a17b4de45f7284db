"""The windows that test a latent, as text: where it fires, and where it does not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from ..machine.checksums import file_hash
from ..machine.files import replacing
from ..machine.names import EVIDENCE
from .explainers import spelt
from .reading import Reading
from .windows import Evidence

if TYPE_CHECKING:
    import pyarrow


def tested_windows(
    reading: Reading, latents: Sequence[Evidence], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """A row for each window of the tested half: the latent; the kind ("quantile_1" to
    "quantile_5", where it fires; "hard" or "random", where it does not); the activation at the
    peak, or 0; `firing`, the index of the peak or centre; tokens, and the activation on each."""
    for evidence in latents:
        activations = evidence.activations(len(reading.ids))
        for window in (*evidence.active, *evidence.inactive):
            tokens, peak, _, values = spelt(reading, window, tokenizer, activations)
            yield {
                "latent": evidence.latent,
                "kind": window.kind,
                "activation": window.activation,
                "firing": peak,
                "tokens": tokens,
                "activations": list(values),
            }


def save_windows(rows: Sequence[dict[str, Any]], folder: Path, stamps: dict[str, str]) -> str:
    """Write features/evidence.parquet; the folder exists. The file's hash."""
    import pyarrow.parquet as pq

    with replacing(folder / EVIDENCE) as path:
        pq.write_table(_table(rows).replace_schema_metadata(stamps), path, compression="zstd")
        return file_hash(path)


def _table(rows: Sequence[dict[str, Any]]) -> "pyarrow.Table":
    import pyarrow as pa

    kinds = {"latent": pa.int32(), "kind": pa.string(), "activation": pa.float32()}
    kinds |= {"firing": pa.int32(), "tokens": pa.list_(pa.string())}
    kinds["activations"] = pa.list_(pa.float32())
    return pa.Table.from_pylist(list(rows), schema=pa.schema(kinds))
