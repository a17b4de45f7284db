"""The summary of an unfinished collection in a file, from which the next one goes on."""

import logging
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

from ..activations import TokenBatch
from ..io.errors import Damaged
from ..io.files import read_tensors, write_tensors
from .summary import LatentStatistics

logger = logging.getLogger(__name__)
_EVERY_SECONDS = 60.0
_KEY, _ROWS = "key", "rows_sha256"


class Resume:
    """Writes a summary to a file every minute, and reads it back for the same rows and settings.

    Args:
        path: None: nothing is written or read.
        key: identifies what the summary follows from beside the rows.
    """

    def __init__(self, path: Path | None, key: str):
        self._path, self._key = path, key
        self._digest = sha256()
        self._saved_at = time.monotonic()

    def rest(self, rows: Iterable[TokenBatch], seen: LatentStatistics) -> Iterator[TokenBatch]:
        """The rows that an empty summary still has to see, after it got the file's.

        The file serves if it has this key, and the rows begin with those that it was made from.
        """
        batches, first = iter(rows), list[TokenBatch]()
        tensors, about = self._read()
        n_rows = len(tensors["tokens"]) if tensors else 0
        while sum(len(batch.input_ids) for batch in first) < n_rows:
            if (batch := next(batches, None)) is None:
                break
            first.append(batch)
            self._note(batch)
        if tensors and self._digest.hexdigest() == about[_ROWS]:
            seen.load_state_(tensors)
            logger.info("collecting goes on after %d rows of text", n_rows)
        else:
            self._digest = sha256()
            batches = chain(first, batches)
        return batches

    def save(self, batch: TokenBatch, seen: LatentStatistics) -> None:
        """Note the batch that was added last, and write the file if it is a minute old."""
        if self._path is None:
            return
        self._note(batch)
        if time.monotonic() - self._saved_at < _EVERY_SECONDS:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        about = {_KEY: self._key, _ROWS: self._digest.hexdigest()}
        write_tensors(self._path, seen.state(), about)
        self._saved_at = time.monotonic()

    def end(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict, dict[str, str]]:
        if self._path is None or not self._path.is_file():
            return {}, {}
        try:
            tensors, about = read_tensors(self._path)
        except Damaged:  # it saves time, and is made again
            return {}, {}
        return (tensors, about) if about.get(_KEY) == self._key else ({}, {})

    def _note(self, batch: TokenBatch) -> None:
        for part in batch:
            self._digest.update(part.cpu().numpy().tobytes())
