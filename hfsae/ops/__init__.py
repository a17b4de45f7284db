"""Functions on tensors, without configs, modules or files."""

from . import sparse as sparse
from .sampling import gumbel as gumbel
from .sampling import kl_of_logs as kl_of_logs
from .screening import among_top_k as among_top_k
from .screening import screen as screen
from .screening import screen_batch_top_k as screen_batch_top_k
from .screening import screen_top_k as screen_top_k
from .selection import Summed as Summed
from .selection import kth_positive as kth_positive
from .selection import largest as largest
from .selection import one_process as one_process
from .sparse import ASYNCHRONOUS as ASYNCHRONOUS
from .sparse import EVERYWHERE as EVERYWHERE
from .sparse import Download as Download
from .sparse import Entries as Entries
from .sparse import Everywhere as Everywhere
from .sparse import Place as Place
from .sparse import Workspace as Workspace
from .sparse import blocks as blocks
from .sparse import indices_of as indices_of
from .sparse import nested_sums as nested_sums
from .sparse import upload as upload
from .straight_through import Kernel as Kernel
from .straight_through import heaviside as heaviside
from .straight_through import jumprelu as jumprelu
from .straight_through import kernel as kernel
