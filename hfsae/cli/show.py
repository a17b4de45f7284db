"""What the command prints about a folder: its training, metrics and latents."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModel

from ..cards import COLUMNS, misgivings, names_section, texts_section
from ..diffing import table
from ..evaluation import EvaluationResult
from ..evaluation.result import KINDS_OF_DOCUMENTS, aligned
from ..features import ANSI, PLAIN, FeatureStore, read_names, show
from ..io.checksums import changes, refuse_mixture
from ..io.errors import Refused
from ..io.file_names import CONFIG, DIFF, EVALUATION, FEATURES, META, TRAINING
from ..io.files import printable, printable_lines, read_json, reading
from ..io.units import TOKEN, section_of, unit_of
from ..models.config import check_latent, where_of
from ..runs import known_fields
from ..runs.folder import home_of

NO_EXAMPLES = "no examples of what latents fire on"
_SHOWN_LATENTS, _SHOWN_TOKENS, _SHOWN_EXAMPLES = 5, 6, 3


def print_folder(folder: Path, latents: list[int], source: str | None = None) -> None:
    """Print an SAE's training and metrics, and some of its latents; with notes on results that were
    changed since they were written, and on names of other weights, which are left out.

    Args:
        source: name to print, if the folder is only a copy of it.

    Raises:
        ValueError: results are of other weights, or damaged.
    """
    name = source or str(folder)
    refuse_mixture(folder)
    for change in changes(folder):
        print(printable_lines(f"\nnote: {change.path}: {change.why}"))
    if not latents:
        print(f"\n{printable(_summary(folder, name))}")
        if not (path := folder / EVALUATION).is_file():
            print(f"No evaluation.json: {how_to_make('evaluate', folder, name)}")
        else:
            data = read_json(path)
            with reading(path):
                result, made = EvaluationResult.from_dict(data), folder / TRAINING
                units = unit_of(read_json(made) if made.is_file() else {}).many
                side = result.side or "test"
                kind = "" if "measured_with" in data else f"{KINDS_OF_DOCUMENTS[side]} "
                about = f"{result.n_tokens:,} {kind}{units} of {result.n_documents} documents"
                print(f"{about}:\n")
                print(printable_lines(result.table()))
            texts = texts_section(folder, read_json(folder / CONFIG), data)
            if texts:  # the foreign ones beside the held-out one, with 95 % intervals
                rows = [[row["name"], *(row[key] for key in COLUMNS)] for row in texts["rows"]]
                print(printable_lines("\n" + aligned([["text", *COLUMNS.values()], *rows])))
                notes = "".join(f"\nnote: {sentence}" for sentence in texts["warnings"])
                print(printable_lines(notes))
            with reading(path):
                print("".join(f"\nnote: {sentence}" for sentence in misgivings(folder)))
            if (folder / DIFF).is_file():
                print(printable_lines("\n" + table(folder)))
        if headline := names_section(folder).get("headline"):
            print(f"\n{printable_lines(headline)}.")
    if not (folder / META).is_file():
        missing = f"{NO_EXAMPLES}: {how_to_make('collect', folder, name)}"
        if latents:
            raise Refused(f"{name} holds {missing}")
        print(f"{missing[0].upper()}{missing[1:]}")
        return
    store, names = FeatureStore.load(folder), {}
    try:
        names = read_names(folder)
    except Refused as error:  # of other weights
        print(f"\nnote: names are left out: {printable_lines(str(error))}")
    several = len(read_json(folder / CONFIG).get("sites") or ()) > 1
    sae = AutoModel.from_pretrained(folder) if several else None
    for index in latents or store.pick(_SHOWN_LATENTS):
        check_latent(index, len(store))
        with reading(folder / FEATURES):
            latent = store[index]
        if not latents:
            latent = latent._replace(
                promoted=latent.promoted[:_SHOWN_TOKENS],
                suppressed=latent.suppressed[:_SHOWN_TOKENS],
                examples=latent.examples[:_SHOWN_EXAMPLES],
            )
        lines = show(latent, ANSI if sys.stdout.isatty() else PLAIN).split("\n")
        if index in names:
            lines.insert(1, f"  name        {printable(names[index])}")
        if sae is not None:
            shares = zip(sae.config.writes.names, sae.shares[index].tolist(), strict=True)
            each = ", ".join(f"{site} {100 * share:.0f} %" for site, share in shares)
            model = sae.config.last_model
            promotes = f"; promotes tokens of {model}" if model else ""
            lines.insert(1, f"  writes      {each}{promotes}")
        print("\n" + "\n".join(lines))


def how_to_make(
    verb: str, folder: Path | None, name: str, config: Mapping[str, Any] | None = None
) -> str:
    """The command that makes a missing result; it names the language model, the text and the site
    where the SAE's files do not.

    Args:
        folder: of the SAE in hfsae's format; None: it has none on this machine.
        config: of an SAE without a folder.
    """
    missing: list[str] = []
    if folder is None or home_of(folder) is None:
        config = read_json(folder / CONFIG) if folder is not None else config or {}
        known = known_fields(config, [] if folder is None else [folder])
        missing += ["--lm.name MODEL"] if "name" not in known["lm"] else []
        missing += ["--text.dataset TEXT"] if "dataset" not in known["text"] else []
        missing += (
            ["--site SITE"] if not (where_of(config) or known.get("sae", {}).get("site")) else []
        )
    return f"`hfsae {' '.join([verb, name, *missing])}` makes it"


def _summary(folder: Path, name: str) -> str:
    """Settings, speed and memory of the training; without that record, the config's facts."""
    config = read_json(folder / CONFIG)
    if not (folder / TRAINING).is_file():
        models = ", ".join((config.get("model_names") or {}).values())
        site = f"{where_of(config)} of {models or config.get('model_name')}"
        return f"{name}: {config.get('model_type')}, {config.get('d_sae'):,} latents, {site}"
    with reading(folder / TRAINING):
        record = read_json(folder / TRAINING)
        seconds, harvested = record["seconds"], record["harvested"].get("kept", 0)
        rates = {"harvest": harvested, "train": record["n_tokens"]}
        unit = unit_of(record)
        read = "reading" if section_of(record) == "activations" else "harvest"
        per = "tok" if unit == TOKEN else unit.many
        harvest, train = (f"{rates[k] / max(seconds[k], 0.1):,.0f} {per}/s" for k in rates)
        memory = record["peak_memory_bytes"] / 1e9
        passes = record.get("shuffle", {}).get("passes", 1)
        whole = "of the text" if unit == TOKEN else unit.many
        models = ", ".join(f"{n} is {one['name']}" for n, one in record.get("lms", {}).items())
        uses = f"each about {rates['train'] / max(harvested, 1):.2g} times"
        of_which = f" ({harvested:,} {whole}, {uses})" if passes > 1 else ""
        return (
            f"{name}: trained on {record['n_tokens']:,} activations{of_which} in "
            f"{sum(seconds[key] for key in rates):.0f} s ({read} {harvest}, SAE {train}), "
            f"peak memory {memory:.1f} GB{'; ' if models else ''}{models}"
        )


def print_next(folders: list[Path]) -> None:
    """Print commands to try next on a trained SAE."""
    folder = folders[0]
    # In a virtual environment that is not activated, the command needs its path.
    home = "" if shutil.which("hfsae") else f"{os.path.relpath(Path(sys.executable).parent)}/"
    load_it = f"import hfsae, transformers; transformers.AutoModel.from_pretrained('{folder}')"
    if (folder / EVALUATION).is_file() and not misgivings(folder):
        print(f"\nThe folder {folder} is ready to be pushed to the Hub.")
    compares = bool(read_json(folder / CONFIG).get("model_names"))
    steps = [
        *([f"hfsae diff {folder}"] if compares and not (folder / DIFF).is_file() else []),
        *([f"hfsae demo {folder}"] if importlib.util.find_spec("gradio") else []),
        f"hfsae push {folder} NAME/REPOSITORY --dry_run",
        f'python -c "{load_it}"',
    ]
    if (folder / META).is_file():
        latents = FeatureStore.load(folder).pick(2, seed=1)
        steps.insert(0, " ".join(["hfsae show", str(folder), *map(str, latents)]))
    print(f"\nSee {folder}/README.md. Next:")
    print("\n".join(f"  {home}{step}" for step in steps))
