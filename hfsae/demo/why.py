"""Actions that explain a next token: the likeliest, the latents that speak for one, and the graph
of features of transcoders that made it."""

import math
import re

import torch

from .. import circuits
from ..activations.token_text import Tokens, named_token, single_tokens
from ..activations.tokens import special_ids
from ..attribution import Attribution, attribute, logit
from ..circuits import GraphFile
from ..io.errors import Refused
from ..lm import contract
from ..runs import open_transcoders
from . import validate
from .parts import cited, spaced
from .rows import SHOWN, Json, as_rows
from .subject import Subject

_ABLATED = 4  # in the first answer; others one by one, on request
_CANDIDATES = 8
ALONE = "#"
"""In place of a contrast: the logit alone is explained."""
_TOLD, _LITTLE = 2, 0.01  # latents that the sentence names on a side; logits
MOST_TOKENS = 64
"""of the prompt of a graph: time and memory grow with it"""
_NODES, _EDGES = 0.7, 0.9  # shares of a graph's influence: what is sent to a browser
_LEVEL = 0.1  # logits: odds of 1.1, below which no token leads


def next_tokens(subject: Subject, prompt: str) -> Json:
    """The likeliest next tokens after a prompt.

    Args:
        prompt: the text.

    Returns:
        next (list): {token, id, probability} of the eight likeliest, the likeliest first.
    """
    return {"next": _next(subject, subject.tokens(prompt))[1]}


@torch.no_grad()
def _next(subject: Subject, tokens: Tokens) -> tuple[torch.Tensor, list[Json]]:
    """The logits of the next token, in float32 (in bfloat16 the likeliest tokens are often equal),
    and the likeliest."""
    ids = tokens.batch(subject.exact_lm.device).input_ids
    logits = subject.exact_lm(input_ids=ids, use_cache=False).logits[0, -1].float()
    top = zip(*(column.tolist() for column in logits.softmax(-1).topk(_CANDIDATES)), strict=True)
    return logits, [{**_named(subject, i), "probability": p} for p, i in top]


def _named(subject: Subject, token_id: int) -> Json:
    return {"token": str(subject.tokenizer.decode([token_id])), "id": token_id}


def why(subject: Subject, prompt: str, target: str = "", contrast: str = "") -> Json:
    """Why this next token: the latents that raise or lower its logit, estimated by gradient, and
    measured by leaving them out one by one.

    The logit is total = shown + others + error + bias + rest: the latents in `rows`, all others,
    what the SAE leaves out, the constant that it adds on every token, and everything else: what
    later blocks add of themselves, and tokens such as BOS that the SAE does not read.

    Args:
        prompt: the text.
        target: the next token to explain, as text or as `#` and its id; empty: the likeliest. Most
            words begin with a space, and " sea" is another token than "sea": without a space in
            front the likelier of both is taken, and "sentence" has which.
        contrast: a token to compare it with, likewise: the difference of the two logits is
            explained; empty: the likeliest other one; `#`: none, the logit alone.

    Returns:
        sentence (str): the answer in short.
        next (list): {token, id, probability} of the likeliest next tokens.
        target (dict): {token, id}; "token" has its leading space.
        contrast (dict | None): {token, id}.
        notes (list[str]): sentences on how the typed tokens were read.
        logit (float): the target's logit, less the contrast's.
        rows (list[Latent]): the latents that matter most: "value" is the estimated part in the
            logit, "ablation" the measured one (null: not measured; check_ablation measures it),
            "token" and "position" where it acts, "activation" how strongly it fires there.
        n_latents (int): latents that fire in the text.
        shown (float): the sum of "value" over the rows.
        others (float): that of all other latents.
        n_others (int): how many these are.
        error (float): the part of what the SAE leaves unexplained.
        bias (float): the part of the constant that it adds on every token.
        rest (float): everything else.
        total (float): the sum of these parts: the logit.
    """
    tokens, likely, pair, notes, effects = _question(subject, prompt, target, contrast, _ABLATED)
    rows = []
    for i in range(min(SHOWN, len(effects.latents))):
        ablation, position = float(effects.ablation[i]), int(effects.position[i])
        row = {
            "latent": int(effects.latents[i]),
            "value": float(effects.gradient[i]),
            "position": position,
            "token": tokens.texts[position],
            "activation": float(effects.activation[i]),
            "ablation": None if math.isnan(ablation) else ablation,
        }
        rows.append(row)
    by_latent, n = effects.gradient.double(), len(rows)
    view = {
        "next": likely,
        "target": _named(subject, pair[0]),
        "contrast": None if pair[1] is None else _named(subject, pair[1]),
        "notes": notes,
        "logit": effects.objective,
        "rows": as_rows(subject, rows),
        "n_latents": len(effects.latents),
        "shown": float(by_latent[:n].sum()),
        "others": float(by_latent[n:].sum()),
        "n_others": len(by_latent) - n,
        "error": effects.error,
        "bias": effects.bias,
        "rest": effects.rest,
        "total": effects.objective,
    }
    return {"sentence": summary(view), **view}


