"""Push to the Hub, fetch from it, and load SAEs by name.

upload     a push, one atomic commit: look, plan, print, send
outgoing   what of a folder others may see: files on a list, without keys and local paths
download   a repository's files, listed and fetched
neuronpedia  a feature store as the folder that Neuronpedia imports
suite      load and list SAEs by layer, width and L0
space      a Space with the app and one SAE
modeling_hfsae   what an SAE needs where hfsae is not installed; pushed with --include_code
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
