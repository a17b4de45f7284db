"""Model cards and figures, made from the files in an SAE's folder.

card      the card's facts, with the wording of model_card.md
merge     keeps people's text when a card is written again
sections  facts on names, labels, probing and texts unlike the training text
figures   densities, L0, thresholds, training, two models compared
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
