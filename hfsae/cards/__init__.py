"""Model cards and figures, made from the files in an SAE's folder.

card      the card's facts, with the wording of model_card.md
limits    what speaks against using an SAE
merge     keeps people's text when a card is written again
places    sites and language models, in words and in code
names     names for latents, and their scores
probing   what a few latents reveal about texts
texts     texts unlike the training text
figures   densities, L0, thresholds, training, two models compared
"""

from .card import RECORDS as RECORDS
from .card import misgivings as misgivings
from .card import render_card as render_card
from .card import render_suite as render_suite
from .card import shown_latents as shown_latents
from .card import write_card as write_card
from .merge import carry_over as carry_over
from .merge import front_of as front_of
from .merge import refuse_card_of_others as refuse_card_of_others
from .merge import set_model_id as set_model_id
from .names import names_section as names_section
from .probing import probing_facts as probing_facts
from .probing import probing_section as probing_section
from .texts import COLUMNS as COLUMNS
from .texts import texts_section as texts_section
