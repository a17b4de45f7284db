"""Documents that an SAE's training read are on no test side, whatever data set they come in."""

import json
from dataclasses import replace

import pytest

from hfsae.activations import (
    MeasuredText,
    TextArguments,
    apart,
    check_text,
    documents,
    held_out_sentence,
    is_held_out,
    text_record,
)
from hfsae.io.errors import Refused

READ = [f"document {i}: " + "a b\n c " * (i % 7) for i in range(200)]
OWN = [f"another {i}" for i in range(40)]
TRAINED = TextArguments(dataset=READ, held_out_fraction=0.2, validation_fraction=0.1)
ON_HUB = replace(TRAINED, dataset="owner/name")


def ids(text: TextArguments, side: str = "test") -> set[str]:
    return {document.id for document in documents(text, side)}


def sentence(text: TextArguments) -> str:
    return held_out_sentence(json.loads(json.dumps(text_record(text))))


def test_a_document_of_the_training_keeps_its_side_in_another_data_set_and_others_are_held_out():
    mixed = TextArguments(dataset=[*READ[50:90], *OWN])
    text = apart(mixed, TRAINED)
    shared = TextArguments(dataset=READ[50:90], held_out_fraction=0.2, validation_fraction=0.1)
    others = TextArguments(dataset=OWN, held_out_fraction=1.0)
    assert ids(text) == ids(shared) | ids(others)
    assert not ids(text) & (ids(TRAINED, "train") | ids(TRAINED, "validation"))
    n_left_out = 40 - len(ids(shared))
    assert sentence(text) == (
        f"40 of the 80 documents are also in the training text, 200 documents given as a list; "
        f"{n_left_out} of them, on its training side, are left out"
    )
    few = apart(mixed, TRAINED, 0.5)
    assert few.held_out_fraction == 0.5 and ids(few) < ids(text)


def test_a_text_that_shares_no_document_is_all_held_out_and_says_so():
    text = apart(TextArguments(dataset=OWN), TRAINED)
    assert len(ids(text)) == 40 and is_held_out(text_record(text))
    assert sentence(text).startswith("None of the 40 documents is in the training text, 200 docum")
    assert sentence(text).endswith(": all are held out")


def test_neither_pieces_nor_shares_nor_blanks_move_a_document_to_another_side(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.jsonl"
    spaced = (json.dumps({"text": text.replace(" ", "\n  ")}) + "\n" for text in READ)
    path.write_text("".join(spaced))
    for length in (None, 5):
        text = apart(TextArguments(dataset=str(path), max_document_chars=length), TRAINED)
        assert ids(text) == ids(TRAINED)
    of = {"news": READ, "messages": OWN}
    every = "hfsae.activations.tokens.packaged_text"
    monkeypatch.setattr(every, lambda name, share: of[name][: int(share * len(of[name]))])
    part = replace(TRAINED, dataset="packaged:news", fractions={"news": 0.3})
    whole = TextArguments(dataset="packaged:news,messages")
    assert len({*ids(part), *ids(part, "train")}) < 100
    assert ids(apart(whole, part)) == ids(TRAINED) | ids(
        replace(TRAINED, dataset=OWN, held_out_fraction=1.0)
    )
    assert ids(apart(part, replace(whole, held_out_fraction=0.2))) == ids(part)


def test_where_the_training_text_cannot_be_listed_its_hash_decides_unless_the_user_knows_better():
    text = apart(TextArguments(dataset=READ), ON_HUB)
    assert ids(text) == ids(TRAINED) and text.validation_fraction == 0.1
    assert sentence(text) == (
        "Held out are 20 % of the documents, by the hash that splits the training text: that, "
        "owner/name, cannot be listed here"
    )
    given = apart(TextArguments(dataset=READ), ON_HUB, 1.0)
    assert len(ids(given)) == 200 and not is_held_out(text_record(given))
    assert sentence(given).startswith("All documents count as held out because a user said so: ")
    gone = apart(TextArguments(dataset=READ), replace(TRAINED, dataset="no/such/file.jsonl"))
    assert ids(gone) == ids(TRAINED)


def test_no_share_that_a_user_gives_takes_documents_from_the_training_side():
    same = replace(TRAINED, held_out_fraction=0.9)
    text = apart(same, TRAINED, 0.9)
    assert ids(text) == ids(TRAINED) < ids(same)
    assert sentence(text) == (
        "Held out are 20 % of the documents, which the training did not read, by a hash of their "
        "text"
    )
    assert apart(TRAINED, TRAINED) is TRAINED and sentence(TRAINED) == ""


def test_of_an_unknown_training_text_it_is_said_that_it_may_be_this_one():
    text = apart(TextArguments(dataset=READ), None)
    assert isinstance(text, MeasuredText) and len(ids(text)) == 200
    assert not is_held_out(text_record(text)) and "training text is unknown" in sentence(text)
    before = {"dataset": "packaged:wiki", "held_out_fraction": 1.0}  # of an earlier version
    assert not is_held_out(before) and held_out_sentence(before).endswith("is unchecked")


@pytest.mark.parametrize("trained, why", [(TRAINED, "give other text"), (ON_HUB, "held_out_fr")])
def test_text_without_a_held_out_document_is_refused_with_the_reason(trained, why):
    text = [one.text for one in documents(TRAINED, "train")][:5]
    with pytest.raises(Refused, match=rf"none of the 5 documents of text.dataset is held.*{why}"):
        check_text(apart(TextArguments(dataset=text), trained), "test")
