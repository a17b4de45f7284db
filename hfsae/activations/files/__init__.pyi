"""Names of the room, and where each is imported from at its first use."""

from .arguments import ActivationArguments as ActivationArguments
from .shapes import FileShapes as FileShapes
from .shapes import check_files as check_files
from .shapes import sites_in as sites_in
from .shapes import tensors_in as tensors_in
from .source import FileSource as FileSource
