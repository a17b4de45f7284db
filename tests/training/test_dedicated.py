"""Latents of the last site alone find a change that a crosscoder of free rows hides in others."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel

from hfsae import BatchTopKCLTConfig, BatchTopKSAE, BatchTopKSAEConfig, Refused
from hfsae.activations import TensorSource
from hfsae.diffing import Scaling, Sides
from hfsae.models.dedicated import are_dedicated, tie_
from hfsae.training import Trainer
from hfsae.training.run import check_refit

from .planted import arguments, check_shapes_of_step

D, FEATURES, CHANGED, FIRING = 32, 48, 4, 4
SITES = ["base/layers.1", "chat/layers.1"]


class Changed(TensorSource):
    """Sums of about four features, the same at both sites; where one of the first four fires, the
    second site has a vector besides."""

    def __init__(self, batch_size: int = 256):
        generator = torch.Generator().manual_seed(5)
        self.directions = normalize(torch.randn(FEATURES, D, generator=generator), dim=1)
        self.vector = 1.0 * normalize(torch.randn(D, generator=generator), dim=0)
        super().__init__({site: torch.empty(0, D) for site in SITES}, batch_size)

    def part(self, number: int, n: int) -> dict[str, Tensor]:
        check_shapes_of_step(number)
        base, is_changed = self.drawn(number, n)
        return {SITES[0]: base, SITES[1]: base + is_changed[:, None] * self.vector}

    def drawn(self, number: int, n: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        on = torch.rand(n, FEATURES, generator=generator) < FIRING / FEATURES
        size = 0.5 + torch.rand(n, FEATURES, generator=generator)
        return (on * size) @ self.directions, on[:, :CHANGED].any(dim=1)

    def sample(self, n: int) -> dict[str, Tensor]:
        return super().sample(min(n, 4096))


def trained(folder, **fields) -> BatchTopKSAE:
    torch.manual_seed(0)
    config = BatchTopKSAEConfig(d_in=2 * D, d_sae=64, k=FIRING + 2, sites=SITES, aux_k=32, **fields)
    options = {"learning_rate": 5e-3, "decay_steps": 0.5, "dead_after_tokens": 5000}
    args = arguments(folder, 300, save_steps=0, **options)
    return Trainer(BatchTopKSAE(config), Changed(), args).train()


@torch.no_grad()
def best(sae: BatchTopKSAE, source: Changed) -> dict[str, float]:
    """Of the latent that fires on changed tokens most exactly: F1, share, and both nu."""
    x = torch.cat([*source.part(9999, 4096).values()], dim=1)
    _, is_changed = source.drawn(9999, 4096)
    latents = sae.encode(x)
    fires, truth = latents > 0, is_changed[:, None]
    f1 = 2 * (fires & truth).sum(0) / (fires.sum(0) + truth.sum())
    i = int(f1.argmax())
    scaling = Scaling(Sides(sae), torch.tensor([i]), torch.tensor([True]))
    scaling.add(x, sae.decode(latents), latents, torch.arange(len(x)) // 50)
    nu = {kind: scaling.nu()[f"nu_{kind}"][0, 0] for kind in ("recon", "error")}
    values = {"f1": f1[i], "share": sae.shares[i, 1], **nu}
    return {name: float(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> BatchTopKSAE:
    return trained(tmp_path_factory.mktemp("tied"), dedicated=4)


def test_a_dedicated_latent_finds_a_vector_that_shared_latents_would_take(tied, tmp_path):
    found = best(tied, Changed())
    assert found["share"] == 1 and found["f1"] > 0.95
    assert abs(found["recon"]) < 0.2 and abs(found["error"]) < 0.2
    assert best(trained(tmp_path), Changed())["share"] < 0.9


def test_rows_stay_tied_and_dedicated_ones_apart_through_training_and_folding(tied):
    sae = tied
    first, second = sae.split(sae.W_dec).values()
    assert torch.equal(first[:-4], second[:-4]) and first[-4:].abs().max() == 0
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(64))
    assert are_dedicated(sae.W_dec, 2).tolist() == [False] * 60 + [True] * 4
    scales = sae.config.site_scales
    assert scales[0] == scales[1], "rows are equal in raw units, too"


def test_a_tied_gradient_is_that_of_one_row_written_at_all_sites():
    """By autograd, through the literal (r, r, r) and (0, 0, r)."""
    torch.manual_seed(0)
    rows, latents = torch.randn(5, 4, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    target = torch.randn(9, 12, dtype=torch.float64)
    one = rows.clone().requires_grad_()
    shared, own = one[:3], one[3:]
    written = torch.cat([shared.repeat(1, 3), torch.cat([0 * own, 0 * own, own], dim=1)])
    (of_one,) = torch.autograd.grad((latents @ written - target).square().sum(), one)
    free = written.detach().requires_grad_()
    (tied,) = torch.autograd.grad((latents @ free - target).square().sum(), free)
    tie_(tied, free.detach(), 3)
    *others, last = tied.unflatten(1, (3, 4)).unbind(1)
    assert all(torch.equal(other[:3], last[:3]) and not other[3:].any() for other in others)
    torch.testing.assert_close(last[3:], of_one[3:])
    torch.testing.assert_close(3 * last[:3], of_one[:3])


VARIANTS = {
    "relu_sae": {"l1_coefficient": 0.01},  # its norms are free
    "jumprelu_sae": {"target_l0": 4},
    "topk_sae": {"k": 4},
    "gated_sae": {"l1_coefficient": 0.01},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_can_have_dedicated_latents(variant, tmp_path):
    fields = {"d_in": 2 * D, "d_sae": 40, "sites": SITES, "dedicated": 3}
    fields |= VARIANTS[variant]
    torch.manual_seed(0)
    sae = AutoModel.from_config(AutoConfig.for_model(variant, **fields))
    done = Trainer(sae, Changed(64), arguments(tmp_path, 5, batch_size=64, save_steps=0)).train()
    assert are_dedicated(done.W_dec, 2).tolist() == [False] * 37 + [True] * 3
    first, second = done.split(done.W_dec).values()
    assert torch.equal(first[:-3], second[:-3])


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"dedicated": 3}, "dedicated needs sites"),
        ({"dedicated": 3, "sites": ["layers.1"]}, "two sites or more of one width"),
        ({"dedicated": 3, "sites": SITES, "widths": [3, 5]}, "two sites or more of one width"),
        ({"dedicated": 16, "sites": SITES}, "fewer than all 16 latents, got 16"),
        ({"dedicated": -1, "sites": SITES}, "must be 0 or more, and fewer than all"),
    ],
)
def test_dedicated_latents_that_cannot_be_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        BatchTopKSAEConfig(d_in=8, d_sae=16, k=2, **fields)


def test_latents_that_read_one_site_each_have_no_dedicated_ones():
    config = {"d_in": 8, "d_sae": 16, "k": 2, "sites": SITES, "dedicated": 2}
    with pytest.raises(ValueError, match="a variant whose latents read all of them"):
        BatchTopKCLTConfig(**config)


def test_a_refit_would_untie_rows():
    config = BatchTopKSAEConfig(d_in=8, d_sae=16, k=2, sites=SITES, dedicated=2)
    with pytest.raises(Refused, match=r"sae\.dedicated holds them equal; set it to null"):
        check_refit(config)


def test_rows_that_start_at_tokens_are_the_same_at_each_site_too(tmp_path):
    torch.manual_seed(0)
    config = BatchTopKSAEConfig(d_in=2 * D, d_sae=64, k=6, sites=SITES, dedicated=4)
    start = {"init_decoder_data": 0.9, "learning_rate": 1e-3}
    sae = Trainer(BatchTopKSAE(config), Changed(), arguments(tmp_path, 2, **start)).train()
    base, chat = sae.W_dec.detach().unflatten(1, (2, D)).unbind(1)
    torch.testing.assert_close(base[:-4], chat[:-4])
    assert not base[-4:].any() and chat[-4:].norm(dim=1).min() > 0.4
