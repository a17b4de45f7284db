"""A folder that is a Hugging Face Space: the app of `hfsae demo` for one SAE, ready to push."""

import logging
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ..circuits import read_graphs
from ..features.labels import read_names
from ..io.checksums import PUBLISHED, refuse_changed, refuse_mixture
from ..io.errors import Refused
from ..io.file_names import CARD, CONFIG
from ..io.files import read_json
from .outgoing import (
    files_to_publish,
    is_sae,
    licence_notes,
    licence_of,
    published,
    refuse_keys,
)

logger = logging.getLogger(__name__)
GRADIO = "6.31.0"
_LICENCE = "apache-2.0"  # of the app itself
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def write_space(
    folder: str | Path,
    sae: str | None = None,
    *,
    title: str = "Inspect and steer",
    model: str | None = None,
    graphs: str | Path | None = None,
    **which: Any,
) -> Path:
    """Write app.py, requirements.txt and README.md to a folder; a local SAE is copied beside them.

    Args:
        sae: repository on the Hub, or folder of an SAE; by default the small one in the package.
        model: a language model to use instead of the one in the SAE's config.
        graphs: a folder of attribution graphs, as `hfsae graph` writes them, to copy and show;
            None: those that the Space has stay.
        which: subfolder, layer, width, l0, revision, as for `hfsae.load`; for a local folder only
            the subfolder, and only that is copied.

    Raises:
        ValueError: the folder to write holds something else; the SAE's folder holds no hfsae SAE;
            `sae` is neither a folder nor a repository's name; its records are of other weights, or
            were changed since they were written; or a file of `graphs` is no graph.
    """
    folder = Path(folder)
    ours = {"app.py", "requirements.txt", CARD, "sae", "graphs"}
    others = {p.name for p in folder.iterdir()} - ours if folder.is_dir() else set()
    if folder.is_file() or any(not name.endswith(".whl") for name in others):
        raise Refused(f"{folder} holds something else; name another folder")
    if sae is not None and not Path(sae).is_dir() and not _REPOSITORY.fullmatch(sae):
        raise Refused(f"there is no folder {sae}; write a repository as name/repository")
    shown = {} if graphs is None else read_graphs(graphs)  # refuses what is no graph
    source, base_model = sae, model
    if sae is not None and Path(sae).is_dir():
        named = _copy_sae(Path(sae, which.pop("subfolder", None) or ""), folder / "sae", which)
        source, base_model = "sae", model or named
        which = {}
        if model and named and model != named:
            logger.warning(
                "the SAE was trained on activations of %s: with another model, %s, its latents "
                "mean something else, and the app refuses one whose weights differ",
                named,
                model,
            )
    folder.mkdir(parents=True, exist_ok=True)
    if graphs is not None and Path(graphs).resolve() != (folder / "graphs").resolve():
        shutil.rmtree(folder / "graphs", ignore_errors=True)
        (folder / "graphs").mkdir()
        for name in shown:
            shutil.copyfile(Path(graphs) / f"{name}.json", folder / "graphs" / f"{name}.json")
    options = {name: value for name, value in {"model": model, **which}.items() if value}
    arguments = [repr(source)] if source else []
    arguments += [f"{name}={value!r}" for name, value in options.items()] + ["mcp=True"]
    card = folder / "sae" / CARD
    has_card = source == "sae" and card.is_file()
    text = card.read_text(encoding="utf-8") if has_card else ""
    for note in licence_notes([text] if text else []):
        logger.warning("%s", note)
    licence = licence_of(text, base_model)
    is_repo = sae is not None and not Path(sae).exists()
    named = filter(_REPOSITORY.fullmatch, filter(None, [sae if is_repo else None, base_model]))
    models = [name for name in named if name[0] != "." and not Path(name).exists()]
    values = {
        "package": __name__.partition(".")[0],
        "arguments": ", ".join(arguments),
        "title": title,
        "gradio": GRADIO,
        "licence": licence or _LICENCE,
        "models": models,
        "sae": sae if is_repo else None,
    }
    templates = {"app.py": "space_app.jinja", CARD: "space_card.jinja"}
    files = {"requirements.txt": requirement("demo") + "\n"}
    for name, template in templates.items():
        text = Path(__file__).with_name(template).read_text(encoding="utf-8")
        environment = Environment(trim_blocks=True, keep_trailing_newline=True)
        files[name] = environment.from_string(text).render(values)
    requirements = folder / "requirements.txt"
    own = requirements.read_text(encoding="utf-8") if requirements.is_file() else ""
    if ".whl" in own:  # the printed advice
        del files[requirements.name]
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def requirement(extra: str) -> str:
    """The line of requirements.txt for this version of hfsae, or a later one, with an extra."""
    try:
        return f"hfsae[{extra}]>={version('hfsae')}"
    except PackageNotFoundError:  # a clone on the path
        return f"hfsae[{extra}]"


def _copy_sae(sae: Path, target: Path, which: dict[str, Any]) -> str | None:
    """Copy the public files of an SAE; the language model that it names."""
    if chosen := [name for name, value in which.items() if value]:
        raise Refused(f"{chosen[0]} is only for repositories; give the SAE's own folder in {sae}")
    config = sae / CONFIG
    if not (config.is_file() and is_sae(sae)):
        raise Refused(
            f"{sae} is not the folder of a trained SAE: it has no config.json with "
            "model.safetensors; for another library's files, run `hfsae convert` first"
        )
    if "d_sae" not in read_json(config):
        raise Refused(
            f"{sae} is not the folder of a trained SAE: its config.json has no d_sae; give the "
            "folder that `hfsae train` wrote, and a language model's folder with --model"
        )
    if target.resolve() == sae.resolve():  # the Space's own copy
        return read_json(config).get("model_name")
    if target.resolve() in sae.resolve().parents:
        raise Refused(f"{sae} lies in {target}, which would be replaced; name another output")
    refuse_mixture(sae, PUBLISHED)
    refuse_changed(sae)
    read_names(sae)  # refuses names of other weights
    sources = list(files_to_publish(sae))
    files = {path.relative_to(sae).as_posix(): published(path) for path in sources}
    refuse_keys(files, [sae])
    shutil.rmtree(target, ignore_errors=True)
    for name, content in files.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            copy.write_bytes(content)
        else:
            shutil.copyfile(content, copy)
    return read_json(target / CONFIG).get("model_name")
