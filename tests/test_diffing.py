"""Several language models that read the same tokens, and what an SAE over two of them tells."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

import hfsae
import hfsae.runs.checks
from hfsae.activations import HarvestArguments, Harvester, TokenBatch
from hfsae.activations.source import ActivationBatch
from hfsae.diffing import GROUPS, Scaling, Sides, diff, groups_of, table
from hfsae.diffing.measures import resampled
from hfsae.diffing.run import compared, percent
from hfsae.features.labels import write_label
from hfsae.io.files import printable, read_json
from hfsae.lm import LoadedLM, capture, refuse_other_vocabularies
from hfsae.lm.contract import sketch
from hfsae.runs import Recipe, check, harvest_to, run
from hfsae.runs.cost import plan

from .helpers import refused, script
from .tiny import make_sae, tiny_recipe, tokens

SITES = ["base/layers.1", "chat/layers.1"]
LMS = {"base": {"name": "tiny/base"}, "chat": {"name": "tiny/chat"}}
LMS = {name: {**given, "dtype": "float32"} for name, given in LMS.items()}


def crosscoder(d: int = 6, d_sae: int = 10, **fields):
    torch.manual_seed(0)
    config = hfsae.ReLUSAEConfig(
        d_in=2 * d, d_sae=d_sae, sites=SITES, model_names={"base": "a", "chat": "b"}, **fields
    )
    return AutoModel.from_config(config).eval().requires_grad_(False)


def of_rows(first: torch.Tensor, second: torch.Tensor, encoder: torch.Tensor, scales=(1.0, 1.0)):
    """A folded crosscoder of given rows, whose latents are relu(x @ encoder)."""
    sae = crosscoder(first.shape[1], len(first), site_scales=list(scales), activation_scale=1.0)
    sae.config.scales_folded = True
    sae.W_dec.copy_(torch.cat([first, second], dim=1))
    sae.W_enc.copy_(encoder)
    return sae


@pytest.fixture(scope="module")
def another_lm(make_tiny_lm):
    return make_tiny_lm("gemma2", seed=1)


# what reads the tokens


def test_two_models_read_the_same_rows_and_a_position_dropped_at_one_is_dropped_at_both(
    tiny_lm, another_lm
):
    ids = tokens()["input_ids"]
    batch = TokenBatch(ids, ids > 2, torch.zeros_like(ids))
    lms = {"base": tiny_lm, "chat": another_lm}
    expected = {}
    for name, lm in lms.items():
        with torch.no_grad(), capture(lm, ["layers.1"]) as acts:
            lm(input_ids=ids)
        expected[f"{name}/layers.1"] = acts["layers.1"][ids > 2]
    harvested = Harvester(lms, SITES, HarvestArguments())(batch)
    assert [*harvested.activations] == SITES
    for site, activations in expected.items():
        torch.testing.assert_close(harvested.activations[site], activations)
    norms = torch.stack([x.norm(dim=1) for x in expected.values()])
    limits = dict(zip(SITES, norms.quantile(0.8, dim=1).tolist(), strict=True))
    fewer = Harvester(lms, SITES, HarvestArguments(), norm_limits=limits)(batch)
    stays = (norms <= torch.tensor([*limits.values()])[:, None]).all(dim=0)
    assert 0 < len(fewer.row) == int(stays.sum()) < (norms[0] <= limits[SITES[0]]).sum()
    for site, activations in expected.items():
        torch.testing.assert_close(fewer.activations[site], activations[stays])


def test_each_model_has_its_own_cache_which_a_run_of_that_model_alone_reads(
    tmp_path, tiny_lm, another_lm
):
    ids = tokens()["input_ids"]
    batch = TokenBatch(ids, ids > 2, torch.zeros_like(ids))
    args = HarvestArguments(cache=str(tmp_path))
    both = Harvester({"base": tiny_lm, "chat": another_lm}, SITES, args)
    harvested = both(batch)
    alone = Harvester(another_lm, ["layers.1"], args)
    read = alone(batch).activations["layers.1"]
    assert alone.caches[0].hits == 1
    assert torch.equal(read, harvested.activations["chat/layers.1"])


def test_tokenizers_that_differ_are_refused_with_the_first_id_that_differs(tiny_tokenizer):
    tokenizer = tiny_tokenizer
    other = type("Other", (), {"get_vocab": lambda self: {**tokenizer.get_vocab(), "new": 300}})()
    with pytest.raises(ValueError, match="of base and chat differ: id 300 is no token in base and"):
        refuse_other_vocabularies({"base": tokenizer, "chat": other})
    vocabulary = tokenizer.get_vocab()
    (seven,) = (token for token, id_ in vocabulary.items() if id_ == 7)
    swapped = {**{t: i for t, i in vocabulary.items() if i != 7}, "seven": 7}
    other = type("Other", (), {"get_vocab": lambda self: swapped})()
    with pytest.raises(ValueError, match=f"id 7 is {seven!r} in base and 'seven' in chat"):
        refuse_other_vocabularies({"base": tokenizer, "chat": other})
    refuse_other_vocabularies({"base": tokenizer, "chat": tokenizer})


# recipes


@pytest.fixture
def loads_two(monkeypatch, tiny_lm, another_lm, tiny_tokenizer):
    """Names that end with "chat" are of another model than the others."""

    def lm(name: str):
        return another_lm if name.endswith("chat") else tiny_lm

    def load_lm(name, **_):
        return LoadedLM(lm(name), tiny_tokenizer, f"the Hub, {name}")

    monkeypatch.setattr(hfsae.runs.inputs, "load_lm", load_lm)
    monkeypatch.setattr(hfsae.runs.checks, "empty_lm", lambda name, **_: lm(name))
    monkeypatch.setattr(hfsae.runs.checks, "load_tokenizer", lambda name, **_: tiny_tokenizer)


def recipe_of_two(folder: Path, **fields) -> Recipe:
    base = tiny_recipe(folder)
    sae = {"model_type": "batch_topk_sae", "k": 4, "d_sae": 32, "sites": SITES}
    return Recipe(
        lms=fields.pop("lms", LMS),
        sae=sae | fields.pop("sae", {}),
        **{
            name: getattr(base, name)
            for name in ("text", "harvest", "shuffle", "training", "evaluation", "collect")
        }
        | {"collect_tokens": 500}
        | fields,
    )


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"sae": {"sites": ["layers.1", SITES[1]]}}, "'layers.1' names no model of lms; put one"),
        ({"sae": {"sites": ["bse/layers.1", SITES[1]]}}, "lms lacks, 'bse'; closest: 'base'"),
        ({"sae": {"sites": ["base/layers.1", "base/layers.2"]}}, r"no site is of chat, one of lms"),
        ({"lm": hfsae.runs.LMArguments(name="x/y")}, r"has lm and lms \(base, chat\); leave out"),
        (
            {"sae": {"model_type": "jumprelu_clt", "target_sites": SITES}},
            r"a jumprelu_clt has sites of several models \(base, chat\)",
        ),
        ({"lms": {"base": {"name": "a"}}}, "lms has one model, base; give lm"),
        ({"lms": {"a/b": {"name": "a"}, "c": {"name": "c"}}}, "cannot have 'a/b'"),
        ({"lms": {"a": {"nam": "a"}, "c": {"name": "c"}}}, "lms.a has no field 'nam'; closest"),
        ({"lms": {"a": {}, "c": {"name": "c"}}}, "lms.a has no name"),
        ({"lms": ["a", "b"]}, "lms must hold language models by name"),
        ({"lms": {}}, "'base/layers.1' names a model, but the recipe has no lms"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(
    tmp_path, loads_two, fields, sentence
):
    with pytest.raises(ValueError, match=sentence):
        check(recipe_of_two(tmp_path, **fields))


def test_a_recipe_of_one_model_is_written_as_before(tmp_path):
    plain = hfsae.runs.as_plain(tiny_recipe(tmp_path))
    assert "lms" not in plain and plain["lm"]["name"] == "tiny/gemma"
    plain = hfsae.runs.as_plain(recipe_of_two(tmp_path))
    assert "lm" not in plain and plain["lms"]["chat"]["name"] == "tiny/chat"
    assert Recipe(lms=plain["lms"]).lms == plain["lms"]


@pytest.fixture(scope="module")
def _home(tmp_path_factory):
    return tmp_path_factory.mktemp("diff")


@pytest.fixture
def trained(_home, loads_two):
    folder = _home / "run"
    (made,) = run(recipe_of_two(folder))
    return made


def test_a_run_over_two_models_has_all_results_and_names_both(trained, capsys):
    sae = hfsae.load(str(trained))
    assert sae.config.sites == SITES and sae.config.model_name is None
    assert sae.config.model_names == {"base": "tiny/base", "chat": "tiny/chat"}
    assert "model_names" not in make_sae().config.to_dict()
    metrics = read_json(trained / "evaluation.json")["metrics"]
    assert {f"fvu@{site}" for site in SITES} <= {*metrics} and "coherence" in metrics
    assert not any("loss" in name for name in metrics)
    store = hfsae.FeatureStore.load(trained)
    assert len(store) == 32 and sum(store.latents["n_firings"].to_pylist()) > 0
    card = (trained / "README.md").read_text()
    assert "tiny/base and tiny/chat" in card and 'hfsae.load_lm("tiny/chat"' in card.replace(
        "'", '"'
    )
    training = read_json(trained / "training.json")
    assert [lm["name"] for lm in training["lms"].values()] == ["tiny/base", "tiny/chat"]
    from hfsae.cli.main import main

    main(["show", str(trained)])
    assert "base is tiny/base, chat is tiny/chat" in capsys.readouterr().out


def test_it_reads_activations_of_both_as_a_model_alone_gives_them(trained, tiny_lm, another_lm):
    sae = hfsae.load(str(trained))
    ids = tokens()["input_ids"]
    acts = {}
    for site, lm in zip(SITES, (tiny_lm, another_lm), strict=True):
        with torch.no_grad(), capture(lm, ["layers.1"]) as own:
            lm(input_ids=ids)
        acts[site] = own["layers.1"].flatten(0, 1)
    scales = [float(x.norm(dim=1).square().mean().sqrt()) for x in acts.values()]
    assert sae.config.site_scales == pytest.approx(scales, rel=0.3)
    assert sae(sae.join(acts)).recon.shape == (ids.numel(), 2 * tiny_lm.config.hidden_size)


def test_what_needs_a_single_model_is_refused(trained, tiny_lm):
    sae = hfsae.load(str(trained))
    with pytest.raises(ValueError, match=r"several language models at once \(base, chat\)"):
        hfsae.steer(tiny_lm, sae, {0: 1.0}).__enter__()
    placed = hfsae.runs.of_run(trained)
    with pytest.raises(ValueError, match=r"over several language models \(base, chat\)"):
        hfsae.runs.load_lm_for(placed)


@pytest.mark.parametrize(
    "names, sentence",
    [
        (("tiny/chat", "tiny/base"), "given as base is the one that was chat in training"),
        (("tiny/base", "tiny/other"), "chat: this SAE is not for this model: its weights differ"),
    ],
    ids=["swapped", "another"],
)
@pytest.mark.parametrize("verb", ["evaluate", "collect", "diff"])
def test_each_model_is_compared_with_that_of_the_training(
    trained, tmp_path, monkeypatch, make_tiny_lm, capsys, names, sentence, verb
):
    folder = shutil.copytree(trained, tmp_path / "copy")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for one, name in zip(recipe["lms"].values(), names, strict=True):
        one["name"] = name
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    load_two, third = hfsae.runs.inputs.load_lm, make_tiny_lm("gemma2", seed=2)

    def load_lm(name, **options):
        loaded = load_two(name, **options)
        return loaded._replace(lm=third) if name.endswith("other") else loaded

    monkeypatch.setattr(hfsae.runs.inputs, "load_lm", load_lm)
    assert sentence in refused([verb, str(folder)], capsys)
    assert (folder / "evaluation.json").read_bytes() == (trained / "evaluation.json").read_bytes()


def test_products_in_bfloat16_are_summed_in_float32_on_a_card(trained, tmp_path):
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = True
    diff(shutil.copytree(trained, tmp_path / "copy"), 300)
    assert not matmul.allow_bf16_reduced_precision_reduction


def test_the_record_of_a_diff_names_the_models_that_were_read(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("tiny/chat", "elsewhere/chat"))
    assert diff(folder, 300)["models"] == {"base": "tiny/base", "chat": "elsewhere/chat"}


def test_terms_that_differ_between_models_are_kept_by_name(trained, tiny_lm, another_lm):
    config = hfsae.load(str(trained)).config
    expected = {"base": sketch(tiny_lm), "chat": sketch(another_lm)}
    assert config.model_weights == expected and config.model_dtype == "float32"
    assert AutoConfig.from_pretrained(trained).model_weights == expected


def test_a_plan_counts_both_models(tmp_path, loads_two):
    cost = plan(recipe_of_two(tmp_path / "b"))
    lines = [line for line in cost.lines if line.startswith("language model")]
    assert len(lines) == 2 and "chat: tiny/chat" in lines[1]
    assert cost.disk_bytes > 0 and cost.memory_bytes > 0


def test_harvested_files_of_two_models_train_the_same_sae(tmp_path, loads_two):
    recipe = recipe_of_two(tmp_path / "live")
    written = harvest_to(recipe, tmp_path / "files")
    again = hfsae.runs.read_recipe(written)
    assert again.kind == "files" and not again.lms and again.sites == SITES
    (live,) = run(recipe)
    training = replace(again.training, output_dir=str(tmp_path / "again"))
    (read,) = run(replace(again, training=training, collect_tokens=0))
    ours, theirs = (hfsae.load(str(folder)).state_dict() for folder in (live, read))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name])


# groups and latent scaling


def test_beta_is_that_of_least_squares():
    torch.manual_seed(0)
    n, d, d_sae = 200, 6, 10
    scales = (1.5, 0.5)
    sae = of_rows(*torch.randn(2, d_sae, d), torch.randn(2 * d, d_sae), scales)
    sae.b_dec.copy_(torch.randn(2 * d))
    sae = sae.double()
    x = torch.randn(n, 2 * d, dtype=torch.float64)
    latents = sae.encode(x)
    recon = sae.decode(latents, x)
    of_one, of_second = torch.tensor([1, 4, 7]), torch.tensor([True, False, True])
    scaling = Scaling(Sides(sae), of_one, of_second)
    for part in range(0, n, 64):
        at = slice(part, part + 64)
        scaling.add(x[at], recon[at], latents[at], torch.arange(n)[at] // 10)
    nu = scaling.nu()
    for j, (i, is_second) in enumerate(zip(of_one.tolist(), of_second.tolist(), strict=True)):
        f = latents[:, i].numpy()
        centred = f - f.mean()
        halves = [slice(0, d), slice(d, 2 * d)]
        rows = [sae.W_dec[i, half].numpy() / c for half, c in zip(halves, scales, strict=True)]
        own = rows[1] if is_second else rows[0]
        found = {"recon": [], "error": []}
        for half, c, row in zip(halves, scales, rows, strict=True):
            a, written = x[:, half].numpy() / c, recon[:, half].numpy() / c
            ys = {"recon": written, "error": a - (written - np.outer(f, row))}
            for kind, y in ys.items():
                basis = np.outer(centred, own).reshape(-1, 1)
                beta = np.linalg.lstsq(basis, (y - y.mean(0)).reshape(-1), rcond=None)[0][0]
                found[kind].append(beta)
        for kind, (first, second) in found.items():
            own, other = (second, first) if is_second else (first, second)
            assert nu[f"own_{kind}"][0, j].item() == pytest.approx(own, rel=1e-8)
            value, low, high = nu[f"nu_{kind}"][:, j].tolist()
            assert value == pytest.approx(other / own, rel=1e-8) and low < value < high


def of_both(base: torch.Tensor, chat: torch.Tensor, token: torch.Tensor | None = None):
    """Activations of documents of 50 tokens."""
    document = torch.arange(len(base)) // 50
    return ActivationBatch(dict(zip(SITES, (base, chat), strict=True)), document, None, token)


def planted(in_first: float, n: int = 4000, d: int = 32):
    """Eight features of both models, and one that chat has at size 1 and base at `in_first`; the
    SAE writes the last at chat alone."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(d, 9)).Q.T
    sizes = torch.rand(n, 9) * (torch.rand(n, 9) < 0.3)
    noise = 0.01 * torch.randn(2, n, d)
    shrunk = torch.ones(9)
    shrunk[8] = in_first
    base, chat = (sizes * shrunk) @ directions + noise[0], sizes @ directions + noise[1]
    first, second = directions.clone(), directions.clone()
    first[8] = 0
    reads = torch.cat([torch.zeros_like(directions), directions], dim=1)  # chat's half alone
    sae = of_rows(first, second, reads.T)
    return compared(sae, [of_both(base, chat)])


