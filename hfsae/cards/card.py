"""The model card of a trained SAE, generated from the files in its folder.

    config.json, training.json, evaluation.json, figures/, features/  -> write_card ->  README.md

The wording is in model_card.md. The same folder gives the same bytes. A card shows nothing about
the machine: paths in settings or commands become `./name`. A person's text between
`<!-- hfsae:keep -->` and `<!-- /hfsae:keep -->` is carried over to the next card.
"""

import html
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import ChainableUndefined, Environment, Template, TemplateError

from ..activations import held_out_sentence
from ..io.checksums import refuse_changed, refuse_mixture
from ..io.errors import Damaged, Refused
from ..io.file_names import (
    CARD,
    CONFIG,
    EVALUATION,
    EXAMPLES,
    FEATURES,
    FIGURES,
    FINGERPRINT,
    LATENTS,
    TRAINING,
)
from ..io.files import (
    damaged,
    printable,
    read_json,
    read_table,
    reading,
    write_whole,
)
from ..io.local_paths import is_folder, listed, without_local_paths
from ..io.markdown import escaped
from ..io.units import TOKEN, section_of, unit_of
from ..models import SAE
from ..models.base import class_of
from ..models.config import l0_goal, where_in_short_of, where_of, where_to_of
from .merge import carry_over, python_string, refuse_card_of_others, set_model_id, template_text
from .sections import (
    FAR,
    labels_section,
    names_of,
    names_section,
    probing_section,
    texts_section,
)

Json = dict[str, Any]
RECORDS = (CONFIG, TRAINING, EVALUATION)
"""The files and facts of a card, besides figures and features."""
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_QUANTISED = re.compile(r"\bI?Q\d|\d-bit", re.IGNORECASE)
_INDEXED = {
    "l0": "L0 (latents/{unit.one})",
    "fvu": "fraction of variance unexplained",
    "delta_loss": "rise of the LM's loss on reconstructions (nats/token)",
    "loss_recovered_zero": "loss recovered, zero ablation",
    "loss_recovered_mean": "loss recovered, mean ablation",
}
_CAPTIONS = {
    "density": "How often latents fire: share of {unit.many}, on a logarithmic scale",
    "l0": "Non-zero latents per {unit.one}",
    "training": "Training: FVU and L0 of single batches against {unit.many}",
    "thresholds": "Thresholds, in the raw units of the activations",
    "diff": "Which latents are of one of the two language models, and which of both",
}
_SECTIONS = ("lm", "lms", "text", "harvest", "activations", "images")
_SECTIONS += ("shuffle", "sae_as_trained", "training")
_NUMBERS = ("n_tokens", "warm_start_tokens", "n_processes", "peak_memory_bytes")
_NOT_SHOWN = ("output_dir", "transformers_version", "model_weights")
_TABLES_OF_NUMBERS = ("seconds", "final_coefficients")
_EXAMPLE = ("latent", "kind", "rank", "activation", "firing", "tokens")
_FAR_FVU = 1.3  # times the FVU in training; on similar held-out text it is within a tenth
_SLOW = "the controller needs about 500 steps after the warm start; raise training.n_tokens"
_UNLIKE = "{0} unlike the training {1}, so the metrics are not those of the SAE on such {1}"
_FITTED = "{0} held out of the training {1}, so the SAE may fit {2} too closely; train on more"
_NAMES = {True: ("this text is", "text"), False: ("these inputs are", "inputs")}
_LAGS = (
    "its threshold follows the batches by sae.threshold_rate a step; train for more steps, or "
    "raise that"
)
_TOO_FEW = "fewer pre-activations than k are above 0; lower k"
_NOTHING_MOVES = "its variant has no `sparsity_losses`, so nothing moves L0; leave target_l0 out"
_N_LATENTS, _N_EXAMPLES, _N_PROMOTED, _EXAMPLE_WIDTH = 6, 3, 6, 96


