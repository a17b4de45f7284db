"""What an SAE's latents fire on, for people to look at: collected in one pass over text (`collect`)
or over activations without text (`rows`).

`search` finds latents by label, token, promoted token or similarity; `labels` holds their names;
`columns` compares latents with what is known of documents, such as a class or an age.
"""

from ..activations.spelling import token_text as token_text
from .collect import CollectArguments as CollectArguments
from .collect import collect as collect
from .column_files import LabelColumns as LabelColumns
from .column_files import read_labels_table as read_labels_table
from .column_files import write_labels_table as write_labels_table
from .columns import Association as Association
from .columns import LabelTable as LabelTable
from .columns import label_table as label_table
from .held_out import refuse_few_documents as refuse_few_documents
from .labels import Automatic as Automatic
from .labels import blank_label as blank_label
from .labels import mark_of as mark_of
from .labels import read_automatic as read_automatic
from .labels import read_labels as read_labels
from .labels import read_names as read_names
from .labels import write_label as write_label
from .latents import Latents as Latents
from .latents import latents as latents
from .layout import NEAR as NEAR
from .layout import nearest_rows as nearest_rows
from .layout import plane as plane
from .rows import collect_rows as collect_rows
from .search import FeatureSearch as FeatureSearch
from .search import Hit as Hit
from .search import firing_on as firing_on
from .search import promoting as promoting
from .search import search_labels as search_labels
from .search import similar_latents as similar_latents
from .store import ANSI as ANSI
from .store import PLAIN as PLAIN
from .store import UNITS as UNITS
from .store import Example as Example
from .store import FeatureStore as FeatureStore
from .store import Latent as Latent
from .store import show as show