def test_a_feature_that_the_dictionary_left_out_of_a_model_is_found_in_its_error():
    result = planted(0.3)
    assert result["latents"]["group"] == ["shared"] * 8 + ["second"]
    assert result["latents"]["nu_error"][8] == pytest.approx(0.3, abs=0.02)
    assert result["latents"]["nu_recon"][8] == pytest.approx(0, abs=0.02)
    assert result["latents"]["in_other"] == [None] * 8 + ["some"]
    assert result["latents"]["nu_error"][:8] == [None] * 8
    assert result["latents"]["cosine"][:8] == pytest.approx([1] * 8)


def test_a_feature_of_one_model_alone_has_little_in_the_other():
    result = planted(0.0)
    assert result["latents"]["in_other"] == [None] * 8 + ["little"]
    assert result["groups"]["second"] == {
        "n": 1,
        "n_fired": 1,
        "n_little": 1,
        "median_cosine": None,
    }
    assert result["groups"]["shared"]["median_cosine"] == pytest.approx(1)


@pytest.mark.parametrize("spreads", [0, 1.3, 2.7])
def test_latents_of_one_model_are_judged_the_same_whatever_the_activations_mean(spreads):
    """Of 32 planted ones nu without an intercept found 32, 10 and 4 of one model alone."""
    torch.manual_seed(0)
    n, d, n_shared, n_own = 12_800, 64, 16, 32
    directions = torch.linalg.qr(torch.randn(d, n_shared + n_own)).Q.T
    sizes = (0.5 + torch.rand(n, len(directions))) * (torch.rand(n, len(directions)) < 0.1)
    centred = sizes @ directions
    spread = (centred - centred.mean(0)).square().sum(1).mean().sqrt()
    mean = spreads * spread * torch.nn.functional.normalize(torch.randn(d), dim=0)
    base = sizes[:, :n_shared] @ directions[:n_shared] + mean + 0.01 * torch.randn(n, d)
    chat = centred + mean + 0.01 * torch.randn(n, d)
    first = directions.clone()
    first[n_shared:] = 0
    sae = of_rows(first, directions, torch.cat([torch.zeros_like(directions), directions], 1).T)
    sae.b_dec.copy_(mean.repeat(2))
    sae.b_enc.copy_(-0.1 - directions @ mean)
    columns = compared(sae, [of_both(base, chat)])["latents"]
    assert columns["in_other"] == [None] * n_shared + ["little"] * n_own
    of_fires = columns["explained_firing"][n_shared:]
    assert sum(columns["explained"][n_shared:]) == pytest.approx(0.98, abs=0.01)
    assert min(of_fires) > 0.1 and max(columns["shuffled_high"][n_shared:]) < 0


