"""What comes in from outside: a value, or one sentence."""

import math

import pytest

from hfsae.demo import validate


@pytest.mark.parametrize(
    "value, sentence",
    [
        (48, "there is no latent 48; this SAE has 48, 0 to 47"),
        (-1, "there is no latent -1"),
        (math.nan, "a latent is a whole number, got nan"),
        (math.inf, "a latent is a whole number, got inf"),
        (1.5, "a latent is a whole number, got 1.5"),
        (True, "a latent is a whole number, got True"),
        ("twelve", "a latent is a whole number, got 'twelve'"),
        ([3], "a latent is a whole number, got [3]"),
        (None, "no latent is chosen"),
        ("", "no latent is chosen"),
        (-1.0, "there is no latent -1;"),
        ("-1", "there is no latent -1;"),
        ("1000000000", "there is no latent 1000000000;"),
        ("99999999999999999999", "there is no latent 99999999999999999999;"),
        ("9" * 400, "there is no latent 9999"),
    ],
)
def test_a_latent_that_there_is_not(value, sentence):
    with pytest.raises(ValueError) as error:
        validate.latent(value, 48)
    assert str(error.value).startswith(sentence)


def test_a_latent_may_be_a_number_or_its_text():
    assert [validate.latent(v, 48) for v in (3, 3.0, "3", " 3 ")] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "value, sentence",
    [
        ("", "no latent is chosen to steer"),
        ({}, "no latent is chosen to steer"),
        ("3", "latents are written as 12:1.5, 7:-2, or by a word, sea:1.5; '3' is not"),
        ("3:1:2", "latents are written as"),
        ("3:nan", "the strength of latent 3 is nan; it can be -20 to 20 in the unit max"),
        ("3:1e9", "the strength of latent 3 is 1000000000;"),
        ("3:" + "9" * 400, "the strength of latent 3 is 9999"),
        ("3:1, 3:2", "latent 3 is given twice; give it one strength"),
        ("99:1", "there is no latent 99;"),
        ("3:much", "the strength of latent 3 must be a number, got a str"),
        ({3: None}, "the strength of latent 3 must be a number, got nothing"),
        ([3], "latents must be text such as 12:1.5, got a list"),
        (",".join(f"{i}:1" for i in range(9)), "9 latents are chosen; at most 8 fit here"),
    ],
)
def test_strengths_that_cannot_be(value, sentence):
    with pytest.raises(ValueError) as error:
        validate.strengths(value, 48, 20.0)
    assert str(error.value).startswith(sentence)


def test_strengths_from_text_and_from_a_mapping():
    assert validate.strengths("12:1.5, 7:-2", 48, 20.0) == {12: 1.5, 7: -2.0}
    assert validate.strengths({"12": 1.5}, 48, 20.0) == {12: 1.5}


def test_text_that_is_none_too_long_or_blank():
    for value, sentence in [(7, "the prompt must be text, got a int"), ("x" * 8001, "8,001")]:
        with pytest.raises(ValueError, match=sentence):
            validate.text(value, "the prompt")
    with pytest.raises(ValueError, match="write one"):
        validate.text(" \n", "the prompt", empty="write one")


def test_text_keeps_what_a_tokenizer_can_read():
    assert validate.text("a\x00b\ud800c🙂", "t") == "ab?c🙂"
