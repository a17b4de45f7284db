"""Attributions against finite differences and closed forms."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hfsae import attribute, capture, splice, uniformity
from hfsae.attribution import Agreement, Attribution, evenness, logit, loss
from hfsae.models import SAE

from .tiny import make_sae, n_hooks, tokens

TOKEN, CONTRAST = 100, 200
LOGIT = logit(TOKEN, CONTRAST)


@pytest.fixture(scope="module")
def precise_lm(make_tiny_lm: Callable) -> PreTrainedModel:
    """In float64, norms too (RMSNorm would be in float32): finite differences are derivatives."""
    return make_tiny_lm("gpt2").double()


@pytest.fixture(scope="module")
def linear_lm(make_tiny_lm: Callable) -> PreTrainedModel:
    """Logits are linear in the last residual stream: there is no final norm."""
    lm = make_tiny_lm("llama").double()
    lm.model.norm = nn.Identity()
    return lm


@pytest.fixture
def text() -> dict[str, Tensor]:
    """BOS and eleven other tokens."""
    return {name: tensor[:1] for name, tensor in tokens().items()}


def objective_with(
    lm: PreTrainedModel, sae: SAE, text: dict[str, Tensor], edit: Callable, objective=LOGIT
) -> float:
    with splice(lm, sae, error_term=True, edit=edit, spare_tokens=[0, 1, 2]):
        return float(objective(lm(**text).logits)[0])


def scaled(latent: int, factor: float) -> Callable[[Tensor], Tensor]:
    def edit(latents: Tensor) -> Tensor:
        new = latents.clone()
        new[..., latent] *= factor
        return new

    return edit


@pytest.mark.parametrize("variant", ["relu", "jumprelu", "gated", "topk", "layer_norm"])
def test_the_gradient_effect_is_the_slope_in_a_factor_on_the_latent(
    precise_lm: PreTrainedModel, text: dict[str, Tensor], variant: str
):
    sae = make_sae("h.1", variant).double()
    found = attribute(precise_lm, sae, text, LOGIT, integration_steps=0, ablate=0)
    assert len(found.latents) > 4
    for latent, effect in list(zip(found.latents.tolist(), found.gradient, strict=True))[:6]:
        up, down = (
            objective_with(precise_lm, sae, text, scaled(latent, factor))
            for factor in (1 + 1e-5, 1 - 1e-5)
        )
        assert float(effect) == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)
    assert found.gradient.abs().diff().max() <= 0  # by size
    assert found.integrated.isnan().all() and found.ablation.isnan().all()
    assert found.objective == pytest.approx(float(LOGIT(precise_lm(**text).logits)[0]))


def over_three_blocks(kind: str) -> SAE:
    """A crosscoder of residual streams, or a transcoder across the layers of three MLPs."""
    blocks = [f"h.{i}" for i in range(3)]
    places = {"sites": blocks}
    if kind.endswith("_clt"):
        mlps = [f"{block}.mlp" for block in blocks]
        places = {"sites": [f"{mlp}:in" for mlp in mlps], "target_sites": mlps}
    torch.manual_seed(0)
    sae = AutoModel.from_config(
        AutoConfig.for_model(kind, d_in=48, d_sae=36, k=8, activation_scale=None, **places)
    )
    with torch.no_grad():
        sae.b_dec.normal_(std=0.1)
    return sae.eval().double().requires_grad_(False)


def with_latents(
    lm: PreTrainedModel, sae: SAE, text: dict[str, Tensor], edit: Callable[[Tensor], Tensor]
) -> float:
    """The objective by own hooks: first the model's activations are read, then a crosscoder's three
    sites hold them with the edit's change, and a transcoder's targets get the change added."""
    is_clt, seen = sae.config.is_causal, []
    places = [block.mlp if is_clt else block for block in lm.base_model.h[:3]]

    def read(_, args: tuple, out: Tensor) -> None:
        seen.append(args[0] if is_clt else out)

    hooks = [place.register_forward_hook(read) for place in places]
    lm(**text)
    for hook in hooks:
        hook.remove()
    x = torch.cat(seen, dim=-1)
    latents = sae.encode(x)
    change = sae.decode(edit(latents), x) - sae.decode(latents, x)
    change[:, 0] = 0  # BOS is spared
    parts = dict(zip(places, zip(seen, change.chunk(3, dim=-1), strict=True), strict=True))

    def write(place: nn.Module, args: tuple, out: Tensor) -> Tensor:
        read_there, part = parts[place]
        return (out if is_clt else read_there) + part

    hooks = [place.register_forward_hook(write) for place in places]
    value = float(LOGIT(lm(**text).logits)[0])
    for hook in hooks:
        hook.remove()
    return value


@pytest.mark.parametrize("kind", ["batch_topk_sae", "batch_topk_clt"])
def test_all_estimates_over_several_sites_are_of_one_function_of_the_latents(
    precise_lm: PreTrainedModel, text, kind: str
):
    sae = over_three_blocks(kind)
    m = partial(with_latents, precise_lm, sae, text)
    found = attribute(precise_lm, sae, text, LOGIT, integration_steps=100, ablate=1000)
    assert len(found.latents) > 10 and found.gradient.abs()[:10].min() > 1e-3
    clean = m(lambda latents: latents)
    assert found.objective == pytest.approx(clean)
    for i, latent in enumerate(found.latents.tolist()):
        slope = (m(scaled(latent, 1 + 1e-5)) - m(scaled(latent, 1 - 1e-5))) / 2e-5
        assert float(found.gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
        without = clean - m(scaled(latent, 0.0))
        assert float(found.ablation[i]) == pytest.approx(without, rel=1e-4, abs=1e-6)
    whole = clean - m(torch.zeros_like)
    assert found.objective - found.without_latents == pytest.approx(whole, rel=1e-5)
    assert abs(whole) > 0.1
    assert float(found.integrated.sum()) == pytest.approx(whole, rel=1e-3)
    assert abs(float(found.gradient.sum()) - whole) > 0.01 * abs(whole)


@pytest.mark.parametrize("variant", ["jumprelu", "gated", "layer_norm"])
def test_latents_bias_error_and_rest_add_up_to_the_logit(
    precise_lm: PreTrainedModel, text: dict[str, Tensor], variant: str
):
    """Oracle: the gradient at the activation itself, by a hook of torch."""
    sae = make_sae("h.1", variant).double()
    sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(0))
    x: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x.append(out.detach().requires_grad_())
        return x[0]

    handle = precise_lm.base_model.h[1].register_forward_hook(hook)
    value = LOGIT(precise_lm(**text).logits)[0]
    handle.remove()
    value.backward()
    leaf, slope = x[0].detach()[0, 1:], x[0].grad[0, 1:]  # BOS is spared
    latents = sae.encode(leaf)
    error = float(((leaf - sae.decode(latents, leaf)) * slope).sum())
    bias = float((sae.decode(torch.zeros_like(latents), leaf) * slope).sum())
    found = attribute(precise_lm, sae, text, LOGIT, integration_steps=0, ablate=0)
    assert min(abs(error), abs(bias)) > 1e-3
    assert (found.error, found.bias) == (pytest.approx(error), pytest.approx(bias))
    through = float(found.gradient.sum()) + found.error + found.bias
    assert through == pytest.approx(float((leaf * slope).sum()), rel=1e-4, abs=1e-5)
    assert through + found.rest == pytest.approx(found.objective) == pytest.approx(value.item())


def test_the_parts_of_the_sum_take_no_pass_of_their_own(tiny_lm: PreTrainedModel, text):
    passes: list[int] = []
    handle = tiny_lm.register_forward_hook(lambda *_: passes.append(1))
    attribute(tiny_lm, make_sae(), text, LOGIT, integration_steps=0, ablate=0)
    handle.remove()
    assert len(passes) == 1


def test_integrated_effects_add_up_to_what_all_latents_do(
    precise_lm: PreTrainedModel, text: dict[str, Tensor]
):
    sae = make_sae("h.1").double()
    found = attribute(precise_lm, sae, text, LOGIT, integration_steps=300, ablate=0)
    without = objective_with(precise_lm, sae, text, torch.zeros_like)
    assert found.without_latents == pytest.approx(without)
    whole = found.objective - without
    assert abs(whole) > 0.1
    assert float(found.integrated.sum()) == pytest.approx(whole, rel=1e-4)
    assert abs(float(found.gradient.sum()) - whole) > 0.01 * abs(whole)  # gradients alone do not


def test_the_ablation_effect_is_what_the_objective_loses_without_the_latent(
    precise_lm: PreTrainedModel, text: dict[str, Tensor]
):
    sae = make_sae("h.2").double()
    found = attribute(precise_lm, sae, text, LOGIT, ablate=11, integration_steps=0)
    for i, latent in enumerate(found.latents.tolist()[:11]):
        lost = found.objective - objective_with(precise_lm, sae, text, scaled(latent, 0.0))
        assert float(found.ablation[i]) == pytest.approx(lost, rel=1e-4, abs=1e-6)
    assert found.ablation[11:].isnan().all()
    two = found.latents[[5, 2]].tolist()
    chosen = attribute(precise_lm, sae, text, LOGIT, ablate=two, integration_steps=0)
    assert chosen.ablation.isfinite().nonzero().squeeze(1).tolist() == [2, 5]
    torch.testing.assert_close(chosen.ablation[[2, 5]], found.ablation[[2, 5]])


def test_on_a_linear_model_all_estimates_are_the_closed_form(
    linear_lm: PreTrainedModel, text: dict[str, Tensor]
):
    sae = make_sae("layers.3").double()
    found = attribute(linear_lm, sae, text, LOGIT, ablate=1000)
    with capture(linear_lm, ["layers.3"]) as activations:
        linear_lm(**text)
    last = sae.encode(activations["layers.3"])[0, -1]
    W_U = linear_lm.get_output_embeddings().weight
    expected = (last * (sae.W_dec @ (W_U[TOKEN] - W_U[CONTRAST])))[found.latents].float()
    for estimate in (found.gradient, found.integrated, found.ablation):
        torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-5)
    for agreement in found.agreement.values():
        assert agreement.pearson == pytest.approx(1, abs=1e-5)
        assert agreement.n == len(found.latents)
    assert found.rest == pytest.approx(0, abs=1e-5)
    # only the last position has a say, and that is where each firing latent's effect is found
    fires = last[found.latents] > 0
    assert (found.position[fires] == 11).all() and fires.sum() > 4


def test_agreement_is_correlation_and_share_of_equal_signs():
    def agreement(estimate: Tensor, ablation: Tensor) -> Agreement:
        at = torch.arange(len(ablation))
        effects = Attribution(at, at.float(), at, estimate, -estimate, ablation, 0.0, 0.0, 0.0, 0.0)
        return effects.agreement["gradient"]

    truth = torch.tensor([1.0, 2.0, -3.0, 4.0, math.nan])  # the last one was not ablated
    assert agreement(2 * truth.nan_to_num(), truth) == Agreement(pytest.approx(1), 1.0, 4)
    assert agreement(-truth.nan_to_num(), truth) == Agreement(pytest.approx(-1), 0.0, 4)
    assert agreement(torch.tensor([1.0, -1.0, -1.0, 1.0, 9.0]), truth).same_sign == 0.75
    assert agreement(truth[4:], truth[4:]).n == 0


def test_latents_of_spared_tokens_count_for_nothing(
    precise_lm: PreTrainedModel, text: dict[str, Tensor]
):
    sae = make_sae("h.1").double()
    everything = attribute(precise_lm, sae, text, LOGIT, integration_steps=0, ablate=5)
    assert (everything.position > 0).all()
    with_bos = attribute(precise_lm, sae, text, LOGIT, integration_steps=0, spare_tokens=())
    assert (with_bos.position == 0).any()
    ids = sorted(set(text["input_ids"][0].tolist()))
    nothing = attribute(precise_lm, sae, text, LOGIT, spare_tokens=ids)
    assert len(nothing.latents) == 0 and nothing.agreement["gradient"].n == 0
    assert nothing.error == nothing.bias == 0 and nothing.rest == nothing.objective


def test_the_loss_is_the_models_own(precise_lm: PreTrainedModel, text: dict[str, Tensor]):
    objective, ids = loss(text["input_ids"]), text["input_ids"]
    own = float(precise_lm(**text, labels=ids).loss)
    found = attribute(precise_lm, make_sae("h.1").double(), text, objective, ablate=3)
    assert found.objective == pytest.approx(own, rel=1e-5)
    latent = int(found.latents[0])
    sae = make_sae("h.1").double()
    lost = own - objective_with(precise_lm, sae, text, scaled(latent, 0.0), objective)
    assert float(found.ablation[0]) == pytest.approx(lost, rel=1e-3, abs=1e-6)


def test_a_transcoder_is_attributed_at_its_target(linear_lm: PreTrainedModel, text):
    sae = make_sae("layers.3.mlp:in", target_site="layers.3.mlp", skip_connection=True).double()
    found = attribute(linear_lm, sae, text, logit(TOKEN), ablate=1000)
    with capture(linear_lm, ["layers.3.mlp:in", "layers.3.mlp"]) as activations:
        linear_lm(**text)
    last = sae.encode(activations["layers.3.mlp:in"])[0, -1]
    W_U = linear_lm.get_output_embeddings().weight
    expected = (last * (sae.W_dec @ W_U[TOKEN]))[found.latents].float()
    torch.testing.assert_close(found.gradient, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.ablation, expected, rtol=1e-4, atol=1e-5)
    written = float(activations["layers.3.mlp"][0, -1] @ W_U[TOKEN])
    assert found.objective - found.rest == pytest.approx(written, rel=1e-4, abs=1e-5)


def test_it_works_without_gradients_around_it_and_leaves_nothing(
    tiny_lm: PreTrainedModel, text: dict[str, Tensor]
):
    before, sae = n_hooks(tiny_lm), make_sae()
    with torch.no_grad():
        inside = attribute(tiny_lm, sae, text, LOGIT)
    outside = attribute(tiny_lm, sae, text, LOGIT)
    assert torch.equal(inside.gradient, outside.gradient)
    assert not any(tensor.requires_grad for tensor in inside if isinstance(tensor, Tensor))
    assert n_hooks(tiny_lm) == before


def test_what_cannot_be_attributed_is_refused(tiny_lm: PreTrainedModel, text):
    sae, dead = make_sae(), 3
    sae.b_enc.data[dead] = -1e3
    cases = [
        (tokens(), LOGIT, {}, "tokens hold 3 rows; attribute one text at a time"),
        (text, logit(259), {}, "token 259 is not in the vocabulary: it has 0 to 258"),
        (text, logit(3, -1), {}, "token -1 is not in the vocabulary"),
        (text, logit(3, position=12), {}, "position 12 is outside the text: 12 tokens"),
        (text, LOGIT, {"ablate": [dead]}, f"latent {dead} does not fire in this text"),
    ]
    for batch, objective, options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            attribute(tiny_lm, sae, batch, objective, **options)


def test_of_a_target_with_and_without_a_space_the_likelier_is_taken_and_said(
    make_tiny_lm: Callable, spaced_tokenizer, text
):
    lm, sae = make_tiny_lm("gpt2"), make_sae("h.1")
    ids = spaced_tokenizer(["a", " a", "b"], add_special_tokens=False)["input_ids"]
    (plain,), (spaced,), (b,) = ids
    read = partial(
        attribute, lm, sae, text, tokenizer=spaced_tokenizer, ablate=0, integration_steps=0
    )
    head = lm.get_output_embeddings().weight.data
    for likelier, other in ((spaced, plain), (plain, spaced)):
        with capture(lm, ["ln_f"]) as activations:
            lm(**text)
        last = activations["ln_f"][0, -1]
        head[other] -= (head[other] @ last + 1 - head[likelier] @ last) * last / (last @ last)
        assert likelier == max(plain, spaced, key=lambda i: lm(**text).logits[0, -1, i])
        with nullcontext() if likelier == plain else pytest.warns(UserWarning) as told:
            found = read(target="a", contrast="b")
        assert (found.target, found.contrast) == (likelier, b)
        assert found.objective == pytest.approx(
            float(logit(likelier, b)(lm(**text).logits)), rel=1e-4
        )
        if likelier == spaced:
            assert str(told[0].message) == (
                "'a' is read as ' a', with a space before it, the likelier of both spellings; for "
                f"the other, give the token's id: {plain}"
            )
        assert read(target=plain).target == plain and read(target=" a").target == spaced
    assert read(LOGIT).target is None


def test_evenness_is_one_for_equal_shares_and_little_for_a_lone_cause():
    y = torch.tensor([[3.0, -3.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0], [1e6, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(evenness(y)[:2], torch.ones(2))
    assert float(evenness(y)[2]) == pytest.approx(1 / 4, rel=1e-3)
    p = torch.tensor([0.5, 0.25, 0.25])
    assert float(evenness(8 * p)) == pytest.approx(2**1.5 / 3)
    assert evenness(torch.zeros(4)).isnan()


def test_uniformity_is_that_of_each_tokens_own_gradient(precise_lm: PreTrainedModel):
    """Oracle: one backward pass a token, to the activation itself, as the equations say."""
    ids, sae = tokens(rows=2, ctx=7)["input_ids"], make_sae("h.1").double()
    expected = []
    for row, column in (ids > 2)[:, :-1].nonzero().tolist():
        x: list[Tensor] = []

        def hook(module, args, out, x=x):
            out = out[0] if isinstance(out, tuple) else out
            x.append(out.detach().requires_grad_())
            return x[0]

        handle = precise_lm.base_model.h[1].register_forward_hook(hook)
        logits = precise_lm(ids[row : row + 1]).logits[0, column]
        handle.remove()
        (logits[ids[row, column + 1]] - logits.mean()).backward()
        y = sae.encode(x[0].detach())[0, column] * (sae.W_dec @ x[0].grad[0, column])
        p = y[y != 0].abs() / y.abs().sum()
        expected.append(float((-(p * p.log()).sum()).exp() / len(p)))
    found = uniformity(precise_lm, sae, ids, n_tokens=1000)
    assert sorted(found.per_token.tolist()) == pytest.approx(sorted(expected), rel=1e-4)
    assert found.value == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    few = uniformity(precise_lm, sae, ids, n_tokens=3, seed=1)
    assert len(few.per_token) == 3
    assert uniformity(precise_lm, sae, ids, n_tokens=3, seed=1).value == few.value
