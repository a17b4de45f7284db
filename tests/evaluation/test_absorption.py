"""First-letter absorption against planted words, SAEBench's own code, and the formulas by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hfsae.cards import probing_facts
from hfsae.evaluation.probing import ProbeArguments
from hfsae.evaluation.probing.absorption import (
    LETTERS,
    Words,
    absorbed,
    first_letters,
    fit,
    letters_of,
    main_latents,
    read_words,
    shown_pairs,
    truth_of,
    words_of,
)
from hfsae.evaluation.untrained import Untrained
from hfsae.io.errors import Refused
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig

from .planted_letters import PARTIAL, PURE, SPLIT, planted

PARTLY = 0.25 * 0.5**0.5 / (0.5**0.5 + 0.2)
"""One word in four; an absorbing latent's cosine with the letter is about the root of a half."""
NO_TASKS = {"means": [], "tasks": {}, "tasks_of": "none"}
SAEBENCH = json.loads((Path(__file__).parent / "saebench_absorption.json").read_text())


@pytest.fixture(scope="module")
def of():
    return planted()


@pytest.fixture(scope="module")
def words(of):
    tokens = [f"{LETTERS[letter]}word" for letter in of.letters]
    return Words(tokens, of.letters, {"site": torch.from_numpy(of.x)}, of.n_train)


@pytest.fixture(scope="module")
def coder(of):
    """The planted latents of each activation, and their directions."""
    x, latents = torch.from_numpy(of.x), torch.from_numpy(of.latents)
    return lambda part: latents[torch.cdist(part, x).argmin(dim=1)], torch.from_numpy(of.W_dec)


@pytest.fixture(scope="module")
def truth(words):
    pytest.importorskip("sklearn")
    return truth_of(words, "site")


@pytest.fixture(scope="module")
def results(words, truth, coder):
    return {each["letter"]: each for each in letters_of(words, "site", truth, *coder)}


def test_planted_absorption_comes_back(results, truth):
    """One test word in four of a letter, but of those without an absorbing latent."""
    assert len(truth.letters) == 26
    for k, letter in enumerate(LETTERS):
        own = results[letter]
        assert {*own["latents"]} <= {k, 26 + k}
        if k in SPLIT:  # one or both, by what the few words of the test gain
            continue
        full = 0.0 if k in PURE or k in PARTIAL else 0.25
        assert (own["n_words"], own["full"]) == (4, full)
        assert own["fraction"] == pytest.approx(PARTLY if k in PARTIAL else full, abs=0.02)
    assert len(results["a"]["latents"]) == 2


def test_latents_of_any_scale_and_order_give_the_same(words, truth, coder, results):
    encode, directions = coder
    scale = torch.linspace(0.1, 3, len(directions))
    scaled = lambda x: encode(x) * scale, directions / scale[:, None]
    again = {each["letter"]: each for each in letters_of(words, "site", truth, *scaled)}
    assert all(again[k]["full"] == results[k]["full"] for k in results.keys() | again.keys())


def test_the_probe_of_activations_is_saebenchs(words):
    n = words.n_train
    x = words.activations["site"][:n].double()  # Adam multiplies rounding
    weights, _ = fit(x, words.letters[:n], batch=n, weight_decay=1e-4)
    np.testing.assert_allclose(weights[:3], SAEBENCH["probe"], atol=1e-6)


def test_main_latents_and_their_f1_are_saebenchs(of, words):
    pytest.importorskip("sklearn")
    latents, n = torch.from_numpy(of.latents), of.n_train
    sparse, _ = fit(latents[:n], of.letters[:n], batch=4096, weight_decay=1e-6, l1=1e-2)
    for letter, name in enumerate(LETTERS):
        main, value = main_latents(latents, words, letter, sparse[letter])
        assert main == SAEBENCH["main"][name]
        assert value == pytest.approx(SAEBENCH["f1"][name], abs=1e-6)


