"""Names of the room, and where each is imported from at its first use."""

from .checksums import refuse_changed as refuse_changed
from .checksums import refuse_mixture as refuse_mixture
from .checksums import resealed as resealed
from .checksums import sealed as sealed
from .checksums import weights_hash as weights_hash
from .refused import Damaged as Damaged
from .refused import Diverged as Diverged
from .refused import HubRefused as HubRefused
from .refused import Refused as Refused
from .visible import public_record as public_record
