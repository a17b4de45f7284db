"""Sound as a model of it reads it: in pieces, at one rate, by the model's own feature extractor."""

import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from inspect import signature
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from ..lm import LoadedEncoder, n_positions
from ..machine.refused import Refused, one_line
from ..machine.visible import LOCAL_FILES
from .arguments import AudioArguments
from .input_files import Recent, ids_of, paths_of, read_labels, short_names, state
from .inputs import Piece

_BY_SCIPY = (".wav",)
_BY_SOUNDFILE = (".flac", ".mp3", ".ogg")
_FULL_SCALE = {np.uint8: 2.0**7, np.int16: 2.0**15, np.int32: 2.0**31, np.int64: 2.0**63}


class Sounds:
    """The sound that a recipe's section names, and how a model reads it.

    Raises:
        ValueError: no files are named or found, a package is missing, or rate, length and sites do
            not suit the model.
    """

    section, noun = "audio", "sounds"
    origin = LOCAL_FILES

    def __init__(self, args: AudioArguments, encoder: LoadedEncoder, sites: Sequence[str]) -> None:
        _require_scipy()
        self.arguments, self.processor = args, encoder.processor
        self._model, self._sites = encoder.model, list(sites)
        self._takes = {*signature(encoder.model.forward).parameters}
        self._check_model()
        self._paths = _paths(args)
        self.names, self.ids = short_names(self._paths), ids_of(self._paths)
        self._longest: int | None = getattr(self.processor, "n_samples", None)
        """Samples that all pieces are padded to; None: pieces keep their length"""
        self._step = self._samples_a_piece()
        self._counts: dict[int, int] = {}
        self._hop = self._samples_a_position()
        if self._step and not self._count(self._step):
            raise Refused(f"audio.seconds is {args.seconds:g}, too short for the model; use more")
        self._heard: Recent[np.ndarray] = Recent(self._read, lambda wave: wave.nbytes)

    def _check_model(self) -> None:
        name, rate = type(self._model).__name__, getattr(self.processor, "sampling_rate", None)
        if self._model.main_input_name == "pixel_values":
            raise Refused(f"{name} reads pictures, not sound; give images in place of audio")
        if rate != self.arguments.rate:
            raise Refused(f"audio.rate is {self.arguments.rate}, and {name} takes {rate}; set that")
        if getattr(self._model.config, "patch_size", None) is not None:
            raise Refused(
                f"the positions of {name} are patches of a spectrogram, not moments; use a model "
                "such as Whisper or wav2vec 2.0"
            )

    def _samples_a_piece(self) -> int | None:
        """None: files are not cut."""
        own = round(self.arguments.seconds * self.arguments.rate)
        if self._longest is not None and own > self._longest:
            raise Refused(
                f"audio.seconds is {self.arguments.seconds:g}, and the model takes at most "
                f"{self._longest / self.arguments.rate:g} at once; use that or less"
            )
        return own or self._longest

    def _samples_a_position(self) -> Fraction:
        """Samples from the start of one of the model's positions to that of the next."""
        config, n = self._model.config, self._longest or self.arguments.rate
        self._counts[n], listed = self._measured(n), _convolved(config, n)
        if not self._longest and listed not in (None, self._counts[n]):
            raise Refused(
                f"the sites {', '.join(self._sites)} have {self._counts[n]} positions in a second, "
                f"and the model {listed}; name a block's output as the site"
            )
        ratio = getattr(config, "inputs_to_logits_ratio", None)
        is_raw = self._model.main_input_name == "input_values"
        return Fraction(ratio) if ratio and is_raw else Fraction(n, self._counts[n])

    def _measured(self, n_samples: int) -> int:
        silence = np.zeros(n_samples, np.float32)
        return n_positions(self._model, self._sites, self._processed([silence]))

    def _count(self, n_samples: int) -> int:
        """The model's positions on so many samples, with those of the padding; 0 if the samples are
        too few for one."""
        n = self._longest or n_samples
        if n not in self._counts:
            listed = _convolved(self._model.config, n)
            self._counts[n] = self._measured(n) if listed is None else listed
        return self._counts[n]

    def _processed(self, waves: Sequence[np.ndarray]) -> dict[str, Tensor]:
        rate = self.arguments.rate
        made = self.processor(list(waves), sampling_rate=rate, return_tensors="pt")
        return {name: x for name, x in made.items() if name in self._takes}

    def _length(self, document: int) -> int:
        """Samples of a file at the section's rate; 0 if it cannot be read."""
        try:
            return _n_samples(self._paths[document], self.arguments.rate)
        except Exception:  # `fault` has the reason
            return 0

    def pieces(self, document: int) -> list[Piece]:
        """The pieces of a file in time, without a last one that is too short for the model."""
        n = self._length(document)
        step = self._step or max(1, n)
        sizes = [min(step, n - first) for first in range(0, n, step)]
        return [
            Piece(document, number, 0 if self._longest else size)
            for number, size in enumerate(sizes)
            if self._count(size)
        ]

    def fault(self, document: int) -> str | None:
        """Why a file cannot be read; None if it can."""
        try:
            self._heard(document)
        except Exception as error:  # readers of damaged files raise whatever they meet
            return one_line(error)
        return None if self.pieces(document) else "it is too short for the model"

    def _read(self, document: int) -> Float32[np.ndarray, " n"]:
        wave, n = _wave(self._paths[document], self.arguments.rate), self._length(document)
        # the head of an .mp3 may name some samples more or fewer than are in it
        return np.pad(wave[:n], (0, max(0, n - len(wave))))

    def sound(self, document: int, number: int = 0) -> Float32[np.ndarray, " n"]:
        """A piece of a file, -1 to 1, at the section's rate."""
        wave = self._heard(document)
        step = self._step or len(wave)
        return wave[number * step : (number + 1) * step]

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """What the feature extractor makes of the pieces, by the name of the model's argument.

        Raises:
            ValueError: a file cannot be read.
        """
        try:
            return self._processed([self.sound(piece.document, piece.number) for piece in pieces])
        except Exception as error:  # as in `fault`
            among = ", ".join(self.names[piece.document] for piece in pieces[:3])
            raise Refused(f"a sound among {among} cannot be read: {one_line(error)}") from error

    def _size(self, piece: Piece) -> int:
        """Samples of a piece, without padding."""
        n = self._length(piece.document)
        step = self._step or n
        return min(step, n - piece.number * step)

    def keep(self, piece: Piece) -> Bool[Tensor, " ctx"]:
        """Positions that begin in the sound, and not in its padding."""
        size = self._size(piece)
        return torch.arange(self._count(size)) < ceil(size / self._hop)

    def positions(self, piece: Piece) -> Int64[Tensor, " ctx"]:
        """The number of each moment; those of later pieces follow those of earlier ones."""
        before = piece.number * self._count(self._step) if self._step else 0
        return torch.arange(self._count(self._size(piece))) + before

    def seconds(self, position: int) -> float:
        """When in its file a position begins."""
        number, moment = divmod(position, self._count(self._step)) if self._step else (0, position)
        samples = number * (self._step or 0) + moment * self._hop
        return float(samples / self.arguments.rate)

    def place(self, position: int) -> str:
        """Such as "1.25 s"."""
        return f"{self.seconds(position):.2f} s"

    def labels(self) -> dict[str, list[str | None]]:
        """By column the label of each file."""
        return read_labels("audio.labels", self.arguments.labels, self.names)


