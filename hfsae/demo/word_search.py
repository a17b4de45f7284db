"""Latents that a word or a subject stands for: one search, whose reasons all have one unit.

First the latents that are named so, if they fire on it or on what is near to it, and those that
people named so; then those that fire on the word; then those that have it in a longer name, or as
an example; then those that are about it, by the model's own word vectors; then those whose name has
it while they fire on other words; then those that fire on it now and then; last those that are in
most texts. A match is 1 at most: the share of a latent's examples that fire on the word, by
strength; the cosine of both meanings; of a name the mean of the larger of these and the share of
words that it has in common with the search, where those in parentheses or behind a colon count
half; of a name by people this share alone.
"""

import re
from collections.abc import Iterable, Iterator

from torch import nn

from ..features import Hit, search_labels
from ..features.search import Meaning, is_content, words_of
from .parts import cited
from .rows import DENSE, SHOWN
from .subject import Subject
from .table_actions import label_of, rows_of_label

FIRES, HARDLY = 0.2, 0.05
"""Share of examples from which a latent fires on a word; those with less come last, if at all."""
NAMED = 0.5
"""Share of words in common from which a name is the query's, rather than one that has its words;
and of examples on the word from which a latent is about it, however often it fires."""
ALONE = 0.25
"""Match from which a latent is listed for one word of several."""
_EXAMPLE = 0.5
"""What a word in parentheses or behind a colon counts: a name's head is what it is about."""
_TITLES = {  # how a reason begins, and what stands above those latents
    "is in most texts": "on more than 5 % of tokens, so in most texts",
    "has this number": "the latent with this number",
    "is named": "named so",
    "goes with": "goes with this label best of all latents",
    "fires on": "fires on it",
    "fires in": "fires in it",
    "has it in its name alone": "has it in its name, but fires on other words",
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
    hits, words = _of_all(subject, query, n), [*dict.fromkeys(words_of(query))]
    if not hits and len(words_of(query)) > 1:  # each word's best, then each one's second, and so on
        ranked = []
        for word in words:
            of_word = sorted(_of_all(subject, word, n), key=lambda h: -h.score)  # stable
            for rank, hit in enumerate(hit for hit in of_word if hit.score >= ALONE):
                why = f"{hit.why}, " if hit.why.startswith("fires") else ""
                hit = hit._replace(why=f"{why}for {cited(word)} alone")
                ranked.append((rank, -hit.score, hit))
        hits = [hit for *_, hit in sorted(ranked, key=lambda r: r[:2])]
    if not hits:
        begun = search_labels({**written_names(subject), **subject.labels}, query, n)
        hits = [
            hit._replace(
                score=min(1.0, len(query) / len(hit.why)),
                why=f"has it in its name, {cited(hit.why)}",
            )
            for hit in begun
        ]
    found: dict[int, Hit] = {}
    for hit in [*by_number(subject, query), *hits]:
        found.setdefault(hit.latent, hit)
    return [*found.values()][:n]


def by_number(subject: Subject, query: str) -> list[Hit]:
    """The latent with this number, if there is one."""
    is_index = query.strip().isdecimal() and int(query) < subject.d_sae
    return [Hit(int(query), 1.0, "has this number")] if is_index else []


def title_of(hit: Hit) -> str:
    """What stands above latents that are found for such a reason."""
    if hit.why.endswith(" alone"):
        return _ALONE
    return next(title for begins, title in _TITLES.items() if hit.why.startswith(begins))


def _of_all(subject: Subject, query: str, n: int) -> list[Hit]:
    """The latents that all words together find, in the order that stands at the top."""
    firing: list[Hit] = []
    if subject.store is not None and subject.unit.is_text:
        words = words_of(query)
        hits = _fires_on(subject, [query, *(words if len(words) == 1 else [])])[:n]
        firing = [hit._replace(why=f"fires on {cited(hit.why)}") for hit in hits]
    elif subject.store is not None:
        hits = subject.feature_search.by_caption(query, n)
        firing = [hit._replace(why=f"fires in {cited(hit.why)}") for hit in hits]
    named = _named(subject, query)
    so, longer, alone = (
        [hit for hit in named if hit.why.startswith(begins)]
        for begins in ("is named", "has it in its name,", "has it in its name alone")
    )
    of_label = [
        Hit(row["latent"], abs(row["value"]), f"goes with {cited(label_of(row))}")
        for row in rows_of_label(subject, query)
    ]
    often = [hit for hit in firing if hit.score >= FIRES]
    seldom = [
        hit._replace(why=hit.why.replace("fires", "fires now and then", 1))
        for hit in firing
        if hit.score < FIRES
    ]
    meaning, others = _meaning(subject), {hit.latent for hit in alone}
    near = [
        Hit(latent, cosine, "is about something near")
        for latent, cosine in ({} if meaning is None else meaning.near(query, n)).items()
        if latent not in others
    ]
    hits = [*so, *of_label, *often, *longer, *near, *alone, *seldom]
    # latents that fire in most texts are about nothing in particular, but for those with a label,
    # and those of whose examples many are on the query
    stay = {hit.latent for hit in firing if hit.score >= NAMED} | subject.labels.keys()
    density = subject.density()
    dense = [h for h in hits if density[h.latent] > DENSE and h.latent not in stay]
    if not subject.unit.is_text or len(dense) == len(hits):
        return hits
    rest = [hit for hit in hits if hit not in dense]
    return [*rest, *(hit._replace(why=f"is in most texts, {hit.why}") for hit in dense)]


def _named(subject: Subject, query: str) -> list[Hit]:
    """Latents whose name has all words of content of the query; of equals people's names first."""

    def hit(latent: int, common: float, name: str) -> Hit:
        begins = "is named" if common >= NAMED else "has it in its name,"
        return Hit(latent, common, f"{begins} {cited(name)}")

    hits = [hit(*match) for match in _matches(subject.labels, query)]
    # the match of latents whose examples are of the query: they fire on one of its words, or near
    evidence: dict[int, float] | None = None
    if subject.store is not None and subject.unit.is_text:
        meaning = _meaning(subject)
        evidence = {} if meaning is None else meaning.fired(query)
        for firing in _fires_on(subject, words_of(query)):
            evidence[firing.latent] = max(firing.score, evidence.get(firing.latent, 0.0))
    for latent, common, name in _matches(written_names(subject), query):
        if evidence is not None and latent in evidence:
            score = (common + evidence[latent]) / 2
            hits.append(hit(latent, common, name)._replace(score=score))
        elif evidence is None or common == 1 == len(name.split()):
            hits.append(hit(latent, common, name))
        else:
            hits.append(Hit(latent, common / 2, f"has it in its name alone, {cited(name)}"))
    exact = f" {cited(query)}".casefold()
    return sorted(hits, key=lambda h: (-h.score, not h.why.casefold().endswith(exact)))  # stable


def _matches(names: dict[int, str], query: str) -> Iterator[tuple[int, float, str]]:
    """Latents whose name has all words of content of the query: the share of words in common."""
    asked = _roots(words_of(query)) or _roots(re.findall(r"\w+", query))

    def contents(name: str) -> list[str]:
        """The words of a name, but for those that say nothing, as in "the word 'sea'"."""
        return [w for w in re.findall(r"\w+", name) if is_content(w) and w.casefold() != "word"]

    for latent, name in names.items():
        head, *examples = re.split(r"[(:]", name)
        words = dict.fromkeys(_roots(contents(" ".join(examples))), _EXAMPLE)
        words |= dict.fromkeys(_roots(contents(head)), 1.0)
        if name.casefold().strip() == query.casefold().strip():
            yield latent, 1.0, name
        elif asked <= words.keys() and words_of(query):
            common = sum(words[word] for word in asked)
            yield latent, 2 * common / (len(asked) + sum(words.values())), name


def _roots(words: Iterable[str]) -> set[str]:
    """Words in small letters, without the ending of a plural."""
    return {_root(word.casefold()) for word in words}


def _root(word: str) -> str:
    if len(word) > 4 and (root := re.sub("ies?$", "y", word)) != word:
        return root
    if len(word) > 4 and re.search("(ch|sh|ss|x)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word


def _fires_on(subject: Subject, texts: Iterable[str]) -> list[Hit]:
    """Latents that fire on these tokens, of words also without or with the endings of a plural,
    each once."""
    spellings: list[str] = []
    for text in texts:
        text = text.strip().casefold()
        spellings.append(text)
        if text.isalpha():
            root = _root(text)
            spellings += [root, f"{root}s", f"{root}es", f"{root.removesuffix('y')}ies"]
    hits: dict[int, Hit] = {}
    for spelling in dict.fromkeys(spellings):
        for hit in subject.feature_search.by_token(spelling, subject.d_sae):
            before = hits.get(hit.latent, hit._replace(score=0.0))
            hits[hit.latent] = before._replace(score=min(1.0, before.score + hit.score))
    seen = (hit for hit in hits.values() if hit.score >= HARDLY)
    return sorted(seen, key=lambda h: -h.score)


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

    def ids_of(text: str) -> list[int]:
        return subject.tokenizer(text, add_special_tokens=False)["input_ids"]

    def make() -> Meaning:
        embedding = subject.lm.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        names = {**written_names(subject), **subject.labels}
        return Meaning(store, embedding.weight, ids_of, names)

    return subject.cached("meaning", make)
