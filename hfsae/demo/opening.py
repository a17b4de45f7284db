"""Opening an SAE for the app: its weights, its model, and the files beside it."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..features import FeatureStore, read_automatic, read_labels
from ..features.pictures import Grid, Pictures
from ..hub import files_beside, load
from ..io import file_names as names
from ..io.checksums import KEY, changes, of_others, refuse_mixture, weights_hash
from ..io.errors import Damaged, Refused
from ..io.files import MAX_TEXT, damaged, parse_json, reading
from ..io.units import PATCH, unit_of
from ..lm import contract, load_lm
from ..packaged import shipped_at
from ..runs import LMArguments, home_of
from ..runs.inputs import load_for
from .subject import (
    Choice,
    Subject,
    is_space,
    public_name,
    public_source,
    without_source,
)
from .table_actions import check_diff, label_rows

logger = logging.getLogger(__name__)

_BESIDE = [names.CARD, names.EVALUATION, names.TRAINING, names.PRESETS, names.LABELS]
_BESIDE += [names.EVIDENCE, names.EXPLANATIONS, names.EXPLANATIONS_RECORD, names.LATENTS]
_BESIDE += [names.EXAMPLES, names.META, names.PICTURES, names.COLUMNS, names.DIFF]
_NAME_ONE = "start the app with --model and a name or folder"


def open_subject(
    choice: Choice,
    *,
    model: str | None = None,
    site: str | None = None,
    with_lm: bool = True,
    device: str | None = None,
) -> Subject:
    """Load an SAE, its model, and the files beside it; `notes` lists what is missing.

    Args:
        model: a model to use instead of the one in the SAE's config.
        site: where an SAE whose config names no site reads, such as "layers.12".
        with_lm: load the model, if the app has a use for it: it reads text, or pictures.
        device: "cuda" where there is one, else "cpu".

    Raises:
        ValueError: there is no such SAE, records beside it were made with other weights, or the
            named model cannot be loaded, or would not be used.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sae = load(**choice._asdict(), device=device).eval().requires_grad_(False)
    sae.config.site = sae.config.site or (None if sae.config.sites else site)
    shipped, which = shipped_at(choice.source), without_source(choice)
    options = [f"{name}={value!r}" for name, value in which.items() if value]
    code = f"hfsae.load({', '.join([repr(public_source(choice)), *options])})"
    code = shipped[2] if shipped else code
    subject = Subject(sae, public_name(choice), in_python=code, choice=choice)
    subject.lm_name = sae.config.model_name
    subject.folder = files_beside(choice.source, _BESIDE, **which)
    if subject.folder is not None:
        refuse_mixture(subject.folder)
    if not is_space():  # whose visitors' labels are not kept
        subject.label_home = subject.folder
        if shipped is not None or not Path(choice.source).is_dir():
            home = Path(os.environ.get("HFSAE_HOME", Path.home() / ".cache" / "hfsae"))
            source = choice.source if shipped is None else shipped[0]
            parts = [source, choice.subfolder]
            parts += [
                f"{name}_{value}"
                for name, value in which.items()
                if name != "subfolder" and value is not None
            ]
            path = re.sub(r"[^\w.-]+", "--", "/".join(filter(None, parts)))
            subject.label_home = home / "labels" / path
    for folder in dict.fromkeys((subject.folder, subject.label_home)):
        is_own = folder == subject.label_home != subject.folder
        if folder is None:
            continue
        if is_own and any(of_others(folder, [names.LABELS], subject.folder)):
            theirs = "labels that you gave another version of it are left out"
            subject.notes.append(f"{theirs}; they stay in {folder}")
            continue
        try:
            subject.take_labels(read_labels(folder, subject.folder))
        except ValueError as error:
            subject.notes.append(f"its labels are left out: {error}")
        try:
            for latent, name in read_automatic(folder).items():
                subject.automatic[latent], subject.sources[latent] = name.text, name.source
                if name.is_doubtful:
                    subject.doubtful.add(latent)
        except ValueError as error:
            subject.notes.append(f"its automatic names are left out: {error}")
    training = _read_beside(subject, subject.folder) if subject.folder is not None else {}
    subject.unit = unit_of(training, subject.store.meta if subject.store is not None else {})
    reads_pictures, images = subject.unit == PATCH, training.get("images")
    if isinstance(images, dict):
        subject.positions = str(images.get("positions") or subject.positions)
    if model is not None and not (subject.unit.is_text or reads_pictures):
        raise Refused(f"the app runs no model for an SAE of {subject.unit.many}; leave out --model")
    lm = training.get("lm")
    lm = lm if isinstance(lm, dict) else {}
    if not subject.unit.is_text:
        subject.lm_name = subject.lm_name or lm.get("name")
    if sae.config.is_transcoder and subject.unit.is_text:
        folder = Path(choice.source) / choice.subfolder
        run = home_of(folder) if folder.is_dir() else None
        subject.transcoders = str(run or choice.source)
    if with_lm and (subject.unit.is_text or reads_pictures):
        _attach_model(subject, model, device, lm.get("origin"))
    return subject


