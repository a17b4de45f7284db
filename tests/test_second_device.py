"""On a second device (`tests.rehearsal`): no operation mixes devices, the bits are the CPU's, and
the host waits for the device only where it is told here.

One forked process runs it all, since a device is registered for a whole process.
"""

import json
import os
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, Gemma2Config, Gemma2ForCausalLM

import hfsae
from hfsae.activations import (
    ActivationBatch,
    HarvestArguments,
    Harvester,
    ShuffleArguments,
    ShuffledActivations,
    TokenBatch,
)
from hfsae.activations.source import Filling
from hfsae.diffing.run import compared
from hfsae.evaluation import evaluate_all
from hfsae.features import CollectArguments, collect
from hfsae.models import SAE
from hfsae.ops import ASYNCHRONOUS, selection, sparse, upload
from hfsae.training import Trainer
from hfsae.training.refit import refit_
from hfsae.training.trainer import make_accelerator

from . import forked, tiny
from .training.planted import PlantedStream, arguments, stop_at

D, D_SAE, STEPS = 32, 128, 10
SMALL = {"d_in": D, "d_sae": D_SAE, "site": "layers.1"}
JUMP = {"bandwidth": 0.1, "initial_threshold": 0.1, "l0_coefficient": 0.01, "target_l0": 5}
AUX = {"aux_coefficient": 1 / 32, "aux_k": 16}
PLACES = {"sites": ["layers.0", "layers.1"], "d_in": 2 * D, "d_sae": D_SAE}
TARGETS = {"target_sites": ["layers.2", "layers.3"]}
KINDS: dict[str, Callable[[], Any]] = {
    "jumprelu": partial(hfsae.JumpReLUSAEConfig, **SMALL, **JUMP, **AUX),
    "topk": partial(hfsae.TopKSAEConfig, **SMALL, k=5, aux_k=16),
    "batch_topk": partial(hfsae.BatchTopKSAEConfig, **SMALL, k=5, aux_k=16),
    "matryoshka": partial(hfsae.MatryoshkaJumpReLUSAEConfig, **SMALL, **JUMP),
    "matryoshka_batch_topk": partial(hfsae.MatryoshkaBatchTopKSAEConfig, **SMALL, k=5, aux_k=16),
    "gated": partial(hfsae.GatedSAEConfig, **SMALL, target_l0=5),
    "relu": partial(hfsae.ReLUSAEConfig, **SMALL, target_l0=5),
    "crosscoder": partial(hfsae.BatchTopKSAEConfig, **PLACES, k=5, aux_k=16),
    "clt": partial(hfsae.BatchTopKCLTConfig, **PLACES, **TARGETS, k=5, aux_k=16),
    "jumprelu_clt": partial(hfsae.JumpReLUCLTConfig, **PLACES, **TARGETS, **JUMP, **AUX),
}
SPARSE = ("jumprelu", "topk", "batch_topk", "matryoshka", "matryoshka_batch_topk", "gated")
# A sparse step's lists have sizes that depend on values, which the host has to know; without Triton
# it also reads how many entries each block of latents has.
SIZES = {"ops/screening.py", "ops/sparse.py"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tiny_tokenizer) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rehearsal")
    child = forked.start(_rehearse, folder, tiny_tokenizer)
    assert forked.exit_codes([child], 300) == [0]
    return json.loads((folder / "seen.json").read_text())


def test_all_bits_are_the_cpus(seen):
    assert {name: part["is_same"] for name, part in seen.items()} == dict.fromkeys(seen, True)
    assert set(seen) >= {
        *KINDS,
        *(f"sparse {kind}" for kind in SPARSE),
        *("resumed", "steered", "evaluated", "refitted", "collected", "diffed", "attributed"),
        *("buffer on the cpu", "buffer on the device", "refused at the log"),
    }


@pytest.mark.parametrize("kind", [*KINDS, "resumed", "buffer on the cpu"])
def test_no_dense_step_waits_for_the_device_and_what_it_copies_there_is_not_waited_for(seen, kind):
    assert seen[kind]["waits"] == seen[kind]["uploads"] == {}


