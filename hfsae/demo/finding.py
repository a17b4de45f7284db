"""Latents that a word or a subject stands for: one search, whose reasons all have one unit.

First the latents that are named so, by people or by a model; then those that fire on the word; then
those that have it in a longer name; then those that are about it, by the model's own word vectors;
last those that fire on it now and then. A match is 1 at most: the share of words that a name has in
common with the search; the share of a latent's examples that fire on the word, by strength; the
cosine of both meanings.
"""

import re
from collections.abc import Iterator

from torch import nn

from ..features import Hit, search_labels
from ..features.meaning import Meaning, words_of
from .label_actions import best_of, label_of
from .parts import cited
from .rows import SHOWN
from .subject import Subject

FIRES, HARDLY = 0.2, 0.05
"""Share of examples from which a latent fires on a word; those with less come last, if at all."""
NAMED = 0.5
"""Share of words in common from which a name is the query's, rather than one that has its words."""
ALONE = 0.25
"""Match from which a latent is listed for one word of several."""
_TITLES = {  # how a reason begins, and what stands above those latents
    "has this number": "the latent with this number",
    "is named": "named so",
    "goes with": "goes with this label best of all latents",
    "fires on": "fires on it",
    "fires in": "fires in it",
    "has": "has it in a longer name",
    "is about": "about something near, by the model's own word vectors",
    "fires now": "fires on it now and then",
}
_ALONE = "for one of the words alone; none is for all of them"


def find(subject: Subject, query: str, n: int = SHOWN) -> list[Hit]:
    """The latents found, at most n, each once, with the reason in words; where no latent is about
    several words together, those that are about one of them, each word's best first; where that
    gives none, those in whose names a word begins so."""
    query = re.sub(r"^\W+|\W+$", "", query) or query
    hits = _of_all(subject, query, n) or _of_one(subject, words_of(query), n)
    found: dict[int, Hit] = {}
    for hit in [*numbered(subject, query), *(hits or _begun(subject, query, n))]:
        found.setdefault(hit.latent, hit)
    return [*found.values()][:n]


def numbered(subject: Subject, query: str) -> list[Hit]:
    """The latent with this number, if there is one."""
    is_index = query.strip().isdecimal() and int(query) < subject.d_sae
    return [Hit(int(query), 1.0, "has this number")] if is_index else []


def title_of(hit: Hit) -> str:
    """What stands above latents that are found for such a reason."""
    if hit.why.endswith(" alone"):
        return _ALONE
    return next(title for begins, title in _TITLES.items() if hit.why.startswith(begins))


def _of_all(subject: Subject, query: str, n: int) -> list[Hit]:
    named, firing = _named(subject, query), _firing(subject, query, n)
    often = [hit for hit in firing if hit.score >= FIRES]
    seldom = [
        hit._replace(why=hit.why.replace("fires", "fires now and then", 1))
        for hit in firing
        if hit.score < FIRES
    ]
    so = [hit for hit in named if hit.score >= NAMED]
    longer = [
        hit._replace(why=hit.why.replace("is named", "has it in its name,"))
        for hit in named
        if hit.score < NAMED
    ]
    return [*so, *_telling(subject, query), *often, *longer, *_near(subject, query, n), *seldom]


def _telling(subject: Subject, query: str) -> list[Hit]:
    """Latents that go with this label."""
    rows = best_of(subject, query)
    return [Hit(r["latent"], abs(r["value"]), f"goes with {cited(label_of(r))}") for r in rows]


def _of_one(subject: Subject, words: list[str], n: int) -> list[Hit]:
    """Latents about one of several words: each word's best, then each one's second, and so on."""
    if len(words) < 2:
        return []
    ranked = []
    for word in dict.fromkeys(words):
        hits = sorted(_of_all(subject, word, n), key=lambda h: -h.score)  # stable
        for rank, hit in enumerate(hit for hit in hits if hit.score >= ALONE):
            why = f"{hit.why}, " if hit.why.startswith("fires") else ""
            ranked.append((rank, -hit.score, hit._replace(why=f"{why}for {cited(word)} alone")))
    return [hit for *_, hit in sorted(ranked, key=lambda r: r[:2])]


def _begun(subject: Subject, query: str, n: int) -> list[Hit]:
    """Latents in whose names a word begins as the query does."""
    hits = search_labels({**written_names(subject), **subject.labels}, query, n)
    scores = (min(1.0, len(query) / len(hit.why)) for hit in hits)
    return [
        Hit(hit.latent, score, f"has it in its name, {cited(hit.why)}")
        for hit, score in zip(hits, scores, strict=True)
    ]


def _named(subject: Subject, query: str) -> list[Hit]:
    """Latents whose name has all words of content of the query; of equals people's names first."""
    hits = [h for n in (subject.labels, written_names(subject)) for h in _matches(n, query)]
    return sorted(hits, key=lambda h: -h.score)  # stable


def _matches(names: dict[int, str], query: str) -> Iterator[Hit]:
    wanted, asked = _roots(words_of(query)), _roots(re.findall(r"\w+", query))
    for latent, name in names.items():
        words = _roots(re.findall(r"\w+", name))
        is_same = name.casefold().strip() == query.casefold().strip()
        if is_same or (wanted and wanted <= words):
            common = 2 * len(asked & words) / (len(asked) + len(words))
            yield Hit(latent, 1.0 if is_same else common, f"is named {cited(name)}")


def _roots(words: list[str]) -> set[str]:
    """Words in small letters, without the s of a plural."""
    small = (word.casefold() for word in words)
    return {w[:-1] if len(w) > 3 and w[-1] == "s" and w[-2] != "s" else w for w in small}


def _firing(subject: Subject, query: str, n: int) -> list[Hit]:
    """Latents that fire on the query, if it is one token, or on its one word of content."""
    if subject.store is None:
        return []
    if not subject.unit.is_text:
        hits = subject.feature_search.by_caption(query, n)
        return [hit._replace(why=f"fires in {cited(hit.why)}") for hit in hits]
    words = words_of(query)
    typed = [query.strip(), *(words if len(words) == 1 else [])]
    hits = [h for t in dict.fromkeys(typed) for h in subject.feature_search.by_token(t, n)]
    seen = (hit for hit in hits if hit.score >= HARDLY)
    return [hit._replace(why=f"fires on {cited(hit.why)}") for hit in seen]


def _near(subject: Subject, query: str, n: int) -> list[Hit]:
    """Latents about it, each with the words that it fires on."""
    meaning = _meaning(subject)
    near = {} if meaning is None else meaning.near(query, n)
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