def write_card(folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Write `folder/README.md` from the folder's other files; sections without a file are left out.

    Args:
        repo_id: the Hub id in the card's snippet. Default: the folder's name, which `set_model_id`
            can replace.

    Raises:
        ValueError: the folder holds no SAE, its records belong to other weights or were changed
            since they were written, or its README.md has no block to keep.
    """
    refuse_mixture(Path(folder))
    refuse_changed(Path(folder))
    path = Path(folder) / CARD
    card = render_card(folder)
    if repo_id is not None:
        card = set_model_id(card, repo_id)
    if path.exists():
        refuse_card_of_others(Path(folder))
        card = carry_over(path.read_text(encoding="utf-8"), card)
    write_whole(path, card)
    return path


def misgivings(folder: str | Path) -> list[str]:
    """Reasons against using the SAE, one sentence each, from the held-out metrics in `folder`."""
    config, record, evaluation = _records(Path(folder))
    return _reasons_against(config, record, evaluation)


def _reasons_against(config: Json, record: Json, evaluation: Json) -> list[str]:
    """What speaks against using an SAE, from its records: L0 off its goal, an FVU that is far too
    high, dead latents, ...; one sentence each."""
    metrics, target = evaluation.get("metrics", {}), l0_goal(config) or 0
    by_k = config.get("target_l0") is None
    l0, fvu, dead = (
        metrics.get(name, {}).get("value") or 0.0 for name in ("l0", "fvu", "dead_share")
    )
    reasons = []
    is_off = bool(metrics and target) and abs(l0 / target - 1) > (0.12 if by_k else 0.05)
    if is_off:
        kind = class_of(config.get("model_type"))
        stands = kind is not None and kind.sparsity_losses is SAE.sparsity_losses
        why = _NOTHING_MOVES if stands else _SLOW
        if by_k:
            why = _LAGS if "threshold_rate" in config else _TOO_FEW
        goal = "k" if by_k else "target"
        reasons.append(f"L0 is {l0:.1f}, {l0 / target - 1:+.0%} off its {goal} of {target}: {why}")
    if undefined := [name for name, m in metrics.items() if m.get("value", 0) is None]:
        reasons.append(f"{', '.join(undefined)} cannot be computed: each is a division by 0")
    if fvu >= 1:
        reasons.append(f"FVU is {fvu:.3g}, no better than the mean alone: lower the learning rates")
    trained = record.get("fvu_in_training")
    if trained and fvu > _FAR_FVU * trained and not is_off:
        names = _NAMES[unit_of(record) == TOKEN]
        own = record.get("text", {}).get("dataset")
        read = evaluation.get("measured_with", {}).get("text", {}).get("dataset", own)
        seen = record.get("harvested", {}).get("kept")
        few = f"the {seen:,} activations it has seen" if seen else "what it has seen"
        why = _UNLIKE.format(*names) if read != own else _FITTED.format(*names, few)
        times = f"{fvu / trained:.1f} times that at the end of training"
        reasons.append(f"FVU is {fvu:.3g}, {times}: {why}")
    if evaluation.get("side") == "validation":
        reasons.append(
            "the metrics are of validation documents, on which settings may have been chosen: "
            "measure results with --evaluation.side test"
        )
    if dead > 0.5:
        reasons.append(
            f"{dead:.0%} of latents never fired on the evaluation's {unit_of(record).many}"
        )
    return reasons


def render_card(folder: str | Path, *, examples: bool = True) -> str:
    """The card's text, with nothing carried over from an older one.

    Args:
        examples: show latents with excerpts of the text that they fire on.
    """
    folder = Path(folder)
    config, record, evaluation = _records(folder)
    if "d_sae" not in config:
        raise Refused(
            f"{str(folder)!r} holds no SAE: its config.json is missing, or describes another model"
        )
    template = _template("model_card.md")
    with reading(folder / FEATURES):
        latents = list(shown_latents(folder)) if examples else []
        names = names_of(folder, [row["latent"] for row in latents]) if latents else {}
        about_names, labels = names_section(folder), labels_section(folder)
    with reading(folder):
        facts, measured = _facts(config, record), evaluation.get("measured_with", {})
        # the text of an evaluation outside a training run, and the positions that it leaves out
        limits = measured.get("norm_limits", {}).items()
        norms = ", ".join(f"{site} above {_number(limit)}" for site, limit in limits)
        left_out = f"norms at {norms} left out" if norms else "no norm left out"
        text, lm = measured.get("text", {}), measured.get("lm", {}).get("name")
        measured_text = f"{_dataset(text)}, read by {lm}; {left_out}"
        if why := held_out_sentence(text) if text else "":
            measured_text += f"; {why}"
        # figures with a caption come first
        files = {path.stem: path.name for path in (folder / FIGURES).glob("[!.]*.png")}
        stems = [*filter(files.get, _CAPTIONS), *sorted(files.keys() - _CAPTIONS.keys())]
        unit = unit_of(record)
        try:
            return template.render(
                **facts,
                front_matter=_front_matter(facts, evaluation).to_yaml(),
                model_id=folder.resolve().name,
                evaluation=evaluation,
                measured=measured,
                measured_text=measured_text,
                kind_of_documents=_kind_of_documents(evaluation),
                has_fingerprint=(folder / FINGERPRINT).is_file(),
                misgivings=_reasons_against(config, record, evaluation),
                figures=[(quote(files[s]), _CAPTIONS.get(s, s).format(unit=unit)) for s in stems],
                latents=[{**row, "name": names.get(row["latent"])} for row in latents],
                names=about_names,
                labels=labels,
                probing=probing_section(folder, evaluation),
                texts=texts_section(folder, config, evaluation),
                far=FAR,
                has_examples=examples,
            )
        except TemplateError as error:  # a value in the place of a table
            raise Damaged(damaged(folder / TRAINING, error)) from error


def render_suite(folder: str | Path) -> str:
    """The card of a folder with several SAEs: a list with metrics, and how to load one."""
    folder = Path(folder)
    rows, fronts, index = [], [], []
    for home in [path.parent for path in sorted(folder.rglob(CONFIG)) if "d_sae" in _json(path)]:
        config, record, evaluation = _records(home)
        path, facts = home.relative_to(folder).as_posix(), _facts(config, record)
        metrics = evaluation.get("metrics", {})
        values = {name: metrics.get(name, {}).get("value") for name in _INDEXED}
        rows.append({"path": path, "config": config, "facts": facts, **values})
        fronts.append(_front_matter(facts, {}))
        results = _eval_results(facts, evaluation)
        for result in results:  # huggingface_hub's reader joins the results of all entries
            result.metric_name = f"{result.metric_name}, {path}"
        index += eval_results_to_model_index(path, results) if results else []
    front = fronts[0]
    front.model_name = None
    front.tags = list(dict.fromkeys(tag for one in fronts for tag in one.tags or []))
    front["model-index"] = index or None
    return _template("suite_card.md").render(
        rows=rows,
        model_id=folder.resolve().name,
        front_matter=front.to_yaml(),
        lm=rows[0]["facts"]["lm"],
    )


def _records(folder: Path) -> tuple[Json, Json, Json]:
    """Config, training record and evaluation of an SAE; empty where a file is missing. Values of a
    wrong kind, which the template would silently leave out, are refused."""
    config, record, evaluation = (
        without_local_paths(_json(folder / name), folder) for name in RECORDS
    )
    with reading(folder / TRAINING):
        for section in (*_SECTIONS, "harvested"):
            if not isinstance(record.get(section, {}), dict):
                raise Refused(f"{section} must be an object, got {record[section]!r}")
        numbers = {name: record.get(name) for name in _NUMBERS}
        for table in _TABLES_OF_NUMBERS:
            inside = record.get(table) or {}
            if not isinstance(inside, dict):
                raise Refused(f"{table} must be an object with numbers, got {inside!r}")
            numbers |= {f"{table}.{name}": value for name, value in inside.items()}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise Refused(f"{name} must be a number, got {value!r}")
    with reading(folder / EVALUATION):
        for name, metric in evaluation.get("metrics", {}).items():
            if not isinstance(metric, dict):
                raise Refused(f"{name} must be a metric, got {metric!r}")
    return config, record, evaluation


def _json(path: Path) -> Json:
    return read_json(path) if path.is_file() else {}


def _facts(config: Json, record: Json) -> Json:
    """The known facts of an SAE for the template and the front matter."""
    variant = (config.get("architectures") or ["SAE"])[0].removesuffix("SAE").removesuffix("CLT")
    variety = class_of(config.get("model_type"))
    papers = variety.papers() if variety else []
    lm = {key: config.get(f"model_{key}") for key in ("name", "revision")}
    lm |= {key: value for key, value in record.get("lm", {}).items() if value is not None}
    names, told = config.get("model_names") or {}, record.get("lms") or {}
    several = {name: {"name": lm_name, **told.get(name, {})} for name, lm_name in names.items()}
    if several:
        lm["name"] = " and ".join(one["name"] for one in several.values())
    section, unit = section_of(record), unit_of(record)
    text = record.get(section, {})
    options: dict[str, tuple[Any, str | None]] = {}  # the variant's, but for the default ones
    if variety:
        trained, known = {**config, **record.get("sae_as_trained", {})}, variety.config_class
        options = {
            name: (trained[name], keys.get(trained[name]))  # with its citation key, or None
            for name, keys in known.options_on_card.items()
            if name in trained and trained[name] != known.__dataclass_fields__[name].default
        }
    settings = [
        (f"{part}.{key}", _dataset({"dataset": value}) if key == "dataset" else str(value))
        for part in _SECTIONS
        for key, value in record.get(part, {}).items()
        if value not in (None, {}) and key not in _NOT_SHOWN
    ]
    target = where_to_of(config)
    sites = config.get("sites") or [config.get("site")]
    kind = "SAE" if target is None else "transcoder"
    if len(sites) > 1:
        is_clt = config.get("model_type", "").endswith("_clt")
        kind = "cross-layer transcoder" if is_clt else "crosscoder"
    scales = zip(sites, config.get("site_scales") or (), strict=False)
    one = f"acts[{python_string(sites[0] or '')}]"
    harvested = record.get("harvested", {})
    short = [(one_lm["name"] or "").rpartition("/")[2] for one_lm in several.values() or [lm]]
    where = [where_in_short_of(config), " and ".join(filter(None, short))]
    site = " of ".join(filter(None, where)) or "unnamed site"
    sources = [*papers, *(source for _, source in options.values())]
    bibliography = Path(__file__).with_name("citations.bib").read_text(encoding="utf-8")
    entries = {}  # BibTeX by key, and by arXiv id
    for entry in bibliography.strip().split("\n\n"):
        key, paper = re.search(r"{(.+),", entry), re.search(r"eprint = {(.+)}", entry)
        entries |= {match[1]: entry for match in (key, paper) if match}
    return {
        "config": config,
        "where": where_of(config),
        "sites": sites,
        "joined": one if len(sites) == 1 else "sae.join(acts)",
        "site_scales": ", ".join(f"{scale:.4g} at {site}" for site, scale in scales),
        "record": record,
        "lm": lm,
        "lms": several,
        "text": text,
        "unit": unit.one,
        "units": unit.many,
        "section": section,
        "is_of_files": section == "activations",
        "dataset": _dataset(text),
        "variant": variant,
        "float32_parameters": variety.float32_parameters if variety else (),
        "formula": variety.formula() if variety else "",
        "papers": papers,
        "options": ", ".join(f"{name} {value}" for name, (value, _) in options.items()),
        "citations": [entries[source] for source in sources if source in entries],
        "kind": kind,
        "is_transcoder": target is not None,
        "target": target,
        "is_quantised": bool(_QUANTISED.search(lm.get("origin") or "")),
        "norm_limits": harvested.get("norm_limits") or record.get("norm_limits") or {},
        "settings": settings,
        "title": f"{variant} {kind}: {site}, {config['d_sae']:,} latents".lstrip(),
    }


def _dataset(text: Json) -> str:
    dataset = text.get("dataset") or text.get("files") or text.get("folder") or ""
    dataset = dataset or text.get("packaged", "")
    if not isinstance(dataset, str):
        return listed(dataset)
    return ", ".join(
        filter(None, [dataset, text.get("dataset_config"), text.get("dataset_revision")])
    )


def _front_matter(facts: Json, evaluation: Json) -> ModelCardData:
    lms, dataset = [*facts["lms"].values()] or [facts["lm"]], facts["text"].get("dataset")
    names = [lm["name"] for lm in lms if _HUB_ID.fullmatch(lm["name"] or "") and not is_folder(lm)]
    on_hub = bool(names)
    tags = ["sae", "sparse-autoencoder", facts["variant"].lower() or None]
    tags += [] if facts["kind"] == "SAE" else [facts["kind"].replace(" ", "-")]
    tags += ["mechanistic-interpretability", "interpretability", "hfsae"]
    return ModelCardData(
        library_name="hfsae",
        pipeline_tag="feature-extraction",
        license=facts["record"].get("card", {}).get("license"),
        base_model=(names if len(names) > 1 else names[0]) if on_hub else None,
        # The nearest of the Hub's relations; without one the Hub lists the SAE as a fine-tune.
        base_model_relation="adapter" if on_hub else None,
        datasets=[dataset] if _is_hub_dataset(dataset) else None,
        tags=[*filter(None, tags), *(f"arxiv:{paper}" for paper in facts["papers"])],
        model_name=facts["title"],
        eval_results=_eval_results(facts, evaluation) or None,
    )


def _is_hub_dataset(dataset: object) -> bool:
    if not isinstance(dataset, str) or "/" not in dataset or not _HUB_ID.fullmatch(dataset):
        return False
    return not dataset.endswith((".txt", ".jsonl", ".parquet")) and not Path(dataset).exists()


def _eval_results(facts: Json, evaluation: Json) -> list[EvalResult]:
    measured, metrics = evaluation.get("measured_with", {}), evaluation.get("metrics", {})
    text, section = measured.get("text", facts["text"]), section_of(facts["record"])
    dataset = text.get("dataset")
    kind = "documents" if measured else f"{_kind_of_documents(evaluation)} documents"
    return [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=dataset if _is_hub_dataset(dataset) else section,
            dataset_name=f"{_dataset(text) or 'text'}, {kind}",
            metric_type=name,
            metric_name=label.format(unit=unit_of(facts["record"])),
            metric_value=float(f"{metrics[name]['value']:.6g}"),
        )
        for name, label in _INDEXED.items()
        if metrics.get(name, {}).get("value") is not None
    ]


def _kind_of_documents(evaluation: Json) -> str:
    return "validation" if evaluation.get("side") == "validation" else "held-out"


def shown_latents(folder: Path) -> Iterator[Json]:
    """The latents on a card, each with its strongest examples."""
    paths = [folder / LATENTS, folder / EXAMPLES]
    if not all(path.is_file() for path in paths):
        return
    columns = ["latent", "density", "promoted_tokens"]
    table = read_table(paths[0], columns)
    ids, densities = (table[name].to_pylist() for name in columns[:2])
    fitting = sorted(i for i, density in zip(ids, densities, strict=True) if 1e-4 <= density <= 0.1)
    chosen = sorted(random.Random(0).sample(fitting, min(_N_LATENTS, len(fitting))))
    rows = [row for row, latent in enumerate(ids) if latent in chosen]
    shown = table.take(np.array(rows, dtype=np.int64))  # an empty list would have no type
    top = [("latent", "in", chosen), ("kind", "=", "top"), ("rank", "<", _N_EXAMPLES)]
    strongest = read_table(paths[1], _EXAMPLE, top) if chosen else table.slice(0, 0)
    latents, examples = {row["latent"]: row for row in shown.to_pylist()}, strongest.to_pylist()
    for i in chosen:
        own = []
        for e in sorted((e for e in examples if e["latent"] == i), key=lambda e: e["rank"]):
            firing, tokens = e["firing"], e["tokens"]
            left, token, right = (
                printable("".join(part))
                for part in (tokens[:firing], tokens[firing : firing + 1], tokens[firing + 1 :])
            )
            room = max(0, _EXAMPLE_WIDTH - len(token))  # of the window, on a line
            left = left[max(0, len(left) - room // 2) :]
            own.append({**e, "left": left, "token": token, "right": right[: room - len(left)]})
        promoted = latents[i]["promoted_tokens"][:_N_PROMOTED]
        yield {**latents[i], "promoted_tokens": promoted, "examples": own}


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


@cache
def _template(name: str) -> Template:
    """A template in this folder, compiled once. Lines with only a tag vanish; unknown values are
    false."""
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,
    )

    def as_html(text: str) -> str:  # for <pre>; `$` too, which starts a formula in some viewers
        return html.escape(printable(text), quote=False).replace("$", "&#36;")

    def count(value: object) -> str:
        return f"{value:,}" if isinstance(value, int | float) else "-"

    def python_list(texts: list[str]) -> str:
        return f"[{', '.join(map(python_string, texts))}]"

    filters = {"md": escaped, "html": as_html, "python": python_string, "number": _number}
    environment.filters |= {**filters, "count": count, "python_list": python_list}
    return environment.from_string(template_text(name))
