"""A recipe (a section for each dataclass), and the run that it describes, from inputs to a folder.

call        training in one call
collecting  examples of what latents fire on, in a run
controls    names beside those of an SAE of re-drawn weights
evaluating  evaluation in a run, on held-out and foreign texts
explaining  explanations of an SAE's latents
fields      the sections, and where two recipes differ
foreign     texts of an evaluation that are unlike the training text
finishing   figures and the card of a run
folder      what a run's folder holds, and what of it is out of date
harvesting  activations that a recipe trains on, written to files
inputs      what a recipe loads before its stages run
job         an SAE in a run, with all that stages work on
lms         a recipe's language model, or several that read the same tokens
naming      names for latents at the end of a run
of_encoders  pictures or sound through a model, as the inputs of a run
of_files    activations that are read from files, as the inputs of a run
of_lms      text through several language models, as the inputs of a run
of_text     text through a language model, as the inputs of a run
opening     check a recipe, load what its inputs need, open them
placed      an SAE, its folder, and the language model and text of its measures
presetting  presets for the app, looked for at the end of a run
probing     what latents reveal about texts, for the SAEs in folders
shipped     recipes that come with hfsae, by name
sizes       how much each stage reads, where a recipe leaves it open
stages      a run: training, and all stages after it
tabulating  how latents go with labels of documents
table       the stages after training
text        the rows of tokens that a stage reads
verifying   the fingerprint with which copies of an SAE are verified
"""

from .call import train as train
from .controls import CONTROLS as CONTROLS
from .differing import RESULT_SECTIONS as RESULT_SECTIONS
from .differing import as_plain as as_plain
from .differing import differences as differences
from .differing import what_matters as what_matters
from .evaluating import check_foreign_rows as check_foreign_rows
from .evaluating import evaluation_text as evaluation_text
from .explaining import EXPLAINERS as EXPLAINERS
from .explaining import ExplainRequest as ExplainRequest
from .explaining import check_explain as check_explain
from .explaining import explain_sae as explain_sae
from .fields import CheckCost as CheckCost
from .fields import Recipe as Recipe
from .fields import bucket_tokens as bucket_tokens
from .fields import changed_training as changed_training
from .fields import check_arm as check_arm
from .fields import make_configs as make_configs
from .fields import refuse_fields_of_others as refuse_fields_of_others
from .finishing import finish as finish
from .folder import home_of as home_of
from .folder import is_of_a_run as is_of_a_run
from .folder import load_all_trained as load_all_trained
from .folder import load_plain as load_plain
from .folder import load_trained as load_trained
from .folder import locked_run as locked_run
from .folder import names_apart as names_apart
from .folder import norm_limits as norm_limits
from .folder import note_remaking as note_remaking
from .folder import remaking as remaking
from .folder import save_recipe as save_recipe
from .folder import stale_stages as stale_stages
from .folder import trained_folder as trained_folder
from .foreign import check_foreign as check_foreign
from .harvesting import harvest_to as harvest_to
from .inputs import EmptyLMs as EmptyLMs
from .inputs import Loaded as Loaded
from .inputs import Model as Model
from .inputs import first_model as first_model
from .job import Job as Job
from .lms import LMArguments as LMArguments
from .opening import check as check
from .opening import evaluate_saes as evaluate_saes
from .opening import inputs_of as inputs_of
from .opening import load as load
from .opening import load_inputs as load_inputs
from .opening import with_lone_site as with_lone_site
from .placed import PlacedSAE as PlacedSAE
from .placed import Sections as Sections
from .placed import changed as changed
from .placed import check_held_out as check_held_out
from .placed import limits_of as limits_of
from .placed import of_run as of_run
from .placed import opened as opened
from .placed import refuse_without_text as refuse_without_text
from .placed import remember as remember
from .placed import remembered as remembered
from .presetting import judged_presets as judged_presets
from .probing import probe_arguments as probe_arguments
from .probing_folders import probe_saes as probe_saes
from .shipped import find_recipe as find_recipe
from .shipped import licence_with as licence_with
from .shipped import read_recipe as read_recipe
from .shipped import shipped_recipes as shipped_recipes
from .stages import report as report
from .stages import run as run
from .table import LEFT_OUT as LEFT_OUT
from .table import stage_of as stage_of
from .text import read_rows as read_rows
