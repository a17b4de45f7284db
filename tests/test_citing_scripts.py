"""Scripts that put claims of papers to the test: each runs on tiny random models, and its sums are
right where there is another way to know them."""

import inspect
import itertools
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import DynamicCache, Qwen3NextConfig, Qwen3NextForCausalLM

import hfsae
from hfsae.io.files import read_json
from hfsae.lm import LoadedLM

from .helpers import ROOT, script
from .tiny import make_sae
from .tiny_encoders import save_encoder, save_pictures


@pytest.fixture
def claim(monkeypatch) -> Callable[[str], ModuleType]:
    """claim("echo"): that script as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "citing")
    before = {*sys.modules}
    yield lambda name: script(f"citing/{name}")
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "scripts")):
            del sys.modules[name]


@pytest.fixture
def quick(claim, monkeypatch, tmp_path, tiny_lm, tiny_tokenizer) -> Callable[[str], list[dict]]:
    """quick("echo"): the runs that `--quick` keeps, of a tiny language model and random SAE."""
    sae = make_sae("layers.2")
    sae.config.model_name = "tiny/gemma"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "of", "the", "green", "house"], 15)) for _ in range(60)]
    rows = [{"prompt": text, "target": "ABCD"[i % 4]} for i, text in enumerate(texts)]
    monkeypatch.setattr(hfsae, "load", lambda folder: sae)
    monkeypatch.setattr(hfsae, "load_lm", lambda *a, **k: LoadedLM(tiny_lm, tiny_tokenizer, "test"))
    for read in ("hfsae.packaged.packaged_text", "hfsae.activations.tokens.packaged_text"):
        monkeypatch.setattr(read, lambda name, fraction=1.0: texts)
    monkeypatch.setattr(hfsae.packaged, "probe_rows", lambda name: rows)

    def run(name: str, **constants: Any) -> list[dict]:
        output = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [f"scripts/citing/{name}.py", "--quick", str(output)])
        module = claim(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        module.to_file(module.__doc__, module.measure)
        runs = read_json(output)["runs"]
        for one in runs:
            assert one["command"].split()[1] == f"scripts/citing/{name}.py" and one["machine"]
            assert one["quick"] is True
        return runs

    return run


def is_interval(value: Any) -> bool:
    return len(value) == 3 and value[1] <= value[0] <= value[2]


def test_a_file_that_holds_no_results_is_refused_before_anything_is_measured(
    claim, monkeypatch, tmp_path, capsys
):
    module, file = claim("claim"), tmp_path / "notes.json"
    for content in ("no JSON", "[1]"):
        file.write_text(content)
        monkeypatch.setattr(sys, "argv", ["echo.py", str(file)])
        with pytest.raises(SystemExit) as stop:
            module.to_file("", lambda quick: pytest.fail("it measured"))
        assert stop.value.code == 2 and file.read_text() == content
        assert "is no file of results" in capsys.readouterr().err


def test_one_command_makes_all_results_and_each_is_of_a_whole_run():
    folder = ROOT / "scripts" / "citing"
    results = {path.stem: read_json(path)["runs"] for path in folder.glob("results/*.json")}
    text = (folder / "all.sh").read_text()
    shared = {"claim", "short_training", "byte_model", "gated_delta"}
    assert {path.stem for path in folder.glob("*.py")} - shared == {*results}
    assert all(f"{name} " in text or f"{name};" in text for name in results)
    assert not any(run["quick"] for runs in results.values() for run in runs)
    for script_file in folder.glob("*.py"):
        assert script_file.read_text().count("\n") <= 120, script_file


def test_constraint_violations_run(quick):
    (run,) = quick("constraint_violations")
    for kind in ("latents", "dimensions"):
        assert run[kind]["rules"].keys() == {
            *("agreement", "determiner", "reflexive", "participle", "quantity", "facts")
        }
        assert is_interval(run[kind]["rule_left_out"])
    assert run["pairs"] == 80


def test_each_word_and_context_of_a_quartet_is_once_right_and_once_wrong(claim):
    module = claim("constraint_violations")
    for rule in module.PAIRS:
        rows = module.quartets(rule)
        assert len(rows) == 20 and len({*rows}) == 20
        for right, other, wrong, another in rows:
            words = [text.rsplit(" ", 1) for text in (right, other, wrong, another)]
            (a, x), (b, y), *swapped = words
            assert a != b and x != y and swapped == [[a, y], [b, x]]


def test_sign_flips_give_the_p_values_of_all_choices(claim):
    module, rng = claim("constraint_violations"), np.random.default_rng(0)
    x = rng.normal(0.4, 1, (9, 5)) * (rng.random((9, 5)) > 0.2)
    every = np.array([*itertools.product([-1, 1], repeat=9)])
    exact = (np.abs(every @ x) >= np.abs(x.sum(0)) - 1e-9).mean(0)
    assert np.abs(module.sign_flip(x, np.ones((1, 9)))[0] - exact).max() < 0.01


def test_planted_violations_are_found_and_chance_is_not(claim):
    module, rng = claim("constraint_violations"), np.random.default_rng(1)
    x = rng.normal(size=(20, 200))
    assert len(module.discoveries(x, 50)["passed"]) <= 1
    x[:, 40:60] += 2 * np.array([1, -1] * 10)
    found = module.discoveries(x, 50)
    assert {(i, 1.0 if i % 2 == 0 else -1.0) for i in range(40, 60)} <= {*found["passed"]}
    assert len(found["passed"]) <= 23 and found["shuffled"] < 1


def test_causal_dimensionality_runs(quick):
    (run,) = quick("causal_dimensionality")
    assert [row["site"] for row in run["rows"]] == ["layers.0", "layers.1", "layers.2"]
    assert all(is_interval(row[k]) for row in run["rows"] for k in ("ratio", "unit", "random"))


def test_the_participation_ratio_of_a_random_linear_model_is_that_of_its_eigenvalues(claim):
    module, generator = claim("causal_dimensionality"), torch.Generator().manual_seed(0)
    weight = torch.randn(30, 30, generator=generator) * torch.logspace(0, -1.5, 30)[:, None]
    readout = torch.randn(3000, 30, generator=generator)  # m = readout . (weight x)
    eigenvalues = torch.linalg.eigvalsh(weight.T @ weight)
    exact = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    value, low, high = module.participation_ratio(readout @ weight, 200)
    assert value == pytest.approx(exact, rel=0.05) and low < exact < high
    few = [module.participation_ratio(part @ weight, 2)[0] for part in readout.split(60)]
    assert np.median(few) == pytest.approx(exact, rel=0.15)  # few texts give no lower figure


def test_the_gradient_at_a_site_is_what_a_small_change_there_does(
    claim, make_tiny_lm, tiny_tokenizer
):
    module = claim("causal_dimensionality")
    lm = make_tiny_lm("llama").double()
    subject = module.Subject("", lm, tiny_tokenizer, None)
    ids = module.token_ids(subject, "some text")
    (gradient,), _ = module.gradients(subject, ids, ["layers.1"])
    step = 1e-2 * torch.randn(gradient.shape, dtype=torch.float64)
    changed = []
    for sign in (1, -1):
        at = torch.zeros(ids.shape[1], len(step), dtype=torch.float64)
        at[-2] = sign * step
        with torch.no_grad(), hfsae.patch(lm, {"layers.1": lambda x, at=at: x + at}):
            changed.append(lm(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]])
    assert float((changed[0] - changed[1]) / 2) == pytest.approx(
        float(gradient.double() @ step), rel=1e-2
    )


def test_class_signal_runs(quick):
    (run,) = quick("class_signal")
    assert run["rows"].keys() == {"latents", "dimensions", "random directions", "random latents"}
    assert run["texts"] == 32


def test_signal_to_noise_is_the_planted_one_and_zero_by_chance(claim):
    module, rng = claim("class_signal"), np.random.default_rng(0)
    classes = torch.arange(4000) % 4
    noise, means = torch.tensor(rng.normal(size=(4000, 300))), torch.tensor([0.0, 1.0, 3.0, 4.0])
    ones = torch.ones(4000).double()
    planted = module.signal_to_noise(2 * noise + means[classes, None], classes, ones)
    assert float(planted.mean()) == pytest.approx(float(means.var()) / 4, rel=0.02)
    assert abs(float(module.signal_to_noise(noise[:40], classes[:40], ones[:40]).mean())) < 0.02
    value, low, _ = module.of_best(noise[:200], classes[:200].sort().values, 50)
    assert low < 0.02 and value < 0.1  # the best of one half are no better on the other


def test_confounded_labels_run(quick):
    (run,) = quick("confounded_labels")
    assert all(is_interval(value) for value in run["rows"].values())
    assert {name.rpartition(", ")[2] for name in run["rows"]} == {"plain", "partial"}


def test_partial_correlations_are_those_of_the_textbook(claim):
    module, rng = claim("confounded_labels"), np.random.default_rng(0)
    z = rng.normal(size=80)
    x, y = z[:, None] + rng.normal(size=(80, 3)), z + rng.normal(size=80)
    rho, p = module.correlations(x, y)
    partial, _ = module.correlations(x, y, z)
    for i in range(3):
        known = spearmanr(x[:, i], y)
        assert (rho[i], p[i]) == pytest.approx((known.statistic, known.pvalue), rel=1e-6)
        a, b, c = known.statistic, spearmanr(x[:, i], z).statistic, spearmanr(y, z).statistic
        assert partial[i] == pytest.approx((a - b * c) / np.sqrt((1 - b**2) * (1 - c**2)))


def test_a_column_of_length_alone_is_found_until_length_is_taken_out(claim):
    module, rng = claim("confounded_labels"), np.random.default_rng(0)
    z = rng.normal(size=300)
    x, y = z[:, None] + rng.normal(size=(300, 50)), z + rng.normal(size=300)
    assert module.goes_with(x, y).all() and module.goes_with(x, y, z).sum() <= 2


def test_tool_switching_runs(quick):
    (run,) = quick("tool_switching")
    (row,) = run["rows"]
    assert is_interval(row["right"])


def test_a_vector_added_at_the_last_token_of_a_cache_is_the_one_added_without(
    claim, tiny_lm, tiny_tokenizer
):
    module = claim("tool_switching")
    subject = module.Subject("", tiny_lm, tiny_tokenizer, None)
    added = 30 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    tools = module.calls(subject, "Will it rain?", "layers.1", added)
    ids = module.token_ids(subject, module.prompt("Will it rain?"))
    starts = [tiny_tokenizer(f" {t}", add_special_tokens=False).input_ids[0] for t in module.TOOLS]
    for vector, tool in zip(added, tools, strict=True):

        def at_last(x, vector=vector):
            return torch.cat([x[:, :-1], x[:, -1:] + vector], 1)

        with torch.no_grad(), hfsae.patch(tiny_lm, {"layers.1": at_last}):
            logits = tiny_lm(input_ids=ids).logits[0, -1, starts]
        assert int(logits.argmax()) == tool


def test_the_echo_runs(quick):
    (run,) = quick("echo")
    assert run["choice"].keys() == {"A", "B", "C", "BC", "random"} and run["events"] == 2
    assert run["choice, difference"]["C - A"][0] == pytest.approx(
        run["choice"]["C"][0] - run["choice"]["A"][0]
    )


def test_the_log_probability_of_a_choice_is_the_mean_of_its_tokens(claim, tiny_lm, tiny_tokenizer):
    module = claim("echo")
    subject = module.Subject("", tiny_lm, tiny_tokenizer, None)
    value = module.log_probability(subject, "I will", "go")
    ids = tiny_tokenizer("<bos>I will go", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = tiny_lm(input_ids=ids, labels=torch.where(torch.arange(len(ids[0])) < 7, -100, ids))
    assert value == pytest.approx(-float(loss.loss), rel=1e-5)


def test_phase_rotation_runs(quick):
    (run,) = quick("phase_rotation")
    assert run["rows"].keys() == {"none", "latents", "PCA", "dimensions", "static", "fvu"}


def test_a_rotated_travelling_wave_is_the_wave_ahead_and_a_standing_one_is_as_before(claim):
    module = claim("phase_rotation")
    per_step, x = 2 * np.pi / 25, 2 * np.pi * np.arange(48) / 48
    phase, angle = per_step * np.arange(300), np.linspace(0, 2 * np.pi, 300)

    def wave(phase: np.ndarray) -> np.ndarray:
        at = x - phase[:, None]
        return 3 + np.cos(at) + 0.3 * np.sin(2 * at)

    ahead = module.rotated(wave(phase), angle, per_step, 8)
    assert np.abs(ahead - wave(phase + angle)).max() < 0.05
    standing = np.cos(x) * np.cos(phase)[:, None]
    assert np.allclose(module.rotated(standing, angle, per_step, 8), standing)


def test_masks_are_compared_with_none(quick, loads):
    (run,) = quick("masked_tokens", SHARES=(0.0, 0.3))
    none, masked = run["rows"].values()
    assert all(value == [0, 0, 0] for value in none["relative"].values())
    assert masked["relative"]["gap"][0] != 0 and masked["fvu, other"][0] > 0


def test_absorption_of_masks_is_beside_that_of_random_directions(claim, monkeypatch):
    values = {("0.0", ""): 0.2, ("untrained", "0.0"): 0.3, ("0.1", ""): 0.4}
    rows = [
        {"features": features, "of": of, "full": [full, 0, 1], "f1_of_main": [2 * full, 0, 1]}
        for (features, of), full in values.items()
    ]
    rows.append({"features": "0.3", "of": "", "refused": "too few letters"})
    record = {"absorption": {"rows": rows}}
    module = claim("masked_tokens")
    monkeypatch.setattr(module, "packaged_tasks", lambda names: iter(names))
    monkeypatch.setattr(module, "probe", lambda *a, **k: SimpleNamespace(record=record))
    found = module.absorption(
        SimpleNamespace(lm=0, tokenizer=0), ({"0.0": 0, "0.1": 0, "0.3": 0}, {})
    )
    assert found["0.0"] == {
        "absorption": 0.2,
        "F1": 0.4,
        "absorption, random": 0.3,
        "F1, random": 0.6,
    }
    assert found["0.1"] == {"absorption": 0.4, "F1": 0.8} and found["0.3"] == {}


@pytest.fixture
def registered(citing, monkeypatch) -> None:
    """Variants are known already: scripts register none of their own."""
    monkeypatch.setattr(hfsae.models, "register_variants", lambda file: None)


def test_coherence_of_arms_is_compared_with_free_weights(quick, registered, loads):
    (run,) = quick("coherence")
    rows = run["rows"]
    assert [*rows] == ["free", "random_start", "dropout", "shared"] and len(run["sites"]) == 3
    assert rows["free"]["more"] == rows["free"]["fvu, relative"] == [0, 0, 0]
    for row in rows.values():
        assert all(is_interval(value) for value in row.values())
        kinds = ("coherence", "net", "decoder", "shuffled", "random", "over latents")
        assert all(1 <= row[kind][0] <= 3 for kind in kinds)


def test_coherence_is_that_of_the_package_and_of_latents_made_for_one_and_all_sites(claim):
    module, generator = claim("coherence"), torch.Generator().manual_seed(0)
    sites = ["layers.0", "layers.1", "layers.2"]
    config = hfsae.BatchTopKSAEConfig(d_in=48, d_sae=60, sites=sites, k=8)
    sae = hfsae.BatchTopKSAE(config)
    with torch.no_grad():
        sae.threshold.fill_(0.3)
        sae.b_enc[2] = -100.0  # it never fires
        sae.W_enc[16:, 0] = 0
    x = {site: torch.randn(500, 16, generator=generator) for site in sites}
    of = module.coherences(sae, sae.join(x), 0)
    batch = hfsae.activations.ActivationBatch(x, torch.zeros(500, dtype=torch.long))
    metric = hfsae.evaluation.evaluate_reconstructions(sae, [batch]).metrics["coherence"]
    assert len(of["coherence"]) == 59 and float(of["coherence"][0]) == pytest.approx(1)
    assert float(of["coherence"].mean()) == pytest.approx(metric.value, rel=1e-5)
    assert float(of["decoder"].mean()) == pytest.approx(3)
    assert float(of["random"][1:].mean()) > 2.9  # sites are independent, norms equal


def test_a_clt_in_the_place_of_mlps_of_a_vision_model(quick):
    def write_pictures(folder, name):
        for label in "012":
            save_pictures(folder / label, 20, seed=int(label))

    files = SimpleNamespace(
        write_model=lambda folder: save_encoder("dinov2", folder), write_pictures=write_pictures
    )
    (run,) = quick("vision_clt", vision=files)
    rows, arms = run["rows"], ("clt", "per_layer", "wide")
    assert [*rows] == ["none", "means", *arms] and len(run["mlps"]) == 2
    assert rows["none"]["change"] == pytest.approx(0, abs=1e-6) and rows["means"]["change"] > 0.01
    assert all(is_interval(value) for arm in arms for value in rows[arm].values())
    assert all(rows[arm][key][0] > 0 for arm in arms for key in ("fvu", "change"))
    for key in ("fvu", "l0", "change", "accuracy"):
        less = rows["wide"][f"the CLT's {key} less this"][0]
        assert less == pytest.approx(rows["clt"][key][0] - rows["wide"][key][0], abs=1e-6)


def test_the_wider_transcoders_have_as_many_weights_as_the_clt(claim):
    mlps = [f"encoder.layer.{i}.mlp" for i in range(6)]
    weights: dict[str, int] = {}
    for name, of in claim("vision_clt").dictionaries(mlps, 512).items():
        kind = hfsae.BatchTopKCLT if name == "clt" else hfsae.BatchTopKSAE
        width = 8 * (len(of["sites"]) if name == "clt" else 1)
        own = {key: value for key, value in of.items() if key != "model_type"}
        if name == "clt":
            read, written = zip(*(site.split(" -> ") for site in own["sites"]), strict=True)
            own |= {"sites": [*read], "target_sites": [*written]}
        sae = kind(kind.config_class(d_in=width, d_out=width, **own))
        matrices = sum(p.numel() for p in sae.parameters() if p.ndim == 2)
        weights[name.split(".")[0]] = weights.get(name.split(".")[0], 0) + matrices
    assert weights["clt"] == weights["wide"] == 9 / 4 * weights["per_layer"]


def test_saes_start_at_concepts(quick, loads, monkeypatch):
    rng = np.random.default_rng(1)
    words = (["cat", "green"], ["house", "of"])
    texts = [(" ".join([*rng.choice(words[i % 2], 8), f"{i}"]), i % 2) for i in range(120)]
    rows = [{"prompt": text, "target": str(has)} for text, has in texts]
    monkeypatch.setattr("hfsae.evaluation.probing.tasks.probe_rows", lambda name: rows)
    (run,) = quick("concept_start")
    rows = run["rows"]
    assert [*rows] == ["direction", "dimensions", "clusters", "concepts", "shuffled"]
    assert len(run["concepts"]) == 24 and run["texts"] == 40
    for arm in ("clusters", "concepts", "shuffled"):
        assert all(is_interval(value) for value in rows[arm].values())
        near = rows[arm]["cosine"][0]
        assert near < 0.5 if arm == "clusters" else near > 0.9  # two steps from its start
        less = rows[arm]["own"][0] - rows["clusters"]["best"][0]
        assert rows[arm]["own, more"][0] == pytest.approx(less, abs=1e-6)


def test_aucs_of_concepts_count_pairs_and_the_best_is_chosen_on_other_texts(claim):
    module, generator = claim("concept_start"), torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (12, 5), generator=generator).float()
    pairs = (x[:6, None] > x[None, 6:]).double() + 0.5 * (x[:6, None] == x[None, 6:]).double()
    np.testing.assert_allclose(module.auc(x), pairs.mean((0, 1)).numpy())
    fit = torch.tensor([[0.0, 1], [0, 0], [1, 0], [1, 1]])  # the first is low where it has it
    test = torch.tensor([[1.0, 1], [0, 1], [1, 0], [1, 0]])
    assert module.of_best(fit, test) == pytest.approx(0.75)


def test_families_are_told_by_graphs_of_tokens(quick):
    (run,) = quick("motifs", LEAST=2, AGREE=0.3, KINDS=("wiki", "python"))
    assert run["texts"] == 40 and run["tokens"] > 500
    for about in ("token", "text"):
        row = run[about]
        graph, decoder = (row[kind]["purity"] for kind in ("graph", "decoder rows"))
        assert is_interval(graph) and 0 <= row["graph"]["chance"] <= 1
        assert row["graph - decoder rows"][0] == pytest.approx(graph[0] - decoder[0])
        assert min(row["sizes"]) >= 2


def test_graphs_are_alike_by_what_stands_near_what(claim):
    labels = claim("motifs").labels_of_graph
    ring = [["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]]
    renamed = [[{"a": "x"}.get(t, t) for t in window] for window in ring]
    pairs = [["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"]]  # as frequent, with other edges
    star = [["a", "b"], ["a", "c"], ["a", "d"], ["b", "c"]]
    assert labels(ring, tokens=False) == labels(renamed, tokens=False)
    assert labels(ring, tokens=True) != labels(renamed, tokens=True)
    for other in (pairs, star):
        assert labels(ring, tokens=False) != labels(other, tokens=False)


def test_purity_is_one_where_clusters_are_families_and_that_of_chance_is_not(claim):
    families = np.arange(48) % 12
    alike = (families[:, None] == families[None]).astype(float)
    shares, row = claim("motifs").scores(alike, families)
    assert shares.tolist() == [1] * 48 and row["purity"][0] == 1 and row["chance"] < 0.7


def test_recurrent_states_run(quick, registered):
    (run,) = quick("recurrent_states", CONTEXT=32, BATCH=6)
    rows = {(row["of"], row["arm"]): row for row in run["rows"]}
    arms = ("rank1", "topk", "few")
    assert [*rows] == [(of, arm) for of in ("states", "writes") for arm in arms]
    assert run["documents"] == 6 and run["loss"].keys() >= {"model", "bigram", "unigram"}
    for row in rows.values():
        assert is_interval(row["fvu"]) and row["fvu"][0] > 0
        for place in ("at", "after"):
            assert 0 <= row[place]["strongest < ablation"][0] <= 1
            assert row[place]["kl"]["ablation"] > 0


def rule(q, k, v, alpha, beta, added=None, s=-1) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and states of one head by the gated delta rule, step by step; at s a matrix is
    added to the state before it is read."""
    state, outputs, every = np.zeros((k.shape[1], v.shape[1])), [], []
    for t in range(len(q)):
        state = alpha[t] * state
        state = state + beta[t] * np.outer(k[t], v[t] - state.T @ k[t])
        state = state + added if t == s else state
        outputs.append(state.T @ q[t])
        every.append(state)
    return np.array(outputs), np.array(every)