def _read_beside(subject: Subject, folder: Path) -> dict[str, Any]:
    """What lies beside the weights; what is damaged, or of other weights, is left out with a note.
    Returns what is known of the training."""
    card, notes, d_sae = folder / names.CARD, subject.notes, subject.d_sae

    def read(name: str, kind: type, check: Callable[[Any], object] = lambda content: None) -> Any:
        """The content of a JSON file; an empty `kind` if it is missing, and, with a note, if it is
        damaged, of another kind, or not what `check` accepts."""
        path = folder / name
        try:
            content = parse_json(path)
            if not isinstance(content, kind):
                raise Damaged(damaged(path, f"not a JSON {'object' if kind is dict else 'array'}"))
            with reading(path):
                check(content)
        except (OSError, ValueError) as error:
            if path.exists():
                logger.warning("%s is left out: %s", path, error)
                notes.append(f"its {path.name} is left out: {error}")
            return kind()
        return content

    def is_preset(preset: object) -> bool:
        """Whether it has a name, a prompt and {latent: strength}, and texts, if any."""
        if not isinstance(preset, dict) or not isinstance(preset.get("latents"), dict):
            return False
        texts = [preset.get(key, "") for key in ("plain", "steered")]
        texts += [preset.get(key) for key in ("name", "prompt")]
        return all(isinstance(text, str) for text in texts) and all(
            index.isdecimal() and int(index) < d_sae and isinstance(strength, int | float)
            for index, strength in preset["latents"].items()
        )

    if card.is_file() and card.stat().st_size < MAX_TEXT:
        subject.card = card.read_text(encoding="utf-8", errors="replace")
    subject.evaluation = read(names.EVALUATION, dict)
    subject.diff = read(names.DIFF, dict, lambda record: check_diff(record, d_sae))
    presets = [preset for preset in read(names.PRESETS, list) if is_preset(preset)]
    ours = weights_hash(folder) if any(KEY in preset for preset in presets) else None
    subject.presets = [p for p in presets if ours is None or p.get(KEY, ours) == ours]
    if n := len(presets) - len(subject.presets):
        notes.append(f"{n} of its presets are left out: they were found for other weights")

    made = [names.EVALUATION, names.EXPLANATIONS_RECORD, names.COLUMNS, names.DIFF]
    for change in changes(folder, made):
        notes.append(f"do not trust its {change.path.name}: {change.why}")
    if change := next(changes(folder, [names.META]), None):
        notes.append(f"its features/ are left out because of {change.path.name}: {change.why}")
    elif (folder / names.META).is_file():
        store = FeatureStore.load(folder)
        if len(store) == d_sae:
            subject.store = store
        else:
            sizes = f"{len(store):,} latents, and the SAE has {d_sae:,}"
            notes.append(f"its features/ has {sizes}: it is left out")
    subject.columns = read(names.COLUMNS, dict, lambda columns: label_rows(columns, d_sae))
    subject.label_rows = label_rows(subject.columns, d_sae) if subject.columns else []
    if subject.store is not None:
        try:
            with reading(folder / names.META):
                Grid.of(subject.store.meta)
            subject.pictures = Pictures.load(folder)
        except ValueError as error:
            subject.store.meta.pop("grid", None)
            notes.append(f"the pictures of its examples are left out: {error}")
    return read(names.TRAINING, dict)


def _attach_model(subject: Subject, model: str | None, device: str, trained_on: object) -> None:
    """Load the language model, or the model of pictures for the page that inspects one.

    Args:
        trained_on: the origin of the weights that the SAE was trained on, if that is known.
    """
    config, is_text = subject.sae.config, subject.unit.is_text
    if is_text and config.model_names:
        names = (name.rpartition("/")[2] for name in config.model_names.values())
        subject.lm_name = " and ".join(names)
        subject.why_no_lm = "this SAE reads several at once, and the app runs a single one"
        if model is not None:
            raise Refused(f"{subject.why_no_lm}; leave out --model")
        return
    name = subject.lm_name = model or subject.lm_name
    if name is None:
        subject.why_no_lm = f"the SAE's config names none; {_NAME_ONE}"
        return
    options: dict[str, Any] = {"dtype": config.model_dtype or "auto"}
    if name == config.model_name:  # of another model only the dtype
        options |= {
            "revision": config.model_revision,
            "attn_implementation": config.model_attention,
        }
    try:
        if is_text:
            subject.loaded = load_lm(name, device=device, **options)
            differences = contract.differences(config, *subject.loaded[:2])
        else:
            subject.encoder = load_for(LMArguments(name, kind="auto", **options), device)
            differences = contract.differences(config, subject.encoder.model)
        if wrong := [d for d in differences if d.severity == "error"]:
            raise Refused(f"this SAE is not for {name}: {wrong[0]}")
    except ValueError as error:
        subject.loaded = subject.encoder = None
        if model is not None:
            raise
        subject.why_no_lm = f"{str(error).rstrip('.')}; {_NAME_ONE}"
        return
    subject.notes += [str(difference) for difference in differences]
    if subject.loaded and subject.folder is not None and config.model_weights is None:
        # the same name may have other weights: a package's may be quantised
        ours = subject.loaded.origin
        is_folder = [str(origin).startswith("folder") for origin in (trained_on, ours)]
        if isinstance(trained_on, str) and trained_on != ours and not any(is_folder):
            subject.notes.append(
                f"it was trained on another copy of the language model ({trained_on}; this is "
                f"{ours}), whose activations may differ"
            )