def test_it_is_undetermined_where_others_write_against_the_latent_on_its_tokens():
    """Its own coefficient is .3 and the other model's -.7: nu is -2.3, which is no part of it."""
    torch.manual_seed(0)
    n, own = 5000, torch.eye(8)[:1]
    fires = (torch.rand(n, 1) < 0.3).float()
    directions = torch.cat([-0.7 * own, own])
    first = torch.cat([-0.7 * own, 0 * own])
    sae = of_rows(first, directions, torch.zeros(16, 2))
    sae.W_enc[15] = 1  # a column that tells where both fire
    base = fires @ first[:1] + 0.01 * torch.randn(n, 8)
    chat = fires @ directions.sum(0, keepdim=True) + 0.01 * torch.randn(n, 8)
    chat[:, 7] = fires[:, 0]
    columns = compared(sae, [of_both(base, chat)])["latents"]
    assert columns["own_recon"][1] == pytest.approx(0.3, abs=0.01)
    assert columns["nu_recon"][1] == pytest.approx(-0.7 / 0.3, abs=0.1)
    assert columns["in_other"][1] == "undetermined"


# how much of the change a latent explains


def of_change(n: int = 3200, d: int = 12):
    """A crosscoder of random rows that reads base alone, and activations with a shift of all
    tokens by b_dec's difference."""
    torch.manual_seed(1)
    sae = of_rows(*torch.randn(2, 5, d), torch.zeros(2 * d, 5), (1.5, 0.5))
    sae.W_enc[:d] = torch.randn(d, 5)
    sae.b_dec.copy_(torch.randn(2 * d))
    sae = sae.double()
    base = torch.randn(n, d).double()
    change = sae.encode(torch.cat([base, base], 1)) @ (
        sae.W_dec[:, d:] / 0.5 - sae.W_dec[:, :d] / 1.5
    )
    shift = sae.b_dec[d:] / 0.5 - sae.b_dec[:d] / 1.5
    chat = 0.5 * (base / 1.5 + shift + 0.3 * change + torch.randn(n, d))
    return sae, base, chat, shift


