"""Actions that look: at a text, at a latent, for latents, at all on a map. One names a latent."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch

from ..activations.token_text import token_text
from ..features import (
    NEAR,
    PLAIN,
    Hit,
    firing_on,
    nearest_rows,
    plane,
    promoting,
    search_labels,
    similar_latents,
    write_labels,
)
from ..features.inspection import compare
from ..features.logit_lens import lens_of
from ..io.errors import Refused
from ..io.file_names import EVIDENCE, EXPLANATIONS, EXPLANATIONS_RECORD
from ..io.files import columns_of, read_json, read_table, reading
from . import validate
from .parts import cited
from .rows import (
    SHOWN,
    Json,
    as_rows,
    facts_of,
    firing_rows,
    largest_of,
    threshold_of,
    token_rows,
)
from .subject import Subject, without_examples
from .table_actions import label_of, rows_of_latent, score_text
from .word_search import NEARBY, find, title_of

_LENS_TOKENS = 10
_LABELS = 3  # of documents, that a latent goes with
_WEAK = 0.3
"""Score of a search by word, up to 1, below which a latent is hardly about it."""
SCORES = {
    "word": "match, at most 1",
    "fires on": "largest activation, as a share of its usual largest",
    "promotes": "logit for each unit of activation",
    "label": "share of words in common with their names",
    "similar to": "cosine of directions",
}
"""what the numbers of each search are"""
RAW = "largest activation, raw units"
"""those of "fires on" for an SAE whose usual largest activations are unknown"""
BY = tuple(SCORES)
BY_WITHOUT_TEXT = ("word", "label", "similar to")
"""the searches of an SAE that reads no text"""

_KINDS = {
    "hard": "it is silent, at a token that it often fires on",
    "random": "it is silent, at random",
}
_UNCLEAR = "unclear"  # what a language model says in place of a name
_MOST_ON_MAP = 400
_ENDS = (0.02, 0.98)
"""Quantiles of the densities of living latents: the ends of the map's scale of colours."""
_NAME = 60  # characters


def inspect(
    subject: Subject,
    prompt: str,
    latent: int | None = None,
    token: int | None = None,
    chat: bool = False,
) -> Json:
    """Latents of the SAE that fire in a text: on the whole, on one token, and one along it.

    The most telling come first: those near their largest activation that fire on few tokens. Those
    that fire in most texts are apart, under "dense".

    Args:
        prompt: the text, at most 512 tokens.
        latent: index of the latent whose activation to give for every token; null: the first that
            is listed.
        token: position of the token whose latents to list under "on_token"; null: none.
        chat: read the text as a user's message in the model's chat template.

    Returns:
        tokens (list[Token]): of the text, with the activation of "latent" on each.
        latent (int | None): the latent of these activations.
        label (str): its name; empty if it has none.
        token (int | None): the position asked for.
        on_token (list[Latent]): latents that fire on this token.
        ranking (list[Latent]): latents that fire in the text, the most telling first: "value" is
            the largest activation here, "share" that over the latent's largest anywhere, "peak" the
            position of the token where it is.
        dense (dict): {n, rows} of those that fire in most texts; "n_rest": how many others fire.
        usual_max (float | None): the largest activation of "latent" anywhere.
        l0 (float): latents that fire on a token, on average.
        fvu (float | None): fraction of the activations' variance that the SAE leaves unexplained.
    """
    seen = subject.inspection(prompt, chat)
    ranking, dense = firing_rows(subject, seen)
    on_token = []
    if token is not None:
        token = validate.whole(token, "token", 0, len(seen.tokens.ids) - 1)
        on_token, dense = firing_rows(subject, seen.at(token))
    if latent is not None:
        latent = validate.latent(latent, subject.d_sae)
    elif on_token or ranking:
        latent = (on_token or ranking)[0]["latent"]
    facts = facts_of(subject, seen, latent)
    rows = token_rows(seen, latent, facts["usual_max"])
    found = {"token": token, "on_token": on_token, "ranking": ranking, "dense": dense}
    return {"tokens": rows, **found, **facts}


