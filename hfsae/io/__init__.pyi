"""Names of the room, and where each is imported from at its first use."""

from .checksums import refuse_changed as refuse_changed
from .checksums import refuse_mixture as refuse_mixture
from .checksums import resealed as resealed
from .checksums import sealed as sealed
from .checksums import stamp as stamp
from .checksums import weights_hash as weights_hash
from .errors import Damaged as Damaged
from .errors import Diverged as Diverged
from .errors import HubRefused as HubRefused
from .errors import Refused as Refused
from .local_paths import without_local_paths as without_local_paths
