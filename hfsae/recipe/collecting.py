"""The stage of a run that collects examples: the texts on which latents fire."""

from ..features import collect
from ..machine.names import COLLECTING
from ..machine.weights import stamp
from .job import Job
from .text import read_rows, token_bar


def collect_examples(job: Job) -> None:
    """Collect by the recipe's collect section, and write the files of a feature store; a collection
    that was interrupted goes on."""
    recipe, loaded, folder = job.recipe, job.loaded, job.folder
    n_tokens = recipe.sizes.examples
    rows = read_rows(recipe, loaded, job.side, n_tokens)
    with token_bar("collect", n_tokens) as progress:
        store = collect(
            loaded.lm,
            job.sae,
            rows,
            recipe.collect,
            tokenizer=loaded.tokenizer,
            norm_limits=job.limits,
            progress=progress,
            resume=folder / COLLECTING,
        )
    store.meta |= {**stamp(folder), **(job.more or {})}
    store.save(folder)