def test_with_the_buffer_on_the_device_a_new_bucket_alone_waits(seen):
    """For the sums whose hash tells whether two trainings saw the same activations."""
    part = seen["buffer on the device"]
    (line,) = part["waits"]
    assert line.startswith("activations/shuffle.py:") and part["waits"][line] == 2
    assert part["uploads"] == {}


@pytest.mark.parametrize(("at", "saved"), [("log", ["step-00000006.pt"]), ("checkpoint", [])])
def test_a_batch_that_is_not_finite_is_refused_before_anything_is_saved_of_it(seen, at, saved):
    """On a device, at the next step that waits in any case: logged or saved after the bad one."""
    part = seen[f"refused at the {at}"]
    assert part["said"].startswith("2 of 256 positions at 'layers.1' have NaN or infinite")
    assert part["saved"] == saved
    assert [json.loads(line)["step"] for line in part["log"].splitlines()] == [0]


@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_step_waits_for_the_sizes_of_lists_alone(seen, kind):
    part = seen[f"sparse {kind}"]
    assert {line.partition(":")[0] for line in part["waits"]} <= SIZES
    assert part["uploads"] == {}


def test_a_steered_or_spliced_pass_waits_once(seen):
    """To refuse what overflowed. `generate` waits by itself for each token, too."""
    for part in (seen["steered"], seen["spliced"]):
        assert {line.partition(":")[0] for line in part["waits"]} == {"lm/splicing.py"}
        assert sum(part["waits"].values()) == part["passes"]


@pytest.mark.parametrize("kind", ["evaluated", "reconstructed"])
def test_an_evaluation_waits_once_a_batch(seen, kind):
    """To learn which positions are kept: `within_limits`. transformers waits by itself as each pass
    begins, to see whether its rows are packed."""
    assert [*seen[kind]["waits"].values()] == [seen[kind]["batches"]]
    assert {line.partition(":")[0] for line in seen[kind]["waits"]} == {"evaluation/fidelity.py"}
    assert seen[kind]["uploads"] == {}


def test_harvesting_waits_twice_a_batch(seen):
    """To refuse what is not finite, and to learn which norms are outliers."""
    part = seen["harvested"]
    assert {line.partition(":")[0] for line in part["waits"]} == {"activations/harvest.py"}
    assert [*part["waits"].values()] == [part["batches"]] * 2
    assert part["uploads"] == {}


def test_collecting_waits_for_sizes_of_lists_and_for_the_harvest(seen):
    """Of firings, of peaks, and of windows that change, in the strongest rows and in the sample."""
    part = seen["collected"]
    files = ("activations/harvest.py", "features/collecting.py", "features/summary.py")
    waits = {file: 0 for file in files}
    for line, n in part["waits"].items():
        waits[line.partition(":")[0]] += n
    assert waits == dict(zip(files, (part["batches"] * n for n in (1, 1, 6)), strict=True))
    assert part["uploads"] == {}


def test_a_comparison_of_two_models_waits_three_times_a_batch(seen):
    """For its documents, and for the numbers of firings and of their pairs with tokens."""
    part = seen["diffed"]
    assert {line.partition(":")[0] for line in part["waits"]} == {"diffing/run.py"}
    assert [*part["waits"].values()] == [part["batches"]] * 3 and part["uploads"] == {}


def test_an_attribution_waits_some_twenty_times(seen):
    waits = seen["attributed"]["waits"]
    assert {line.partition(":")[0] for line in waits} == {"lm/splicing.py", "attribution.py"}
    assert sum(waits.values()) <= 20