def test_explained_is_one_minus_the_part_of_the_squared_change_that_a_latent_leaves():
    sae, base, chat, shift = of_change()
    d = base.shape[1]
    result = compared(sae, [of_both(base, chat)])
    f = sae.encode(torch.cat([base, chat], 1)).numpy()
    rows = (sae.W_dec[:, d:] / 0.5 - sae.W_dec[:, :d] / 1.5).numpy()
    y = (chat / 0.5 - base / 1.5 - shift).numpy()
    left_by_all = ((y - f @ rows) ** 2).sum() / (y**2).sum()
    assert result["change"]["explained"] == pytest.approx(1 - left_by_all, rel=1e-5)
    columns, document = result["latents"], np.arange(len(y)) // 50
    draws = np.random.default_rng(0).integers(64, size=(4000, 64))
    for i, row in enumerate(rows):
        left, whole = ((y - np.outer(f[:, i], row)) ** 2).sum(1), (y**2).sum(1)
        for name, where in (("explained", f[:, i] >= 0), ("explained_firing", f[:, i] > 0)):
            assert columns[name][i] == pytest.approx(
                1 - left[where].sum() / whole[where].sum(), rel=1e-5
            )
            sums = [np.bincount(document[where], part[where], 64) for part in (left, whole)]
            ends = np.quantile(1 - sums[0][draws].sum(1) / sums[1][draws].sum(1), [0.025, 0.975])
            found = [columns[f"{name}_low"][i], columns[f"{name}_high"][i]]
            assert found == pytest.approx(ends.tolist(), abs=0.1 * (ends[1] - ends[0]))
        elsewhere = (
            1
            - ((y - np.outer(np.random.default_rng(0).permutation(f[:, i]), row)) ** 2).sum()
            / whole.sum()
        )
        assert columns["shuffled"][i] == pytest.approx(elsewhere, rel=0.1)


