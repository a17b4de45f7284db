"""The stage of a run that shows its results: figures and the card."""

from pathlib import Path

from .. import cards
from ..cards import figures
from ..machine.seal import refuse_changed
from ..machine.weights import refuse_mixture


def finish(folder: Path) -> None:
    """Draw the figures and write the card, from the results in the folder.

    Raises:
        ValueError: the folder mixes results of different weights, one was changed, or the card has
            no block to keep.
    """
    refuse_mixture(folder)
    refuse_changed(folder)
    cards.refuse_card_of_others(folder)
    figures.draw(folder)
    cards.write_card(folder)
