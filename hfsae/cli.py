"""The `hfsae` command: verbs over the library. Bad input is one sentence and exit code 2."""

import errno
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeVar, cast, get_origin

import docstring_parser
import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from transformers import MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from .card import misgivings
from .cli_demo import VERBS as DEMO_VERBS
from .cli_files import VERBS, add_choice, add_source, given_options
from .cli_parsing import VerbParser, did_you_mean, explained, sentence_of, verb_parser
from .comparison import Comparison
from .comparison import compare as run_comparison
from .evaluation import EvaluationResult
from .features import ANSI, PLAIN, FeatureStore, show
from .footprint import check_memory
from .formula import CARDS
from .lock import is_first_process
from .measurement import default_folder, defaults, measure, origin_of, settle
from .models import SAEConfig, register_variants, variants
from .plan import plan
from .processor import keep_freed_memory
from .recipe import (
    Recipe,
    alone,
    as_plain,
    differences,
    finish,
    load,
    load_trained,
    norm_limits,
    note_remaking,
    refuse_fields_of_others,
    remaking,
    report,
    run,
    save_recipe,
)
from .records import check_yaml, parse_yaml, printable, printable_lines, read_json, reading
from .suite import load as load_any
from .training.trainer import make_accelerator
from .weights import refuse_mixture

_NO_EXAMPLES = "no examples of what latents fire on"
_SHOWN_LATENTS, _SHOWN_TOKENS, _SHOWN_EXAMPLES = 5, 6, 3
_EXAMPLES = (
    "hfsae train scripts/recipes/quickstart.yaml --training.output_dir runs/mine",
    "hfsae train recipe.yaml --sae.target_l0 80 --training.n_tokens 2000000 --dry_run",
    "hfsae compare scripts/comparisons/quickstart.yaml",
    "hfsae evaluate runs/mine --evaluation.n_tokens 200000",
    "hfsae evaluate someone/sae --lm.name google/gemma-2-2b --text.dataset my.jsonl",
    "hfsae collect runs/mine --collect_tokens 2000000",
    "hfsae show runs/mine 17 1234",
    "hfsae card runs/mine",
    "hfsae push runs/mine me/my-sae",
    "hfsae list google/gemma-scope-2b-pt-res",
    "hfsae demo runs/mine",
    "hfsae convert google/gemma-scope-2b-pt-res gs --to saelens --layer 12 --width 16k --l0 80",
)
_FIELDS = """\
A field is set in the recipe's YAML file, or by its dotted name on the command line, which wins;
`hfsae train --help_all` explains all of them. Several processes:
`torchrun --standalone --nproc_per_node N -m hfsae train recipe.yaml`."""
_USAGE = {
    "train": "[RECIPE.yaml] [--FIELD VALUE ...]",
    "compare": "[COMPARISON.yaml] [--FIELD VALUE ...]",
    "evaluate": "SOURCE [--FIELD VALUE ...]",
    "collect": "SOURCE [--FIELD VALUE ...]",
}
# Fields that `--help` explains; the others are for `--help_all`.
_OFTEN_OF_TRAIN = ("lm.name", "text.dataset", "text.context_size", "training.output_dir")
_OFTEN_OF_TRAIN += ("training.n_tokens", "training.learning_rate", "evaluation.n_tokens")
_OFTEN = {
    "train": (*_OFTEN_OF_TRAIN, "collect_tokens"),
    "compare": (*_OFTEN_OF_TRAIN, "arms", "seeds", "at_l0", "only"),
    "evaluate": ("lm.name", "text.dataset", "evaluation.n_tokens"),
    "collect": ("lm.name", "text.dataset", "collect_tokens", "collect.top", "collect.window"),
}
_OFTEN_OF_SAE = ("site", "target_l0", "k")
_SECTIONS = {
    "evaluate": ("lm", "text", "harvest", "evaluation"),
    "collect": ("lm", "text", "harvest", "collect", "collect_tokens"),
}


_EXPONENT = re.compile(r"(?<![^=])\d+e\d+$", re.IGNORECASE)  # 1e6, or --field=1e6
_load_yaml = get_loader("yaml")
_plain_warning = warnings.formatwarning
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_Recipe = TypeVar("_Recipe", bound=Recipe)


def _load_yaml_with_whole_numbers(text: str) -> Any:
    """YAML in which 1e6 is a number of tokens, too."""
    check_yaml(text)
    return _whole_as_int(_load_yaml(text))