@pytest.mark.slow
def test_a_step_of_two_processes_reads_no_value_that_one_does_not_read(tmp_path):
    """With latents spread, and with tokens, on a mesh of two CPUs: torch's rules of sharding make
    tensors without data, which the stand-in for a device cannot hold. The weights are those of one
    process. BatchTopK finds its cut as on a GPU; on CPUs each step reads its counts, which a GPU
    downloads."""
    for n in (1, 2):
        ranks = forked.start_ranks(n, _train_all, tmp_path / str(n))
        assert forked.exit_codes(ranks, 300) == [0] * n
    alone, spread = (torch.load(tmp_path / n / "found.pt") for n in ("1", "2"))
    for (kind, shard_latents), part in spread.items():
        one, of = alone[kind, True], f"{kind}, {'latents' if shard_latents else 'tokens'} spread"
        assert part["waits"] and not part["waits"] - one["waits"], of
        assert part["waits"]["ops/selection.py"] == 0, of
        for name, weights in one["tensors"].items():
            torch.testing.assert_close(part["tensors"][name], weights, atol=1e-3, rtol=2e-3)


class _HostReads(TorchFunctionMode):
    """Counts, by the package's file, calls that read a value, or need one to know a size; what
    DTensor reads by itself counts for the line that led to it."""

    NAMES = (
        *("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"),
        *("equal", "allclose", "nonzero", "masked_select", "unique", "bincount"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.files: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        index = args[1] if func.__name__ in ("__getitem__", "__setitem__") else None
        by_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
        if func.__name__ in self.NAMES or by_mask:
            ours = [f for f in traceback.extract_stack() if "/hfsae/" in f.filename]
            self.files.update(f.filename.rsplit("/hfsae/")[-1] for f in ours[-1:])
        return func(*args, **(kwargs or {}))


def _train_all(folder: Path) -> None:
    """Each kind, in a process of one or two."""
    rank, n = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    found, reads = {}, _HostReads()
    planted = partial(PlantedStream, 256, D, D_SAE, 6, world=(rank, n))
    with reads, patch.object(selection, "_COUNTED_ON", ()):
        for kind, shard_latents in product(KINDS, (True, False) if n > 1 else (True,)):
            options = {"make_stream": lambda sites: planted(sites=sites)}
            options["shard_latents"] = shard_latents
            out, counts = folder / f"{kind}-{shard_latents}", (reads.files, Counter())
            found[kind, shard_latents] = _train(out, kind, "cpu", counts, **options)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def _rehearse(folder: Path, tokenizer) -> None:
    from . import rehearsal

    seen: dict[str, Any] = {}
    ASYNCHRONOUS.add("cpu")  # the CPU's runs read counts as late as the device's
    for kind in KINDS:
        seen[kind] = _compared(partial(_train, folder / kind, kind), rehearsal)
    sparse.use_triton = False
    sparse.as_if_on_gpu = True
    for kind in SPARSE:
        train = partial(_train, folder / f"sparse-{kind}", kind, sparse="always")
        seen[f"sparse {kind}"] = _compared(train, rehearsal)
    sparse.as_if_on_gpu = False
    seen["resumed"] = _compared(partial(_train, folder / "resumed", "jumprelu", stop=7), rehearsal)
    seen["resumed"]["is_same"] &= seen["resumed"].pop("sum") == seen["jumprelu"].pop("sum")
    for name, call in {
        "steered": _steered,
        "spliced": _spliced,
        "harvested": _harvested,
        "collected": partial(_collected, tokenizer),
        "diffed": _diffed,
        "attributed": _attributed,
        "buffer on the cpu": partial(_shuffled, folder / "cpu", "cpu"),
        "buffer on the device": partial(_shuffled, folder / "device", "device"),
        "refused at the log": partial(_refused, folder / "log", 7),
        "refused at the checkpoint": partial(_refused, folder / "checkpoint", 4),
        "evaluated": partial(_evaluated, losses=True),
        "reconstructed": partial(_evaluated, losses=False),
        "refitted": _refitted,
    }.items():
        seen[name] = _compared(call, rehearsal)
    for part in seen.values():
        part.pop("sum", None)
    (folder / "seen.json").write_text(json.dumps(seen))


def _compared(work: Callable[..., dict[str, Any]], rehearsal: Any) -> dict[str, Any]:
    """The same work on both devices: whether all bits are the same, and what the second counted."""
    parts = []
    for device in ("cpu", "rehearsal"):
        counts = rehearsal.WAITS, rehearsal.UPLOADS
        parts.append(work(device, counts))
    on_cpu, on_device = (part.pop("tensors") for part in parts)
    same = [torch.equal(on_cpu[name], on_device[name].cpu()) for name in on_cpu]
    total = float(sum(x.double().sum() for x in on_cpu.values()))
    return {"is_same": all(same), "sum": total, **parts[1]}


@contextmanager
def _counting(counts: tuple[Counter, Counter], into: tuple[Counter, Counter]):
    before = [c.copy() for c in counts]
    yield
    for total, now, then in zip(into, counts, before, strict=True):
        total.update(now - then)


def _train(
    folder: Path,
    kind: str,
    device: str,
    counts,
    *,
    stop: int = 0,
    steps: int = STEPS,
    make_stream: Callable[[tuple[str, ...]], Any] | None = None,
    **fields,
) -> dict:
    """Waits and uploads are those of steps that are neither logged nor saved."""
    quiet = Counter(), Counter()
    for n_batches in (stop, 0) if stop else (0,):
        torch.manual_seed(0)
        sae: SAE = AutoModel.from_config(KINDS[kind]()).to(device)
        options = {"warm_start_steps": 6, "dead_after_tokens": 100, "save_steps": 0} | fields
        args = arguments(folder / device, steps, **options)
        accelerator = make_accelerator(args)
        for state in (PartialState, AcceleratorState):
            state._shared_state["device"] = torch.device(device)
        sites = tuple(hfsae.lm.widths_of(sae.config))
        make = make_stream or partial(PlantedStream, 256, D, D_SAE, 6)
        stream = make(sites)
        trainer = Trainer(sae, stream, args, accelerator=accelerator)
        if n_batches:
            stream.next_batch = stop_at(stream, n_batches)
        _count_steps(trainer, counts, quiet)
        try:
            sae = trainer.train()
        except KeyboardInterrupt:
            assert n_batches
    return {"tensors": sae.state_dict(), "waits": quiet[0], "uploads": quiet[1]}


def _count_steps(trainer: Trainer, counts, quiet) -> None:
    """From where a step asks for its batch to its end."""
    (one,) = trainer.runs.values()
    next_batch, step, before = trainer.stream.next_batch, one.step, list[Counter]()

    def begun():
        before[:] = [c.copy() for c in counts]
        return next_batch()

    def ended(batch, number, *, log=False):
        line = step(batch, number, log=log)
        # The warm start's end reads the threshold; step 0 makes the optimiser's state.
        if number and not log and number != one.control.warm_start_steps:
            for total, now, then in zip(quiet, counts, before, strict=True):
                total.update(now - then)
        return line

    trainer.stream.next_batch, one.step = begun, ended


def _lm(device: str) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": tiny.D, "intermediate_size": 32, "head_dim": 8, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    config = Gemma2Config(**sizes, **heads, sliding_window=8, bos_token_id=2, eos_token_id=None)
    lm = Gemma2ForCausalLM(config).eval().requires_grad_(False).to(device)
    lm.config.name_or_path = "tiny/gemma"
    return lm


def _ours(waits: Counter[str]) -> dict[str, int]:
    return {line: n for line, n in waits.items() if line != "?"}  # which transformers asks for


def _steered(device: str, counts) -> dict:
    lm, sae, own = _lm(device), tiny.make_sae().to(device), (Counter(), Counter())
    ids = tiny.tokens()["input_ids"][:1].to(device)
    with hfsae.steer(lm, sae, {3: 4.0}), _counting(counts, own):
        out = lm.generate(ids, max_new_tokens=5, do_sample=False)
    return {"tensors": {"ids": out}, "waits": _ours(own[0]), "passes": 5}


def _spliced(device: str, counts) -> dict:
    lm, sae, own = _lm(device), tiny.make_sae().to(device), (Counter(), Counter())
    batch = {name: x.to(device) for name, x in tiny.tokens().items()}
    with hfsae.splice(lm, sae), _counting(counts, own):
        logits = lm(**batch).logits
    return {"tensors": {"logits": logits}, "waits": own[0], "passes": 1}


def _refitted(device: str, counts) -> dict:
    """On a device that is not known to have sparse passes: dense ones."""
    with patch.object(sparse, "DEVICES", set()):
        sae = tiny.make_sae(variant="jumprelu").to(device).folded()
        x = torch.randn(200, tiny.D, generator=torch.Generator().manual_seed(0))
        refit_(sae, x, x, ridge=0.1)
    return {"tensors": sae.state_dict()}


def _rows(n: int) -> list[TokenBatch]:
    parts = [tiny.tokens(seed=i).values() for i in range(n)]
    return [
        TokenBatch(ids, mask.bool() & (ids != 2), torch.arange(3)[:, None].expand(ids.shape) + i)
        for i, (ids, mask) in enumerate(parts)
    ]


def _harvested(device: str, counts) -> dict:
    """Waits of all batches but the first, which gives the norms' limits."""
    first, *rest = _rows(3)
    args = HarvestArguments(rows=2, max_norm_ratio=1.1)
    harvest, own = Harvester(_lm(device), ["layers.0", "layers.1"], args), (Counter(), Counter())
    harvest(first)
    with _counting(counts, own):
        found = [harvest(batch) for batch in rest]
    assert harvest.dropped_outliers
    tensors = {f"{i} {site}": x for i, h in enumerate(found) for site, x in h.activations.items()}
    tensors |= {f"{i} token": h.tokens for i, h in enumerate(found)}
    return {"tensors": tensors, "waits": _ours(own[0]), "uploads": own[1], "batches": len(rest)}


def _evaluated(device: str, counts, *, losses: bool) -> dict:
    """Waits of all batches but the first, whose runs are compared, of two SAEs."""
    lm, n, own = _lm(device), 3, (Counter(), Counter())
    saes = {kind: tiny.make_sae(variant=kind).to(device) for kind in ("relu", "topk")}
    limits = {"layers.1": 4.5}
    args = hfsae.EvaluationArguments(n_tokens=None, bootstrap_samples=20, sae_batch_tokens=20)
    marks: list[tuple[Counter, ...]] = []
    results = evaluate_all(
        lm,
        saes,
        _rows(n),
        args,
        mean=torch.linspace(-1, 1, tiny.D),
        norm_limits=limits,
        losses=losses,
        progress=lambda done: marks.append(tuple(c.copy() for c in counts)),
    )
    for total, before, after in zip(own, marks[0], marks[-1], strict=True):
        total.update(after - before)
    tensors = {
        f"{name} {of} {key}": x
        for name, result in results.items()
        for of, sums in result.of_documents.items()
        for key, x in sums.items()
    }
    tensors |= {f"{name} density": result.density for name, result in results.items()}
    tensors |= {f"{name} l0": result.l0_histogram for name, result in results.items()}
    return {"tensors": tensors, "waits": _ours(own[0]), "uploads": own[1], "batches": n - 1}


class _OnDevice(PlantedStream):
    """A source whose activations are made on a device."""

    def __init__(self, device: str) -> None:
        super().__init__(batch_size=1024, d=D, n_features=D_SAE, l0=6)
        self.device = torch.device(device)

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        filling = super().fill(n, rank, n_processes)
        moved = ({at: upload(x, self.device) for at, x in part.items()} for part in filling.parts)
        return filling._replace(parts=moved)


def _shuffled(folder: Path, place: str, device: str, counts) -> dict:
    """A bucket serves for four batches; waits are those of steps and of handing them out."""
    where = ShuffleArguments(bucket_tokens=1024, device=device if place == "device" else "cpu")

    def stream(sites: tuple[str, ...]) -> ShuffledActivations:
        return ShuffledActivations(_OnDevice(device), where, 256)

    return _train(folder, "topk", device, counts, steps=12, make_stream=stream)


def _refused(folder: Path, bad_step: int, device: str, counts) -> dict:
    """A batch with NaN at a step that is neither logged nor saved: what is said then, and saved."""

    def stream(sites: tuple[str, ...]) -> PlantedStream:
        made = PlantedStream(d=D, n_features=D_SAE, l0=6, sites=sites)
        part = made.part

        def spoiled(number: int, n: int) -> dict[str, torch.Tensor]:
            x = {site: x.to(device) for site, x in part(number, n).items()}
            x[sites[0]][3:5, 0] = torch.nan if number == bad_step + 1 else 0.0
            return x

        made.part = spoiled
        return made

    with pytest.raises(ValueError) as refused:
        _train(folder, "jumprelu", device, counts, steps=12, make_stream=stream, save_steps=6)
    said = {"said": torch.tensor([*str(refused.value).encode()])}
    saved = sorted(p.name for p in (folder / device).glob("checkpoints/*"))
    log = (folder / device / "log.jsonl").read_text()
    return {"tensors": said, "said": str(refused.value), "saved": saved, "log": log}


def _collected(tokenizer, device: str, counts) -> dict:
    """Waits of all batches but the first."""
    lm, sae, own = _lm(device), tiny.make_sae().to(device), (Counter(), Counter())
    args, marks = CollectArguments(top=3, quantiles=2, per_quantile=1, reservoir=4), []
    store = collect(
        *(lm, sae, _rows(4), args),
        tokenizer=tokenizer,
        progress=lambda n: marks.append(tuple(c.copy() for c in counts)),
    )
    for total, before, after in zip(own, marks[0], marks[-1], strict=True):
        total.update(after - before)
    tables = store.latents.to_pydict(), store.examples.to_table().to_pydict()
    tensors = {"tables": torch.tensor([*repr(tables).encode()])}
    return {"tensors": tensors, "waits": _ours(own[0]), "uploads": own[1], "batches": 3}


def _diffed(device: str, counts) -> dict:
    sites, own = {"a/layers.1": tiny.D, "b/layers.1": tiny.D}, (Counter(), Counter())
    torch.manual_seed(0)
    config = hfsae.ReLUSAEConfig(sites=[*sites], d_in=2 * tiny.D, d_sae=tiny.D_SAE)
    sae = AutoModel.from_config(config).eval().to(device)
    generator, on = torch.Generator().manual_seed(0), torch.device(device)

    def batches():
        for i in range(3):
            x = {at: torch.randn(20, d, generator=generator) for at, d in sites.items()}
            marks.append(tuple(c.copy() for c in counts))
            document = torch.arange(20) // 5 + 4 * i
            made = {at: upload(x, on) for at, x in x.items()}
            yield ActivationBatch(made, upload(document, on), None, upload(document % 3, on))

    marks: list[tuple[Counter, ...]] = []
    record = compared(sae, batches(), 16, str)
    for total, before, after in zip(own, marks[0], marks[-1], strict=True):
        total.update(after - before)
    tensors = {"record": torch.tensor([*json.dumps(record).encode()])}
    return {"tensors": tensors, "waits": _ours(own[0]), "uploads": own[1], "batches": 2}


def _attributed(device: str, counts) -> dict:
    lm, sae, own = _lm(device), tiny.make_sae().to(device), (Counter(), Counter())
    with _counting(counts, own):
        ids = tiny.tokens()["input_ids"][:1]
        found = hfsae.attribute(lm, sae, ids, target=100, ablate=3, integration_steps=2)
    values = {name: torch.as_tensor(x) for name, x in found._asdict().items() if x is not None}
    tensors = {name: x.nan_to_num() for name, x in values.items()}
    return {"tensors": tensors, "waits": _ours(own[0]), "uploads": own[1]}
