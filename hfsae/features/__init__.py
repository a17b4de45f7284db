"""What the latents of an SAE fire on, for people to look at: collected in one pass over text."""

from .collect import CollectArguments as CollectArguments
from .collect import collect as collect
from .collect import token_text as token_text
from .store import ANSI as ANSI
from .store import PLAIN as PLAIN
from .store import Example as Example
from .store import FeatureStore as FeatureStore
from .store import Latent as Latent
from .store import show as show