def _whole_as_int(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_as_int(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_as_int(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _PrintableFormatter(logging.Formatter):
    """Messages alone, as a terminal may have them: they name what files and listings say."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _format_warning(*args: Any, **kwargs: Any) -> str:
    return printable_lines(_plain_warning(*args, **kwargs))


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 when it is done, 2 for bad input, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    log = logging.StreamHandler()
    log.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[log])
    for handler in logging.getLogger("transformers").handlers:  # which names what a config says
        handler.setFormatter(_PrintableFormatter())
    warnings.formatwarning = _format_warning
    for noisy in ("httpx", "httpx2", "datasets", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # a bar for every file read hides ours
    keep_freed_memory()
    try:
        _dispatch(argv)
    except BrokenPipeError:  # `hfsae show FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor a word at exit
    except (ValueError, OSError) as error:
        if os.environ.get("HFSAE_DEBUG"):
            raise
        print(f"hfsae: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more changes nothing
        print("hfsae: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def train(argv: list[str]) -> None:
    """Train what a recipe describes, evaluate it, collect what its latents fire on, and write a
    folder with weights, card, metrics, figures and examples. Run again, it resumes."""
    recipe, options = _parse_recipe(_train_parser(), argv)
    if options["dry_run"]:
        print("\n".join(plan(recipe, options["gpu"]).lines))
        return
    if options["gpu"] is not None:
        raise ValueError("--gpu is for --dry_run, which reckons for a card that is not here")
    command = shlex.join(["hfsae", "train", *argv])
    folders = run(recipe, command, check_cost=check_memory)
    if is_first_process():
        for folder in folders:
            _print_folder(folder, [])
        _print_next(folders)


def compare(argv: list[str]) -> None:
    """Train the arms of a comparison on the same activations, evaluate them on the same held-out
    text, and write a report: fidelity at equal L0, paired differences, intervals. It resumes."""
    parser = _recipe_parser("compare", Comparison)
    comparison, _ = _parse_recipe(parser, argv, Comparison)
    report = run_comparison(comparison, command=shlex.join(["hfsae", "compare", *argv]))
    print(f"\nThe report is {report / 'report.md'}; beside it lie report.html and the numbers.")


def evaluate(argv: list[str]) -> None:
    """Evaluate a trained SAE anew, with other fields of its recipe, which are noted in its
    recipe.yaml. Or any SAE, in a folder or repository, in any format, on all of a text; what its
    config does not tell of the language model has to be given."""
    _report_again("evaluate", argv, "evaluation.json", ["evaluation"])


def collect(argv: list[str]) -> None:
    """Collect what a trained SAE's latents fire on anew, with other fields of its recipe, which are
    noted in its recipe.yaml. Or those of any SAE, in a folder or repository, in any format; what
    its config does not tell of the language model has to be given."""
    _report_again("collect", argv, "features/meta.json", ["collect", "collect_tokens"])


def show_folder(argv: list[str]) -> None:
    """Print an SAE's metrics and latents, as far as they lie beside it: those named, or some drawn
    at random."""
    parser = verb_parser("show", "SOURCE [LATENT ...]", show_folder)
    add_source(parser)
    parser.add("latents", type=int, nargs="*", default=[], help="indices of latents to show")
    add_choice(parser)
    choice = given_options(parser.parse(argv))
    latents = choice.pop("latents") or []
    source = choice["source"]
    if _is_of_a_run(source):
        _print_folder(_trained(source), latents)
    elif folder := origin_of(choice):
        _print_folder(folder, latents, source)
    elif latents:
        raise ValueError(f"{source} holds {_NO_EXAMPLES}: {_maker('collect', None, source)}")
    else:
        print(f"\n{printable(f'{source}: {load_any(**choice)}')}")
        print(f"No evaluation.json: {_maker('evaluate', None, source)}")


def card(argv: list[str]) -> None:
    """Draw the figures and write the model card again, from what lies in a folder; of an SAE from
    elsewhere, or of another format, in a folder of its own."""
    parser = verb_parser("card", "SOURCE", card)
    add_source(parser)
    _add_output(parser)
    choice = given_options(parser.parse(argv))
    output = choice.pop("output_dir", None)
    if _is_of_a_run(choice["source"]) and output is None:
        folder = _trained(choice["source"])
        with alone(_home(folder) or folder, [folder]):
            finish(folder)
    else:
        folder, origin = _place(choice, output)
        with alone(folder, [folder]):
            settle(load_any(**choice), origin, folder)
            finish(folder)
    print(f"wrote {folder / 'README.md'} and {folder / 'figures'}")


_VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "compare": compare,
    "evaluate": evaluate,
    "collect": collect,
    "show": show_folder,
    "card": card,
    **VERBS,
    **DEMO_VERBS,
}


def _dispatch(argv: list[str]) -> None:
    _import_variants(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
    elif argv[0] in _VERBS:
        _VERBS[argv[0]](argv[1:])
    else:
        raise ValueError(did_you_mean(f"{argv[0]!r} is no verb", argv[0], list(_VERBS)))


def _import_variants(argv: list[str]) -> None:
    """Import the modules of `--import MODULE`.

    Only what is named on the command line is imported: a recipe or a folder may come from anybody.
    """
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == "--import" and value and not value.startswith("-"):
            register_variants(value)
        elif flag.startswith("--import="):
            register_variants(flag.partition("=")[2])


def _help() -> str:
    lines = ["usage: hfsae VERB ...", "", "Sparse autoencoders as Hugging Face models.", ""]
    for verb in _VERBS:
        head, *rest = wrap(sentence_of(_VERBS[verb]), 86)
        lines += [f"  {verb:<10}{head}", *(" " * 12 + line for line in rest)]
    examples = [f"  {example}" for example in _EXAMPLES]
    return "\n".join([*lines, "", "examples:", *examples, "", _FIELDS])


def _recipe_parser(verb: str, kind: type[Recipe] = Recipe) -> VerbParser:
    """A parser of a recipe's fields."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _load_yaml_with_whole_numbers, exceptions=(ValueError, yaml.YAMLError))
    every = tuple(section.name for section in fields(kind))
    parser = VerbParser(
        verb,
        _USAGE[verb],
        sentence_of(_VERBS[verb]),
        recipe=every,
        sections=_SECTIONS.get(verb, every),
        often=_OFTEN[verb],
        examples=tuple(e for e in _EXAMPLES if e.startswith(f"hfsae {verb} ")),
        more=(lambda everything: iter(())) if verb in _SECTIONS else _sae_help,
    )
    if verb in _SECTIONS:
        parser.add("--revision", type=str | None, help="branch, tag or commit of a repository")
        _add_output(parser)
        parser.add("--site", type=str | None, help="as layers.12, of an SAE that names none")
    parser.parser.add_argument("--recipe", action="config")
    parser.parser.add_class_arguments(kind, as_group=False)
    return parser


def _add_output(parser: VerbParser) -> None:
    add_choice(parser)
    parser.add(
        "--output_dir",
        type=str | None,
        help="folder for an SAE from elsewhere, and its results (default: runs/NAME)",
    )


def _train_parser() -> VerbParser:
    parser = _recipe_parser("train")
    parser.add("--dry_run", action="store_true", help="print what would run, and its cost")
    parser.add(
        "--gpu",
        type=str | None,
        default=None,
        help=f"with --dry_run: its cost by formula on such cards ({', '.join(CARDS)}), one for "
        "each of training.num_processes; else what this machine is measured to need",
    )
    return parser


def _sae_help(everything: bool) -> Iterator[str]:
    """The variants; the fields of their configs that are set most, or all of them."""
    classes = dict.fromkeys(c for variant in variants() for c in reversed(variant.mro()))
    yield from ("", "fields of sae:" if everything else "fields of sae that are set most:")
    yield from explained("--sae.d_sae", "number of latents; 8 to 32 times the width is usual")
    for config_class in (c for c in classes if issubclass(c, SAEConfig)):
        for param in docstring_parser.parse_from_object(config_class).params:
            if everything or param.arg_name in _OFTEN_OF_SAE:
                default = getattr(config_class, param.arg_name, None)
                kinds = ", ".join(v.model_type for v in variants(config_class))
                kind = "" if config_class is SAEConfig else f" ({kinds})"
                yield from explained(
                    f"--sae.{param.arg_name}{kind}", param.description or "", default
                )
    yield from ("", "variants, by --sae.model_type:")
    for variant in sorted(variants(), key=lambda v: v.model_type):
        formula = (MODEL_MAPPING[variant].__doc__ or "").partition("\n")[0]
        yield from explained(variant.model_type, formula)


def _parse_recipe(
    parser: VerbParser, argv: list[str], kind: type[_Recipe] = Recipe
) -> tuple[_Recipe, dict]:
    if argv and not argv[0].startswith("-"):
        _check_readable(Path(argv[0]), kind)
        argv = ["--recipe", *argv]
    argv = [_EXPONENT.sub(lambda n: f"{float(n[0]):.0f}", part) for part in argv]
    given = parser.parse(argv)
    given.pop("recipe")  # which is read by then
    own = {section.name for section in fields(kind)}
    options = {name: value for name, value in given.items() if name not in own}
    recipe = kind(**{name: value for name, value in given.items() if name in own})
    if not isinstance(recipe, Comparison):  # whose arms may be of any variant
        named = (re.match(r"--sae\.(\w+)", part) for part in argv)
        given_now = [n[1] for n in named if n and recipe.sae.get(n[1]) is not None]
        refuse_fields_of_others(recipe, given_now)
    return recipe, options


def _check_readable(path: Path, kind: type[Recipe]) -> None:
    """A recipe is a YAML mapping of known sections; whatever else gets its own sentence."""
    examples = "scripts/comparisons/" if kind is Comparison else "scripts/recipes/"
    if not path.is_file():
        raise ValueError(f"there is no recipe {path}; a clone of hfsae has examples in {examples}")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"the recipe {path} holds no sections; a clone of hfsae has examples in {examples}"
        )
    sections = {field.name: field.type for field in fields(kind)}
    for name, value in content.items():
        if name not in sections:
            raise ValueError(
                did_you_mean(f"a recipe has no section {name!r}", str(name), [*sections])
            )
        holds_fields = is_dataclass(sections[name]) or get_origin(sections[name]) is dict
        if holds_fields and not isinstance(value, dict):
            raise ValueError(f"section {name} of {path} must hold fields, not {value!r}")
        if is_dataclass(sections[name]):
            known = [field.name for field in fields(cast(Any, sections[name]))]
            for key in set(value) - set(known):
                raise ValueError(did_you_mean(f"section {name} has no field {key!r}", key, known))


def _report_again(verb: str, argv: list[str], result: str, sections: list[str]) -> None:
    """Make one result of a finished run again, with its own `sections` of the recipe changed."""
    parser = _recipe_parser(verb)
    if not argv or argv[0].startswith("-"):
        _parse_recipe(parser, argv)  # --help, or an unknown option
        raise ValueError(f"name the folder or repository of an SAE: hfsae {verb} SOURCE")
    folder = _trained(argv[0]) if _is_of_a_run(argv[0]) else None
    home = _home(folder) if folder else None
    if folder is None or home is None:
        folder = _measure(verb, argv[0], argv[1:], result)
    else:
        with alone(home, [folder]):
            _make_again(verb, argv[1:], folder, home, result, sections)
    _print_folder(folder, [])


def _is_of_a_run(source: str) -> bool:
    """Whether a source is the folder of a run, or one with an SAE in hfsae's own format."""
    folder = Path(source)
    config = folder / "config.json"
    is_own = config.is_file() and "d_sae" in read_json(config)
    return is_own or (folder / "recipe.yaml").is_file()


def _place(choice: dict[str, Any], output: str | None) -> tuple[Path, Path | None]:
    """The folder for an SAE's results, and its own folder if it is in hfsae's own format."""
    origin = origin_of(choice)
    if origin is not None and output is None and Path(choice["source"]).exists():
        return origin, origin
    return Path(output) if output else default_folder(choice), origin


def _measure(verb: str, source: str, changes: list[str], result: str) -> Path:
    """Make one result of an SAE that no recipe tells of; the folder that it lies in."""
    parser = _recipe_parser(verb)
    _, options = _parse_recipe(parser, changes)
    choice = {"source": source, **given_options(options)}
    site, output = choice.pop("site", None), choice.pop("output_dir", None)
    sae = load_any(**choice)
    if sae.config.site is None:
        sae.config.site = site
    elif site not in (None, sae.config.site):
        raise ValueError(f"{source} is of {sae.config.site}, not of {site}; leave out --site")
    known = defaults(sae)
    told = [f"--{key}={value}" for key, value in known.items()]
    recipe, _ = _parse_recipe(parser, [*told, *changes])
    if "lm.name" not in known and not any(re.match(r"--lm\.name\b", part) for part in changes):
        raise ValueError(f"{source} does not tell its language model; give --lm.name")
    old, new = as_plain(Recipe()), as_plain(recipe)
    for key, _, _ in differences(old, new, {*new} - {*_SECTIONS[verb]}):
        raise ValueError(f"{key} is not `hfsae {verb}`'s to change")
    _refuse_no_tokens(verb, recipe)
    folder, origin = _place(choice, output)
    print(f"{verb}: {recipe.lm.name} reads {recipe.text.dataset}; results go to {folder}")
    with alone(folder, [folder]):
        settle(sae, origin, folder)
        chosen = [f"{k}={v}" for k, v in choice.items() if k != "source" and v]
        named = Path(source).resolve().name if Path(source).exists() else source
        measure(recipe, sae, folder, result, " ".join([named, *chosen]))
    return folder


def _refuse_no_tokens(verb: str, recipe: Recipe) -> None:
    n_tokens = {"evaluate": recipe.evaluation.n_tokens, "collect": recipe.collect_tokens}[verb]
    if n_tokens == 0:
        field = "evaluation.n_tokens" if verb == "evaluate" else "collect_tokens"
        raise ValueError(f"{field} is 0, which leaves out what `hfsae {verb}` does; give 1 or more")


def _make_again(
    verb: str, changes: list[str], folder: Path, home: Path, result: str, sections: list[str]
) -> None:
    parser, its_recipe = _recipe_parser(verb), str(home / "recipe.yaml")
    trained_with, _ = _parse_recipe(parser, [its_recipe])
    recipe, options = _parse_recipe(parser, [its_recipe, *changes])
    for name in {name for name, value in options.items() if value}:
        raise ValueError(f"--{name} is for an SAE from elsewhere; {folder} is a run's own")
    old, new = as_plain(trained_with), as_plain(recipe)
    for key, _, _ in differences(old, new, set(new) - set(sections)):
        raise ValueError(
            f"{key} is not `hfsae {verb}`'s to change, which may set {' and '.join(sections)}: the "
            "rest says what this SAE was trained on"
        )
    _refuse_no_tokens(verb, recipe)
    others: list[Path] = []
    unfinished = remaking(home)
    if result in unfinished or next(differences(old, new, sections), None):
        siblings = (home / name for name in recipe.sae_fields())
        others = [f for f in siblings if (f / "config.json").is_file() and not f.samefile(folder)]
    device = str(make_accelerator(recipe.training).device)
    sae = load_trained(folder)  # first: a damaged file need not wait for the language model
    norm_limits(sae, folder)
    loaded = load(recipe.lm, device)
    if others:
        print(
            f"{verb}: all {1 + len(others)} SAEs of {home}, whose recipe.yaml speaks for them all"
        )
    note_remaking(home, {*unfinished, result})
    report(recipe, loaded, sae, folder, again=[result])
    for other in others:
        report(recipe, loaded, load_trained(other), other, again=[result])
    save_recipe(home, new)
    note_remaking(home, {*unfinished} - {result})


def _home(folder: Path) -> Path | None:
    """The folder of the run that an SAE is of: its own, or one above where there are several."""
    homes = [f for f in (folder, *folder.parents[:3]) if (f / "recipe.yaml").is_file()]
    return homes[0] if homes else None


def _trained(folder: str) -> Path:
    path = Path(folder)
    if not (path / "config.json").is_file():
        if next(path.glob("checkpoints/step-*.pt"), None) and (path / "recipe.yaml").is_file():
            raise ValueError(
                f"the training in {folder} is not finished; `hfsae train {path / 'recipe.yaml'}` "
                "goes on from its last checkpoint"
            )
        inside = sorted(p.parent.name for p in path.glob("*/config.json"))
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise ValueError(f"{folder} is not the folder of a trained SAE (no config.json){hint}")
    if "d_sae" not in read_json(path / "config.json"):
        raise ValueError(
            f"{folder} holds a model that is no SAE of hfsae's (its config.json names no d_sae); "
            "`hfsae convert` reads those of other libraries"
        )
    return path


def _print_folder(folder: Path, latents: list[int], source: str | None = None) -> None:
    """
    Args:
        source: of what is printed, where the folder is only a copy of it.
    """
    name = source or str(folder)
    refuse_mixture(folder)
    if not latents:
        print(f"\n{printable(_summary(folder, name))}")
        if (folder / "evaluation.json").is_file():
            _print_metrics(folder)
        else:
            print(f"No evaluation.json: {_maker('evaluate', folder, name)}")
    if not (folder / "features" / "meta.json").is_file():
        missing = f"{_NO_EXAMPLES}: {_maker('collect', folder, name)}"
        if latents:
            raise ValueError(f"{name} holds {missing}")
        print(f"{missing[0].upper()}{missing[1:]}")
        return
    store = FeatureStore.load(folder)
    for index in latents or store.pick(_SHOWN_LATENTS):
        if not 0 <= index < len(store):
            raise ValueError(f"there is no latent {index}; this SAE has {len(store):,}, from 0")
        with reading(folder / "features"):
            latent = store[index]
        if not latents:
            latent = latent._replace(
                promoted=latent.promoted[:_SHOWN_TOKENS],
                suppressed=latent.suppressed[:_SHOWN_TOKENS],
                examples=latent.examples[:_SHOWN_EXAMPLES],
            )
        print("\n" + show(latent, ANSI if sys.stdout.isatty() else PLAIN))


def _print_metrics(folder: Path) -> None:
    path = folder / "evaluation.json"
    data = read_json(path)
    with reading(path):
        result = EvaluationResult.from_dict(data)
        kind = "" if "measured_with" in data else "held-out "
        print(f"{result.n_tokens:,} {kind}tokens of {result.n_documents} documents:\n")
        print(printable_lines(result.table()))
        print("".join(f"\nnote: {sentence}" for sentence in misgivings(folder)))


def _maker(verb: str, folder: Path | None, name: str) -> str:
    """How to make what is missing: without the recipe of a run, model and text have to be named."""
    fields = "" if folder and _home(folder) else " --lm.name MODEL --text.dataset TEXT"
    return f"`hfsae {verb} {name}{fields}` makes it"


def _summary(folder: Path, name: str) -> str:
    """What was trained, at which speed, in how much memory; or what the config says."""
    config = read_json(folder / "config.json")
    if not (folder / "training.json").is_file():
        place = f"{config.get('site')} of {config.get('model_name')}"
        return f"{name}: {config.get('model_type')}, {config.get('d_sae'):,} latents, {place}"
    with reading(folder / "training.json"):
        record = read_json(folder / "training.json")
        seconds, harvested = record["seconds"], record["harvested"].get("kept", 0)
        rates = {"harvest": harvested, "train": record["n_tokens"]}
        harvest, train = (f"{rates[k] / max(seconds[k], 0.1):,.0f} tok/s" for k in rates)
        memory = record["peak_memory_bytes"] / 1e9
        return (
            f"{name}: trained on {record['n_tokens']:,} activations in "
            f"{sum(seconds.values()):.0f} s (harvest {harvest}, SAE {train}), peak memory "
            f"{memory:.1f} GB"
        )


def _print_next(folders: list[Path]) -> None:
    folder = folders[0]
    # In a virtual environment that is not activated, the command has to be named by its path.
    home = "" if shutil.which("hfsae") else f"{os.path.relpath(Path(sys.executable).parent)}/"
    load_it = f"import hfsae, transformers; transformers.AutoModel.from_pretrained('{folder}')"
    if (folder / "evaluation.json").is_file() and not misgivings(folder):
        print(f"\nThe folder {folder} could be pushed to the Hub as it stands.")
    steps = [
        *([f"hfsae demo {folder}"] if importlib.util.find_spec("gradio") else []),
        f"hfsae push {folder} NAME/REPOSITORY --dry_run",
        f'python -c "{load_it}"',
    ]
    if (folder / "features" / "meta.json").is_file():
        latents = FeatureStore.load(folder).pick(2, seed=1)
        steps.insert(0, " ".join(["hfsae show", str(folder), *map(str, latents)]))
    print(f"\nSee {folder}/README.md. Next:")
    print("\n".join(f"  {home}{step}" for step in steps))


def _one_line(error: BaseException) -> str:
    said = str(error)
    if isinstance(error, OSError) and error.errno in _FULL:  # as the system says it, bare
        said = f"{error}; make room there, or give a folder that can be written to"
    return printable(" ".join(said.split()))
