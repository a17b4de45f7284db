"""Presets for the app: latents whose steering visibly changes texts, found by trying."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
