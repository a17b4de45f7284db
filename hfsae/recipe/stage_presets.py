"""The stage of a run that looks for presets of the app, for as long as the recipe says."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from ..features import FeatureStore
from ..features.labels import read_labels
from ..machine.checksums import sealed, stamp
from ..machine.files import write_whole
from ..machine.names import PRESETS_SEARCH
from ..machine.refused import Refused
from ..presets import Model, PresetArguments, find_presets, save_presets
from .job import Job

logger = logging.getLogger(__name__)


def stage_presets(job: Job) -> None:
    """Search presets as `hfsae presets` does, and write those that were found beside those that
    people wrote; and a record of the search, so that a finished run is not searched again."""
    folder, seconds = job.folder, job.recipe.sizes.presets
    model = Model(job.with_lm.lm, job.with_lm.tokenizer, job.sae, FeatureStore.load(folder))
    args = PresetArguments(max_seconds=seconds)
    again = f"`hfsae presets {folder}` looks longer"
    record = {"seconds": seconds, "latents_tried": 0, "names": list[str]()}
    try:
        with _bar(seconds) as tick:
            found = find_presets(model, read_labels(folder), args, logger.debug, tick)
    except Refused as error:
        save_presets(folder, [])
        logger.info("note: presets cannot be found: %s; %s", error, again)
    else:
        save_presets(folder, found.presets)
        record["names"] = names = [preset["name"] for preset in found.presets]
        record["latents_tried"] = len({attempt.candidate.latent for attempt in found.attempts})
        said = "presets that work with three seeds each, of %d latents tried: %s; %s"
        logger.info(said, record["latents_tried"], ", ".join(names) or "none", again)
    record = sealed({**record, **stamp(folder), **(job.more or {})})
    write_whole(folder / PRESETS_SEARCH, json.dumps(record, indent=1) + "\n")


@contextmanager
def _bar(seconds: float) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of the time that there is; gives what `find_presets` calls."""
    every, start = 0.2 if sys.stderr.isatty() else 15.0, time.monotonic()
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=seconds, desc="presets", bar_format=shape, mininterval=every) as bar:

        def tick(part: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{part}: {done} of {total}", refresh=False)
            bar.update(min(seconds, time.monotonic() - start) - bar.n)

        yield tick
