"""Names of the room, and where each is imported from at its first use."""

from .formats import sites_in as sites_in
from .formats import tensors_in as tensors_in
from .source import SHARDS as SHARDS
from .source import FileShapes as FileShapes
from .source import FileSource as FileSource
from .source import check_files as check_files
from .source import refuse_other_shards as refuse_other_shards
from .source import shard_hash as shard_hash
from .source import warn_of_equal_documents as warn_of_equal_documents
