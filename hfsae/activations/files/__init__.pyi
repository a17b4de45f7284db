"""Names of the room, and where each is imported from at its first use."""

from .arguments import ActivationArguments as ActivationArguments
from .equal_rows import warn_of_equal_documents as warn_of_equal_documents
from .harvested import SHARDS as SHARDS
from .harvested import refuse_other_shards as refuse_other_shards
from .harvested import shard_hash as shard_hash
from .shapes import FileShapes as FileShapes
from .shapes import check_files as check_files
from .shapes import sites_in as sites_in
from .shapes import tensors_in as tensors_in
from .source import FileSource as FileSource