def test_a_latent_that_fires_in_few_documents_has_no_interval_where_it_fires():
    gain, fired = torch.zeros(2, 64, 2).double()
    fired[:3, 0], fired[:, 1] = 2, torch.rand(64).double() + 1
    gain[:, :] = fired * torch.linspace(0.1, 0.9, 64)[:, None]
    (found,) = resampled({"g": gain, "f": fired}, lambda s: {"q": s["g"] / s["f"]}).values()
    assert found[:, 0].isnan().tolist() == [False, True, True]
    assert 0.3 < found[1, 1] < found[0, 1] < found[2, 1] < 0.7


def test_latents_beyond_those_that_are_resampled_at_once_have_values_and_intervals_of_their_own():
    gain, fired = torch.rand(2, 8, 1026).double()

    def share(sums):
        return {"q": sums["g"] / sums["f"]}

    (found,) = resampled({"g": gain, "f": fired}, share).values()
    torch.testing.assert_close(found[0], gain.sum(dim=0) / fired.sum(dim=0))
    (last,) = resampled({"g": gain[:, -2:], "f": fired[:, -2:]}, share).values()
    assert torch.equal(found[:, -2:], last)


def test_one_group_of_documents_has_no_interval_and_two_have():
    for n_groups, is_without in ((1, True), (2, False)):
        gain = torch.arange(1, n_groups + 1).double()[:, None]
        (found,) = resampled({"g": gain}, lambda sums: {"q": sums["g"]}).values()
        assert found[:, 0].isnan().tolist() == [False, is_without, is_without]
        assert found[0, 0] == gain.sum()