def summary(view: Json) -> str:
    """By how much the target leads, what all latents have in that, and those that speak most for it
    and against it; by measure where there is one, else "about" so much by the estimate."""
    rows = view["rows"]
    weights = [row["value"] if row["ablation"] is None else row["ablation"] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -abs(weights[i]))

    def side(sign: int) -> str:
        """The strongest on a side, each with its name, or else what it fires on, and the token on
        which it acts."""
        texts = []
        for i in [i for i in order if sign * weights[i] >= _LITTLE][:_TOLD]:
            row = rows[i]
            name = row["label"] or (row["auto"] if row["source"] in ("lm", "file") else "")
            words = "" if name else ", ".join(map(cited, row.get("fires_on", [])[:2]))
            called = f" ({name or 'fires on ' + words})" if name or words else ""
            about = "about " if row["ablation"] is None else ""
            acts = f"latent {row['latent']}{called} on {cited(row['token'].strip())}"
            texts.append(f"{acts}, {about}{weights[i]:+.2f}")
        return " and ".join(texts) or "hardly any latent"

    pair = [token["token"] for token in (view["target"], view["contrast"]) if token]
    words = [token.strip() for token in pair]
    if "" in words or len(pair) > len({*words}):  # they differ in spaces
        words = [spaced(token) for token in pair]
    target, *others = map(cited, words)
    if not others:
        lead = f"{target} has a logit of {view['total']:.2f}"
    elif abs(view["total"]) < _LEVEL:
        lead = f"{target} and {others[0]} are about as likely ({view['total']:+.2f} logits)"
    else:
        verb = "leads" if view["total"] > 0 else "trails"
        lead = f"{target} {verb} {others[0]} by {abs(view['total']):.2f} logits"
    latents, lead = view["shown"] + view["others"], " ".join([*view["notes"], lead])
    return (
        f"{lead}: the parts of all latents add up to {latents:+.2f}, the rest to "
        f"{view['total'] - latents:+.2f}. Most for it: {side(1)}. Most against it: {side(-1)}."
    )


def spelling(subject: Subject, index: int) -> str:
    """What to type for a token: its text where that can be no other, else `#` and its number."""
    text = str(subject.tokenizer.decode([index]))
    is_clear = text.isprintable() and single_tokens(subject.tokenizer, text) == [index]
    return text if is_clear else f"#{index}"


def is_token(subject: Subject, text: str, index: int) -> bool:
    """Whether a typed token may be this one: of two spellings either is."""
    try:
        if text.startswith("#"):
            return index == subject.token_id(text)
        return bool(text) and index in single_tokens(subject.tokenizer, text)
    except ValueError:
        return False


def check_ablation(
    subject: Subject, prompt: str, latent: int, target: str = "", contrast: str = ""
) -> Json:
    """The measured effect of a latent on the logit: with the latent, less without it.

    Args:
        prompt: the text.
        latent: index of the one to leave out, on all tokens; it must fire in the text.
        target: the next token, as text or as `#` and its id; empty: the likeliest.
        contrast: a token to compare it with; empty: the likeliest other one; `#`: none.

    Returns:
        latent (int): its index.
        gradient (float): the estimated effect, logits.
        ablation (float): the measured effect, logits.
    """
    index = validate.latent(latent, subject.d_sae)
    *_, effects = _question(subject, prompt, target, contrast, [index])
    at = effects.latents.tolist().index(index)
    return {
        "latent": index,
        "gradient": float(effects.gradient[at]),
        "ablation": float(effects.ablation[at]),
    }


