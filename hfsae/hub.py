"""The model card of a trained SAE, generated from what lies in its folder.

    config.json, training.json, evaluation.json, figures/, features/  -> write_card ->  README.md

The same folder gives the same bytes. Nothing of the machine gets in: of a path that a recipe or
command names, the card shows the last part (`./name`). What a person writes between `<!-- hfsae:keep -->` and
`<!-- /hfsae:keep -->` is carried over to the next card.
"""

import html
import json
import os
import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from . import models

Json = dict[str, Any]

_KEEP = re.compile(r"<!-- hfsae:keep -->.*?<!-- /hfsae:keep -->", re.DOTALL)
_MODEL_ID = re.compile(r'(?<=AutoModel\.from_pretrained\()"(?:[^"\\]|\\.)*"')
# An absolute path, as a whole argument or after `=` and the like; not `a/b`, `a / b` or `https://`.
_PATH = re.compile(r"(?<![\w.~/\\-])(?:file://)?(?:~[\w.-]*|[A-Za-z]:)?[/\\](?![/\s]).*", re.DOTALL)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_LOCAL_TEXT = (".txt", ".jsonl", ".parquet")
_QUANTISED = re.compile(r"\bI?Q\d|\d-bit", re.IGNORECASE)
_INDEXED = ("l0", "fvu", "delta_loss", "loss_recovered_zero", "loss_recovered_mean")
_SMALL_BUDGET = 1_000_000_000  # activations; published suites train on 4 to 16 billion
_N_LATENTS, _N_EXAMPLES, _N_PROMOTED, _EXAMPLE_WIDTH = 6, 3, 6, 96
_CAPTIONS = {
    "density": "How often latents fire: share of tokens, on a logarithmic scale",
    "l0": "Non-zero latents per token",
    "training": "Training: FVU and L0 of single batches against tokens",
    "thresholds": "Thresholds, in the raw units of the activations",
}
_BOS = {
    "row": "at the start of each row",
    "document": "at the start of each document",
    "none": "none",
}
_BIBTEX = {
    "2407.14435": """\
@misc{rajamanoharan2024jumpingahead,
  title = {Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders},
  author = {Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur
            and Varma, Vikrant and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel},
  year = {2024},
  eprint = {2407.14435},
  archivePrefix = {arXiv},
  primaryClass = {cs.LG}
}""",
}


class _Folder(NamedTuple):
    """What the card is made of; {} stands for a file that is not there."""

    path: Path
    config: Json
    record: Json
    evaluation: Json

    @property
    def lm(self) -> Json:
        """The language model's name, revision, origin and dtype, as far as they are known."""
        known = {key: self.config.get(f"model_{key}") for key in ("name", "revision")}
        return known | {k: v for k, v in self.record.get("lm", {}).items() if v is not None}

    @property
    def text(self) -> Json:
        return self.record.get("text", {})