def compare_prompts(
    subject: Subject,
    first: str,
    second: str,
    chat: bool = False,
) -> Json:
    """Latents whose largest activations differ most between two texts.

    Args:
        first: a text.
        second: another.
        chat: read both as a user's message in the model's chat template.

    Returns:
        differences (list[Latent]): those that differ most first; "first" and "second" are their
            largest activations in either text.
        latent (int | None): the first of them.
        first (list[Token]): tokens of the first text, with the activation of "latent" on each.
        second (list[Token]): likewise of the second text.
    """
    pair = [subject.inspection(text, chat) for text in (first, second)]
    ranking = compare(pair[0], pair[1], SHOWN)
    differences = [
        {"latent": i, "first": a, "second": b, "value": max(a, b)} for i, a, b in ranking
    ]
    rows, latent = as_rows(subject, differences), ranking[0][0] if ranking else None
    usual = largest_of(subject, latent)
    return {
        "differences": rows,
        "latent": latent,
        "first": token_rows(pair[0], latent, usual),
        "second": token_rows(pair[1], latent, usual),
    }


def feature(subject: Subject, latent: int) -> Json:
    """Everything known about one latent: label, automatic name with its test, numbers, tokens it
    promotes, what it fires on.

    Args:
        latent: its index.

    Returns:
        latent (int): its index.
        label (str): its label; empty if it has none.
        auto (dict | None): an automatic explanation, and how it did when it was tested.
        threshold (float | None): the pre-activation from which on it fires, raw units.
        reads (str): the site that it reads, of a cross-layer transcoder; else empty.
        sites (list): {site, share} of what it writes at each of several sites; empty for one site.
        goes_with (list): {text, score} of labels of documents that it goes with best.
        collected (bool): what it fires on was collected; if not, the keys below are missing.
        density (float, optional): share of tokens that it fires on.
        n_firings (int, optional): tokens that it fired on.
        n_tokens (int | None, optional): tokens of the text that was read.
        max_activation (float, optional): its largest activation, raw units.
        mean_activation (float, optional): its mean activation where it fires.
        histogram (list, optional): {low, high, count} of its activations.
        promoted (list, optional): {token, logit} that its direction makes likelier.
        suppressed (list, optional): {token, logit} that its direction makes less likely.
        neighbours (list[Latent], optional): the closest directions; "value" is the cosine.
        n_groups (int, optional): how many groups of examples follow the strongest.
        groups (list, optional): {kind, examples} of texts in which it fires, the strongest first.
            The "text" of an example has the token that it fires on between « and »; of an SAE that
            reads no text, it says which row or patch that is.
    """
    index, config, store = validate.latent(latent, subject.d_sae), subject.sae.config, subject.store
    reads, sites = "", []
    if config.has_several_sites:
        shares = zip(config.writes.names, subject.sae.shares[index].tolist(), strict=True)
        sites = [{"site": site, "share": share} for site, share in shares]
        if config.is_causal:
            reads = config.reads.names[index * len(config.reads) // config.d_sae]
    facts: Json = {
        "latent": index,
        "label": subject.labels.get(index, ""),
        "auto": automatic_name(subject, index),
        "threshold": threshold_of(subject, index),
        "reads": reads,
        "sites": sites,
        "goes_with": [
            {"text": label_of(row), "score": score_text(row)}
            for row in rows_of_latent(subject, index)[:_LABELS]
        ],
    }
    if store is None:
        return {**facts, "collected": False}
    record, edges = store[index], store.meta["histogram_edges"]
    filled = [i for i, n in enumerate(record.histogram) if n]
    bins = range(filled[0], filled[-1] + 1) if filled else ()
    largest = record.max_activation or 1.0
    groups: dict[str, list[Json]] = {}
    for example in record.examples:
        texts, firing = example.tokens, example.firing
        tokens = _window(texts, example.activations, firing, largest)
        row: Json = {"activation": example.activation, "document": example.document}
        row["position"], own = example.position, texts[firing]
        if subject.unit.is_text:
            pieces = [*texts[:firing], f"{PLAIN[0]}{own}{PLAIN[1]}", *texts[firing + 1 :]]
            row["text"] = "".join(pieces)
        else:  # in the window stand places; the caption stands alone
            row |= {"places": example.token_ids, "text": own}
        groups.setdefault(example.kind, []).append({**row, "tokens": tokens})
    return {
        **facts,
        "collected": True,
        "density": record.density,
        "n_firings": record.n_firings,
        "n_tokens": store.meta.get("n_tokens"),
        "max_activation": record.max_activation,
        "mean_activation": record.mean_activation,
        "histogram": [
            {"low": edges[i], "high": edges[i + 1], "count": record.histogram[i]} for i in bins
        ],
        "promoted": [{"token": t, "logit": v} for t, v in record.promoted],
        "suppressed": [{"token": t, "logit": v} for t, v in record.suppressed],
        "neighbours": as_rows(subject, [{"latent": i, "value": c} for i, c in record.neighbours]),
        "n_groups": store.meta["arguments"]["quantiles"],
        "groups": [{"kind": kind, "examples": members} for kind, members in groups.items()],
    }


def promoted(subject: Subject, latent: int) -> Json:
    """Tokens that a latent's direction makes more and less likely, where none were collected.

    Args:
        latent: its index.
    """
    index, n = validate.latent(latent, subject.d_sae), len(subject.tokenizer)
    tokens = lens_of(subject.lm, subject.sae, index, _LENS_TOKENS, n)
    columns = zip(("promoted", "suppressed"), (tokens[:2], tokens[2:]), strict=True)
    return {
        name: [
            {"token": token_text(subject.tokenizer, i), "logit": logit}
            for i, logit in zip(ids[0].tolist(), logits[0].tolist(), strict=True)
        ]
        for name, (ids, logits) in columns
    }


def try_text(subject: Subject, latent: int, text: str) -> Json:
    """One latent's activations on a text of your own, token by token.

    Args:
        latent: its index.
        text: the text.

    Returns:
        latent (int): its index.
        tokens (list[Token]): of the text, with its activation on each.
        max (float): its largest activation here.
        usual_max (float | None): its largest activation anywhere.
    """
    index, seen = validate.latent(latent, subject.d_sae), subject.inspection(text)
    usual = largest_of(subject, index)
    rows = token_rows(seen, index, usual)
    most = max(row["activation"] for row in rows)
    return {"latent": index, "tokens": rows, "max": most, "usual_max": usual}


def random_latent(
    subject: Subject,
    seed: Annotated[int | None, validate.SEED] = None,
    other_than: int | None = None,
) -> Json:
    """The index of a latent that is alive, drawn at random.

    Args:
        seed: the same seed gives the same latent; null: each call draws anew.
        other_than: index of a latent to avoid, if there is another.

    Returns:
        latent (int): its index.
    """
    if seed is not None:
        seed = validate.whole(seed, "seed", *validate.SEED)
    alive = subject.density().nonzero()[:, 0].tolist() or list(range(subject.d_sae))
    others = [latent for latent in alive if latent != other_than]
    return {"latent": random.Random(seed).choice(others or alive)}


def search(subject: Subject, query: str, by: Annotated[str, BY] = "word") -> Json:
    """Find latents, by what they fire on, by what they make likelier, by name, or by direction.

    Args:
        query: a word; a text; a token; words of a label; or the index of a latent, as text.
        by: "word" (a word, a subject or an index: the latent with this index, latents named so,
            then those that fire on it in the text that was collected, then those that fire on
            words near it), "fires on" (any text, which is read now), "promotes" (a token that
            their direction makes likelier; a leading space counts), "label" (words of their name),
            or "similar to" (the index of another latent).

    Returns:
        score (str): what "value" is in "found".
        found (list[Latent]): at most 12, the best first; "why" is the reason, "title" its kind.
    """
    by = validate.choice(by, "by", BY if subject.unit.is_text else BY_WITHOUT_TEXT)
    query, sae = check_query(query), subject.sae
    if by == "word":
        hits = find(subject, query)
        if not hits and subject.store is None:
            raise Refused(without_examples(subject))
    elif by == "label":
        hits = search_labels(subject.names, query, SHOWN)
    elif by == "similar to":
        index = int(query) if query.strip().isdecimal() else query
        hits = similar_latents(sae, validate.latent(index, subject.d_sae), SHOWN)
    elif by == "promotes":
        hits = promoting(subject.lm, sae, subject.token_id(query), SHOWN)
        hits = [hit for hit in hits if hit.score > 0]
    else:
        tokens = {"input_ids": subject.tokens(query).batch(subject.lm.device).input_ids}
        hits = firing_on(subject.lm, sae, tokens, SHOWN, max_activations=subject.largest())
    rows = [
        {"latent": hit.latent, "value": hit.score, "why": hit.why}
        | {"title": title_of(hit) if by == "word" else ""}
        for hit in hits
    ]
    score = RAW if by == "fires on" and subject.largest() is None else SCORES[by]
    return {"score": score, "found": as_rows(subject, rows)}


def latent_of(subject: Subject, typed: object) -> int:
    """A latent by its number, or the one that a word stands for: a preset's or a label's name, the
    first that a search by that word finds, or part of a label."""
    return _hit_of(subject, typed).latent


def _hit_of(subject: Subject, typed: object) -> Hit:
    word = typed.strip() if isinstance(typed, str) else ""
    if not any(c.isalpha() for c in word):
        return Hit(validate.latent(typed, subject.d_sae), 1.0, "")
    for preset in subject.presets:
        if _is_named(preset["name"], word) and len(preset["latents"]) == 1:
            return Hit(int(next(iter(preset["latents"]))), 1.0, "")
    hits = search_labels(subject.labels, word, 8)
    hits = [hit for hit in hits if _is_named(subject.labels.get(hit.latent, ""), word)]
    hits = hits or find(subject, word) or search_labels(subject.names, word, 1)
    if not hits:
        such = ", ".join(list(subject.labels.values())[:3])
        other = f"another word (such as {such})" if such else "another word"
        raise Refused(f"no latent is found for {word[:40]!r}; write {other}, or a number")
    return hits[0]


def weak_match(subject: Subject, typed: object) -> str:
    """A sentence where a word stands for a latent that is hardly about it; else ""."""
    latent, score, why = _hit_of(subject, typed)
    word, name = str(typed).strip(), subject.names.get(latent, "")
    is_far = why.startswith(NEARBY) or (score < _WEAK and word.casefold() not in name.casefold())
    if not is_far:
        return ""
    return (
        f"No latent is found that is mainly about {cited(word[:40])}: latent {latent}"
        f"{f' ({name})' if name else ''}, the nearest, is taken, so its texts may be about "
        "something else."
    )


def _is_named(name: str, word: str) -> bool:
    """Whether a name is this word, but for an article and the ending of a plural."""
    plain, word = (text.casefold().removeprefix("the ") for text in (name, word))
    return word in (plain, plain.removesuffix("s"))


def check_query(text: object) -> str:
    """The text of a search, which must not be blank."""
    return validate.text(text, "the search", empty="the search is empty; write what to find")


def save_label(subject: Subject, latent: int, label: str) -> Json:
    """Name what a latent stands for: the label is kept on disk, in place of an earlier one.

    Args:
        latent: its index.
        label: one line of text, at most 200 characters; empty removes the label.

    Returns:
        latent (int): its index.
        label (str): its name from now on.
    """
    index, home = validate.latent(latent, subject.d_sae), subject.label_home
    label = validate.text(label, "the label", empty=None)
    if home is None:
        raise Refused("labels are not kept here; run `hfsae demo` on your own machine")
    hides = not label.strip() and home != subject.folder  # a label that the SAE comes with
    labels = write_labels(home, {index: label}, subject.folder, hides=hides)
    subject.take_labels({index: "", **labels})
    return {"latent": index, "label": subject.labels.get(index, "")}


def automatic_name(subject: Subject, latent: int) -> Json | None:
    """What `hfsae explain` wrote about a latent: the explanation, a note (who gave it, how certain,
    how it was tested), and groups of windows; None without an explanation.

    Raises:
        ValueError: the files are damaged.
    """
    folder, explanation = subject.folder, subject.automatic.get(latent)
    if folder is None or not explanation:
        return None
    # the latent's row, with scores where there are any
    path, record = folder / EXPLANATIONS, read_json(folder / EXPLANATIONS_RECORD)
    scores = record.get("scores", {})
    columns = ["latent", "source", "n_shown"]
    if scores:
        columns += [f"{control}pearson" for control in ("", "shuffled_", "token_ceiling_")]
    if "detection" in scores:
        columns += ["detection_auc", "shuffled_detection_auc"]
    with reading(path):
        columns += ["sure"] if "sure" in columns_of(path) else []
        row = read_table(path, columns, [("latent", "=", latent)]).to_pylist()[0]
        row = {**dict.fromkeys(("pearson", "n_shown", "sure", "detection_auc")), **row}
        judge = record.get("judge", {}).get("model", "")

    by_model, is_unclear = row["source"] == "lm", explanation == _UNCLEAR
    by_program = "its tokens" if row["source"] == "template" else row["source"]
    giver = (judge or "a language model") if by_model else by_program
    certain = "" if row["sure"] is None else f", {row['sure']:.0%} certain"
    said = [f"Named by {giver}{certain}, from {row['n_shown']} windows"]
    said += ["It found nothing that these windows have in common"] * is_unclear
    score, auc = "", row["detection_auc"]
    if auc is not None:  # a judge read its words
        score = f"AUC {auc:.2f}"
    elif not by_model and row["pearson"] is not None:  # it is tokens, which were tested
        score = f"Pearson {row['pearson']:.2f}"
    if row["pearson"] is None:
        said[-1] += "; not tested" if len(said) == 1 else ""
    else:
        three = (row[f"{control}pearson"] for control in ("", "shuffled_", "token_ceiling_"))
        own, other, most = (round(value, 2) + 0.0 for value in three)  # not -0.00
        said.append(
            f"On other documents, the tokens of these windows predict its activations with a "
            f"correlation of {own:.2f}; those of another latent's windows, {other:.2f}; all "
            f"tokens of the documents that the windows are from, {most:.2f}"
        )
        others = row.get("shuffled_detection_auc")
        if auc is not None and others is not None:
            said.append(
                f"Given this name, {giver} tells texts in which it fires from others with an AUC "
                f"of {auc:.2f}; given another latent's name, {others:.2f} (guessing: 0.50)"
            )
        elif by_model and not is_unclear:
            said.append("The words of this name were not tested")
    return {
        "explanation": explanation,
        "source": row["source"],
        "doubtful": latent in subject.doubtful,
        "note": ". ".join(said),
        "score": score,
        "groups": _tested_windows(folder, latent),
    }


def _tested_windows(folder: Path, latent: int) -> list[Json]:
    """Windows of documents that the explanation does not come from, under headings."""
    if not (path := folder / EVIDENCE).is_file():
        return []
    columns = ["latent", "kind", "activation", "firing", "tokens", "activations"]
    groups: dict[str, list[Json]] = {}
    with reading(path):
        rows = read_table(path, columns, [("latent", "=", latent)]).to_pylist()
        largest = max((max(row["activations"], default=0.0) for row in rows), default=0.0) or 1.0
        for row in rows:
            tokens = _window(row["tokens"], row["activations"], row["firing"], largest)
            title = _KINDS.get(row["kind"], "it fires")
            groups.setdefault(title, []).append({"activation": row["activation"], "tokens": tokens})
    return [{"title": title, "examples": windows} for title, windows in groups.items()]


def _window(
    texts: Sequence[str], activations: Sequence[float], firing: int, largest: float
) -> list[Json]:
    """The tokens of a window, with a latent's activation on each."""
    return [
        {"text": text, "activation": a, "share": a / largest, "firing": i == firing}
        for i, (text, a) in enumerate(zip(texts, activations, strict=True))
    ]


def latent_map(subject: Subject) -> Json:
    """Places (whole numbers, mostly 0 to 1000), shades (0 rare to 100 frequent; -1 never fired; 50
    if that is unknown) and names of all latents, and what the ends of the scale are."""
    density, rare, frequent = subject.density(), 1e-5, 1e-1
    fires = density[density > 0].sort().values
    if len(fires):
        low, high = (float(fires[round(share * (len(fires) - 1))]) for share in _ENDS)
        rare, frequent = low, max(high, 1.01 * low)

    def shade(one: float) -> int:
        if not subject.is_counted:
            return 50
        if one <= 0:
            return -1
        return round(100 * min(1.0, max(0.0, math.log(one / rare) / math.log(frequent / rare))))

    def fires_on() -> list[str]:
        """Of each latent the tokens that it fires on most."""
        import pyarrow.compute as pc

        names: list[list[str]] = [[] for _ in range(subject.d_sae)]
        if subject.store is not None:
            strongest = (pc.field("kind") == "top") & (pc.field("rank") < 4)
            firings = subject.store.firings(strongest)
            for latent, token in zip(firings.latent, firings.token, strict=True):
                token = subject.unit.short(token.strip())
                if token and token.casefold() not in map(str.casefold, names[latent]):
                    names[latent].append(token)
        return [", ".join(tokens) for tokens in names]

    names = dict(enumerate(subject.cached("tokens", fires_on)))
    names |= {latent: name for latent, name in subject.names.items() if latent in names}
    written = (" ".join(name.split()) for name in names.values())
    places = (500 + 480 * places_of(subject).clamp(-1.6, 1.6)).round().int().tolist()
    shades = map(shade, density.tolist())
    return {
        "points": " ".join(f"{x} {y} {s}" for (x, y), s in zip(places, shades, strict=True)),
        "names": "\n".join(n if len(n) <= _NAME else f"{n[: _NAME - 1]}…" for n in written),
        "n": subject.d_sae,
        "counted": subject.is_counted,
        "rare": rare,
        "frequent": frequent,
    }


def find_on_map(subject: Subject, query: str) -> Json:
    """The latents that a search by a word or a subject finds.

    Args:
        query: a word or a subject.

    Returns:
        query (str): what was looked for.
        hits (list[int]): indices of at most 400 latents.
        rows (list[Latent]): the first of them; "value" is their match, at most 1.
    """
    hits = find(subject, validate.text(query), _MOST_ON_MAP)
    rows = [{"latent": hit.latent, "value": hit.score} for hit in hits[:SHOWN]]
    return {"query": query, "hits": [hit.latent for hit in hits], "rows": as_rows(subject, rows)}


def places_of(subject: Subject) -> torch.Tensor:
    """The feature store's map, else one that is made here; [d_sae, 2], mostly -1 to 1."""
    stored = None if subject.store is None else subject.store.places
    if stored is not None:
        return stored

    def make() -> torch.Tensor:
        rows = subject.sae.W_dec.detach().float()
        return plane(rows, *nearest_rows(rows, NEAR))

    return subject.cached("map", make)