def test_a_shift_of_all_tokens_that_b_dec_holds_does_not_count():
    sae, base, chat, _ = of_change()
    before = compared(sae, [of_both(base, chat)])
    more = 3 * torch.ones(base.shape[1]).double()
    sae.b_dec[base.shape[1] :] += more
    after = compared(sae, [of_both(base, chat + more)])
    for name in ("explained", "explained_firing", "shuffled"):
        assert after["latents"][name] == pytest.approx(before["latents"][name], rel=1e-5)
    assert after["change"]["explained"] == pytest.approx(before["change"]["explained"], rel=1e-5)
    assert after["change"]["shift"] > before["change"]["shift"] + 0.1


def test_a_latent_that_stands_for_a_shift_of_all_tokens_explains_no_more_than_shuffled():
    torch.manual_seed(0)
    row = torch.eye(8)[:1]
    sae = of_rows(0 * row, row, torch.zeros(16, 1))
    sae.b_enc.fill_(1)  # fires everywhere
    base = torch.randn(3200, 8)
    columns = compared(sae, [of_both(base, base + row + 0.1 * torch.randn(3200, 8))])["latents"]
    assert columns["explained"][0] > 0.9 and columns["shuffled"][0] == columns["explained"][0]
    assert "explains no more of the change than as many firings elsewhere" in columns["sentence"][0]


def test_a_latent_that_found_the_change_is_told_in_one_sentence_with_its_tokens():
    torch.manual_seed(0)
    n, row = 4000, torch.eye(8)[:1]
    token = torch.randint(10, (n,))
    changed = token < 2
    sae = of_rows(0 * row, row, torch.zeros(16, 1))
    sae.W_enc[8] = 1
    base = 0.05 * torch.randn(n, 8)
    base[:, 0] = 0
    chat = base + 2 * changed[:, None] * row
    words = [" the", "the", " of"]
    result = compared(sae, [of_both(base, chat, token)], spell=lambda i: words[i])
    columns = result["latents"]
    assert columns["explained"] == columns["explained_firing"] == [1] and columns["n_kinds"] == [1]
    assert columns["tokens"][0] == [("the", pytest.approx(1, abs=1e-6))]
    chat[token == 2, 1] += 2
    chat[token == 2, 0] += 1
    result = compared(sae, [of_both(base, chat, token)], spell=lambda i: words[i])
    assert result["latents"]["sentence"] == [
        "explains 70 % of what changed on `the` and `of`: 70 % of the whole change"
    ]
    assert compared(sae, [of_both(base, chat)])["latents"]["sentence"] == [
        "explains 70 % of what changed where it fires: 70 % of the whole change"
    ]


