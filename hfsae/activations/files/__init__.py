"""Files of activations: what they hold, and a source of their rows."""

from .arguments import ActivationArguments as ActivationArguments
from .shapes import FileShapes as FileShapes
from .shapes import check_files as check_files
from .shapes import sites_in as sites_in
from .shapes import tensors_in as tensors_in
from .source import FileSource as FileSource
