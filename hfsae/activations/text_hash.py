"""A digest of the text, so that training resumes from a checkpoint only with the same text."""

from hashlib import sha256
from pathlib import Path

from huggingface_hub import HfApi

from ..machine.client import HTTPError
from ..machine.files import unreadable
from ..machine.refused import Refused
from .arguments import TextArguments
from .tokens import is_hub, local_files, texts

# Bytes: largest file that is hashed as a whole; part of a larger one at each end; block read.
_WHOLE, _END, _BLOCK = 2**30, 2**26, 2**24


def text_digest(args: TextArguments) -> str | None:
    """Digest of the whole text, all sides; None if the Hub does not answer.

    A hash of: the texts of listed or packaged documents; the contents of local files, in reading
    order; the names and hashes of a Hub data set's files, from one request (its card may change).
    Of a file over 1 GiB it covers only the size and the first and last 64 MiB: a change in between
    that keeps the size is not noticed.

    Raises:
        ValueError: a file or packaged text cannot be read.
    """
    if is_hub(args.dataset):
        return _hub_digest(str(args.dataset), args)
    if isinstance(args.dataset, str) and not args.dataset.startswith("packaged:"):
        parts = map(_file_hash, local_files(args.dataset))
    else:
        parts = (sha256(text.encode()).digest() for text in texts(args))
    digest = sha256()
    for part in parts:
        digest.update(part)
    return f"SHA-256 {digest.hexdigest()}"


def _file_hash(path: Path) -> bytes:
    """Hash of a file's suffix, size and contents; its name and folder may change."""
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
    return digest.digest()


def _hub_digest(name: str, args: TextArguments) -> str | None:
    try:
        info = HfApi().dataset_info(
            name, revision=args.dataset_revision, timeout=30, files_metadata=True
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
    return f"{name}{config}, SHA-256 of its files {digest}"
