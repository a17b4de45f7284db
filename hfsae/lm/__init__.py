"""Sites in a causal language model: name them, read them, write to them; and load the model.

autoencoder     what an SAE must have
sites      `layers.12`, `layers.12.self_attn.o_proj:in`: what a name means
hooks      read and replace activations at sites
splicing   let the model run on an SAE's reconstructions
several    language models that read the same tokens, and sites in them
load       a model from the Hub, a folder, a .gguf file or a package
encoders   the same for models of pictures and sound, and one way to run any model
copies     where the copy of a model lies, and what is refused
contract   whether a model is the one that an SAE was trained on
weights_sketch  a few numbers by which a model's weights can be compared
generating      where the prompt of a call of `generate` ends
"""

from .autoencoder import Autoencoder as Autoencoder
from .autoencoder import Encoder as Encoder
from .autoencoder import HasConfig as HasConfig
from .autoencoder import NamesSite as NamesSite
from .encoders import LoadedEncoder as LoadedEncoder
from .encoders import empty_encoder as empty_encoder
from .encoders import encoder_width as encoder_width
from .encoders import forward as forward
from .encoders import load_encoder as load_encoder
from .encoders import n_positions as n_positions
from .encoders import smallest_inputs as smallest_inputs
from .generating import noting_prompts as noting_prompts
from .generating import prompt_length as prompt_length
from .hooks import Passes as Passes
from .hooks import activations_read as activations_read
from .hooks import capture as capture
from .hooks import own_passes as own_passes
from .hooks import patch as patch
from .hooks import running_as as running_as
from .hooks import site_width as site_width
from .load import LoadedLM as LoadedLM
from .load import empty_lm as empty_lm
from .load import known_tokenizer as known_tokenizer
from .load import load_lm as load_lm
from .load import load_tokenizer as load_tokenizer
from .load import tokenizer_of as tokenizer_of
from .several import LoadedLMs as LoadedLMs
from .several import by_model as by_model
from .several import model_and_path as model_and_path
from .several import refuse_other_vocabularies as refuse_other_vocabularies
from .sites import Site as Site
from .sites import Sites as Sites
from .sites import blocks_below as blocks_below
from .sites import check_arguments as check_arguments
from .sites import find_module as find_module
from .sites import reads_of as reads_of
from .sites import unwrapped as unwrapped
from .sites import widths_of as widths_of
from .sites import writes_of as writes_of
from .splicing import Moment as Moment
from .splicing import cache_name as cache_name
from .splicing import cast_for as cast_for
from .splicing import intervene as intervene
from .splicing import is_causal as is_causal
from .splicing import random_places as random_places
from .splicing import special_ids as special_ids
from .splicing import splice as splice
from .splicing import unspared as unspared
