"""The sides of `end_to_end.py`: text to activations, and text to trained SAEs, by each library.

A turn is `tokens` activations of one site. Ours fills a bucket of so many and hands it out;
SAELens keeps a buffer of twice as many, half of which it refills a turn.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns

CONTEXT, LAYER, D_IN = 128, 15, 576
TARGET_L0, LEARNING_RATE = 50, 1e-3
Options = argparse.Namespace


def _our_stream(o: Options, prefetch: bool = False, **harvest: Any) -> Any:
    from hfsae.activations import (
        HarvestArguments,
        Harvester,
        PackedRows,
        ShuffleArguments,
        ShuffledActivations,
        TextArguments,
        TextSource,
    )
    from hfsae.lm import load_lm

    loaded = load_lm(o.model, dtype="bfloat16")
    text = TextArguments(o.text, context_size=CONTEXT, held_out_fraction=0.0)
    rows = PackedRows(loaded.tokenizer, text, "train", rows=o.rows, epochs=None)
    harvester = Harvester(loaded.lm, [f"layers.{LAYER}"], HarvestArguments(rows=o.rows, **harvest))
    shuffle = ShuffleArguments(bucket_tokens=o.tokens, prefetch=prefetch)
    n_batches = o.turns * (o.tokens // o.batch)
    source = TextSource(rows, harvester)
    return ShuffledActivations(source, shuffle, o.batch, n_batches=n_batches)


def our_training(
    o: Options, n_saes: int, sparse: str = "auto", **stream_options: bool
) -> turns.Step:
    from accelerate import Accelerator
    from transformers import AutoConfig, AutoModel

    from hfsae.ops import Workspace
    from hfsae.training import Run, TrainingArguments

    stream = _our_stream(o, **stream_options)
    workspace, steps = Workspace(), o.tokens // o.batch
    args = TrainingArguments(
        n_tokens=o.turns * o.tokens,
        batch_size=o.batch,
        learning_rate=LEARNING_RATE,
        adam_beta1=0.9,
        max_grad_norm=1.0,
        warmup_steps=0,
        sparsity_warmup_steps=0,
        warm_start_steps=0.5,
        init_b_dec="mean",
        sparse=sparse,
    )
    config = {"d_in": D_IN, "d_sae": o.d_sae, "site": f"layers.{LAYER}", "target_l0": TARGET_L0}
    config |= {"model_type": "jumprelu_sae", "bandwidth": 0.03, "log_threshold": False}
    runs = []
    for seed in range(n_saes):
        torch.manual_seed(seed)
        sae = AutoModel.from_config(AutoConfig.for_model(**config))
        runs.append(Run(sae, args, Accelerator(cpu=True), workspace))
    seconds = {"stream": 0.0, "SAEs": 0.0}

    def turn(number: int) -> Callable[[], dict[str, float]]:
        lines = []
        for i in range(steps):
            start = time.perf_counter()
            batch = stream.next_batch()
            if number == 0 and i == 0:
                for run in runs:
                    run.initialise(stream.sample(2**13))
            harvested = time.perf_counter()
            lines = [run.step(batch, number * steps + i, log=i == steps - 1) for run in runs]
            seconds["stream"] += harvested - start
            seconds["SAEs"] += time.perf_counter() - harvested
        stream.wait()  # else a bucket would be filled in the turns of others
        share = 100 * seconds["SAEs"] / sum(seconds.values())
        told = {"L0": lines[0]["l0"], "FVU": lines[0]["fvu"], "% in SAEs": share}
        return lambda: told

    return turn


def our_harvest(o: Options, compile: bool = False) -> turns.Step:
    stream, steps = _our_stream(o, compile=compile), o.tokens // o.batch

    def turn(number: int) -> Callable[[], dict[str, float]]:
        for _ in range(steps):
            stream.next_batch()
        return dict

    return turn


def our_cache(o: Options) -> turns.Step:
    """What was harvested before is read; one that is not there yet is made first."""
    filled, steps = _our_stream(o, cache=o.cache), o.tokens // o.batch
    for _ in range(o.turns * steps):
        filled.next_batch()
    stream = _our_stream(o, cache=o.cache)

    def turn(number: int) -> Callable[[], dict[str, float]]:
        for _ in range(steps):
            stream.next_batch()
        (cache,) = stream.source.harvester.caches
        return lambda: {"% found": 100 * cache.hits / (cache.hits + cache.misses)}

    return turn


def plain_forward(o: Options, dtype: torch.dtype) -> turns.Step:
    """The way of most notebooks: all layers, all hidden states, rows of tokens known before."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(o.model, dtype=dtype).eval()
    ids = torch.randint(100, 40_000, (o.rows, CONTEXT), generator=torch.Generator().manual_seed(0))

    def turn(number: int) -> Callable[[], dict[str, float]]:
        for _ in range(0, o.tokens, ids.numel()):
            with torch.no_grad():
                out = lm(input_ids=ids, output_hidden_states=True, use_cache=False)
            out.hidden_states[LAYER + 1].flatten(0, 1).float()
        return dict

    return turn