def test_models_with_the_same_activations_have_no_change_to_explain():
    sae, base, _, _ = of_change()
    sae.config.site_scales = [1.0, 1.0]
    result = compared(sae, [of_both(base, base)])
    assert result["change"] == {"difference": 0, "shift": None, "explained": None}
    assert result["latents"]["explained"] == result["latents"]["sentence"] == [None] * 5


def test_groups_have_both_of_their_ends():
    shares = [0.0, 0.1, 0.11, 0.39, 0.4, 0.6, 0.61, 0.89, 0.9, 1.0, float("nan")]
    names = [GROUPS[i] for i in groups_of(torch.tensor(shares, dtype=torch.float64))]
    expected = "first first other other shared shared other other second second other"
    assert names == expected.split() and {*names} == {*GROUPS}


def test_shares_are_those_of_rows_in_the_unit_of_each_site():
    first, second = torch.randn(2, 10, 6)
    sae = of_rows(first, second, torch.randn(12, 10), (2.0, 5.0))
    norms = [rows.norm(dim=1) / c for rows, c in ((first, 2.0), (second, 5.0))]
    torch.testing.assert_close(Sides(sae).share, (norms[1] / (norms[0] + norms[1])).double())


@pytest.mark.parametrize(
    "sites, sentence",
    [
        (["layers.1", "layers.2"], "reads layers.1, layers.2; `hfsae diff` compares two"),
        (["base/layers.1", "base/layers.2"], "has sites of base; `hfsae diff` compares two"),
        (["base/layers.1", "chat/layers.2"], "are not read at the same sites, equally wide"),
    ],
)
def test_an_sae_that_has_not_the_same_sites_of_two_models_is_refused(sites, sentence):
    config = hfsae.ReLUSAEConfig(d_in=12, d_sae=10, sites=sites)
    with pytest.raises(ValueError, match=sentence):
        Sides(AutoModel.from_config(config))


@pytest.mark.renders
def test_the_verb_writes_a_record_a_figure_and_a_table(trained, capsys):
    from hfsae.cli.main import main

    main(["diff", str(trained), "--n_tokens", "300"])
    printed = capsys.readouterr().out
    record = read_json(trained / "diff.json")
    assert record["models"] == {"base": "tiny/base", "chat": "tiny/chat"}
    assert record["change"]["difference"] > 0 and record["n_documents"] > 1
    assert record["n_tokens"] > 100
    assert sum(group["n"] for group in record["groups"].values()) == 32
    l0 = read_json(trained / "evaluation.json")["metrics"]["l0"]["value"]
    n_fired = sum(record["latents"]["n_firings"])
    assert n_fired / record["n_tokens"] == pytest.approx(l0, rel=0.2)
    sae = hfsae.load(str(trained))
    assert record["latents"]["share"] == pytest.approx(sae.shares[:, 1].tolist(), abs=1e-6)
    assert "mostly chat (r >= .9)" in printed and (trained / "figures" / "diff.png").is_file()
    assert "figures/diff.png" in (trained / "README.md").read_text()
    assert table(trained) in printed
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"n_tokens is {n}; give 1 or more"):
            diff(trained, n)
    assert diff(trained, 1)["n_tokens"] >= 1
    changed = {**record, "n_tokens": 1}
    (trained / "diff.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed after it was written"):
        hfsae.runs.finish(trained)
    diff(trained, 300)


