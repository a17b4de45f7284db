"""What the trials work on: a random Gemma 2 of four layers in a folder, a text, a recipe; and a
command in a process of its own, forked from one that has imported everything.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from hfsae import cli

_SPECIAL = ["<pad>", "<eos>", "<bos>"]


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """A folder to work in, for forks: `keep`, which must be new, or one that goes at the end."""
    torch.set_num_threads(1)  # a process with more threads cannot be forked
    with tempfile.TemporaryDirectory() as temporary:
        root = (keep or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=keep is None)
        yield root


def write_lm(folder: Path) -> None:
    """Gemma 2 with random weights, 16 wide, and a tokenizer of one token a byte."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 12}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 32, "sliding_window": 8}
    sizes |= {"vocab_size": len(_SPECIAL) + 256, "max_position_embeddings": 256}
    sizes |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**sizes))
    for parameter in lm.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    lm.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    pad, eos, bos = _SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, bos_token=bos
    )


def write_text(path: Path) -> None:
    texts = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(200)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_subject(folder: Path) -> Path:
    """`lm/`, `text.jsonl` and `recipe.yaml` in a folder; the recipe, whose paths are absolute."""
    folder = folder.absolute()
    write_lm(folder / "lm")
    write_text(folder / "text.jsonl")
    training = {"output_dir": "run", "n_tokens": 3200, "batch_size": 32, "learning_rate": 1e-3}
    training |= {"logging_steps": 5, "save_steps": 10, "warmup_steps": 0, "warm_start_steps": 20}
    recipe = {
        "lm": {"name": str(folder / "lm"), "dtype": "float32"},
        "text": {"dataset": str(folder / "text.jsonl"), "context_size": 16}
        | {"held_out_fraction": 0.2},
        "harvest": {"rows": 8, "max_norm_ratio": 5.0},
        "shuffle": {"bucket_tokens": 640},
        "sae": {"site": "layers.1", "d_sae": 64, "target_l0": 4, "bandwidth": 0.1}
        | {"log_threshold": False},
        "training": training | {"sparsity_warmup_steps": 0},
        "evaluation": {"n_tokens": 300, "bootstrap_samples": 20},
        "collect": {"top": 3, "quantiles": 2, "per_quantile": 1, "reservoir": 4},
        "collect_tokens": 500,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def start(
    argv: list[str], folder: Path, log: Path, before: Callable[[], object] = lambda: None
) -> int:
    """`hfsae ARGV` in `folder`, in a forked process whose output goes to `log`; its process id.

    Args:
        before: called in that process first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        before()
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code of a process from `start`; -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder by relative path, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


_TIMED = ("seconds", "peak_memory_bytes", "machine", "command")


def difference(ours: Path, reference: Path) -> str:
    """The first difference of two runs' folders; "" if there is none.

    What depends on the clock is left out: seconds and memory in training.json, and the card and
    the figures, of which only the presence counts.
    """
    mine, theirs = files(ours), files(reference)
    if mine.keys() != theirs.keys():
        extra, missing = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
        return f"{ours.name} has files too many ({extra}) or too few ({missing})"
    for name in mine:
        if name == "README.md" or name.endswith((".png", ".svg")):
            continue
        one, other = mine[name], theirs[name]
        if name.endswith("training.json"):
            one, other = (_untimed(content) for content in (one, other))
        if one != other:
            return f"{name} differs"
    return ""


def _untimed(content: bytes) -> bytes:
    record = json.loads(content)
    return json.dumps({k: v for k, v in record.items() if k not in _TIMED}).encode()