@pytest.mark.parametrize(("key", "n_main"), [("absorbed", 10), ("absorbed_of_one", 1)])
def test_both_formulas_are_saebenchs(of, key, n_main):
    latents, W_dec = torch.from_numpy(of.latents), torch.from_numpy(of.W_dec)
    for letter, name in enumerate(LETTERS):
        p = torch.from_numpy(of.directions[letter])
        rows = np.flatnonzero(of.letters[of.n_train :] == letter) + of.n_train
        x, cosines = torch.from_numpy(of.x[rows]), F.normalize(W_dec, dim=1) @ p
        full, fraction = absorbed(latents[rows], cosines, x @ p, SAEBENCH["main"][name][:n_main])
        assert full.tolist() == SAEBENCH[key][name]["full"]
        np.testing.assert_allclose(fraction, SAEBENCH[key][name]["fraction"], atol=1e-6)


def by_hand(latents, cosines, projection, main):
    """(full, fraction) of one word, from the paper's conditions."""
    along = [a * c for a, c in zip(latents, cosines, strict=True)]
    top = max(range(len(along)), key=along.__getitem__)
    is_silent = all(latents[i] == 0 for i in main)
    full = is_silent and cosines[top] >= 0.025 and projection > 0 and along[top] >= 0.4 * projection
    others = sorted(along[i] for i in range(len(along)) if i not in main and cosines[i] >= 0.1)
    absorbing, of_main = sum(v for v in others[-3:] if v > 0), sum(along[i] for i in main)
    if of_main >= projection or absorbing / projection < 0.4:
        return full, 0.0
    if of_main <= 0:
        return full, 1.0
    taken = min(absorbing, projection - of_main)
    return full, taken / (taken + of_main)


def test_both_formulas_are_those_of_random_words_by_hand():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        latents = rng.exponential(size=12) * (rng.random(12) < 0.4)
        cosines = rng.uniform(-0.3, 0.9, size=12)
        projection = rng.uniform(-0.5, 3)
        expected = by_hand(latents, cosines, projection, [0, 1])
        full, fraction = absorbed(
            torch.tensor(latents)[None].float(),
            torch.tensor(cosines).float(),
            torch.tensor([projection]).float(),
            [0, 1],
        )
        assert bool(full[0]) == expected[0]
        assert float(fraction[0]) == pytest.approx(expected[1], abs=1e-5)
        kinds.add((bool(full[0]), expected[1] > 0, expected[1] < 1))
    assert len(kinds) == 4  # neither, part, all, and all with full absorption


def test_a_word_with_a_silent_main_latent_and_a_loud_other_is_absorbed_and_half_is_half():
    cosines = torch.tensor([1.0, 0.8])
    latents = torch.tensor([[0.0, 5.0], [4.0, 5.0], [8.0, 0.0]])
    full, fraction = absorbed(latents, cosines, torch.tensor([4.0, 8.0, 8.0]), [0])
    assert full.tolist() == [True, False, False]
    assert fraction.tolist() == [1.0, 0.5, 0.0]


def an_sae(of, **changes):
    n, d = of.W_dec.shape
    config = JumpReLUSAEConfig(d_in=d, d_sae=n, site="site", initial_threshold=1.0, **changes)
    sae = JumpReLUSAE(config)
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(of.W_dec))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def mean(values):
    return [float(np.mean(values)), 0.0, 1.0]


@pytest.fixture(scope="module")
def record(of, words):
    pytest.importorskip("sklearn")
    saes = {"own": an_sae(of)}
    controls = {"own": Untrained(words.activations["site"], torch.full((40,), 0.1), seed=0)}
    return first_letters(words, saes, "untrained", controls, mean)


def test_untrained_latents_stand_beside_an_sae_and_hold_no_letter(record):
    own, control = record["rows"]
    assert (control["features"], control["of"]) == ("untrained", "own")
    assert own["f1_of_main"][0] > control["f1_of_main"][0] + 0.2
    facts = probing_facts({**NO_TASKS, "absorption": record, "sae": "own"})
    full, *_ = facts["measures"]
    assert full["over"] == "26 letters"
    shown = [full[key].partition(",")[0] for key in ("own", "untrained")]
    assert shown == [f"{row['full'][0]:.3f}" for row in (own, control)]
    (line,) = facts["notes"]
    assert "Small language models" in line


