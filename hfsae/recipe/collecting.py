"""The stage of a run that collects examples: the texts on which latents fire."""

from ..features import FeatureStore, collect
from ..lm import LoadedLM, LoadedLMs
from ..machine.names import COLLECTING
from ..machine.weights import stamp
from .job import Job
from .text import read_rows, token_bar


def collect_examples(job: Job) -> None:
    """Collect by the recipe's collect section, and write the files of a feature store; a collection
    of text that was interrupted goes on."""
    store = job.inputs.collect(job)
    store.meta |= {**stamp(job.folder), **(job.more or {})}
    store.save(job.folder)
    job.inputs.illustrate(job)


def collect_from_text(job: Job, loaded: LoadedLM | LoadedLMs) -> FeatureStore:
    """Windows of the recipe's text on which the latents of the job's SAE fire."""
    recipe, folder = job.recipe, job.folder
    n_tokens = recipe.sizes.examples
    rows = read_rows(recipe, loaded, job.side, n_tokens)
    with token_bar("collect", n_tokens) as progress:
        return collect(
            loaded.lm if isinstance(loaded, LoadedLM) else loaded.lms,
            job.sae,
            rows,
            recipe.collect,
            tokenizer=loaded.tokenizer,
            norm_limits=job.limits,
            harvest=recipe.harvest if recipe.harvest.cache else None,
            progress=progress,
            resume=folder / COLLECTING,
        )
