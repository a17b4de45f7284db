"""The sides of `step.py`: a training step of each library, or inference, run by its own Python.

Every side that trains does so at learning rate 1e-6 on the same planted activations, and starts
from the planted dictionary, so that its L0 is what was asked for and stays there.
"""

import argparse
import warnings
from collections.abc import Callable

import torch
import turns
from torch import Tensor
from torch.nn.functional import normalize

Step = Callable[[Tensor], Callable[[], float]]  # what it gives tells the L0, out of the timing
Sides = dict[str, Callable[["Problem"], Step]]
LEARNING_RATE, BANDWIDTH, L0_COEFFICIENT = 1e-6, 0.05, 1e-3


class Problem:
    """x = sparse sums of `d_sae` unit directions, frequencies by a power law, in units of unit
    mean squared coordinates; `threshold` lets `l0` latents of a token pass."""

    def __init__(self, d_in: int, d_sae: int, batch: int, l0: int) -> None:
        self.d_in, self.d_sae, self.batch, self.l0 = d_in, d_sae, batch, l0
        generator = torch.Generator().manual_seed(0)
        self.W = normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
        share = self._frequencies()[torch.randperm(d_sae, generator=generator)]
        x = [self._activations(share, generator) for _ in range(2)]
        size = d_in**0.5 / torch.cat(x).norm(dim=1).mean()
        self.x = [size * each for each in x]
        z = self.x[0][:512] @ self.W.T
        self.threshold = float(z.flatten().topk(len(z) * l0).values[-1])

    def _frequencies(self) -> Tensor:
        share = torch.arange(1, self.d_sae + 1) ** -0.9
        for _ in range(50):  # none fires on more than 3 tokens of 10
            share = (share * (self.l0 / share.sum())).clamp(max=0.3)
        return share

    def _activations(self, share: Tensor, generator: torch.Generator) -> Tensor:
        rows = []
        for n in [256] * (self.batch // 256) + [self.batch % 256]:
            on = torch.rand(n, self.d_sae, generator=generator) < share
            rows.append((on * (0.6 + 0.8 * torch.rand(on.shape, generator=generator))) @ self.W)
        x = torch.cat(rows)
        return x + 0.02 * torch.randn(x.shape, generator=generator)


def _hfsae(problem: Problem, sparse: str, bf16: bool = False, n_sites: int = 1, **fields) -> Step:
    from accelerate import Accelerator
    from transformers import AutoConfig, AutoModel

    from hfsae.training import Run, TrainingArguments

    widths = {"d_in": problem.d_in, "d_sae": problem.d_sae, "activation_scale": 1.0}
    sites = [f"x{i}" for i in range(n_sites)]
    where = {"sites": sites, "site_scales": [n_sites**-0.5] * n_sites} if n_sites > 1 else {}
    sae = AutoModel.from_config(
        AutoConfig.for_model(**(where or {"site": "x"}), **widths, **fields)
    )
    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W / sae.row_norms(problem.W)[:, None])
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(problem.threshold)
        else:
            sae.b_enc.fill_(0.0 if hasattr(sae.config, "k") else -problem.threshold)
    args = TrainingArguments(
        n_tokens=10**6 * problem.batch,
        batch_size=problem.batch,
        learning_rate=LEARNING_RATE,
        adam_beta1=0.9,
        max_grad_norm=1.0,
        warmup_steps=0,
        sparsity_warmup_steps=0,
        sparse=sparse,
        bf16=bf16,
    )
    run = Run(sae, args, Accelerator(cpu=not problem.x[0].is_cuda))
    done = iter(range(10**6))

    def step(x: Tensor) -> Callable[[], float]:
        batch = sae.split(x) if where else {"x": x}
        run.step(batch, next(done))
        return lambda: run.step(batch, next(done), log=True)["l0"]

    return step


def jumprelu(problem: Problem, sparse: str, bf16: bool = False, n_sites: int = 1) -> Step:
    fields = {"l0_coefficient": L0_COEFFICIENT, "bandwidth": BANDWIDTH, "log_threshold": False}
    return _hfsae(problem, sparse, bf16, n_sites, model_type="jumprelu_sae", **fields)


