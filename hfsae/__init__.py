"""hfsae: sparse autoencoders as Hugging Face models.

**Floors.** Imports go down, never sideways; import-linter holds them to it.

    cli                                  the command
    demo | comparison | tuning | diffing   the app; arms at equal L0; searches; what changed
    runs                                 a recipe, its stages and folder; measuring any SAE
    hub                                  push, fetch, load by meaning
    explanations                         names for latents, and how certain
    training | features | cards | convert | steering | attribution | circuits
    evaluation                           what an SAE loses and separates; every room's statistics
    models | activations                 one forward pass, a variant a file; sources, their streams
    ops | lm                             sparse algebra; sites in a language model
    packaged                             inputs that come as Python packages
    io                                   files, hashes, errors, the lock, the Hub's client

**A datum's journey.** text -> `activations.tokens` (rows of token ids, a keep-mask) ->
`activations.harvest` (raw activations at sites, through `lm.capture`) -> `activations.source` (what
fills a bucket: text, pictures, files, or tensors in memory) -> `activations.shuffle`
(batches [n, d], float32) -> `models` (pre_acts -> latents -> recon, and the loss) -> `training.run`
(one optimiser step) -> `training.checkpoint` -> `SAE.folded().save_pretrained` -> `evaluation`
(spliced into the language model), `features` (what latents fire on), `steering` (what they do),
`attribution` (why this token), `cards`.

**Words.** A *latent* is one unit of an SAE, its activation a number; a *feature* is what it means.
`pre_acts` come before the non-linearity, `latents` after it; `recon` is the reconstruction. A
*site* is a place in a language model: a module's path, and whether its input or its output. `L0` is
the number of latents that fire on a token; a latent's `density` the share of tokens it fires on.
`FVU` is the fraction of variance unexplained, pooled over all tokens. `activation_scale` is the
root of the mean squared norm, or distance from the mean. To *splice* is to let the language model
run on a reconstruction, to *steer* to let it run on changed latents.

Loading, reading and steering need the core dependencies alone; training and the command line need
the extra `train`, the app `demo`.
"""

import importlib

import lazy_loader

from .io.importing import after_importing

__version__ = "0.1.0"
_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name at its first use; `__init__.pyi` lists them.

    Raises:
        ImportError: the name needs an extra that is not installed.
    """
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise ImportError(f"hfsae.{name} needs {error.name}: pip install 'hfsae[train]'") from error


def _register_variants() -> None:
    sae = importlib.import_module(".models", __name__).SAE
    sae.push_to_hub, sae.to_saelens = _push_to_hub, _to_saelens  # of higher rooms


def _push_to_hub(sae: object, repo_id: str, **kwargs: object) -> str:
    """Send this SAE to the Hub in one commit; the commit's address. Options as for `hfsae.push`."""
    return importlib.import_module(".hub", __name__).push_sae(sae, repo_id, **kwargs)


def _to_saelens(sae: object) -> object:
    """The same function as a `sae_lens.SAE`: see `hfsae.convert.saelens.to_sae_lens_object`."""
    return importlib.import_module(".convert.saelens", __name__).to_sae_lens_object(sae)


# `import hfsae` makes the variants known to `transformers.AutoModel`, without importing either.
after_importing("transformers.models.auto.configuration_auto", _register_variants, own=__name__)
