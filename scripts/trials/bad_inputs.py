"""Bad command lines, recipes, files and Python calls: each must be refused, and change nothing.

Refused is: exit code 2 (of Python, a ValueError), one line on stderr that begins `hfsae: error:`
and names what is wrong, no traceback, within a time limit; and every file as it was. Each try runs
`hfsae` in a process forked from one that has imported everything, in a copy of a folder with a tiny
language model, a text, a recipe and a finished run. What is good must succeed there first:
otherwise a broken folder would let every try hold.

    python scripts/trials/bad_inputs.py [--only TEXT] [--seconds 60]

Prints a line for each try that did not hold, and counts; exit code 1 if there was one.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

import hfsae
import hfsae.demo  # so that no try waits for it
from hfsae import cli

_BYTES = 2**33  # of memory that a try may take: the machine is not its to fill
ERROR = "hfsae: error: "
Prepare = Callable[[], object]


class Try(NamedTuple):
    name: str
    says: str
    """a part of the sentence, whatever its case"""
    work: Callable[[], int]
    """in the folder; the exit code"""
    prepare: Prepare = lambda: None
    """in the folder first: makes what is bad"""


def command(argv: list[str], says: str, prepare: Prepare = lambda: None, of: str = "") -> Try:
    shown = " ".join(part if part else '""' for part in argv)
    return Try(f"{of}hfsae {shown}", says, lambda: cli.main(argv), prepare)


def call(name: str, says: str, work: Callable[[], object]) -> Try:
    """A call from Python, where a ValueError is what a sentence and exit code 2 are."""

    def refused() -> int:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            work()
        except ValueError as error:
            print(f"{ERROR}{error}", file=sys.stderr)
            return 2
        return 0

    return Try(f"Python: {name}", says, refused)


# Fields of a recipe: values that it must not take. What a sentence names is the field, unless said.
FIELDS: dict[str, list[str]] = {
    "training.n_tokens": ["-5", "0", "5", "many", "1.5", "1e400", ".nan", "[]", "null", "0x"],
    "training.batch_size": ["0", "-1", "x", "1e9", "2.5"],
    "training.learning_rate": ["-1", "0", ".nan", ".inf", "fast", "1e400"],
    "training.threshold_learning_rate": ["-1", ".nan"],
    "training.decoder_rate_factor": ["0", "fast"],
    "training.adam_beta1": ["1.5", "-0.1", ".nan", "one"],
    "training.adam_beta2": ["1", "-1"],
    "training.adam_epsilon": ["-1", ".nan"],
    "training.max_grad_norm": ["-1", ".nan"],
    "training.warmup_steps": ["-1", ".nan", "2.5", "soon"],
    "training.decay_steps": ["-1", "1e400"],
    "training.warm_start_steps": ["2.5", "-1"],
    "training.bandwidth_start": ["-1", ".nan"],
    "training.l0_gain": [".nan", "-1", "x"],
    "training.save_steps": ["-1", "1.5"],
    "training.save_total_limit": ["0", "-1", "x"],
    "training.logging_steps": ["0", "-1", "x"],
    "training.gradient_accumulation_steps": ["0", "7", "-2"],
    "training.dead_after_tokens": ["-1", "x"],
    "training.sparse": ["sometimes", "5"],
    "training.report_to": ["nowhere"],
    "training.bf16": ["perhaps", "2"],
    "training.num_processes": ["0", "2", "x"],
    "training.init_b_dec": ["median"],
    "training.init_decoder_data": ["zeros", "1.5", "-1"],
    "training.init_cluster_rounds": ["-1", "x"],
    "training.init_whitening": ["2", "-1", ".nan", "x"],
    "training.refit_ridge": ["0", "-1", ".inf", "x"],
    "training.init_encoder_scale": ["0", "-1", ".nan", "x"],
    "training.unit": ["metre"],
    "training.shard_latents": ["7"],
    "text.context_size": ["1", "0", "-3", "x", "1.5"],
    "text.bos": ["sometimes", "1"],
    "text.held_out_fraction": ["2", "-1", ".nan", "x"],
    "text.validation_fraction": ["2", "-1", ".nan", "x"],
    "text.max_document_chars": ["0", "-1", "x"],
    "text.text_column": ["nope"],
    "text.shuffle_documents": ["maybe"],
    "text.seed": ["x", "1.5"],
    "text.dataset": ["nowhere.txt", "nowhere/*.txt", "packaged:nothing", "lm", "5", "text.docx"],
    "harvest.rows": ["0", "-1", "x", "1.5"],
    "harvest.max_norm_ratio": ["0.5", "-1", ".nan", "x"],
    "harvest.cache_gb": ["0", "-1", ".nan", "x"],
    "harvest.cache": ["text.jsonl", "text.jsonl/below"],
    "harvest.compile": ["perhaps"],
    "shuffle.bucket_tokens": ["0", "8", "-1", "x"],
    "shuffle.passes": ["0", "-1", "x"],
    "shuffle.device": ["cuda:99", "abacus"],
    "shuffle.prefetch": ["maybe"],
    "sae.site": ["layers.99", "nowhere", "layers.1:up", "layers.1.self_atn", "5", "[]", "null"],
    "sae.target_site": ["nowhere", "layers.99"],
    "sae.d_sae": ["0", "-4", "wide", "1e12", "1e30", "1.5", ".nan", "null"],
    "sae.d_in": ["17", "-1"],
    "sae.target_l0": ["-1", "0", "1e9", ".nan", "x"],
    "sae.bandwidth": ["0", "-1", ".nan", "x"],
    "sae.l0_coefficient": ["-1", ".nan", "x"],
    "sae.initial_threshold": ["-1", ".nan"],
    "sae.log_threshold": ["perhaps"],
    "sae.kernel": ["round"],
    "sae.model_type": ["nope_sae", "llama", "5"],
    "evaluation.n_tokens": ["-5", "x", "1.5"],
    "evaluation.side": ["train", "validation"],
    "evaluation.bootstrap_samples": ["-1", "x"],
    "evaluation.sae_batch_tokens": ["0", "-1", "x"],
    "collect.top": ["0", "-1", "x"],
    "collect.quantiles": ["0", "x"],
    "collect.per_quantile": ["-1"],
    "collect.reservoir": ["0", "-3"],
    "collect.window": ["-1", "x"],
    "collect.lens_tokens": ["-1"],
    "collect.neighbours": ["-1", "x"],
    "collect_tokens": ["-5", "x", "1.5"],
    "seed": ["x", "1.5"],
    "lm.name": ["nowhere/nothing", "text.jsonl", "run", "lm/config.json", "a/b/c", "./nothing"],
    "lm.dtype": ["float7"],
    "lm.source": ["moon"],
    "lm.attn_implementation": ["nothing"],
    "training.output_dir": ["text.jsonl", "lm", "text.jsonl/below"],
}
_SAID = {  # where a sentence does not name the field
    "text.dataset": "",
    "lm.name": "",
    "lm.attn_implementation": "attn",
    "sae.site": "",
    "sae.target_site": "",
    "harvest.cache": "",
    "training.warmup_steps": "warmup",
    "training.batch_size": "batch",
    "training.n_tokens": "tokens",
}


def fields() -> Iterator[Try]:
    for field, values in FIELDS.items():
        says = _SAID.get(field, field.rpartition(".")[2])
        for value in values:
            argv = ["train", "recipe.yaml", "--training.output_dir=new", f"--{field}={value}"]
            named = "site" if value == "null" else value.partition(":")[0][:8]
            yield command(argv, says or named)
    for text in ("", "  "):
        yield command(["train", "recipe.yaml", f"--text.dataset={text}"], "text.dataset")
        yield command(["train", "recipe.yaml", f"--lm.name={text}"], "model")
        yield command(["train", "recipe.yaml", f"--sae.site={text}"], "site")
    for flag, says in (
        ("--training.learning_rat=1", "learning_rate"),
        ("--trainning.seed=5", "trainning"),
        ("--harvest.row=3", "harvest.rows"),
        ("--collect.tops=3", "collect.top"),
        ("--sae.d_sea=5", "d_sae"),
        ("--nothing", "nothing"),
        ("--nothing=1", "nothing"),
        ("--dry-run", "dry"),
        ("--training=5", "training"),
        ("--sae=5", "sae"),
        ("--saes=5", "saes"),
        ('--saes={"../up": {}}', "../up"),
        ('--saes={"features": {}}', "features"),
        ('--saes={"": {}}', "SAE"),
        ('--saes={"a": 5}', "saes"),
        ("--training.n_tokens", "n_tokens"),
        ("\udcff", "\\udcff"),
        ("поезд", "поезд"),
    ):
        yield command(["train", "recipe.yaml", flag], says)


def recipes() -> Iterator[Try]:
    good = yaml.safe_load(Path("recipe.yaml").read_text())
    for name, text, says in (
        ("broken", "{", "bad.yaml"),
        ("a list", "- a\n- b\n", "sections"),
        ("a number", "42", "sections"),
        ("empty", "", "sections"),
        ("an unknown section", "trainings: {}", "'training'"),
        ("an unknown field", "training: {n_token: 5}", "'n_tokens'"),
        ("a list for a section", "training: [1]", "training"),
        ("null for a section", "training:", "training"),
        ("text for a section", "lm: gemma", "lm"),
        ("a section twice", "seed: 1\nlm: {name: lm}\nseed: 2\n", "seed"),
        ("a field twice", "lm: {name: lm, name: run}\n", "name"),
        ("a nested field twice", "sae:\n  d_sae: 4\n  site: layers.1\n  d_sae: 8\n", "d_sae"),
        ("tabs", "training:\n\tn_tokens: 5\n", "bad.yaml"),
        ("an unknown alias", "lm: *nothing", "bad.yaml"),
        ("a Python object", "seed: !!python/object/apply:os.getcwd []", "bad.yaml"),
        ("deep lists", "sae: " + "[" * 5000, "bad.yaml"),
        ("deep maps", "sae: " + "{a: " * 3000 + "1" + "}" * 3000, "bad.yaml"),
        ("a key that is a list", "? [a]\n: 1\n", "bad.yaml"),
        ("a key that is a number", "5: 1\n", "5"),
        ("two documents", "seed: 1\n---\nseed: 2\n", "bad.yaml"),
        ("a zero byte", "seed: 1\0\n", "bad.yaml"),
        ("a date", "seed: 2024-01-01", "seed"),
        ("null for a name", _with(good, "lm", name=None), "lm.name"),
        ("null for a text", _with(good, "text", dataset=None), "text.dataset"),
        ("null for a width", _with(good, "sae", d_sae=None), "d_sae"),
        ("a number beyond floats", "training: {learning_rate: 1.0e+999}", "learning_rate"),
        ("deep fields", "lm: " + "{name: " * 60 + "lm" + "}" * 60, "lm.name"),
        ("no site", yaml.safe_dump({**good, "sae": {"d_sae": 32}}), "site"),
        ("no d_sae", yaml.safe_dump({**good, "sae": {"site": "layers.1"}}), "d_sae"),
        ("documents that are numbers", _with(good, "text", dataset=[1, 2]), "dataset"),
        ("no documents", _with(good, "text", dataset=[]), "text"),
        ("documents without words", _with(good, "text", dataset=["", " "] * 50), "text"),
        ("one short document", _with(good, "text", dataset=["a b c"]), "text"),
        ("billions of laughs", _LAUGHS, "bad.yaml"),
    ):
        prepare = _written("bad.yaml", text.encode())
        yield command(["train", "bad.yaml"], says, prepare, f"a recipe with {name}: ")
    for name, content in (("UTF-16", "seed: 1".encode("utf-16")), ("bytes", bytes(range(256)))):
        prepare = _written("bad.yaml", content)
        yield command(["train", "bad.yaml"], "bad.yaml", prepare, f"a recipe of {name}: ")
    yield command(["train", "nowhere.yaml"], "nowhere.yaml")
    yield command(["train", "run"], "run")
    yield command(["train", "text.jsonl"], "text.jsonl")
    yield command(["train", "pipe"], "pipe", lambda: os.mkfifo("pipe"), "a named pipe: ")
    yield command(["train", "link"], "link", lambda: os.symlink("no", "link"), "a dead link: ")
    yield command(["train", "loop"], "loop", lambda: os.symlink("loop", "loop"), "a loop: ")
    yield command(["train", "recipe.yaml", "recipe.yaml"], "recipe.yaml")
    yield command(["train"], "site")
    yield command(["train", "--dry_run"], "site")
    yield command(["train", "a" * 5000], "too long")
    yield command(["train", "new\nline.yaml"], "recipe")


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _with(recipe: dict, section: str, **changed: object) -> str:
    return yaml.safe_dump({**recipe, section: {**recipe[section], **changed}})


def _written(name: str, content: bytes) -> Prepare:
    def write() -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def texts() -> Iterator[Try]:
    for name, content in (
        ("empty.jsonl", b""),
        ("blank.jsonl", b"\n\n\n"),
        ("column.jsonl", b'{"words": "a b c"}\n'),
        ("broken.jsonl", b'{"text": "a b c"}\n{"text": \n'),
        ("numbers.jsonl", b"1\n2\n3\n"),
        ("lists.jsonl", b'["a"]\n'),
        ("wrong.jsonl", b'{"text": 5}\n'),
        ("null.jsonl", b'{"text": null}\n'),
        ("hollow.jsonl", b'{"text": ""}\n' * 50),
        ("bytes.jsonl", bytes(range(256))),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n"),
        ("nested.jsonl", b'{"text": ' + b"[" * 500 + b'"a"' + b"]" * 500 + b"}\n"),
        ("infinite.jsonl", b'{"text": 1e999}\n'),
        ("empty.txt", b""),
        ("blank.txt", b" \n \n"),
        ("bytes.txt", b"\xff\xfe\x80" * 99),
        ("short.txt", b"a"),
        ("empty.parquet", b""),
        ("bytes.parquet", b"PAR1" + bytes(99) + b"PAR1"),
        ("text.csv", b"text\na b c\n"),
        ("folder/readme.md", b"a b c"),
    ):
        source = "folder" if "/" in name else name
        argv = ["train", "recipe.yaml", "--training.output_dir=new", f"--text.dataset={source}"]
        yield command(argv, "", _written(name, content), "a text: ")
    read_by = {
        "jsonl": ["train", "recipe.yaml", "--training.output_dir=new", "--text.dataset"],
        "safetensors": [
            *("train", "--sae.d_sae=8", "--sae.target_l0=2", "--training.output_dir=new"),
            "--activations",
        ],
        "recipe.yaml": ["train"],
    }
    for kind, make in (("pipe", os.mkfifo), ("loop", lambda name: os.symlink(name, name))):
        for suffix, argv in read_by.items():
            name = f"{kind}.{suffix}"
            yield command([*argv, name], name, partial(make, name), f"a {kind}: ")


def activations() -> Iterator[Try]:
    argv = ["train", "--activations=acts.safetensors", "--sae.d_sae=8", "--sae.target_l0=2"]
    argv += ["--training.n_tokens=3200", "--training.batch_size=32", "--training.output_dir=new"]
    for row in (0, 1000, 1999):
        for bad in (float("nan"), float("inf"), float("-inf")):

            def prepare(row: int = row, bad: float = bad) -> None:
                rows = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
                rows[row, 5] = bad
                save_file({"x": rows, "document": torch.arange(2000) // 10}, "acts.safetensors")

            says = f"row {row:,} of acts.safetensors"
            yield command([*argv], says, prepare, f"activations with {bad} in row {row}: ")


_CONVERT = ["convert", "run", "new", "--to", "saelens"]
# A file of the finished run, what it is made to hold, and the verbs that must notice.
_JSON = {"broken": b'{"a": ', "a list": b"[]", "deep": b"[" * 100_000, "bytes": b"\xff\xfe\x80"}
_JSON |= {"1e999": b'{"d_sae": 32, "n_tokens": 1e999}'}
_JSON |= {"deep inside": b'{"d_sae": ' + b"[" * 500 + b"]" * 500 + b"}"}
_DAMAGE: dict[str, tuple[dict[str, bytes], list[list[str]]]] = {
    "config.json": (
        {**_JSON, "no width": b'{"model_type": "jumprelu_sae"}', "empty": b""},
        [["show", "run"], ["card", "run"], ["evaluate", "run"], ["verify", "run"]],
    ),
    "evaluation.json": (
        {**_JSON, "null": b"null", "metrics of numbers": b'{"metrics": {"l0": 5}}'},
        [["show", "run"], ["card", "run"], ["push", "run", "me/it", "--dry_run"]],
    ),
    "training.json": (
        {**_JSON, "no counts": b'{"harvested": 5}', "text": b'{"seconds": "long"}'},
        [["show", "run"], ["card", "run"], ["evaluate", "run"], ["collect", "run"]],
    ),
    "features/meta.json": ({**_JSON, "nothing": b"{}"}, [["show", "run"], ["show", "run", "3"]]),
    "features/latents.parquet": (
        {"empty": b"", "bytes": b"PAR1" + bytes(99) + b"PAR1"},
        [["show", "run"], ["show", "run", "3"]],
    ),
    "recipe.yaml": (
        {"broken": b"{", "a list": b"- 1", "bytes": b"\xff\xfe\x80", "twice": b"seed: 1\nseed: 2"},
        [["evaluate", "run"], ["collect", "run"], ["train", "recipe.yaml"]],
    ),
    "model.safetensors": (
        {"empty": b"", "bytes": bytes(999), "a huge header": b"\xff" * 8 + b"{}"},
        [["evaluate", "run"], ["collect", "run"], ["verify", "run"], _CONVERT],
    ),
    "fingerprint.safetensors": ({"empty": b"", "bytes": bytes(99)}, [["verify", "run"]]),
}


def damage() -> Iterator[Try]:
    for name, (contents, commands) in _DAMAGE.items():
        for kind, content in contents.items():
            for argv in commands:
                prepare = _written(f"run/{name}", content)
                yield command(argv, Path(name).name, prepare, f"{name} is {kind}: ")
    for kind, change in (
        ("a NaN", lambda t: {**t, "W_enc": t["W_enc"] * float("nan")}),
        ("another shape", lambda t: {**t, "W_enc": t["W_enc"][:, :-1].contiguous()}),
        ("a tensor missing", lambda t: {k: v for k, v in t.items() if k != "b_dec"}),
        ("a tensor more", lambda t: {**t, "W_more": t["b_dec"].clone()}),
        ("whole numbers", lambda t: {k: v.long() for k, v in t.items()}),
        ("complex numbers", lambda t: {k: v.to(torch.complex64) for k, v in t.items()}),
    ):

        def resave(change: Callable = change) -> None:
            save_file(change(load_file("run/model.safetensors")), "run/model.safetensors")

        yield command(_CONVERT, "", resave, f"weights with {kind}: ")
    for key, value in (
        ("d_sae", -4),
        ("d_sae", "wide"),
        ("d_sae", 10**30),
        ("d_in", 0),
        ("model_type", "nope_sae"),
        ("model_type", 5),
        ("bandwidth", -1),
        ("nothing", 1),
        ("activation_scale", "large"),
    ):

        def reconfigure(key: str = key, value: object = value) -> None:
            path = Path("run/config.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

        yield command(_CONVERT, "", reconfigure, f"config.json with {key} {value}: ")


# Arguments, and a part of the sentence that must come.
_COMMAND_LINES = (
    (["trian"], "train"),
    ([""], "verb"),
    (["--nothing"], "nothing"),
    (["поезд"], "поезд"),
    (["train\0"], "verb"),
    (["show", "run", "-1"], ""),
    (["show", "run", "99999"], "99999"),
    (["show", "run", "x"], "x"),
    (["show", "run", "1.5"], "1.5"),
    (["show", "run", "1e30"], "1e+30"),
    (["show", "run", "--nothing"], "nothing"),
    (["card", "run", "--nothing"], "nothing"),
    (["evaluate", "run", "--evaluation.n_tokens=0"], "n_tokens"),
    (["evaluate", "run", "--evaluation.n_tokens=-1"], "n_tokens"),
    (["evaluate", "run", "--sae.d_sae=8"], "d_sae"),
    (["evaluate", "run", "--training.n_tokens=1600"], "n_tokens"),
    (["evaluate", "run", "--collect.top=4"], "collect"),
    (["evaluate", "run", "--nothing=4"], "nothing"),
    (["collect", "run", "--collect_tokens=0"], "collect_tokens"),
    (["collect", "run", "--collect.top=0"], "top"),
    (["collect", "run", "--evaluation.n_tokens=400"], "evaluation"),
    (["push", "run"], "repo"),
    (["push", "run", "a/b/c", "--dry_run"], "a/b/c"),
    (["push", "run", "../up", "--dry_run"], "../up"),
    (["push", "run", "with space/it", "--dry_run"], "with space/it"),
    (["push", "run", "", "--dry_run"], ""),
    (["push", "run", "me/it", "--subfolder=../up", "--dry_run"], "../up"),
    (["push", "run", "me/it", "--subfolder=/up", "--dry_run"], "/up"),
    (["push", "run", "me/it", "--nothing"], "nothing"),
    (["verify", "run", "--dtype=float7"], "float7"),
    (["verify", "run", "--dtype=int8"], "int8"),
    (["verify", "run", "--layer=x"], "x"),
    (["verify", "run", "--layer=5"], "5"),
    (["verify", "run", "--width=wide"], "wide"),
    (["verify", "run", "--l0=."], "."),
    (["verify", "run", "--subfolder=nowhere"], "nowhere"),
    (["convert", "run"], "destination"),
    (["convert", "run", "new"], "--to"),
    (["convert", "run", "new", "--to", "nothing"], "nothing"),
    (["convert", "run", "lm", "--to", "saelens"], "lm"),
    (["convert", "run", "text.jsonl", "--to", "saelens"], "text.jsonl"),
    (["convert", "run", "new", "--to", "saelens", "--l0", "many"], "many"),
    (["demo", "run", "--port", "0"], "port"),
    (["demo", "run", "--port", "99999"], "port"),
    (["demo", "run", "--port", "x"], "port"),
    (["demo", "run", "--model", "lm", "--no_model"], "--no_model"),
    (["demo", "run", "--host", "nowhere.invalid", "--port", "7999"], "nowhere.invalid"),
    (["demo", "run", "--model", "nowhere"], "nowhere"),
    (["demo", "run", "--nothing"], "nothing"),
    (["space", "run", "--output", "lm"], "lm"),
    (["space", "run", "--output", "text.jsonl"], "text.jsonl"),
    (["space", "run", "--nothing"], "nothing"),
    (["list", "run", "--nothing"], "nothing"),
    (["list", "a/b/c"], "a/b/c"),
    (["list", ""], ""),
)


def _make_places() -> None:
    Path("empty").mkdir()
    os.mkfifo("pipe")
    os.symlink("loop", "loop")


def verbs() -> Iterator[Try]:
    for argv, says in _COMMAND_LINES:
        yield command(argv, says)
    for verb in ("evaluate", "collect", "show", "card", "push", "verify", "list", "convert"):
        yield command([verb], "")
    tails = {
        "push": ["me/it", "--dry_run"],
        "convert": ["new", "--to", "saelens"],
        "export": ["--to", "neuronpedia", "--output", "new"],
        "graph": ["a prompt", "--out", "new"],
    }
    for verb in (*cli.table.VERBS,):
        if verb in ("train", "compare"):
            continue
        for place in ("nowhere", "text.jsonl", "lm", "empty", "pipe", "loop"):
            if verb == "list" and place != "nowhere":
                continue  # a folder without an SAE has an empty list, and exit code 1
            argv = [verb, place, *tails.get(verb, [])]
            yield command(argv, place, _make_places)


def comparisons() -> Iterator[Try]:
    good = yaml.safe_load(Path("recipe.yaml").read_text())
    good["training"]["output_dir"] = "new"
    good["sae"].pop("target_l0")
    good |= {"arms": {"jumprelu": {"sweep": {"target_l0": [3]}}}, "seeds": [0], "at_l0": [3.0]}
    for name, changed, says in (
        ("no arms", {"arms": {}}, "arm"),
        ("arms in a list", {"arms": [1]}, "arms"),
        ("an arm of a number", {"arms": {"jumprelu": 5}}, "arm"),
        ("an arm with a field of its own", {"arms": {"a": {"nothing": 5}}}, "nothing"),
        ("a sweep of nothing", {"arms": {"a": {"sweep": {}}}}, "sweep"),
        ("a sweep over no field", {"arms": {"a": {"sweep": {"nothing": [1]}}}}, "nothing"),
        ("a sweep that is no list", {"arms": {"a": {"sweep": {"target_l0": 3}}}}, "sweep"),
        ("no seeds", {"seeds": []}, "seed"),
        ("seeds of text", {"seeds": ["x"]}, "seeds"),
        ("a seed twice", {"seeds": [0, 0]}, "seed"),
        ("at an L0 of -1", {"at_l0": [-1]}, "l0"),
        ("no evaluation", {"evaluation": {"n_tokens": 0}}, "evaluation"),
        ("an unknown section", {"arm": {}}, "arms"),
    ):
        content = yaml.safe_dump({**good, **changed}).encode()
        yield command(["compare", "bad.yaml"], says, _written("bad.yaml", content), f"{name}: ")
    write_good = _written("good.yaml", yaml.safe_dump(good).encode())
    for argv, says in (
        (["--only", "[nothing]"], "nothing"),
        (["--only", "nothing"], "only"),
        (["--seeds", "[x]"], "seeds"),
        (["--dry_run"], "dry_run"),
    ):
        yield command(["compare", "good.yaml", *argv], says, write_good)
    yield command(["compare", "nowhere.yaml"], "nowhere.yaml")
    yield command(["compare"], "arm")


def calls() -> Iterator[Try]:
    def sae() -> hfsae.SAE:
        return hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=16, d_sae=32, site="layers.1"))

    def lm():
        return hfsae.load_lm("lm", dtype="float32")

    config = hfsae.JumpReLUSAEConfig
    yield call("load_lm of nothing", "nowhere", lambda: hfsae.load_lm("nowhere"))
    yield call("load_lm of an SAE", "run", lambda: hfsae.load_lm("run"))
    yield call("load_lm with a dtype", "float7", lambda: hfsae.load_lm("lm", dtype="float7"))
    yield call("load_lm on no device", "cuda:99", lambda: hfsae.load_lm("lm", device="cuda:99"))
    for fields in ({"d_sae": 0}, {"d_sae": -1}, {"d_in": 0}, {"bandwidth": 0}, {"nothing": 1}):
        widths = {"d_in": 16, "d_sae": 32, **fields}
        yield call(f"a config of {fields}", next(iter(fields)), lambda w=widths: config(**w))
    for fields in ({"k": 0}, {"k": 99}, {"k": -1}):
        widths = {"d_in": 16, "d_sae": 32, **fields}
        yield call(f"TopK of {fields}", "k", lambda w=widths: hfsae.TopKSAEConfig(**w))
    yield call("encode of another width", "16", lambda: sae().encode(torch.zeros(3, 17)))
    yield call("forward of another width", "16", lambda: sae()(torch.zeros(3, 15)))
    yield call("from_pretrained of an LM", "", lambda: hfsae.JumpReLUSAE.from_pretrained("lm"))
    yield call("another class's folder", "", lambda: hfsae.TopKSAE.from_pretrained("run"))
    yield call("FeatureStore of nothing", "nowhere", lambda: hfsae.FeatureStore.load("nowhere"))
    yield call("save_as nothing", "nothing", lambda: hfsae.save_as(sae(), "new", "nothing"))
    yield call("TextArguments(bos)", "bos", lambda: hfsae.TextArguments(bos="x"))
    yield call("push of nothing", "nowhere", lambda: hfsae.push("nowhere", "me/it"))

    def evaluated(site: str | None) -> None:
        subject, model = sae(), lm()
        subject.config.site = site
        rows = hfsae.PackedRows(model.tokenizer, hfsae.TextArguments("text.jsonl"), "train", rows=8)
        hfsae.evaluate(model.lm, subject, rows)

    yield call("evaluate at no site", "site", lambda: evaluated(None))
    yield call("evaluate at an unknown site", "layers.99", lambda: evaluated("layers.99"))

    def captured(site: str) -> None:
        with hfsae.capture(lm().lm, [site]):
            pass

    yield call("capture at an unknown site", "layers.99", lambda: captured("layers.99"))
    yield call("capture at no side", "up", lambda: captured("layers.1:up"))


GOOD = (
    ["train", "recipe.yaml", "--dry_run"],
    ["train", "recipe.yaml", "--training.output_dir=run"],
    ["train", "recipe.yaml", "--training.output_dir=new", "--training.n_tokens=1600"],
    ["show", "run", "3"],
    ["evaluate", "run"],
    ["collect", "run"],
    ["card", "run"],
    ["list", "run"],
    ["verify", "run"],
    ["convert", "run", "new", "--to", "saelens"],
    ["space", "run"],
)
KINDS = (fields, recipes, texts, activations, damage, verbs, comparisons, calls)


class Result(NamedTuple):
    code: int
    out: str
    error: str
    changed: list[str]


def carry_out(one: Try, subject: Path, root: Path, seconds: float) -> Result:
    """One try in a copy of the folder, by a forked process; -14 if it took longer."""
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(subject, work)
    here = os.getcwd()
    os.chdir(work)
    try:
        one.prepare()
        before = snapshot(work)
        if not (pid := os.fork()):
            _be_tried(one, root, seconds)
        code = tiny.wait(pid)
    finally:
        os.chdir(here)
    after = snapshot(work)
    changed = [p for p in {**before, **after} if before.get(p) != after.get(p)]
    out, error = ((root / name).read_text(errors="replace") for name in ("out", "error"))
    return Result(code, out, error, sorted(changed))


def _be_tried(one: Try, root: Path, seconds: float) -> None:
    code = 70
    try:
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # whose signal ends the process
        code = one.work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def snapshot(folder: Path) -> dict[str, object]:
    """Contents by relative path; folders, links and what else there may be count, too."""
    contents: dict[str, object] = {}
    for path in folder.rglob("*"):
        is_plain = path.is_file() and not path.is_symlink()
        name = str(path.relative_to(folder))
        contents[name] = path.read_bytes() if is_plain else path.lstat().st_mode
    return contents


def complaints(one: Try, result: Result, seconds: float) -> Iterator[str]:
    """Why a try did not hold."""
    if result.code == -signal.SIGALRM:
        yield f"took more than {seconds:g} s"
    elif result.code != 2:
        yield f"exit code {result.code}"
    lines = result.error.strip().splitlines()
    if "Traceback" in result.error + result.out:
        yield f"a traceback: {lines[-1] if lines else ''}"
    elif len(lines) != 1 or not lines[0].startswith(ERROR):
        yield f"{len(lines)} lines on stderr: {' | '.join(lines)[:300]}"
    elif one.says.lower() not in lines[0].lower():
        yield f"does not name {one.says!r}: {lines[0]}"
    if result.changed:
        yield f"changed {', '.join(result.changed[:4])}"


def prepare_subject(root: Path, seconds: float) -> Path:
    """The folder of which each try has a copy; what is good succeeds in it."""
    subject = root / "subject"
    recipe = tiny.write_subject(subject)
    recipe.write_text(recipe.read_text().replace(f"{subject.absolute()}/", ""))
    log = root / "train.log"
    if tiny.wait(tiny.start(["train", "recipe.yaml"], subject, log)):
        raise SystemExit(f"the run to try things on failed:\n{log.read_text()}")
    for argv in GOOD:
        result = carry_out(command(argv, ""), subject, root, seconds)
        if result.code:
            raise SystemExit(f"hfsae {' '.join(argv)} should succeed:\n{result.error}")
    return subject


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tries whose name holds this text")
    parser.add_argument("--seconds", type=float, default=60, help="that a try may take")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    held = 0
    with tempfile.TemporaryDirectory(prefix="hfsae-") as folder:
        root = Path(folder)
        subject = prepare_subject(root, options.seconds)
        os.chdir(subject)
        tries = [one for kind in KINDS for one in kind() if options.only in one.name]
        for one in tqdm(tries, unit="try", leave=False):
            result = carry_out(one, subject, root, options.seconds)
            if found := list(complaints(one, result, options.seconds)):
                tqdm.write(f"{one.name[:200]!r}: {'; '.join(found)}")
            held += not found
        os.chdir("/")
    print(f"{len(tries)} tried, {held} held")
    sys.exit(held < len(tries))


if __name__ == "__main__":
    main()
