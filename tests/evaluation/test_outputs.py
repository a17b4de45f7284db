"""How far an encoder's output moves on reconstructions, against runs by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hfsae import BatchTopKCLT, BatchTopKCLTConfig, splice
from hfsae.activations import HarvestArguments, ImageArguments, InputSource
from hfsae.evaluation import EvaluationArguments, output_change
from hfsae.lm import LoadedEncoder, load_encoder

from ..tiny_encoders import D, block, save_encoder, save_pictures

pytest.importorskip("PIL")
ARGS = EvaluationArguments(bootstrap_samples=50)


class Linear:
    """latents = x W; reconstruction = latents V."""

    def __init__(self, W: Tensor, V: Tensor, site: str, target: str | None = None) -> None:
        self.W, self.V = W, V
        self.config = SimpleNamespace(site=site, target_site=target, d_in=D, d_out=D)

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.W

    def decode(self, latents: Tensor, x: Tensor) -> Tensor:
        return latents @ self.V


def linear(site: str, target: str | None = None, rank: int = 6) -> Linear:
    generator = torch.Generator().manual_seed(0)
    W = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:, :rank]
    return Linear(W, W.T, site, target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    save_pictures(made, 7)
    return made


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    loaded: dict[str, LoadedEncoder] = {}

    def make(family: str) -> LoadedEncoder:
        if family not in loaded:
            path = tmp_path_factory.mktemp("encoder") / family
            loaded[family] = load_encoder(save_encoder(family, path))
        return loaded[family]

    return make


def inputs_of(loaded: LoadedEncoder, folder, **fields):
    args = ImageArguments(folder=str(folder), held_out_fraction=1.0, **fields)
    source = InputSource(args, loaded, [block(loaded.model, 1)], HarvestArguments(rows=3))
    return source.inputs("test")


def by_hand(model, inputs, site: str, target: str, write, read) -> dict[str, float]:
    """A loop over pictures: `write(arm, x)` is what stands at the target's kept positions."""
    modules = dict(model.named_modules())
    clean, arms, xs = [], {"spliced": [], "zero": [], "mean": []}, {}

    def run(row: dict[str, Tensor], keep: Tensor, arm: str | None):
        def note(module, args, output):
            xs["site"] = output.clone()

        def replace(module, args, output):
            xs["target"] = output.clone()
            if arm is None:
                return None
            new = output.clone()
            new[0, keep] = write(arm, xs["site"][0, keep])
            return new

        hooks = [modules[site].register_forward_hook(note)]
        hooks.append(modules[target].register_forward_hook(replace))
        with torch.no_grad():
            output = model(**row)
        for hook in hooks:
            hook.remove()
        return read(output, keep)

    for batch in inputs:
        for i in range(len(batch.document)):
            row = {name: x[i : i + 1] for name, x in batch.inputs.items()}
            clean.append(run(row, batch.keep[i], None))
            for arm, outputs in arms.items():
                outputs.append(run(row, batch.keep[i], arm))
    a = torch.cat(clean).double().numpy()
    metrics = {}
    for arm, outputs in arms.items():
        b = torch.cat(outputs).double().numpy()
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        metrics[f"output_cosine_change_{arm}"] = float(np.mean(1 - cosines))
        metrics[f"output_fvu_{arm}"] = float(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())
    for arm in ("zero", "mean"):
        spliced = metrics["output_fvu_spliced"]
        metrics[f"output_recovered_{arm}"] = 1 - spliced / metrics[f"output_fvu_{arm}"]
    return metrics


def pooled(output, keep):
    return output.pooler_output


def last_kept(output, keep):
    return output.last_hidden_state[0, keep]


def mean_of(model, inputs, site: str) -> Tensor:
    xs = []
    hook = dict(model.named_modules())[site].register_forward_hook(lambda m, a, x: xs.append(x))
    with torch.no_grad():
        kept = [(model(**b.inputs), xs[-1][b.keep])[1] for b in inputs]
    hook.remove()
    return torch.cat(kept).double().mean(dim=0).float()


@pytest.mark.parametrize("family", ["vit", "siglip"])
@pytest.mark.parametrize("is_transcoder", [False, True])
def test_changes_of_the_pooled_output_are_those_of_a_loop(load, folder, family, is_transcoder):
    loaded = load(family)
    inputs = inputs_of(loaded, folder)
    site = block(loaded.model, 0)
    target = block(loaded.model, 1) if is_transcoder else site
    sae = linear(site, target if is_transcoder else None)
    mean = mean_of(loaded.model, inputs, target)
    got = output_change(loaded.model, sae, inputs, ARGS)

    def write(arm: str, x: Tensor) -> Tensor:
        return {"spliced": x @ sae.W @ sae.V, "zero": 0 * x, "mean": mean.expand_as(x)}[arm]

    expected = by_hand(loaded.model, inputs, site, target, write, pooled)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].value == pytest.approx(value, rel=1e-3), name
        assert got[name].low <= got[name].value <= got[name].high and got[name].n_tokens == 7


