"""The action that gives an attribution graph: one that was made before, or one made of a prompt."""

import re

import torch

from .. import circuits
from ..circuits import GraphFile
from ..io.errors import Refused
from ..lm import contract
from ..runs import open_transcoders
from . import validate
from .rows import Json
from .subject import Subject

MOST_TOKENS = 64
"""of a prompt: time and memory grow with it"""
_NODES, _EDGES = 0.7, 0.9  # shares of influence: what is sent to a browser


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
