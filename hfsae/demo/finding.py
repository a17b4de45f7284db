"""Latents that a word or a subject stands for: one search, whose reasons all have one unit.

First the latents that are named so, by people or by a model; then those that fire on the word; then
those that are about it, by the model's own word vectors; last those that fire on it now and then. A
match is 1 at most: the share of words that a name has in common with the search; the share of a
latent's examples that fire on the word, by strength; the cosine of both meanings.
"""

from collections.abc import Iterator

from torch import nn

from ..features import Hit
from ..features.meaning import Meaning, words_of
from .parts import cited
from .rows import SHOWN
from .subject import Subject

FIRES, HARDLY = 0.2, 0.05
"""Share of examples from which a latent fires on a word; those with less come last, if at all."""


def find(subject: Subject, query: str) -> list[Hit]:
    """The latents found, at most `SHOWN`, each once, with the reason in words; where no latent is
    about several words together, those that are about one of them."""
    hits, words = [*_named(subject, query), *_about(subject, query)], words_of(query)
    if not hits and len(words) > 1:
        apart = (_about(subject, word) for word in words)
        hits = [
            hit._replace(why=f"{hit.why}, for {cited(word)} alone")
            for word, own in zip(words, apart, strict=True)
            for hit in own
        ]
    found: dict[int, Hit] = {}
    for hit in hits:
        found.setdefault(hit.latent, hit)
    return [*found.values()][:SHOWN]


def _about(subject: Subject, query: str) -> list[Hit]:
    firing = _firing(subject, query)
    often = [hit for hit in firing if hit.score >= FIRES]
    return [*often, *_near(subject, query), *(hit for hit in firing if hit.score < FIRES)]


def _named(subject: Subject, query: str) -> list[Hit]:
    """Latents whose name has all words of content of the query; people's names first."""
    people, models = (list(_matches(n, query)) for n in (subject.labels, written_names(subject)))
    best = [sorted(hits, key=lambda h: (-h.score, h.latent)) for hits in (people, models)]
    return [*best[0], *best[1]]


def _matches(names: dict[int, str], query: str) -> Iterator[Hit]:
    wanted = {*words_of(query.casefold())}
    for latent, name in names.items():
        words = {*words_of(name.casefold())}
        is_same = name.casefold().strip() == query.casefold().strip()
        if is_same or (wanted and wanted <= words):
            score = 1.0 if is_same else 2 * len(wanted) / (len(wanted) + len(words))
            yield Hit(latent, score, f"is named {cited(name)}")


def _firing(subject: Subject, query: str) -> list[Hit]:
    """Latents that fire on the query, if it is one token, or on its one word of content."""
    if subject.store is None:
        return []
    words = words_of(query)
    typed = [query.strip(), *(words if len(words) == 1 else [])]
    hits = [h for t in dict.fromkeys(typed) for h in subject.feature_search.by_token(t, SHOWN)]
    seen = (hit for hit in hits if hit.score >= HARDLY)
    return [hit._replace(why=f"fires on {cited(hit.why)}") for hit in seen]


def _near(subject: Subject, query: str) -> list[Hit]:
    """Latents about it, each with the words that it fires on."""
    meaning = _meaning(subject)
    near = {} if meaning is None else meaning.near(query, SHOWN)
    return [Hit(latent, cosine, "is about something near") for latent, cosine in near.items()]


def written_names(subject: Subject) -> dict[int, str]:
    """Automatic names in words, by a language model or of somebody's file; a program's are tokens
    with their shares."""
    names, sources = subject.automatic, subject.sources
    return {latent: n for latent, n in names.items() if sources.get(latent) in ("lm", "file")}


def _meaning(subject: Subject) -> Meaning | None:
    """Made at its first use; None without a language model or examples."""
    store = subject.store
    if store is None or subject.loaded is None:
        return None
    names = {**written_names(subject), **subject.labels}

    def ids_of(text: str) -> list[int]:
        return subject.tokenizer(text, add_special_tokens=False)["input_ids"]

    def make() -> Meaning:
        embedding = subject.lm.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return Meaning(store, embedding.weight, ids_of, names)

    return subject.remembered("meaning", make)