def test_without_a_pooled_output_the_last_hidden_states_are_compared(load, folder, tmp_path):
    loaded = load_encoder(save_encoder("vit", tmp_path / "vit"))
    loaded.model.pooler = None
    inputs, site = inputs_of(loaded, folder), block(loaded.model, 1)
    sae, mean = linear(site), mean_of(loaded.model, inputs, site)
    got = output_change(loaded.model, sae, inputs, ARGS)

    def write(arm: str, x: Tensor) -> Tensor:
        return {"spliced": x @ sae.W @ sae.V, "zero": 0 * x, "mean": mean.expand_as(x)}[arm]

    expected = by_hand(loaded.model, inputs, site, site, write, last_kept)
    for name, value in expected.items():
        assert got[name].value == pytest.approx(value, rel=1e-3), name
    assert got["output_fvu_zero"].n_tokens == 7 * 16


def test_a_causal_dictionary_reads_in_the_run_that_it_changes(load, folder):
    loaded = load("vit")
    inputs = list(inputs_of(loaded, folder))
    sites = [block(loaded.model, i) for i in range(2)]
    config = BatchTopKCLTConfig(d_in=2 * D, d_sae=40, k=6, sites=sites)
    sae = BatchTopKCLT(config).eval().requires_grad_(False)
    got = output_change(loaded.model, sae, inputs, ARGS)
    changes = []
    for batch in inputs:
        with torch.no_grad():
            before = pooled(loaded.model(**batch.inputs), batch.keep)
            with splice(loaded.model, sae, keep=batch.keep, spare_tokens=()):
                after = pooled(loaded.model(**batch.inputs), batch.keep)
        changes += (1 - torch.cosine_similarity(before, after)).tolist()
    expected = sum(changes) / len(changes)
    assert got["output_cosine_change_spliced"].value == pytest.approx(expected, rel=1e-3)


def test_an_sae_that_reconstructs_everything_changes_nothing(load, folder):
    loaded = load("clip")
    sae = Linear(torch.eye(D), torch.eye(D), block(loaded.model, 1))
    got = output_change(loaded.model, sae, inputs_of(loaded, folder, positions="all"), ARGS)
    assert got["output_fvu_spliced"].value == 0
    assert abs(got["output_cosine_change_spliced"].value) < 1e-12
    assert got["output_recovered_zero"].value == got["output_recovered_mean"].value == 1
    assert got["output_fvu_zero"].value > 0.1


def test_an_sae_of_nothing_is_no_better_than_zero_ablation(load, folder):
    loaded = load("clip")
    sae = Linear(torch.zeros(D, 2), torch.zeros(2, D), block(loaded.model, 1))
    got = output_change(loaded.model, sae, inputs_of(loaded, folder), ARGS)
    assert got["output_recovered_zero"].value == 0
    assert got["output_fvu_spliced"].value == got["output_fvu_zero"].value


def test_positions_that_are_not_kept_stay_the_model_s_own(load, folder):
    loaded = load("vit")
    last = linear(block(loaded.model, 2))  # behind it the pooled output reads the CLS token alone
    got = output_change(loaded.model, last, inputs_of(loaded, folder, positions="patches"), ARGS)
    assert got["output_fvu_spliced"].value == got["output_fvu_zero"].value == 0
    got = output_change(loaded.model, last, inputs_of(loaded, folder, positions="cls"), ARGS)
    assert got["output_fvu_spliced"].value > 0.01


def test_what_cannot_be_measured_is_refused(load, folder, tmp_path):
    loaded = load("vit")
    sae, inputs = linear(block(loaded.model, 1)), inputs_of(loaded, folder)
    with pytest.raises(ValueError, match="these batches can be read only once"):
        output_change(loaded.model, sae, iter(inputs), ARGS)
    nothing = [batch._replace(keep=torch.zeros_like(batch.keep)) for batch in inputs]
    with pytest.raises(ValueError, match="no position is left to evaluate on"):
        output_change(loaded.model, sae, nothing, ARGS)
    with pytest.raises(ValueError, match="no position is kept to evaluate on"):
        output_change(loaded.model, sae, nothing, ARGS, mean=torch.zeros(D).double())
    with pytest.raises(ValueError, match=r"the model's output has NaN .* reconstruction at kept"):
        broken = Linear(sae.W, sae.V * float("nan"), sae.config.site)
        output_change(loaded.model, broken, inputs_of(loaded, folder, positions="all"), ARGS)
    training = load_encoder(save_encoder("vit", tmp_path / "vit")).model.train()
    with pytest.raises(ValueError, match="the model is in training mode"):
        output_change(training, sae, inputs, ARGS)


def test_norm_limits_leave_the_same_positions_out_of_every_arm(load, folder):
    loaded = load("vit")
    inputs, site = inputs_of(loaded, folder, positions="all"), block(loaded.model, 1)
    sae = linear(site)
    free = output_change(loaded.model, sae, inputs, ARGS)
    tight = output_change(loaded.model, sae, inputs, ARGS, norm_limits={site: 1e9})
    assert tight == free
    norms = []
    hook = dict(loaded.model.named_modules())[site].register_forward_hook(
        lambda m, a, x: norms.append(x.norm(dim=-1).flatten())
    )
    with torch.no_grad():
        for batch in inputs:
            loaded.model(**batch.inputs)
    hook.remove()
    limit, counts = float(torch.cat(norms).median()), []
    output_change(
        loaded.model, sae, inputs, ARGS, norm_limits={site: limit}, progress=counts.append
    )
    assert counts[-1] == int((torch.cat(norms) <= limit).sum())
