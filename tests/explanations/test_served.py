"""Scores by a server: from a faulty one they are those from a sound one, or marked failed."""

from zlib import crc32

import pytest

from hfsae.explanations.explainers import lm_explainer
from hfsae.explanations.judges import DryRunJudge, JudgeArguments, Remote
from hfsae.explanations.judges.chat import n_tokens
from hfsae.explanations.scorers import SCORERS, sample_of
from hfsae.explanations.verdicts import ScoreArguments, cases_of, results_of
from hfsae.explanations.windows import ExplainArguments, select

from .conftest import read_planted
from .loopback_judge import LoopbackJudge, content, cut_off, raw, status
from .oracle import by_oracle

LATENTS = [*range(14, 20)]
NAMES = {latent: f'"w{latent - 12}" 100%' for latent in LATENTS}
ARGS = ExplainArguments(latents=LATENTS)
SCORES = tuple(SCORERS)
FAULTS = [
    status(429, Retry_After="1"),
    status(500),
    cut_off,
    raw("<html>busy</html>"),
    content(""),
    content("I'm sorry, I can't help with that."),
    content('{"grades": [1, 1', "length"),
    content('{"grades": [1, 0, 1]}'),  # each text has a grade
    content("1 0 1 0 or so"),
    content("<think>the first one"),
]


@pytest.fixture(scope="module")
def samples(planted):
    reading = read_planted(planted, LATENTS, n_directions=2)
    asked = ScoreArguments()
    return [
        sample_of(reading, evidence, ARGS, asked, planted.tokenizer, False)
        for evidence in select(reading, ARGS).latents
    ]


@pytest.fixture
def server(no_waits):
    with LoopbackJudge() as server:
        server.always = by_oracle
        yield server


def faulty_at_first(server):
    """Each question's first answer is a fault, which of them its hash decides."""

    def answer(handler, body):
        prompt = body["messages"][-1]["content"]
        is_first = server.asked[prompt] == 1
        (FAULTS[crc32(prompt.encode()) % len(FAULTS)] if is_first else by_oracle)(handler, body)

    return answer


def results(samples, judge, name):
    scorer = SCORERS[name](False)
    cases = list(cases_of(scorer, samples, [], NAMES, seed=0))
    return results_of(scorer, cases, judge)


def remote(server, calls=None) -> Remote:
    return Remote(JudgeArguments(model="m", base_url=server.url), calls)


@pytest.mark.parametrize("name", SCORES)
def test_scores_from_a_faulty_server_are_those_from_a_sound_one(server, samples, name):
    sound = results(samples, remote(server), name)
    assert {result.n_failed for result in sound} == {0}
    server.asked.clear()
    server.always = faulty_at_first(server)
    assert str(results(samples, remote(server), name)) == str(sound)
    assert min(server.asked.values()) == 2


def test_what_a_server_never_answers_rightly_is_marked_failed(server, samples):
    sound = results(samples, remote(server), "detection")
    prompt = max(server.asked, key=len)  # which one is asked first varies
    server.faults[prompt] = [content('{"grades": [1, 99]}')] * 9
    faulty = results(samples, remote(server), "detection")
    differ = [i for i in range(len(sound)) if str(sound[i]) != str(faulty[i])]
    assert len(differ) == 1
    assert faulty[differ[0]].n_failed == faulty[differ[0]].n_items == sound[0].n_items


def test_scores_of_a_second_run_ask_nothing(server, samples, tmp_path):
    first = results(samples, remote(server, tmp_path / "calls.jsonl"), "detection")
    n = server.asked.total()
    again = results(samples, remote(server, tmp_path / "calls.jsonl"), "detection")
    assert str(again) == str(first) and server.asked.total() == n


def test_the_plan_of_all_scores_is_what_the_server_counts(server, samples):
    server.n_tokens = lambda text: -(-len(text.encode()) // 4) + 1
    args = JudgeArguments(model="m", base_url=server.url)
    counted, judge = DryRunJudge(args, count=n_tokens), remote(server)
    for each in (counted, judge):
        texts = lm_explainer(each)({sample.latent: sample.active for sample in samples})
        assert len({*texts.values()}) == len(samples)
        for name in SCORES:
            scorer = SCORERS[name](False)
            results_of(scorer, list(cases_of(scorer, samples, [], texts, seed=0)), each)
    plan = counted.plan()
    assert plan["n_calls"] == pytest.approx(server.asked.total(), rel=0.1)
    assert plan["n_tokens_in"] == pytest.approx(server.usage["prompt_tokens"], rel=0.1)
    assert plan["n_tokens_out"] == pytest.approx(server.usage["completion_tokens"], rel=0.1)