def _question(
    subject: Subject, prompt: object, target: object, contrast: object, ablate: int | list[int]
) -> tuple[Tokens, list[Json], tuple[int, int | None], list[str], Attribution]:
    """A question, checked: the text, the likeliest next tokens, target and contrast, and how these
    were read; and the effects of latents: measured of those to ablate."""
    tokens = subject.tokens(prompt)
    target = validate.text(target, "the target token", limit=100, empty=None)
    contrast = validate.text(contrast, "the contrast token", limit=100, empty=None)
    (logits, likely), notes = _next(subject, tokens), []

    def token_of(text: str) -> int:
        """A typed token's id; where its text is read with a space more, a note is added."""
        if text.startswith("#") and text[1:].isdecimal():
            return subject.token_id(text)
        chosen, typed = named_token(subject.tokenizer, text, lambda: logits)
        if typed is not None:
            less = float(logits[chosen] - logits[typed])
            notes.append(
                f"{cited(text)} is read with a space in front, {cited(spaced(' ' + text))}: "
                f"without it it is another token, {less:.1f} logits less likely (#{typed})."
            )
        return chosen

    target_id = token_of(target) if target else likely[0]["id"]
    if contrast in ("", ALONE):
        others = (token["id"] for token in likely if token["id"] != target_id)
        contrast_id = None if contrast == ALONE else next(others)
    else:
        contrast_id = token_of(contrast)
    if contrast_id == target_id:
        raise Refused("target and contrast are the same token; choose two different ones")
    effects = attribute(
        subject.exact_lm,
        subject.sae,
        {"input_ids": tokens.batch(subject.lm.device).input_ids},
        logit(target_id, contrast_id),
        ablate=ablate,
        integration_steps=0,
        spare_tokens=special_ids(subject.tokenizer),
    )
    return tokens, likely, (target_id, contrast_id), notes, effects


def attribution_graph(
    subject: Subject, name: str = "", prompt: str = "", target: str = "", contrast: str = ""
) -> Json:
    """The attribution graph of a prompt: which features of transcoders, errors and tokens made the
    next token. Of a kept graph the name is enough; a prompt makes one, in up to a minute.

    Args:
        name: of a kept graph; empty with a prompt.
        prompt: a text of at most 64 tokens.
        target: the next token to explain, as text; empty: the likeliest ones.
        contrast: a token to explain it against; empty: none.

    Returns:
        graph (dict): metadata, nodes and links, as Neuronpedia's schema has them; metadata has
            replacement_score, completeness_score and largest_error_of_a_sum.
        texts (dict): of features with examples: the tokens that each promotes, and its top texts.
        opens (dict): of blocks whose features are latents of this SAE, the first latent.
    """
    name = validate.text(name, "the graph's name", limit=100, empty=None)
    if name:
        if name not in subject.graphs:
            kept = ", ".join(subject.graphs) or "none"
            raise Refused(f"there is no graph {name!r}; kept: {kept}")
        found = subject.graphs[name]
    else:
        found = _made(subject, prompt, target, contrast)
    ours, opens = circuits.digest(subject.sae), dict[str, int]()
    for one in found.content["metadata"].get("transcoders", {}).values():
        if one["digest"] == ours:
            each = subject.d_sae // len(one["blocks"])
            opens |= {str(block): i * each for i, block in enumerate(one["blocks"])}
    return {"graph": found.content, "texts": found.texts, "opens": opens}


def _made(subject: Subject, prompt: object, target: object, contrast: object) -> GraphFile:
    source = subject.transcoders
    if source is None:
        raise Refused("this SAE is no transcoder of an MLP, so that no graph can be made with it")
    tokens = subject.tokens(prompt)
    if len(tokens.ids) > MOST_TOKENS:
        raise Refused(f"the text has {len(tokens.ids)} tokens; a graph takes at most {MOST_TOKENS}")
    target = validate.text(target, "the target token", limit=100, empty=None)
    contrast = validate.text(contrast, "the contrast token", limit=100, empty=None)
    saes, labels, pages = subject.cached("transcoders", lambda: open_transcoders(source))
    lm = subject.exact_lm
    for sae in saes.values():
        contract.intend(lm, sae.to(lm.device), "model_dtype")
    graph = circuits.graph(
        lm,
        saes,
        torch.tensor([tokens.ids]),
        target=target or None,
        contrast=contrast or None,
        tokenizer=subject.tokenizer,
    )
    words = "-".join(re.findall("[a-z0-9]+", str(prompt).lower()))
    slug = words[:100].strip("-") or "graph"
    content, texts = circuits.graph_content(
        graph, slug, labels=labels, pages=pages, nodes=_NODES, edges=_EDGES
    )
    return GraphFile(content, {str(k): circuits.short_page(page) for k, page in texts.items()})