def test_an_addition_to_a_state_shifts_later_outputs_by_exactly_the_formula(claim):
    module, rng, s = claim("gated_delta"), np.random.default_rng(0), 4
    q, k, v = rng.normal(size=(14, 5)), rng.normal(size=(14, 5)), rng.normal(size=(14, 7))
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    alpha, beta = rng.uniform(0.5, 1, 14), rng.uniform(0.1, 1, 14)
    kept = alpha[:, None, None] * (np.eye(5) - beta[:, None, None] * k[:, :, None] * k[:, None])
    writes = beta[:, None, None] * k[:, :, None] * v[:, None]
    of = module.Recurrence(*(torch.from_numpy(x)[None, :, None] for x in (q, writes, kept)))
    atom_v, atom_w = rng.normal(size=5), rng.normal(size=7)
    before, states = rule(q, k, v, alpha, beta)
    after, _ = rule(q, k, v, alpha, beta, np.outer(atom_v, atom_w), s)
    assert np.abs(module.states(of)[0, :, 0].numpy() - states).max() < 1e-12
    assert np.abs((after - before)[:s]).max() == 0 and np.abs((after - before)[-1]).max() > 1e-4
    shift = (module.reading(of, s)[0, :, 0].numpy() @ atom_v)[:, None] * atom_w
    assert np.abs(shift - (after - before)[s:]).max() < 1e-9


