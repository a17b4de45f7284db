"""The sides of `quality.py`: an SAE of one library, trained and measured by its own Python.

Each trains as its library does in its own loop: start, loss, clipping, schedule. Activations come
in the unit that the library asks for, and with --centred less their mean, which hfsae subtracts by
itself. Schedules that a library leaves to its user are the usual ones: a short warm-up, rates that
fall at the end.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WARMUP, DECAY = 30, 0.25  # steps; share of all steps
BUCKET = 131_072
_AT_ONCE = 2048
_SAMPLE = 2**15


@dataclass
class Problem:
    train: Tensor
    """[n, d], raw activations in the order of training"""
    batch: int
    d_sae: int
    l0: int
    rate: float
    seed: int
    centred: bool = False
    """whether the other libraries get activations less their mean"""
    bucket: int = BUCKET
    """activations that are passed over several times before the next come"""
    start: Path | None = None
    """from `write_start`: encoder columns and decoder rows that they start at"""

    @property
    def n_steps(self) -> int:
        return len(self.train) // self.batch

    def batches(self, scale: float):
        for x in self.train.split(self.batch)[: self.n_steps]:
            yield (x.float() - self.shift) / scale

    @cached_property
    def shift(self) -> Tensor:
        """The mean of a sample, or zeros."""
        mean = self.train[:_SAMPLE].float().mean(dim=0)
        return mean if self.centred else torch.zeros_like(mean)

    @cached_property
    def scale(self) -> float:
        """Root of the mean squared norm, of a sample."""
        sample = self.train[:_SAMPLE].float() - self.shift
        return float(sample.square().sum(-1).mean().sqrt())

    @torch.no_grad()
    def set_start_(self, W_enc: Tensor, W_dec: Tensor) -> None:
        """Give a library's weights, [d, d_sae] and [d_sae, d], hfsae's start, if that is asked."""
        if self.start is not None:
            weights = load_file(self.start)
            W_enc.copy_(weights["W_enc"])
            W_dec.copy_(weights["W_dec"])

    @property
    def moments(self) -> dict[str, float]:
        """SAELens' names of Adam's moments, where they are hfsae's."""
        return {"adam_beta1": 0.7, "adam_beta2": 0.99} if self.start else {}


class Trained(NamedTuple):
    scale: float
    """activations are divided by it"""
    latents: Callable[[Tensor, float], Tensor]
    """(x, factor) -> latents, thresholds times the factor; with exactly k, it does not count"""
    decode: Callable[[Tensor], Tensor]
    has_threshold: bool
    pre: Callable[[Tensor], Tensor] | None = None
    """x -> what latents are selected from"""
    threshold: float | Tensor = 0.0
    shift: Tensor | float = 0.0
    """before that, it is subtracted from activations"""

    def units(self, x: Tensor) -> Tensor:
        """Raw activations as the SAE gets them."""
        return (x.float() - self.shift) / self.scale


OF_HFSAE: dict[str, Callable[[int], dict]] = {
    "JumpReLU": lambda l0: {
        "model_type": "jumprelu_sae",
        "target_l0": l0,
        "bandwidth": 0.03,
        "log_threshold": False,
        "aux_coefficient": 0.03125,
    },
    "BatchTopK": lambda l0: {"model_type": "batch_topk_sae", "k": l0},
    "TopK": lambda l0: {"model_type": "topk_sae", "k": l0},
}
"""The fields of each variant's config, for an L0."""


def hfsae(
    problem: Problem, name: str, changes: dict | None = None, *, paper: bool = False
) -> Trained:
    """By the quickstart's settings of training, or the paper's, which are the defaults; with
    changes."""
    from transformers import AutoConfig, AutoModel

    from hfsae.activations import TensorSource
    from hfsae.runs import read_recipe
    from hfsae.training import Trainer, TrainingArguments

    class Buckets(TensorSource):
        def held(self) -> dict[str, Tensor]:
            return {"x": problem.train[-problem.bucket :]}

    own = {"d_in": problem.train.shape[1], "d_sae": problem.d_sae, "site": "x"}
    torch.manual_seed(problem.seed)
    of_variant = OF_HFSAE[name](problem.l0)
    if paper:
        of_variant = {"model_type": "jumprelu_sae", "target_l0": problem.l0}
    sae = AutoModel.from_config(AutoConfig.for_model(subtract_b_dec=True, **own, **of_variant))
    args = TrainingArguments() if paper else read_recipe("quickstart").training
    args.n_tokens, args.batch_size = len(problem.train), problem.batch
    args.learning_rate, args.save_steps = problem.rate, 0
    args.calibration_tokens = 0  # all sides are measured at one L0
    args.warm_start_l0 = 1.0  # the quickstart's 2 has an FVU 1 % larger
    for field, value in (changes or {}).items():
        setattr(args, field, value)
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        Trainer(sae, Buckets({"x": problem.train}, problem.batch), args).train()
        sae = AutoModel.from_pretrained(folder).eval()
    has_threshold = hasattr(sae, "threshold")
    first = sae.threshold.detach().clone() if has_threshold else torch.tensor(0.0)

    def latents(x: Tensor, factor: float) -> Tensor:
        if has_threshold:
            sae.threshold.data.copy_(first * factor)
        return sae.encode(x)

    return Trained(1.0, latents, sae.decode, has_threshold, sae.pre_activations, first)


