"""Push to the Hub, fetch from it, and load SAEs by name.

order      a push, as it is asked for
upload     one atomic commit, whose files are on a list
download   whole files, held against the Hub's checksums
suite      load and list SAEs by layer, width and L0
space      a Space with the app and one SAE
modeling_hfsae   what an SAE needs where hfsae is not installed; pushed with --include_code
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
