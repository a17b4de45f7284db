"""What an SAE reads and writes: one site, two of a transcoder, or several side by side."""

import math
from types import SimpleNamespace

import pytest
import torch

import hfsae
from hfsae.evaluation import EvaluationArguments
from hfsae.features.logit_lens import last_written, lens_of, residual_directions
from hfsae.features.search import firing_on
from hfsae.lm import Sites, reads_of, widths_of, writes_of
from hfsae.runs import make_configs
from hfsae.training import Trainer

from .tiny import make_sae, tiny_recipe, tokens
from .training.planted import PlantedStream, arguments, weights

BOTH = Sites([("layers.1", 16), ("layers.2", 16)])


class PairConfig(hfsae.ReLUSAEConfig):
    """Two sites, read and written side by side. It has no model_type: it is no variant."""

    @property
    def reads(self) -> Sites:
        return BOTH

    writes = reads

    def fill_scales(self, read, written):
        assert read == written
        super().fill_scales([math.hypot(*read)], [])


class PairSAE(hfsae.ReLUSAE):
    config_class = PairConfig


def pair(**fields) -> PairSAE:
    torch.manual_seed(0)
    defaults = {"d_in": 32, "d_sae": 40, "l1_coefficient": 0.05}
    return PairSAE(PairConfig(**defaults | fields))


@pytest.mark.parametrize(
    "fields, reads, writes",
    [
        ({"site": "layers.1"}, {"layers.1": 16}, {"layers.1": 16}),
        (
            {"site": "layers.1.mlp:in", "target_site": "layers.2.mlp"},
            {"layers.1.mlp:in": 16},
            {"layers.2.mlp": 16},
        ),
        (
            {"site": "layers.1.self_attn.o_proj:in"},
            {"layers.1.self_attn.o_proj:in": 24},  # two heads of 12
            {"layers.1.self_attn.o_proj:in": 24},
        ),
    ],
    ids=["SAE", "transcoder", "attention's input"],
)
def test_a_config_has_the_sites_that_it_reads_and_writes(tmp_path, tiny_lm, fields, reads, writes):
    config = make_configs(tiny_recipe(tmp_path, sae=fields), tiny_lm)[""]
    assert dict(config.reads) == reads and dict(config.writes) == writes
    assert config.reads.only_site == fields["site"] and widths_of(config) == reads | writes
    saved = config.to_dict()
    assert saved["site"] == fields["site"] and not {"reads", "writes", "latent_scale"} & {*saved}


def test_what_has_a_site_alone_reads_and_writes_there():
    config = SimpleNamespace(site="layers.1")
    assert reads_of(config).names == writes_of(config).names == ("layers.1",)
    with pytest.raises(ValueError, match="names no site; give --site on the command line"):
        reads_of(SimpleNamespace(site=None))


def test_activations_of_several_sites_lie_side_by_side_and_come_apart_again():
    acts = {site: torch.randn(3, 16) for site in ("layers.2", "layers.1")}
    joined = BOTH.joined(acts)
    assert torch.equal(joined, torch.cat([acts["layers.1"], acts["layers.2"]], dim=1))
    apart = BOTH.split(joined)
    assert all(torch.equal(apart[site], acts[site]) for site in acts)
    assert Sites.one("layers.1", 16).joined(acts) is acts["layers.1"]


def test_what_works_at_one_site_refuses_several_in_one_sentence(tmp_path):
    sae = pair()
    one_site = [
        lambda: BOTH.only_site,
        lambda: hfsae.save_steering_vector(tmp_path / "a.safetensors", sae, {0: 1.0}),
    ]
    sentence = r"has 2 sites \(layers\.1, layers\.2\), but .* single"
    for call in one_site:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_the_logit_lens_of_two_sites_is_that_of_what_is_written_last(tiny_lm):
    sae = pair()
    site, rows = last_written(sae)
    assert site == "layers.2" and torch.equal(rows, sae.W_dec[:, 16:])
    assert residual_directions(tiny_lm, rows, site).shape == (40, 16)
    assert lens_of(tiny_lm, sae, 0, 3, 259)[0].shape == (1, 3)


