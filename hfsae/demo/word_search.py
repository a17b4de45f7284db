"""Latents that a word or a subject stands for: one search, whose reasons all have one unit.

First the latents that are named so; then those that fire on the word, or on one of several; then
those that have it in a longer name; then those that fire on words near it, by the model's own word
vectors; last those that are in most texts. A match is 1 at most: the share of a latent's examples
that fire on the word, by strength; of a near word that times its cosine; of a name the share of
words in common with the search, where those in parentheses or behind a colon count half.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..features import Hit, search_labels
from ..features.search import content_word, is_content, words_of
from .parts import cited
from .rows import DENSE, SHOWN
from .subject import Subject
from .table_actions import label_of, rows_of_label

FIRES = 0.05
"""Share of examples from which a latent fires on a word."""
NAMED = 0.5
"""Share of words in common from which a name is the query's, rather than one that has its words;
and of examples on the word from which a latent is about it, however often it fires."""
NEARBY = "fires near it, on"
"""How the reason begins of latents that fire on near words."""
_NEAR_WORDS, _LEAST = 6, 3.0  # at most; spreads of cosines above their mean, at least
_EXAMPLE = 0.5
"""What a word in parentheses or behind a colon counts: a name's head is what it is about."""
_TITLES = {  # how a reason begins, and what stands above those latents
    "is in most texts": "on more than 5 % of tokens, so in most texts",
    "has this number": "the latent with this number",
    "is named": "named so",
    "goes with": "goes with this label best of all latents",
    NEARBY: "fires on words near it, by the model's own word vectors",
    "fires on": "fires on it",
    "fires in": "fires in it",
    "has": "has it in a longer name",
}


def find(subject: Subject, query: str, n: int = SHOWN) -> list[Hit]:
    """The latents found, at most n, each once, with the reason in words; where there is none, those
    in whose names a word begins so."""
    query = re.sub(r"^\W+|\W+$", "", query) or query
    hits = _of_words(subject, query, n)
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
    return next(title for begins, title in _TITLES.items() if hit.why.startswith(begins))


def _of_words(subject: Subject, query: str, n: int) -> list[Hit]:
    """The latents that are found, in the order that stands at the top."""
    firing, near, words = list[Hit](), list[Hit](), words_of(query)
    if subject.store is not None and subject.unit.is_text:
        hits = _fires_on(subject, [query, *words])[:n]
        firing = [hit._replace(why=f"fires on {cited(hit.why)}") for hit in hits]
        cosines = near_words(subject, words) if subject.loaded else {}
        near = [
            Hit(hit.latent, cosine * hit.score, f"{NEARBY} {cited(word)}")
            for word, cosine in cosines.items()
            for hit in _fires_on(subject, [word])
        ]
        near = sorted(near, key=lambda h: -h.score)[:n]
    elif subject.store is not None:
        hits = subject.feature_search.by_caption(query, n)
        firing = [hit._replace(why=f"fires in {cited(hit.why)}") for hit in hits]
    named = [  # of equals people's names first
        Hit(latent, common, f"{'is named' if common >= NAMED else 'has it in its name,'} {name}")
        for names in (subject.labels, written_names(subject))
        for latent, common, name in _matches(names, query)
    ]
    exact = f" {cited(query)}".casefold()
    named.sort(key=lambda h: (-h.score, not h.why.casefold().endswith(exact)))
    so, longer = (
        [hit for hit in named if (hit.score >= NAMED) == is_so] for is_so in (True, False)
    )
    of_label = [
        Hit(row["latent"], abs(row["value"]), f"goes with {cited(label_of(row))}")
        for row in rows_of_label(subject, query)
    ]
    hits = [*so, *of_label, *firing, *longer, *near]
    # latents that fire in most texts are about nothing in particular, but for those with a label,
    # and those of whose examples many are on the query
    stay = {hit.latent for hit in firing if hit.score >= NAMED} | subject.labels.keys()
    density = subject.density()
    dense = [h for h in hits if density[h.latent] > DENSE and h.latent not in stay]
    if not subject.unit.is_text or len(dense) == len(hits):
        return hits
    rest = [hit for hit in hits if hit not in dense]
    return [*rest, *(hit._replace(why=f"is in most texts, {hit.why}") for hit in dense)]


def _matches(names: dict[int, str], query: str) -> Iterator[tuple[int, float, str]]:
    """Latents whose name has all words of content of the query: the share of words in common, and
    the name in quotation marks."""
    asked = _roots(words_of(query)) or _roots(re.findall(r"\w+", query))

    def contents(name: str) -> list[str]:
        """The words of a name, but for those that say nothing, as in "the word 'sea'"."""
        return [w for w in re.findall(r"\w+", name) if is_content(w) and w.casefold() != "word"]

    for latent, name in names.items():
        head, *examples = re.split(r"[(:]", name)
        words = dict.fromkeys(_roots(contents(" ".join(examples))), _EXAMPLE)
        words |= dict.fromkeys(_roots(contents(head)), 1.0)
        if name.casefold().strip() == query.casefold().strip():
            yield latent, 1.0, cited(name)
        elif asked <= words.keys() and words_of(query):
            common = sum(words[word] for word in asked)
            yield latent, 2 * common / (len(asked) + sum(words.values())), cited(name)


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
    seen = (hit for hit in hits.values() if hit.score >= FIRES)
    return sorted(seen, key=lambda h: -h.score)


def written_names(subject: Subject) -> dict[int, str]:
    """Automatic names in words, by a language model or of somebody's file; a program's are tokens
    with their shares."""
    names, sources = subject.automatic, subject.sources
    return {latent: n for latent, n in names.items() if sources.get(latent) in ("lm", "file")}


@torch.no_grad()
def near_words(subject: Subject, words: Sequence[str]) -> dict[str, float]:
    """{word: cosine} of other words of content that are near one of these by the language model's
    own embedding, less the mean of its rows: far nearer than most tokens are."""
    table: Any = subject.lm.get_input_embeddings().weight

    def sizes() -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of all rows, and each one's distance from it, piece by piece."""
        mean = table.mean(0, dtype=torch.float32)
        return mean, torch.cat([(part.float() - mean).norm(dim=1) for part in table.split(4096)])

    mean, norms = subject.cached("embedding", sizes)
    near: dict[str, float] = {}
    roots = _roots(words)
    for word in words:
        ids = subject.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        direction = F.normalize(table[ids].float().mean(0) - mean, dim=0)
        along = (table @ direction.to(table.dtype)).float() - mean @ direction
        cosines = along / norms.clamp(min=1e-9)
        limit, found = cosines.mean() + _LEAST * cosines.std(), dict[str, float]()
        top = cosines.topk(min(64, len(cosines)))
        for cosine, token in zip(top.values, top.indices.tolist(), strict=True):
            other = content_word(str(subject.tokenizer.decode([token])), 3)
            if other and _root(other) not in roots and cosine >= limit:
                found.setdefault(other, float(cosine))
        near |= dict([*found.items()][:_NEAR_WORDS])
    return near