def test_a_probe_that_knows_too_few_letters_gives_a_sentence_and_no_figures(of, words):
    rng = np.random.default_rng(2)
    unknown = words._replace(letters=rng.permutation(words.letters))
    (row,) = first_letters(unknown, {"own": an_sae(of)}, "untrained", {}, mean)["rows"]
    assert "0 of 26 letters" in row["refused"]
    assert "too weak a baseline for latents; more words" in row["refused"]
    assert "full" not in row
    facts = probing_facts({**NO_TASKS, "absorption": {"rows": [row]}, "sae": "own"})
    (line,) = facts["notes"]
    assert not facts["measures"]
    assert line.startswith("First-letter absorption: no figures")


def test_a_transcoder_has_no_absorption(of, words):
    sae = an_sae(of, target_site="elsewhere", d_out=of.W_dec.shape[1])
    (row,) = first_letters(words, {"own": sae}, "untrained", {}, mean)["rows"]
    assert "latents of a transcoder" in row["refused"] and "full" not in row


@pytest.fixture(scope="module")
def tokenizer():
    """Words of two letters, some with a space before, and tokens that are no words."""
    tokens = [f"{a}{b}" for a in LETTERS for b in "xy"] + [f" {a}Z" for a in LETTERS]
    tokens += [
        "<s>",
        "\n",
        " has the first letter:",
        "x1",
        "é",
        *(f" {a.upper()}" for a in LETTERS),
    ]
    model = WordLevel({token: i for i, token in enumerate(tokens)}, "<s>")
    backend = Tokenizer(model)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_words_are_tokens_of_letters_alone(tokenizer):
    words = words_of(tokenizer)
    assert len(words) == 4 * 26
    assert {"ax", " bZ", " C"} <= {*words.values()}
    assert not {"x1", "é", "\n"} & {*words.values()}


class Stateful(LlamaForCausalLM):
    """As recurrent models are: what they have read is no cache of keys and values."""

    _is_stateful = True


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def test_words_are_read_behind_shown_pairs_with_or_without_a_cache(lm, tokenizer):
    options = {"n_words": 80, "bos": True, "seed": 0}
    read = read_words(lm, tokenizer, ["layers.0", "layers.1"], **options)
    without_cache = Stateful(lm.config).eval()
    without_cache.load_state_dict(lm.state_dict())
    whole = read_words(without_cache, tokenizer, ["layers.0", "layers.1"], **options)
    assert read.tokens == whole.tokens and read.n_train == 64
    for site, acts in read.activations.items():
        torch.testing.assert_close(acts, whole.activations[site], atol=1e-5, rtol=1e-4)
    assert [LETTERS[k] for k in read.letters] == [t.strip()[0].lower() for t in read.tokens]


def test_a_text_is_pairs_of_word_and_letter_a_line_each(tokenizer):
    words = words_of(tokenizer)
    numbers = {word: number for number, word in words.items()}
    shown = np.array([numbers["ax"], numbers[" bZ"]])
    ids = shown_pairs(tokenizer, words, shown, bos=True)
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert "".join(tokens) == ("<s>\nax has the first letter: A\n bZ has the first letter: B\n")


def test_words_with_a_norm_that_is_an_outlier_are_left_out(lm, tokenizer):
    options = {"n_words": 80, "bos": True, "seed": 0}
    whole = read_words(lm, tokenizer, ["layers.0"], **options)
    norms = whole.activations["layers.0"].norm(dim=-1)
    limits = {"layers.0": float(norms.median())}
    few = read_words(lm, tokenizer, ["layers.0"], norm_limits=limits, **options)
    keep = (norms <= norms.median()).tolist()
    assert few.tokens == [w for w, is_kept in zip(whole.tokens, keep, strict=True) if is_kept]
    assert 0 < few.n_train == sum(keep[: whole.n_train]) < len(few.tokens) == 40
    assert torch.equal(few.activations["layers.0"], whole.activations["layers.0"][keep])


def test_too_few_words_are_refused():
    with pytest.raises(Refused, match="n_words is 20; give 500 or more"):
        ProbeArguments(n_words=20)
    assert ProbeArguments(n_words=0).n_words == 0