def _their_store(o: Options, *, several: bool = False, autocast: bool = False) -> Any:
    import transformer_lens.loading_from_pretrained as lens
    from datasets import Dataset
    from sae_lens.load_model import load_model
    from sae_lens.training.activations_store import ActivationsStore

    lens.OFFICIAL_MODEL_NAMES.append(o.model)  # TransformerLens knows no folders otherwise
    lm = load_model("HookedTransformer", o.model, "cpu")
    lines = Path(o.text).read_text(encoding="utf-8").splitlines()
    hook = f"blocks.{LAYER}.hook_resid_post"
    shared = {
        "context_size": CONTEXT,
        "n_batches_in_buffer": 2 * o.tokens // CONTEXT,
        "store_batch_size_prompts": o.rows,
        "streaming": False,
        "prepend_bos": False,
        "dataset": Dataset.from_list([{"text": json.loads(line)["text"]} for line in lines]),
    }
    if several:
        widths = {"hook_names": [hook], "hook_d_ins": {hook: D_IN}}
        return ActivationsStore.from_config_multi_hook(
            lm, train_batch_size_tokens=o.batch, autocast_lm=autocast, **widths, **shared
        ).get_multi_hook_data_loader()
    return ActivationsStore(
        lm,
        hook_name=hook,
        hook_head_index=None,
        d_in=D_IN,
        total_training_tokens=o.turns * o.tokens,
        train_batch_size_tokens=o.batch,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        autocast_lm=autocast,
        **shared,
    ).get_data_loader()


def their_training(o: Options, n_saes: int, autocast: bool = False) -> turns.Step:
    """SAELens's trainer; for several SAEs its own for several."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer
    from sae_lens.training.sae_trainer import SAETrainer

    stream = _their_store(o, several=n_saes > 1, autocast=autocast)
    n_tokens, hook = o.turns * o.tokens, f"blocks.{LAYER}.hook_resid_post"
    config = SAETrainerConfig(
        total_training_samples=n_tokens,
        train_batch_size_samples=o.batch,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        autocast=autocast,
    )
    saes = {
        str(i): JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=o.d_sae))
        for i in range(n_saes)
    }
    if n_saes == 1:
        trainers = {"0": SAETrainer(cfg=config, sae=saes["0"], data_provider=iter(()))}
    else:
        trainers = MultiSAETrainer(config, saes, dict.fromkeys(saes, hook), stream).trainers

    def turn(number: int) -> Callable[[], dict[str, float]]:
        out: Any = None
        for _ in range(o.tokens // o.batch):
            batch = next(stream)
            for trainer in trainers.values():
                out = trainer.step(batch if n_saes == 1 else batch[hook])
        l0 = float((out.feature_acts != 0).sum()) / o.batch
        return lambda: {"L0": l0}

    return turn


def their_harvest(o: Options, autocast: bool = False) -> turns.Step:
    stream = _their_store(o, autocast=autocast)

    def turn(number: int) -> Callable[[], dict[str, float]]:
        for _ in range(o.tokens // o.batch):
            next(stream)
        return dict

    return turn


SIDES: dict[str, dict[str, Callable[[Options], turns.Step]]] = {
    "hfsae": {
        "train": lambda o: our_training(o, 1),
        "train_six": lambda o: our_training(o, 6),
        "train_ahead": lambda o: our_training(o, 1, prefetch=True),
        "train_six_ahead": lambda o: our_training(o, 6, prefetch=True),
        "train_compiled": lambda o: our_training(o, 1, compile=True),
        "train_six_compiled": lambda o: our_training(o, 6, compile=True),
        "train_six_compiled_ahead": lambda o: our_training(o, 6, compile=True, prefetch=True),
        "train_dense": lambda o: our_training(o, 1, "never"),
        "harvest": our_harvest,
        "harvest_compiled": lambda o: our_harvest(o, compile=True),
        "cache": our_cache,
        "plain_forward_bf16": lambda o: plain_forward(o, torch.bfloat16),
        "plain_forward_float32": lambda o: plain_forward(o, torch.float32),
    },
    "saelens": {
        "train": lambda o: their_training(o, 1),
        "train_six": lambda o: their_training(o, 6),
        "train_autocast": lambda o: their_training(o, 1, autocast=True),
        "train_six_autocast": lambda o: their_training(o, 6, autocast=True),
        "harvest": their_harvest,
        "harvest_autocast": lambda o: their_harvest(o, autocast=True),
    },
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=SIDES)
    parser.add_argument("name")
    for name in ("model", "text", "cache"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("tokens", "turns", "batch", "rows", "d_sae"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    turns.serve(lambda: SIDES[options.library][options.name](options))