def test_the_table_lists_latents_by_what_they_explain_with_tokens_name_and_example(
    trained, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    record = diff(folder, 300)
    columns = record["latents"]
    fired = [i for i, value in enumerate(columns["explained_firing"]) if value is not None]
    best = sorted(fired, key=lambda i: -columns["explained"][i])
    write_label(folder, best[0], "endings of names")
    lines = table(folder, most=3).splitlines()
    start = lines.index("latents by how much of the change they explain:") + 2
    rows = [line.split() for line in lines[start : start + 3]]
    assert [int(row[0]) for row in rows] == best[:3]
    shares = [100 * columns[f"explained{end}"][best[0]] for end in ("", "_low", "_high")]
    expected = f"{shares[0]:.1f} ({shares[1]:.1f} to {shares[2]:.1f})"
    assert " ".join(rows[0][3:7]) == expected.replace("-0.0", "0.0")
    (at,) = (n for n, line in enumerate(lines) if line.startswith(f"latent {best[0]} "))
    assert lines[at] == f"latent {best[0]} (endings of names) {columns['sentence'][best[0]]}"
    token, share = columns["tokens"][best[0]][0]
    assert f"`{printable(token)}` {percent(share)}" in lines[at + 1]
    assert lines[at + 2].startswith("  example") and "«" in lines[at + 2]
    of_one = {**columns, **{name: [None] * 32 for name in ("explained", "explained_firing")}}
    (folder / "diff.json").write_text(json.dumps({**record, "latents": of_one}))
    assert "no latent that differs between them fired" in table(folder)
    of_others = {key: value for key, value in record.items() if key != "change"}
    (folder / "diff.json").write_text(json.dumps(of_others))
    with pytest.raises(ValueError, match=r"diff\.json is damaged"):
        table(folder)


def test_shares_are_told_to_two_digits():
    shares = [0.713, 0.0713, 0.00713, -0.02, 1.0]
    assert [percent(x) for x in shares] == ["71 %", "7.1 %", "0.71 %", "-2.0 %", "100 %"]


def test_the_app_has_a_page_for_it(
    trained, monkeypatch, capsys, tiny_lm, another_lm, tiny_tokenizer
):
    pytest.importorskip("gradio")
    from hfsae.demo import Choice, open_subject
    from hfsae.demo.actions import ENDPOINTS, Actions, docstring
    from hfsae.demo.app import pages_of
    from hfsae.demo.pages import DiffPage
    from hfsae.demo.parts import html
    from hfsae.demo.snippet import of_latent

    subject = open_subject(Choice(str(trained)))
    assert subject.loaded is None and "reads several at once" in subject.why_no_lm
    if not subject.diff:
        diff(trained, 300)
        subject = open_subject(Choice(str(trained)))
    pages = pages_of(subject)
    assert pages["diff"] is DiffPage and not {"inspect", "steer", "why"} & {*pages}
    assert subject.lm_name == "base and chat"
    code, lms = of_latent(subject, 5), {"base": tiny_lm, "chat": another_lm}

    def load_lm(of):
        return LoadedLM(lms[of.rpartition(" ")[2]], tiny_tokenizer, "")

    monkeypatch.setattr(hfsae, "load_lm", load_lm)
    exec(code, {})
    assert "tensor(" in capsys.readouterr().out
    view = Actions(subject).diff(by="share")
    shares = [row["share"] for row in view["found"]]
    assert shares == sorted(shares, reverse=True) and view["models"] == ["base", "chat"]
    firings = [row["n_firings"] for row in Actions(subject).diff(by="firings")["found"]]
    assert firings == sorted(firings, reverse=True)
    explained = [row["explained"] for row in Actions(subject).diff()["found"]]
    assert explained == sorted(explained, reverse=True), "what explains most comes first"
    assert view["change"] == pytest.approx(subject.diff["change"])
    (endpoint,) = (endpoint for endpoint in ENDPOINTS if endpoint.name == "diff")
    assert {*docstring(endpoint.function)[2]} == {*view}
    page = html("diff", {**view, "unit": subject.unit})
    assert "mostly chat" in page and page.count("<tr>") >= len(shares)
    best = max(view["found"], key=lambda row: row["explained"])
    assert f"<small>{best['sentence'][:9]}" in page
    assert f"{100 * best['explained_low']:.1f} to {100 * best['explained_high']:.1f}" in page
    with pytest.raises(ValueError, match="group is 'x'"):
        Actions(subject).diff("x")


# scripts/changed_lm.py


def test_noise_is_on_each_matrix_in_units_of_its_standard_deviation(make_tiny_lm):
    before, after = (make_tiny_lm("gemma2", seed=0) for _ in range(2))
    script("changed_lm").add_noise(after, 0.02)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        noise = (new - old).detach()
        expected = 0.02 * float(old.detach().std()) if old.ndim > 1 else 0
        assert float(noise.square().mean().sqrt()) == pytest.approx(expected, rel=0.2), name


def test_the_fine_tuned_copy_has_learned_its_text(make_tiny_lm, tiny_tokenizer):
    lm = make_tiny_lm("gemma2", seed=0).requires_grad_(False)  # as `load_lm` gives it
    ids = tiny_tokenizer("def f(x): return x", return_tensors="pt").input_ids
    before = float(lm(input_ids=ids, labels=ids).loss)
    texts = [f"def f(x): return x {number}" for number in range(2000)]
    script("changed_lm").fine_tuned(LoadedLM(lm, tiny_tokenizer, ""), texts)
    assert lm.dtype == torch.bfloat16 and not lm.training
    assert float(lm(input_ids=ids, labels=ids).loss) < before - 0.01