def test_two_sites_train_as_one_site_with_their_activations_side_by_side(tmp_path):
    class Joined(PlantedStream):
        def part(self, number, n):
            acts = PlantedStream(sites=BOTH.names).part(number, n)
            return {"layers.0": torch.cat([acts[site] for site in BOTH.names], dim=1)}

    options = {"init_b_dec": "mean", "init_decoder_data": 0.5, "refit_ridge": 0.01}
    several, plain = pair(), hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=32, d_sae=40, site="layers.0"))
    plain.config.l1_coefficient = several.config.l1_coefficient
    plain.load_state_dict(several.state_dict())
    stream, joined = PlantedStream(sites=BOTH.names), Joined(sites=("layers.0",))
    ended = Trainer(several, stream, arguments(tmp_path / "a", steps=20, **options)).train()
    expected = Trainer(plain, joined, arguments(tmp_path / "b", steps=20, **options)).train()
    scales = several.config.activation_scale, plain.config.activation_scale
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(ended)[name], weight)


def test_latents_of_two_sites_are_those_of_their_activations(tiny_lm):
    sae, batch = pair(), tokens()
    with torch.no_grad(), hfsae.capture(tiny_lm, BOTH.names) as acts:
        tiny_lm(**batch)
    expected = sae.encode(torch.cat([acts["layers.1"], acts["layers.2"]], dim=-1)).detach()
    out = hfsae.latents(tiny_lm, sae, batch)
    torch.testing.assert_close(out.values[out.keep], expected[out.keep])
    hits = firing_on(tiny_lm, sae, batch, k=40)
    assert hits[0].score == pytest.approx(expected[out.keep].max().item(), rel=1e-5)


def test_an_evaluation_replaces_both_sites(tiny_lm, tiny_tokenizer):
    sae, text = pair().requires_grad_(False), "abcdefgh"
    args = EvaluationArguments(n_tokens=None, bootstrap_samples=5)
    result = hfsae.evaluate(tiny_lm, sae, [text], args, tokenizer=tiny_tokenizer)
    ids = torch.tensor([[2, *tiny_tokenizer(text, add_special_tokens=False).input_ids, 1]])
    with torch.no_grad():
        with hfsae.capture(tiny_lm, BOTH.names) as acts:
            tiny_lm(input_ids=ids)
        x = BOTH.joined(acts)
        first, second = sae(x).recon.chunk(2, dim=-1)
        special = (ids <= 2)[..., None]
        changes = {
            "layers.1": lambda x: torch.where(special, x, first),
            "layers.2": lambda x: torch.where(special, x, second),
        }
        with hfsae.patch(tiny_lm, changes):
            logits = tiny_lm(input_ids=ids).logits[0, 1:-1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, 2:])
    assert result.metrics["ce_spliced"].value == pytest.approx(float(nll), rel=1e-5)
    x, error = x[0, 1:-1], (x - sae(x).recon)[0, 1:-1]
    fvus = [
        float(e.square().sum() / (part - part.mean(dim=0)).square().sum())
        for e, part in zip(error.chunk(2, dim=-1), x.chunk(2, dim=-1), strict=True)
    ]
    for site, fvu in zip(BOTH.names, fvus, strict=True):
        assert result.metrics[f"fvu@{site}"].value == pytest.approx(fvu, rel=1e-5)
    assert result.metrics["fvu"].value == pytest.approx(sum(fvus) / 2, rel=1e-5)
    assert result.site == result.target_site == "layers.1, layers.2"


def test_a_scale_of_each_column_normalises_what_is_read():
    class Scaled(PairSAE):
        read_scale = torch.cat([torch.full((16,), 2.0), torch.full((16,), 5.0)])

    sae, x = Scaled(pair(activation_scale=3.0).config), torch.randn(4, 32)
    sizes = torch.cat([x[:, :16] / 2, x[:, 16:] / 5], dim=1)
    torch.testing.assert_close(sae.pre_activations(x), 3 * (sizes @ sae.W_enc + sae.b_enc))


def test_an_sae_has_one_unit_and_a_transcoder_that_of_its_target():
    sae = make_sae(activation_scale=4.0)
    assert sae.latent_scale == sae.read_scale == sae.write_scale == 4.0
    scales = {"activation_scale": 4.0, "target_scale": 6.0}
    transcoder = make_sae(target_site="layers.2", **scales)
    assert transcoder.latent_scale == transcoder.write_scale == 6.0
    assert transcoder.read_scale == 4.0
