"""Names of the room, and where each is imported from at its first use."""

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
from .sections import COLUMNS as COLUMNS
from .sections import names_section as names_section
from .sections import probing_facts as probing_facts
from .sections import probing_section as probing_section
from .sections import texts_section as texts_section
