"""What an SAE's latents fire on, for people to look at: collected in one pass over text (`collect`)
or over activations without text (`rows`).

`search` finds latents by label, token, promoted token or similarity; `labels` holds their names;
`pages` writes a latent for the front ends of others;
`columns` compares latents with what is known of documents, such as a class or an age.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