def batch_topk(problem: Problem, n_sites: int = 1) -> Step:
    return _hfsae(problem, "always", n_sites=n_sites, model_type="batch_topk_sae", k=problem.l0)


def topk(problem: Problem, sparse: str) -> Step:
    return _hfsae(problem, sparse, model_type="topk_sae", k=problem.l0)


def other(model_type: str) -> Callable[[Problem], Step]:
    return lambda problem: _hfsae(problem, "always", model_type=model_type)


def product(problem: Problem, dtype: torch.dtype) -> Step:
    """The encoder's product alone, into memory that is there already."""
    W = problem.W.to(dtype).T
    out = torch.empty(problem.batch, problem.d_sae, dtype=dtype)
    inputs = {id(x): x.to(dtype) for x in problem.x}

    def step(x: Tensor) -> Callable[[], float]:
        torch.mm(inputs[id(x)], W, out=out)
        return lambda: float("nan")

    return step


def _saelens(problem: Problem, sae, autocast: bool = False) -> Step:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W)
    config = SAETrainerConfig(
        total_training_samples=10**6 * problem.batch,
        train_batch_size_samples=problem.batch,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        autocast=autocast,
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def step(x: Tensor) -> Callable[[], float]:
        latents = trainer.step(x).feature_acts.detach()
        return lambda: float(latents.to_dense().count_nonzero()) / problem.batch

    return step


def saelens_jumprelu(problem: Problem, autocast: bool = False) -> Step:
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    config = JumpReLUTrainingSAEConfig(
        d_in=problem.d_in,
        d_sae=problem.d_sae,
        jumprelu_init_threshold=problem.threshold,
        jumprelu_bandwidth=BANDWIDTH,
        l0_coefficient=L0_COEFFICIENT,
    )
    return _saelens(problem, JumpReLUTrainingSAE(config), autocast)


def saelens_topk(problem: Problem, use_sparse: bool = False) -> Step:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    config = TopKTrainingSAEConfig(
        d_in=problem.d_in,
        d_sae=problem.d_sae,
        k=problem.l0,
        use_sparse_activations=use_sparse,
        rescale_acts_by_decoder_norm=not use_sparse,  # its backward pass knows no sparse tensors
    )
    return _saelens(problem, TopKTrainingSAE(config))


def dictionary_learning_jumprelu(problem: Problem) -> Step:
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(
        steps=10**6,
        activation_dim=problem.d_in,
        dict_size=problem.d_sae,
        layer=0,
        lm_name="none",
        seed=0,
        lr=LEARNING_RATE,
        warmup_steps=1,
        sparsity_warmup_steps=1,
        bandwidth=BANDWIDTH,
        sparsity_penalty=L0_COEFFICIENT,
        target_l0=problem.l0,
        device="cpu",
    )
    with torch.no_grad():
        trainer.ae.W_enc.copy_(problem.W.T)
        trainer.ae.W_dec.copy_(problem.W)
        trainer.ae.threshold.fill_(problem.threshold)
    done = iter(range(1, 10**6))

    def step(x: Tensor) -> Callable[[], float]:
        trainer.update(next(done), x)
        return lambda: float((trainer.ae.encode(x) != 0).sum()) / problem.batch

    return step


def sparsify_topk(problem: Problem) -> Step:
    """As `sparsify.Trainer.fit` does for one hookpoint and "adam", which it does inside a language
    model's forward hook; with the clipping that the others do left out, as it is there."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(
        problem.d_in, SparseCoderConfig(num_latents=problem.d_sae, k=problem.l0), device="cpu"
    )
    with torch.no_grad():
        coder.encoder.weight.copy_(problem.W)
        coder.W_dec.copy_(problem.W)
    adam = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)
    since_fired = torch.zeros(problem.d_sae, dtype=torch.long)

    def step(x: Tensor) -> Callable[[], float]:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired = torch.zeros(problem.d_sae, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0
        acts = out.latent_acts.detach()
        return lambda: float(acts.count_nonzero()) / problem.batch

    return step


def _inference(problem: Problem, latents_of: Callable[[Tensor], Tensor]) -> Step:
    """`latents_of` makes reconstructions, too."""

    def step(x: Tensor) -> Callable[[], float]:
        with torch.no_grad():
            latents = latents_of(x)
        return lambda: float(latents.count_nonzero()) / problem.batch

    return step


def inference(problem: Problem, sparse: bool) -> Step:
    from hfsae import JumpReLUSAE, JumpReLUSAEConfig
    from hfsae.ops import Workspace

    widths = {"d_in": problem.d_in, "d_sae": problem.d_sae, "activation_scale": 1.0}
    sae = JumpReLUSAE(JumpReLUSAEConfig(bandwidth=1e-6, **widths)).eval()
    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W)
        sae.threshold.fill_(problem.threshold)
    workspace = Workspace() if sparse else None
    return _inference(problem, lambda x: sae(x, workspace=workspace).latents)


def saelens_inference(problem: Problem) -> Step:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=problem.d_in, d_sae=problem.d_sae))
    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W)
        sae.threshold.fill_(problem.threshold)

    def latents_of(x: Tensor) -> Tensor:
        latents = sae.encode(x)
        sae.decode(latents)
        return latents

    return _inference(problem, latents_of)


def dictionary_learning_inference(problem: Problem) -> Step:
    from dictionary_learning.dictionary import JumpReluAutoEncoder

    sae = JumpReluAutoEncoder(problem.d_in, problem.d_sae)
    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W)
        sae.threshold.fill_(problem.threshold)
    return _inference(problem, lambda x: sae(x, output_features=True)[1])


def sparsify_inference(problem: Problem) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=problem.d_sae, k=problem.l0)
    coder = SparseCoder(problem.d_in, config, device="cpu")
    with torch.no_grad():
        coder.encoder.weight.copy_(problem.W)
        coder.W_dec.copy_(problem.W)

    def latents_of(x: Tensor) -> Tensor:
        latents = coder.encode(x)
        coder.decode(latents.top_acts, latents.top_indices)
        return latents.top_acts

    return _inference(problem, latents_of)


SIDES: dict[str, Sides] = {
    "hfsae": {
        "jumprelu": lambda p: jumprelu(p, "always"),
        "jumprelu_dense": lambda p: jumprelu(p, "never"),
        "topk": lambda p: topk(p, "always"),
        "topk_dense": lambda p: topk(p, "never"),
        "batch_topk": batch_topk,
        "jumprelu_three_sites": lambda p: jumprelu(p, "always", n_sites=3),
        "batch_topk_three_sites": lambda p: batch_topk(p, n_sites=3),
        "relu": other("relu_sae"),
        "gated": other("gated_sae"),
        "inference": lambda p: inference(p, sparse=True),
        "inference_dense": lambda p: inference(p, sparse=False),
        "product_bf16": lambda p: product(p, torch.bfloat16),
        "product_float32": lambda p: product(p, torch.float32),
    },
    "saelens": {
        "jumprelu": saelens_jumprelu,
        "jumprelu_autocast": lambda p: saelens_jumprelu(p, autocast=True),
        "topk": saelens_topk,
        "topk_sparse": lambda p: saelens_topk(p, use_sparse=True),
        "inference": saelens_inference,
    },
    "dictionary_learning": {
        "jumprelu": dictionary_learning_jumprelu,
        "inference": dictionary_learning_inference,
    },
    "sparsify": {"topk": sparsify_topk, "inference": sparsify_inference},
}


TRAINERS = {  # imported before memory is counted
    "hfsae": "hfsae.training.run",
    "saelens": "sae_lens.training.sae_trainer",
    "dictionary_learning": "dictionary_learning.trainers.jumprelu",
    "sparsify": "sparsify",
}


def serve_steps(library: str, name: str, problem: Problem) -> None:
    def make() -> turns.Step:
        step = SIDES[library][name](problem)

        def turn(n_steps: int) -> Callable[[], dict[str, float]]:
            tell_l0 = step(problem.x[n_steps % 2])
            return lambda: {"L0": tell_l0()}

        return turn

    turns.serve(make, TRAINERS[library])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=SIDES)
    parser.add_argument("name")
    for name in ("d_in", "d_sae", "batch", "l0"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = vars(parser.parse_args())
    library, name = given.pop("library"), given.pop("name")
    warnings.simplefilter("ignore")
    serve_steps(library, name, Problem(**given))