@torch.no_grad()
def write_start(train: Tensor, d_sae: int, seed: int, path: Path) -> None:
    """Write the weights at which the quickstart's recipe starts on these activations."""
    from hfsae import BatchTopKSAE, BatchTopKSAEConfig
    from hfsae.runs import read_recipe
    from hfsae.training import sample_size, start_

    torch.manual_seed(seed)
    d_in, args = train.shape[1], read_recipe("quickstart").training
    sae = BatchTopKSAE(BatchTopKSAEConfig(d_in=d_in, d_sae=d_sae, k=1, site="x"))
    x = train[: sample_size(args)].float()
    start_(sae, args, x, x)
    save_file({"W_enc": sae.W_enc.contiguous(), "W_dec": sae.W_dec.contiguous()}, path)


def saelens(problem: Problem, kind: str) -> Trained:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_in = problem.train.shape[1]
    scale = problem.scale / d_in**0.5  # as normalize_activations="expected_average_only_in"
    torch.manual_seed(problem.seed)
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=d_in, d_sae=problem.d_sae, k=problem.l0
    )
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    problem.set_start_(sae.W_enc, sae.W_dec)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=problem.n_steps * problem.batch,
            train_batch_size_samples=problem.batch,
            lr=problem.rate,
            dead_feature_window=100,  # its 1,000 steps are more than a short run has
            lr_end=problem.rate / 10,  # as its own config sets it
            lr_warm_up_steps=WARMUP,
            lr_decay_steps=int(DECAY * problem.n_steps),
            **problem.moments,
        ),
        sae=sae,
        data_provider=iter(()),
    )
    for x in problem.batches(scale):
        trainer.step(x)
        trainer.n_training_samples += len(x)

    def pre(x: Tensor) -> Tensor:
        hidden = sae.process_sae_in(x) @ sae.W_enc + sae.b_enc
        return hidden * sae.W_dec.norm(dim=-1)

    return _selected(
        problem, scale, pre, sae.decode, kind, float(getattr(sae, "topk_threshold", 0))
    )


def _selected(
    problem: Problem,
    scale: float,
    pre: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    kind: str,
    threshold: float,
) -> Trained:
    """Exactly k of each token's pre-activations, or those above one threshold."""

    def latents(x: Tensor, factor: float) -> Tensor:
        z = pre(x).relu()
        if kind == "TopK":
            top = z.topk(problem.l0, dim=-1)
            return torch.zeros_like(z).scatter_(-1, top.indices, top.values)
        return z * (z > threshold * factor)

    return Trained(scale, latents, decode, kind != "TopK", pre, threshold, problem.shift)


def dictionary_learning(problem: Problem, kind: str) -> Trained:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=problem.n_steps,
        activation_dim=problem.train.shape[1],
        dict_size=problem.d_sae,
        k=problem.l0,
        layer=0,
        lm_name="none",
        lr=problem.rate,
        warmup_steps=WARMUP,
        decay_start=int((1 - DECAY) * problem.n_steps),
        threshold_start_step=problem.n_steps // 2,
        threshold_beta=0.99,
        seed=problem.seed,
        device="cpu",
    )
    problem.set_start_(trainer.ae.encoder.weight.T, trainer.ae.decoder.weight.T)
    for step, x in enumerate(problem.batches(problem.scale)):
        trainer.update(step, x)
    ae = trainer.ae

    def pre(x: Tensor) -> Tensor:
        return ae.encoder(x - ae.b_dec)

    return _selected(problem, problem.scale, pre, ae.decode, kind, float(ae.threshold))


def sparsify(problem: Problem, kind: str) -> Trained:
    """As `sparsify.Trainer.fit` does for one hookpoint and "adam"."""
    from sparsify import SparseCoder, SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    d_in = problem.train.shape[1]
    scale = problem.scale / d_in**0.5
    torch.manual_seed(problem.seed)
    config = SparseCoderConfig(num_latents=problem.d_sae, k=problem.l0)
    coder = SparseCoder(d_in, config, device="cpu")
    coder.b_dec.data.copy_((problem.train[:_SAMPLE].float().mean(dim=0) - problem.shift) / scale)
    problem.set_start_(coder.encoder.weight.T, coder.W_dec)
    betas = (0.7, 0.99) if problem.start else (0.9, 0.999)
    adam = torch.optim.Adam(coder.parameters(), lr=problem.rate, betas=betas)
    schedule = get_linear_schedule_with_warmup(adam, WARMUP, problem.n_steps)
    for x in problem.batches(scale):
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        schedule.step()
    coder.set_decoder_norm_to_unit_norm()

    def pre(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x - coder.b_dec, coder.encoder.weight, coder.encoder.bias)

    def decode(latents: Tensor) -> Tensor:
        return latents @ coder.W_dec + coder.b_dec

    return _selected(problem, scale, pre, decode, kind, 0.0)