def _convolved(config: Any, n_samples: int) -> int | None:
    """Positions behind convolutions without padding, as wav2vec 2.0 and its kin have them; None if
    the config lists none."""
    kernels, strides = (getattr(config, f"conv_{name}", None) for name in ("kernel", "stride"))
    if not isinstance(kernels, list | tuple) or not isinstance(strides, list | tuple):
        return None
    for kernel, stride in zip(kernels, strides, strict=True):
        n_samples = max(0, (n_samples - kernel) // stride + 1)
    return n_samples


def _require_scipy() -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise Refused("sound is read by scipy: pip install 'hfsae[train]'") from error


def _paths(args: AudioArguments) -> list[Path]:
    if not args.files:
        raise Refused("audio names no sound; give audio.files")
    paths = paths_of("audio.files", args.files, (*_BY_SCIPY, *_BY_SOUNDFILE))
    for path in paths:
        if path.suffix.lower() in _BY_SOUNDFILE:
            _soundfile(path)
            break
    return paths


def _soundfile(path: Path) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise Refused(
            f"{path.name} is read by the package soundfile: pip install soundfile; or convert it "
            "to .wav"
        ) from error
    return soundfile


def _n_samples(path: Path, rate: int) -> int:
    return _n_samples_of(path, rate, *state(path))


@lru_cache(maxsize=2**20)  # it is needed at each use of a piece
def _n_samples_of(path: Path, rate: int, size: int, changed: int) -> int:
    raw, own = _raw(path, whole=False)
    return ceil(Fraction(len(raw) * rate, own))


def _wave(path: Path, rate: int) -> Float32[np.ndarray, " n"]:
    """A file's sound at a rate, -1 to 1, its channels averaged.

    Raises:
        ValueError: the file is damaged, holds NaN or infinity, or is no sound.
    """
    from scipy.signal import resample_poly

    raw, own = _raw(path, whole=True)
    if np.issubdtype(raw.dtype, np.integer):
        scale, middle = _FULL_SCALE[raw.dtype.type], 128.0 if raw.dtype == np.uint8 else 0.0
        wave = (raw.astype(np.float64) - middle) / scale
    else:
        wave = raw.astype(np.float64)
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if not np.isfinite(wave).all():
        raise ValueError("it holds NaN or infinity")
    ratio = Fraction(rate, own)
    if ratio != 1:
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return wave.astype(np.float32)


def _raw(path: Path, *, whole: bool) -> tuple[np.ndarray, int]:
    """Samples [n] or [n, channels] in the file's own dtype, and its rate.

    Args:
        whole: False: only the shape is needed, and what it holds may be left on the disk.
    """
    if path.suffix.lower() in _BY_SOUNDFILE:
        reader = _soundfile(path)
        if not whole:
            about = reader.info(path)
            return np.empty((about.frames, 0), np.float32), about.samplerate
        return reader.read(path, dtype="float32", always_2d=True)
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Reached EOF prematurely", wavfile.WavFileWarning)
        warnings.filterwarnings("ignore", "Chunk", wavfile.WavFileWarning)
        try:
            own, raw = wavfile.read(path, mmap=not whole)
        except ValueError:
            if whole:
                raise
            own, raw = wavfile.read(path)  # samples of 3 bytes cannot be left on the disk
    return raw, own
