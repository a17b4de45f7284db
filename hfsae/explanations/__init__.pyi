"""Names of the room, and where each is imported from at its first use."""

from .arguments import ExplainArguments as ExplainArguments
from .arguments import ScoreArguments as ScoreArguments
from .asking import ScoringRequest as ScoringRequest
from .asking import lm_explainer as lm_explainer
from .explainers import Explainer as Explainer
from .explainers import from_labels as from_labels
from .explainers import read_file as read_file
from .explainers import spelt as spelt
from .explainers import template as template
from .reading import CorpusActivations as CorpusActivations
from .reading import read as read
from .redrawn import untrained_like as untrained_like
from .report import ShownLatent as ShownLatent
from .study import Explanations as Explanations
from .study import explain as explain
from .windows import Evidence as Evidence
from .windows import Window as Window
from .windows import order_of as order_of
from .windows import select as select