SIDES: dict[str, dict[str, Callable[[Problem], Trained]]] = {
    "hfsae": {name: partial(hfsae, name=name) for name in OF_HFSAE},
    "saelens": {
        "BatchTopK": lambda p: saelens(p, "BatchTopK"),
        "TopK": lambda p: saelens(p, "TopK"),
    },
    "dictionary_learning": {"BatchTopK": lambda p: dictionary_learning(p, "BatchTopK")},
    "sparsify": {"TopK": lambda p: sparsify(p, "TopK")},
}


def again(x: Tensor, passes: int, size: int = BUCKET) -> Tensor:
    """Each bucket in the order of the file, then `passes - 1` times in other orders."""
    if passes == 1:
        return x
    generator, parts = torch.Generator().manual_seed(0), list[Tensor]()
    for bucket in x.split(size):
        orders = (torch.randperm(len(bucket), generator=generator) for _ in range(passes - 1))
        parts += [bucket, *(bucket[order] for order in orders)]
    return torch.cat(parts)


@torch.no_grad()
def measure(trained: Trained, x: Tensor, factor: float) -> dict[str, float]:
    """FVU, pooled; mean L0; share of latents that never fired."""
    error, l0, fired = 0.0, 0, torch.tensor(False)
    for part in x.split(_AT_ONCE):
        part = trained.units(part)
        latents = trained.latents(part, factor)
        error += float((part - trained.decode(latents)).square().sum())
        l0 += int((latents != 0).sum())
        fired = fired | (latents != 0).any(dim=0)
    whole = trained.units(x)
    variance = float((whole - whole.mean(dim=0)).square().sum())
    dead = float((~fired).float().mean())
    return {"fvu": error / variance, "l0": l0 / len(x), "dead": dead, "factor": factor}


def at_l0(trained: Trained, x: Tensor, l0: int) -> float:
    """The factor on thresholds for which L0 is `l0`, by bisection."""
    if not trained.has_threshold:
        return 1.0
    low, high = 1e-3, 1e3
    for _ in range(30):
        factor = (low * high) ** 0.5
        low, high = (factor, high) if measure(trained, x, factor)["l0"] > l0 else (low, factor)
    return factor


@torch.no_grad()
def weights_of(trained: Trained, d_in: int, d_sae: int) -> dict[str, Tensor]:
    """The same SAE by hfsae's names, of activations over the scale: what lies before and after the
    selection is affine. Steps are large, so that biases do not round them away."""
    assert trained.pre is not None
    step, origin = 2.0**10, trained.units(torch.zeros(1, d_in))
    b_enc, b_dec = trained.pre(origin), trained.decode(torch.zeros(1, d_sae))
    columns = trained.pre(origin + step * torch.eye(d_in)) - b_enc
    rows = trained.decode(step * torch.eye(d_sae)) - b_dec
    weights = {"W_enc": columns / step, "b_enc": b_enc[0]}
    weights |= {"W_dec": rows / step, "b_dec": (b_dec - origin)[0]}
    if trained.has_threshold:
        weights["threshold"] = torch.as_tensor(trained.threshold)
    return {name: value.contiguous() for name, value in weights.items()}


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """For scripts that train hfsae's SAEs on activations that quality.py harvested."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("activations", type=Path)
    parser.add_argument("--variants", nargs="*", choices=OF_HFSAE, default=["BatchTopK"])
    parser.add_argument("--d_sae", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=SIDES)
    parser.add_argument("name")
    parser.add_argument("--activations", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--centred", action="store_true", help="subtract the mean first")
    parser.add_argument("--start", type=Path, help="weights to start at, centred")
    parser.add_argument("--weights", type=Path, help="where to write the SAE's weights")
    for name in ("d_sae", "l0", "batch", "seed", "passes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tensors = load_file(args.activations)
    train = again(tensors["train"], args.passes)
    problem = Problem(
        train, args.batch, args.d_sae, args.l0, args.rate, args.seed, args.centred, args.start
    )
    start = time.perf_counter()
    trained = SIDES[args.library][args.name](problem)
    seconds = time.perf_counter() - start
    validation = tensors["validation"]
    factor = at_l0(trained, validation[:8192], args.l0)
    if args.weights:
        weights = weights_of(trained, train.shape[1], args.d_sae)
        about = {"scale": trained.scale, "seconds": seconds, "factor": factor}
        save_file(weights, args.weights, {name: str(value) for name, value in about.items()})
    result = {
        "own_l0": measure(trained, tensors["test"], 1.0)["l0"],
        "validation": measure(trained, validation, factor),
        "test": measure(trained, tensors["test"], factor),
        "seconds": seconds,
    }
    args.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