def write_card(folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Write `folder/README.md` from the other files there; a section whose file is missing is not.

    Args:
        repo_id: the Hub id that the card's snippet loads; if there is none yet the folder's name
            stands there, and `set_model_id` replaces it.

    Raises:
        ValueError: no SAE in the folder, or a README.md there that is not ours to write over.
    """
    path = Path(folder) / "README.md"
    text = render_card(folder)
    if repo_id is not None:
        text = set_model_id(text, repo_id)
    if path.exists():
        text = _carry_over(path, text)
    temporary = path.with_name(".README.md.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def set_model_id(card: str, repo_id: str) -> str:
    """The card with `repo_id` as what its snippet loads."""
    validate_repo_id(repo_id)
    return _MODEL_ID.sub(lambda _: _python(repo_id), card, count=1)


def render_card(folder: str | Path) -> str:
    """The card's text, nothing carried over."""
    found = _read(Path(folder))
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return (
        _environment()
        .from_string(template)
        .render(
            front_matter=_front_matter(found).to_yaml(),
            title=_title(found),
            about=_about(found),
            formula=_docstring(found).partition("\n")[0],
            model_id=found.path.resolve().name,
            config=found.config,
            lm=found.lm,
            lm_options=_lm_options(found.lm),
            has_bos=found.text.get("bos", "none") != "none",
            contract=list(_contract(found)),
            evaluation=found.evaluation,
            metrics=[{"name": k, **m} for k, m in found.evaluation.get("metrics", {}).items()],
            figures=_figures(found.path / "figures"),
            latents=list(_latents(found.path / "features")),
            budget=list(_budget(found)),
            command=found.record.get("command"),
            settings=list(_settings(found.record)),
            limits=list(_limits(found)),
            papers=[_BIBTEX[arxiv] for arxiv in _papers(found) if arxiv in _BIBTEX],
        )
    )


def _read(folder: Path) -> _Folder:
    if not (folder / "config.json").is_file():
        raise ValueError(f"there is no SAE in {str(folder)!r}: config.json is missing")
    contents = []
    for name in ("config.json", "training.json", "evaluation.json"):
        file = folder / name
        contents.append(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
    config, record, evaluation = contents
    if record.get("command"):
        record["command"] = _public_command(record["command"])
    return _Folder(folder, _public(config), _public(record), evaluation)


def _public(value: Any) -> Any:
    """The same without where things lie on the machine."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(lambda m: "./" + re.split(r"[/\\]+", m[0].rstrip("/\\"))[-1], value)


def _public_command(command: str) -> str:
    try:
        arguments = shlex.split(command)
    except ValueError:  # a quotation that does not end: not what a shell was given
        arguments = command.split()
    return " ".join(shlex.join(_public(arguments)).split())


def _carry_over(old: Path, new: str) -> str:
    """`new` with the kept blocks of the card that it replaces."""
    text = old.read_text(encoding="utf-8")
    blocks = _KEEP.findall(text)
    if not blocks or text.count("<!-- hfsae:keep -->") != len(blocks):
        raise ValueError(
            f"{old} would be lost: it has no (or an open) block between <!-- hfsae:keep --> and "
            "<!-- /hfsae:keep -->; put what is to stay between these, or move the file away"
        )
    return _KEEP.sub(lambda _: "\n\n".join(blocks), new, count=1)


def _front_matter(found: _Folder) -> ModelCardData:
    name, dataset = found.lm["name"], found.text.get("dataset")
    is_folder = str(found.lm.get("origin")).startswith("folder ")
    on_hub = name is not None and not is_folder and _HUB_ID.fullmatch(name)
    tags = ["sae", "sparse-autoencoder", _variant(found).lower(), "mechanistic-interpretability"]
    tags += ["interpretability", "hfsae", *(f"arxiv:{arxiv}" for arxiv in _papers(found))]
    return ModelCardData(
        library_name="hfsae",
        pipeline_tag="feature-extraction",
        license=found.record.get("card", {}).get("license"),
        base_model=name if on_hub else None,
        # Not checked by huggingface_hub; without one the Hub would list it as a fine-tune.
        base_model_relation="adapter" if on_hub else None,
        datasets=[dataset] if _is_hub_dataset(dataset) else None,
        tags=tags,
        model_name=_title(found),
        eval_results=list(_eval_results(found)) or None,
    )


def _is_hub_dataset(dataset: Any) -> bool:
    named = isinstance(dataset, str) and "/" in dataset and _HUB_ID.fullmatch(dataset)
    return bool(named) and not dataset.endswith(_LOCAL_TEXT) and not Path(dataset).exists()


def _eval_results(found: _Folder) -> Iterator[EvalResult]:
    dataset, metrics = _dataset(found.text), found.evaluation.get("metrics", {})
    for name in _INDEXED:
        if metrics.get(name, {}).get("value") is not None:
            yield EvalResult(
                task_type="feature-extraction",
                dataset_type=dataset if _is_hub_dataset(dataset) else "text",
                dataset_name=f"{dataset}, held-out documents",
                metric_type=name,
                metric_name=metrics[name]["definition"],
                metric_value=float(f"{metrics[name]['value']:.6g}"),
            )


def _variant(found: _Folder) -> str:
    return found.config.get("architectures", ["SAE"])[0].removesuffix("SAE") or "SAE"


def _docstring(found: _Folder) -> str:
    """Of the variant's class: its formula, then its source."""
    return getattr(models, f"{_variant(found)}SAE", None).__doc__ or ""


def _papers(found: _Folder) -> list[str]:
    return re.findall(r"arXiv:(\d{4}\.\d{4,5})", _docstring(found))


def _is_transcoder(config: Json) -> bool:
    return config.get("target_site") not in (None, config.get("site"))


def _title(found: _Folder) -> str:
    kind = "transcoder" if _is_transcoder(found.config) else "SAE"
    of = f" of {found.lm['name'].rpartition('/')[2]}" if found.lm["name"] else ""
    site = found.config.get("site") or "unnamed site"
    return f"{_variant(found)} {kind}: {site}{of}, {found.config['d_sae']:,} latents"


def _about(found: _Folder) -> str:
    config, lm = found.config, found.lm["name"] or "a language model"
    if _is_transcoder(config):
        kind, task = "transcoder", f"predict {config['target_site']} from {config['site']}"
    else:
        kind, task = "autoencoder", f"reconstruct {config.get('site') or 'activations'}"
    return (
        f"A sparse {kind} ({_variant(found)}): {config['d_sae']:,} latents that {task} in {lm}, "
        "few of them active on a token."
    )


def _lm_options(lm: Json) -> str:
    given = [(key, lm.get(key)) for key in ("revision", "dtype")]
    return "".join(f", {key}={_python(value)}" for key, value in given if value)


def _rows(rows: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in rows.items() if value)


def _contract(found: _Folder) -> Iterator[tuple[str, str]]:
    config, lm, text = found.config, found.lm, found.text
    scale = found.record.get("sae_as_trained", {}).get("activation_scale")
    ends = {"Reads": (config.get("site"), config["d_in"])}
    if _is_transcoder(config):
        ends["Writes"] = (config["target_site"], config["d_out"])
    return _rows(
        {
            "Language model": lm["name"],
            "Revision": lm["revision"],
            "Its weights came from": lm.get("origin"),
            "Its dtype": lm.get("dtype"),
            **{end: f"{_place(site)}, {width} wide" for end, (site, width) in ends.items()},
            "BOS token": _BOS.get(text.get("bos", "")),
            "Context": _with_unit(text.get("context_size"), "tokens"),
            "Positions never seen": _left_out(found),
            "Units": "raw activations in, raw reconstructions out"
            + (f"; scale {scale:.4g} (root of the mean squared norm) folded in" if scale else ""),
            "Weights": f"{config['dtype']}; thresholds float32" if config.get("dtype") else None,
        }
    )


def _place(site: str | None) -> str:
    module, _, port = (site or "unnamed").partition(":")
    return f"{'input' if port == 'in' else 'output'} of {module}"


def _left_out(found: _Folder) -> str | None:
    limits = found.record.get("norm_limits") or found.record.get("harvested", {}).get("norm_limits")
    special = found.text.get("exclude_special_tokens")
    parts = ["special tokens (BOS, EOS, padding)"] if special else []
    parts += [f"norms above {limit:.4g} at {site}" for site, limit in (limits or {}).items()]
    return "; ".join(parts)


def _budget(found: _Folder) -> Iterator[tuple[str, str]]:
    record, text, training = found.record, found.text, found.record.get("training", {})
    n_tokens, batch_size = record.get("n_tokens"), training.get("batch_size")
    held_out, memory = text.get("held_out_fraction"), record.get("peak_memory_bytes")
    steps = f", in steps of {batch_size:,}" if batch_size else ""
    return _rows(
        {
            "Activations": f"{n_tokens:,}{steps}" if n_tokens else None,
            "Text": _dataset(text) if text else None,
            "Held out": f"{100 * held_out:g} % of documents, by a hash of their text"
            if held_out
            else None,
            "Harvested": _harvested(record.get("harvested", {})),
            "L0": _sparsity(record),
            "Time": _time(record),
            "Peak memory": f"{memory / 1e9:.1f} GB" if memory else None,
            "Seed": _with_unit(record.get("seed"), ""),
            "Versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
        }
    )


def _with_unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}".rstrip()


def _dataset(text: Json) -> str:
    dataset = text.get("dataset", "text")
    if not isinstance(dataset, str):
        return f"{len(dataset):,} documents given as a list"
    details = [text.get(f"dataset_{key}") for key in ("config", "revision")]
    return ", ".join([dataset, *filter(None, details)])


def _harvested(counts: Json) -> str | None:
    names = {"kept": "kept", "dropped_special": "special tokens", "dropped_outliers": "outliers"}
    return ", ".join(f"{counts[key]:,} {name}" for key, name in names.items() if key in counts)


def _sparsity(record: Json) -> str | None:
    config, end = record.get("sae_as_trained", {}), record.get("final_l0_coefficient")
    parts = [f"target {config['target_l0']:g}"] if config.get("target_l0") else []
    parts += [f"lambda {config['l0_coefficient']:.3g}"] if config.get("l0_coefficient") else []
    return ", ".join(parts) + (f", {end:.3g} at the end" if end else "")


def _time(record: Json) -> str | None:
    seconds = [f"{s:,.0f} s to {stage}" for stage, s in record.get("seconds", {}).items()]
    where = (
        f", on {record.get('n_processes', 1)} x {record['device']}" if "device" in record else ""
    )
    return " and ".join(seconds) + where if seconds else None


def _settings(record: Json) -> Iterator[tuple[str, str]]:
    for section in ("lm", "text", "harvest", "shuffle", "sae_as_trained", "training"):
        for key, value in record.get(section, {}).items():
            if key == "dataset":
                value = _dataset({"dataset": value})
            if value is not None and key not in ("output_dir", "transformers_version"):
                yield f"{section}.{key}", str(value)


def _limits(found: _Folder) -> Iterator[str]:
    n_tokens, origin = found.record.get("n_tokens"), str(found.lm.get("origin", ""))
    if n_tokens and n_tokens < _SMALL_BUDGET:
        yield (
            f"Small budget: {n_tokens:,} activations, where published suites use billions. Latents "
            "are coarser, and more of the variance stays unexplained, than a long run would give."
        )
    if _QUANTISED.search(origin):
        yield (
            f"The language model was a quantised copy ({origin}). Activations of the original "
            "weights differ, and the metrics were not measured on them."
        )
    if found.text:
        yield (
            f"It saw one mix of text ({_dataset(found.text)}). What is rare there (other languages, "
            "domains, chat) has few latents, or none."
        )
    if left_out := _left_out(found):
        yield f"Do not use it where it never saw activations: {left_out}."
    yield (
        "Examples and promoted tokens suggest what a latent means; nobody has checked that it is "
        "what the model uses it for."
    )
    if "loss_recovered_zero" in found.evaluation.get("metrics", {}):
        yield (
            "Loss recovered under zero ablation is near 1 for almost any SAE on the residual "
            "stream: compare SAEs by delta_loss at equal L0."
        )


def _figures(folder: Path) -> list[tuple[str, str]]:
    """(file, caption), those that are known first."""
    known, files = list(_CAPTIONS), {path.stem: path.name for path in folder.glob("[!.]*.png")}
    order = sorted(files, key=lambda s: (known.index(s) if s in known else len(known), s))
    return [(quote(files[stem]), _CAPTIONS.get(stem, stem)) for stem in order]


def _latents(features: Path) -> Iterator[Json]:
    """A few latents with their strongest examples, and texts as they may be printed."""
    paths = [features / f"{name}.parquet" for name in ("latents", "examples")]
    if not all(path.is_file() for path in paths):
        return
    import pyarrow.parquet as pq

    columns = ["latent", "density", "promoted_tokens"]
    latents = {row["latent"]: row for row in pq.read_table(paths[0], columns=columns).to_pylist()}
    fitting = sorted(i for i, row in latents.items() if 1e-4 <= row["density"] <= 0.1)
    chosen = sorted(random.Random(0).sample(fitting, min(_N_LATENTS, len(fitting))))
    wanted = [("latent", "in", chosen), ("kind", "=", "top"), ("rank", "<", _N_EXAMPLES)]
    examples = pq.read_table(paths[1], filters=wanted).to_pylist() if chosen else []
    for i in chosen:
        own = sorted((e for e in examples if e["latent"] == i), key=lambda e: e["rank"])
        promoted = [_printable(token) for token in latents[i]["promoted_tokens"][:_N_PROMOTED]]
        yield {**latents[i], "promoted_tokens": promoted, "examples": list(map(_around, own))}


def _around(example: Json) -> Json:
    """The firing token and what fits of its window into a line."""
    firing, tokens = example["firing"], example["tokens"]
    left, token, right = (
        _printable("".join(part))
        for part in (tokens[:firing], tokens[firing : firing + 1], tokens[firing + 1 :])
    )
    room = max(0, _EXAMPLE_WIDTH - len(token))
    left = left[max(0, len(left) - room // 2) :]
    return {**example, "left": left, "token": token, "right": right[: room - len(left)]}


def _printable(text: str) -> str:
    """One line without characters that act on what displays them: controls, bidi marks."""
    text = text.replace("\n", "↵")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, also in a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>|$~#&])", r"\\\1", " ".join(str(value).split()))


def _html(text: str) -> str:
    """Text inside <pre>. `$` starts a formula in some viewers."""
    return html.escape(text).replace("$", "&#36;")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(metric: Json) -> str:
    low, high = metric["low"], metric["high"]
    return "-" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _python(value: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _environment() -> Environment:
    """trim_blocks and lstrip_blocks: a line with nothing but a tag leaves no line."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "md": _markdown,
        "html": _html,
        "python": _python,
        "number": _number,
        "interval": _interval,
        "count": "{:,}".format,
        "right": lambda text, width: text.rjust(width),
    }
    return environment
