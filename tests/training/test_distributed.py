"""Two processes train as one does with the same global batch."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from hfsae import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    TextArguments,
    TextSource,
)
from hfsae.training import Trainer, TrainingArguments
from hfsae.training.trainer import make_accelerator

TEXTS = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(60)]


def train(
    folder: Path, lm, tokenizer, *, n_processes: int, accumulation: int = 1, sparse: str = "auto"
) -> None:
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    args = TrainingArguments(
        output_dir=str(folder),
        n_tokens=32 * 40,
        batch_size=32,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        adam_epsilon=1e-4,
        warmup_steps=0,
        sparsity_warmup_steps=0,
        warm_start_steps=10,
        logging_steps=5,
        dead_after_tokens=200,
        refit_ridge=0.1,
        sparse=sparse,
        num_processes=n_processes,
    )
    accelerator = make_accelerator(args)
    source = TextSource(
        PackedRows(
            tokenizer,
            TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.0),
            "train",
            rows=4,
            epochs=None,
        ),
        Harvester(lm, ["layers.1"], HarvestArguments(rows=4, max_norm_ratio=1.5)),
    )
    stream = ShuffledActivations(
        source,
        ShuffleArguments(bucket_tokens=400, prefetch=n_processes > 1),
        args.batch_size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    torch.manual_seed(0)
    config = JumpReLUSAEConfig(
        d_in=16, d_sae=32, site="layers.1", target_l0=4.0, bandwidth=0.3, log_threshold=False
    )
    trainer = Trainer(JumpReLUSAE(config), stream, args, accelerator=accelerator)
    trainer.train()
    stream.close()
    state = {"counts": stream.record, "since": trainer.runs[""].tokens_since_fired.tolist()}
    (folder / f"state-{accelerator.process_index}.json").write_text(json.dumps(state))
    trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize("accumulation, sparse", [(1, "never"), (2, "never"), (2, "always")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_end_where_one_does(
    tmp_path, tiny_lm, tiny_tokenizer, accumulation, sparse, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, tiny_lm, tiny_tokenizer, n_processes=1)

    def child() -> None:
        more = {"accumulation": accumulation, "sparse": sparse}
        train(two, tiny_lm, tiny_tokenizer, n_processes=2, **more)

    debug_launcher(child, num_processes=2)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert len(logs[0]) == len(logs[1]) == 8
    for ours, theirs in zip(*logs, strict=True):
        for key in ("loss", "mse", "fvu", "l0"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (key, ours["step"])
    alone = json.loads((one / "state-0.json").read_text())
    for rank in range(2):
        assert json.loads((two / f"state-{rank}.json").read_text()) == alone
    assert alone["counts"]["dropped_outliers"] > 0
    saes = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, ours in saes[0].items():  # the decoder is refitted to the whole bucket on each
        torch.testing.assert_close(saes[1][name], ours, atol=2e-2, rtol=2e-2)