@pytest.fixture
def recurrent_lm() -> Qwen3NextForCausalLM:
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=3,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        mlp_only_layers=[0, 1, 2], linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=6, linear_value_head_dim=8, num_attention_heads=2,
        num_key_value_heads=2, head_dim=12, initializer_range=0.3,
    )  # fmt: skip
    lm = Qwen3NextForCausalLM(config).eval()
    for layer in lm.base_model.layers[:2]:
        torch.nn.init.constant_(layer.linear_attn.A_log, -2)  # it remembers
    return lm


def test_a_changed_write_does_what_another_state_in_the_models_cache_does(claim, recurrent_lm):
    module, lm, s, head = claim("gated_delta"), recurrent_lm, 8, 3
    ids = torch.randint(0, 50, (2, 14), generator=torch.Generator().manual_seed(0))
    change = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    name = "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"
    of, logs = module.recurrence(lm, ids, 1), []
    with torch.no_grad():
        for factor in (0, 1):
            cache = DynamicCache(config=lm.config)
            lm(input_ids=ids[:, :s], **{name: cache}, use_cache=True)
            held = cache.layers[1].recurrent_states
            held = held[0] if isinstance(held, dict | list) else held
            own = module.states(of)[:, s - 1]
            assert torch.allclose(held, own, atol=1e-5) and own.abs().max() > 0.05
            # what becomes `change` in the step at s
            held[:, head] += factor * torch.linalg.solve(of.kept[:, s, head], change)
            out = lm(input_ids=ids[:, s:], **{name: cache}, use_cache=True)
            logs.append(out.logits.double().log_softmax(-1))
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    kl = module.divergences(lm, ids, 1, s, head, {"change": change, "none": 0 * change})
    assert expected.min() > 1e-4 and torch.allclose(kl["change"], expected, rtol=1e-3)
    assert kl["none"].abs().max() < 1e-12


def test_a_model_without_recurrent_states_is_refused_in_a_sentence(claim, tiny_lm, recurrent_lm):
    module, ids = claim("gated_delta"), torch.tensor([[1, 2, 3]])
    for lm, layer in ((tiny_lm, 1), (recurrent_lm, 2)):
        with pytest.raises(hfsae.Refused) as refusal:
            module.recurrence(lm, ids, layer)
        assert str(refusal.value) == (
            f"layers.{layer} of {type(lm).__name__} has no recurrent state that this script can "
            "read; give a layer with the gated delta rule of Qwen3NextForCausalLM"
        )
