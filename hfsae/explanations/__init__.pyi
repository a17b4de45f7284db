"""Names of the room, and where each is imported from at its first use."""

from .arguments import ExplainArguments as ExplainArguments
from .arguments import ScoreArguments as ScoreArguments
from .corpus import CorpusActivations as CorpusActivations
from .corpus import read as read
from .explainers import Explainer as Explainer
from .explainers import from_labels as from_labels
from .explainers import lm_explainer as lm_explainer
from .explainers import read_file as read_file
from .explainers import template as template
from .prompts import json_string as json_string
from .report import ShownLatent as ShownLatent
from .scorers import SCORERS as SCORERS
from .scorers import scorers_of as scorers_of
from .study import Explanations as Explanations
from .study import explain as explain
from .untrained import untrained_like as untrained_like
from .verdicts import ScoringRequest as ScoringRequest
from .verdicts import prompts_hash as prompts_hash
from .windows import Evidence as Evidence
from .windows import Window as Window
from .windows import order_of as order_of
from .windows import select as select
from .windows import window_text as window_text
