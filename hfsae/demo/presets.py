"""What there is to click on: texts to inspect, and for an SAE without presets latents whose
examples are clear.

Latents get no names here: each is described by its label, or by what it fires on.
"""

import random
import re
import shlex
from collections import Counter
from itertools import takewhile
from typing import Any

from ..features import Example, FeatureStore
from ..features.search import content_word
from .subject import Subject, how_to_make
from .table_actions import best_rows

N = 4
PROMPT = "The story is about"
STRENGTH = 1.5  # of the largest activation: visible in the text, which mostly stays fluent
_DENSITIES = (2e-4, 3e-3)  # often enough to have examples, and not on every page
_LOOKED_AT = 512  # latents: reading their examples takes some 20 ms, however many there are
_SHORTEST = 4  # letters of a meaningful word
_LONGEST, _READ = 200, 8  # characters of an excerpt; latents whose examples are read for some
_SPECIAL = re.compile(r"<\|?\w+\|?>|\[\w+\]")
TEXTS = (
    "The president told Congress that the war with the Soviet Union was over.",
    "Marie Curie was born in Warsaw and won the Nobel Prize in Physics in 1903.",
    "The river flows south through the mountains into the Black Sea.",
)


def presets(subject: Subject) -> list[dict[str, Any]]:
    """The SAE's own presets, else some from its latents: name, prompt, {latent: strength}."""
    return subject.presets or [
        {"name": name, "prompt": PROMPT, "latents": {str(latent): STRENGTH}}
        for latent, name in _descriptions(subject).items()
    ]


def why_random(subject: Subject) -> str:
    """Why its presets are latents drawn at random; "" where they are not."""
    if subject.presets or _clear(subject):
        return ""
    if subject.store is None:
        return "These latents were drawn at random, as no examples of what latents fire on are here"
    return (
        "These latents were drawn at random: none that was looked at has a label, or fires on one "
        "word of content in all of its strongest examples"
    )


def first_texts(subject: Subject) -> tuple[str, ...]:
    """Texts to inspect: of an SAE of one's own excerpts of the text that its examples are from,
    around the strongest firings of clear latents."""

    def make() -> tuple[str, ...]:
        store = subject.store
        if store is None or subject.choice.is_shipped or not subject.unit.is_text:
            return TEXTS
        each = [store[i].examples for i in [*_clear(subject), *_sample(subject)][:_READ]]
        texts = [max(map(excerpt, examples), key=len) for examples in each if examples]
        return tuple(dict.fromkeys(filter(None, texts)))[: len(TEXTS)] or TEXTS

    return subject.cached("first texts", make)


def excerpt(example: Example) -> str:
    """The whole words around a firing, as one line: a window may begin and end within a word, and
    hold the end of another document."""
    before, after = example.tokens[: example.firing], example.tokens[example.firing :]
    before = list(takewhile(lambda token: not _SPECIAL.fullmatch(token), reversed(before)))[::-1]
    window = "".join(before + list(takewhile(lambda token: not _SPECIAL.fullmatch(token), after)))
    words = window.split()
    begins, ends = window[:1].isspace(), not window[-1:].isalnum()
    return " ".join(words[0 if begins else 1 : len(words) if ends else -1] or words)[:_LONGEST]


def lacking(subject: Subject) -> tuple[str, list[str]] | None:
    """The command that finds presets that work, or first the examples that these are found by, as
    of `how_to_make`; None where there are presets, or none would be kept."""
    home = subject.label_home
    if subject.presets or subject.store is None:
        return None if subject.presets else how_to_make(subject, "collect")
    if home is None or home != subject.folder or not subject.loaded:
        return None
    return shlex.join(["hfsae", "presets", str(home)]), ["Then start the app again."]


def searches(subject: Subject) -> list[tuple[str, str]]:
    """(query, by) that find something."""
    labels = [(label, "label") for label in list(subject.labels.values())[:1]]
    if subject.unit.is_text:
        words: list[str] = []
        if subject.store is not None:
            names = [preset["name"] for preset in subject.presets]
            words = [name for name in names if subject.feature_search.by_token(name, 1)]
            words = [*dict.fromkeys([*words, *clear_words(subject.store).values()])]
        examples = [*((word, "word") for word in words[:N]), *labels]
        return examples or [("The river flows into the sea", "fires on")]
    # labels of people and of documents, and documents that latents fire in
    examples = labels + [(r["class"], "word") for r in best_rows(subject) if r["class"]][:2]
    if subject.store is not None:
        records = (subject.store[latent] for latent in _sample(subject))
        captions = (r.examples[0].tokens[r.examples[0].firing] for r in records if r.examples)
        examples += [(name, "word") for name in dict.fromkeys(map(subject.unit.short, captions))]
    return examples[:N] or [(str(clearest(subject)), "similar to")]


def _sample(subject: Subject) -> list[int]:
    """Some latents, those that fire neither everywhere nor hardly anywhere, if there are any."""
    drawn = [] if subject.store is None else subject.store.pick(N)
    return drawn or random.Random(0).sample(range(subject.d_sae), min(N, subject.d_sae))


def clearest(subject: Subject) -> int:
    """A latent that people can make sense of; without labels and a feature store, any."""
    if subject.unit.is_text:
        return next(iter(_descriptions(subject)))
    labelled = [i for i in subject.labels if i < subject.d_sae]
    of_labels = [row["latent"] for row in best_rows(subject)]
    return [*labelled, *of_labels, *_sample(subject)][0]


def _descriptions(subject: Subject) -> dict[int, str]:
    """{latent: what it is}, the labelled ones first."""
    if texts := _clear(subject):
        return dict(list(texts.items())[:N])
    drawn = random.Random(0).sample(range(subject.d_sae), min(N, subject.d_sae))
    return {i: f"latent {i}" for i in drawn}


def _clear(subject: Subject) -> dict[int, str]:
    """Those that have a label, and then those that fire on one word of content."""
    density = subject.density()
    texts = {i: label for i, label in subject.labels.items() if i < len(density) and density[i] > 0}
    if subject.store is not None:
        words = clear_words(subject.store)
        texts |= {i: f"fires on “{word}”" for i, word in words.items() if i not in texts}
    return texts


def clear_words(store: FeatureStore) -> dict[int, str]:
    """{latent: the word that it fires on}, for latents that do so in all their strongest examples:
    words that stand for something by themselves.

    The clearest first: its share of the examples, times the weakest of them over the strongest.
    """
    import pyarrow.compute as pc

    firings = store.firings((pc.field("latent") < _LOOKED_AT) & (pc.field("kind") == "top"))
    examples: dict[int, list[tuple[float, str]]] = {}
    rows = zip(firings.latent, firings.activation, firings.token, strict=True)
    for latent, activation, token in rows:
        examples.setdefault(latent, []).append((activation, content_word(token, _SHORTEST)))
    low, high = _DENSITIES
    density, found = store.densities.tolist(), []
    for latent, tokens in examples.items():
        ((word, n),) = Counter(word for _, word in tokens).most_common(1)
        if word and low <= density[latent] <= high:
            activations = [activation for activation, _ in tokens]
            clarity = n / len(tokens) * min(activations) / max(activations)
            found.append((-clarity, latent, word))
    return {latent: word for _, latent, word in sorted(found, key=lambda f: f[0])}
