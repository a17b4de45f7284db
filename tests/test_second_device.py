"""On a second device (`tests.rehearsal`): no operation mixes devices, the bits are the CPU's, and
the host waits for the device only where it is told here.

One forked process runs it all, since a device is registered for a whole process.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import AutoModel, Gemma2Config, Gemma2ForCausalLM

import hfsae
from hfsae.activations import HarvestArguments, Harvester, TokenBatch
from hfsae.evaluation import evaluate_all
from hfsae.models import SAE
from hfsae.ops import ASYNCHRONOUS, sparse
from hfsae.training import Trainer, run
from hfsae.training.refit import refit_
from hfsae.training.trainer import make_accelerator

from . import forked, tiny
from .training.planted import PlantedStream, arguments, stop_at

D, D_SAE, STEPS = 32, 128, 24
SMALL = {"d_in": D, "d_sae": D_SAE, "site": "layers.1"}
JUMP = {"bandwidth": 0.1, "initial_threshold": 0.1, "l0_coefficient": 0.01, "target_l0": 5}
AUX = {"aux_coefficient": 1 / 32, "aux_k": 16}
PLACES = {"sites": ["layers.0", "layers.1"], "d_in": 2 * D, "d_sae": D_SAE}
KINDS: dict[str, Callable[[], Any]] = {
    "jumprelu": partial(hfsae.JumpReLUSAEConfig, **SMALL, **JUMP, **AUX),
    "topk": partial(hfsae.TopKSAEConfig, **SMALL, k=5, aux_k=16),
    "batch_topk": partial(hfsae.BatchTopKSAEConfig, **SMALL, k=5, aux_k=16),
    "matryoshka": partial(hfsae.MatryoshkaJumpReLUSAEConfig, **SMALL, **JUMP),
    "gated": partial(hfsae.GatedSAEConfig, **SMALL, target_l0=5),
    "relu": partial(hfsae.ReLUSAEConfig, **SMALL, target_l0=5),
    "crosscoder": partial(hfsae.BatchTopKSAEConfig, **PLACES, k=5, aux_k=16),
    "clt": partial(
        hfsae.BatchTopKCLTConfig, **PLACES, target_sites=["layers.2", "layers.3"], k=5, aux_k=16
    ),
}
SPARSE = ("jumprelu", "topk", "batch_topk", "matryoshka", "gated")
# A sparse step's lists have sizes that depend on values, which the host has to know; without Triton
# it also reads how many entries each block of latents has.
SIZES = {"ops/screening.py", "ops/sparse.py"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rehearsal")
    child = forked.CONTEXT.Process(target=_rehearse, args=(folder,))
    child.start()
    assert forked.exit_codes([child], 300) == [0]
    return json.loads((folder / "seen.json").read_text())


def test_all_bits_are_the_cpus(seen):
    assert {name: part["is_same"] for name, part in seen.items()} == dict.fromkeys(seen, True)
    assert set(seen) >= {
        *KINDS,
        *(f"sparse {kind}" for kind in SPARSE),
        "resumed",
        "steered",
        "evaluated",
        "refitted",
    }


@pytest.mark.parametrize("kind", [*KINDS, "resumed"])
def test_no_dense_step_waits_for_the_device_and_what_it_copies_there_is_not_waited_for(seen, kind):
    assert seen[kind]["waits"] == seen[kind]["uploads"] == {}


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


def _rehearse(folder: Path) -> None:
    from . import rehearsal

    seen: dict[str, Any] = {}
    ASYNCHRONOUS.add("cpu")  # the CPU's runs read counts as late as the device's
    for kind in KINDS:
        seen[kind] = _compared(partial(_train, folder / kind, kind), rehearsal)
    sparse.use_triton = False  # `has_sparse_steps` knows the types of devices that were tried
    run.has_sparse_steps = lambda sae, device, *, is_spread: sae.can_be_sparse
    sparse.as_if_on_gpu = True
    for kind in SPARSE:
        train = partial(_train, folder / f"sparse-{kind}", kind, sparse="always")
        seen[f"sparse {kind}"] = _compared(train, rehearsal)
    sparse.as_if_on_gpu = False
    seen["resumed"] = _compared(partial(_train, folder / "resumed", "jumprelu", stop=14), rehearsal)
    seen["resumed"]["is_same"] &= seen["resumed"].pop("sum") == seen["jumprelu"].pop("sum")
    for name, call in {
        "steered": _steered,
        "spliced": _spliced,
        "harvested": _harvested,
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


def _train(folder: Path, kind: str, device: str, counts, *, stop: int = 0, **fields) -> dict:
    """Waits and uploads are those of steps that are neither logged nor saved."""
    quiet = Counter(), Counter()
    for n_batches in (stop, 0) if stop else (0,):
        torch.manual_seed(0)
        sae: SAE = AutoModel.from_config(KINDS[kind]()).to(device)
        options = {"warm_start_steps": 6, "dead_after_tokens": 1024, "save_steps": 0} | fields
        args = arguments(folder / device, STEPS, **options)
        accelerator = make_accelerator(args)
        for state in (PartialState, AcceleratorState):
            state._shared_state["device"] = torch.device(device)
        sites = tuple(hfsae.lm.widths_of(sae.config))
        stream = PlantedStream(d=D, n_features=D_SAE, l0=6, sites=sites)
        trainer = Trainer(sae, stream, args, accelerator=accelerator)
        if n_batches:
            stream.next_batch = stop_at(stream, n_batches)
        for one in trainer.runs.values():
            one.step = _counted(one, counts, quiet)
        try:
            sae = trainer.train()
        except KeyboardInterrupt:
            assert n_batches
    return {"tensors": sae.state_dict(), "waits": quiet[0], "uploads": quiet[1]}


def _counted(one: run.Run, counts, quiet):
    step = one.step

    def counted(batch, number, *, log=False):
        # The warm start's end reads the threshold; step 0 makes the optimiser's state.
        is_quiet = number and not log and number != one.control.warm_start_steps
        with _counting(counts, quiet if is_quiet else (Counter(), Counter())):
            return step(batch, number, log=log)

    return counted


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
    """A device that is not known to have sparse passes takes dense ones, as does the CPU here."""
    with patch.object(sparse, "DEVICES", sparse.DEVICES - {"cpu"}):
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
