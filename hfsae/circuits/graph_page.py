"""A graph as one web page that opens offline: graph.html with style, script and JSON in it.

graph.js draws every element of class `hfsae-graph` from a script of JSON inside it, here and on the
app's page: any file by the schema of circuit-tracer and Neuronpedia.
"""

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ..io.errors import Refused
from ..io.files import parse_json
from .graph_files import METADATA

_HERE = Path(__file__).parent
SCRIPT = (_HERE / "graph.js").read_text("utf-8")
STYLE = (_HERE / "graph.css").read_text("utf-8")
_EXAMPLES, _AROUND = 5, 8  # top texts of a feature, and tokens on each side of the strongest
NOTE = (
    "An error, drawn as a square, is what the transcoder leaves out of an MLP's output, or all of "
    "it where there is none: what begins there is not explained. The replacement score is the "
    "share of influence that begins at tokens, not at errors. Edges are exact sums in a model "
    "whose attention and norms are held; with what removing a feature does in the real model they "
    "agree only in part: Spearman's rho from .20 to .46, medians over five prompts, with four sets "
    "of transcoders (a cross-layer one: .07)."
)
"""what a reader must know; a test holds its figures to scripts/bench/results/graphs.json"""


class GraphFile(NamedTuple):
    """A graph as it is drawn."""

    content: dict[str, Any]
    """as the file has it"""
    texts: dict[str, dict[str, Any]]
    """by a node's `feature`: the tokens that it promotes, and its top texts, lists of [token,
    activation]"""


def read_graph(path: str | Path) -> GraphFile:
    """A graph that `hfsae graph` or circuit-tracer wrote, with the pages of features beside it.

    Raises:
        ValueError: there is no such file, or it is no graph.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"there is no file {path}; `hfsae graph` writes one")
    content = parse_json(path)
    if fault := _fault(content):
        raise Refused(f"{path} is no attribution graph: {fault}; `hfsae graph` writes one")
    texts: dict[str, dict[str, Any]] = {}
    for feature in {node.get("feature") for node in content["nodes"]}:
        page = path.parent / "features" / path.stem / f"{feature}.json"
        if isinstance(feature, int) and page.is_file():
            texts[str(feature)] = short_page(parse_json(page))
    return GraphFile(content, texts)


def read_graphs(folder: str | Path) -> dict[str, GraphFile]:
    """The graphs of a folder by the names of their files.

    Raises:
        ValueError: there is no such folder, it holds no graph, or a JSON file that is none.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.glob("*.json")) if path.name != METADATA]
    if not paths:
        raise Refused(f"{folder} holds no graph; `hfsae graph SOURCE PROMPT --out {folder}` does")
    return {path.stem: read_graph(path) for path in paths}


def short_page(page: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a page that `hfsae.features.feature_page` made."""
    try:
        groups = page["examples_quantiles"]
        examples = []
        for example in groups[0]["examples"][:_EXAMPLES] if groups else []:
            tokens, acts = example["tokens"], [float(a) for a in example["tokens_acts_list"]]
            top = acts.index(max(acts))
            near = slice(max(0, top - _AROUND), top + _AROUND + 1)
            examples.append([[str(t), a] for t, a in zip(tokens[near], acts[near], strict=True)])
        return {"examples": examples, "promotes": [str(t) for t in page["top_logits"][:8]]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Refused(f"a feature's page is damaged: {error!r}") from error


def drawing(graph: GraphFile, opens: Mapping[str, int] | None = None) -> str:
    """HTML that graph.js fills.

    Args:
        opens: of blocks whose latents the app shows, the first latent: a button leads there.
    """
    shown = {"graph": graph.content, "texts": graph.texts, "note": NOTE, "opens": opens or {}}
    # in a script nothing is escaped, and only "<" could end it; JSON may spell it so
    data = json.dumps(shown, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f'<div class="hfsae-graph"><script type="application/json">{data}</script></div>'


def graph_page(graph: GraphFile) -> str:
    """The whole page, which loads nothing."""
    page = (_HERE / "graph.html").read_text("utf-8")
    title = escape(graph.content["metadata"]["slug"])
    parts = {"title": title, "style": STYLE, "drawing": drawing(graph), "script": SCRIPT}
    before, *rest = page.split("<!-- put: ")
    for piece in rest:
        name, _, after = piece.partition(" -->")
        before += parts[name] + after
    return before


def _fault(content: Any) -> str:
    """Why it is no graph, or cannot be drawn; empty if it can."""
    try:
        metadata, nodes, links = content["metadata"], content["nodes"], content["links"]
        tokens, ids = metadata["prompt_tokens"], {node["node_id"] for node in nodes}
        texts = [metadata["slug"], *tokens]
        texts += [n[name] for n in nodes for name in ("node_id", "layer", "feature_type")]
        texts += [t["digest"] for t in metadata.get("transcoders", {}).values()]
        groups = content.get("qParams", {}).get("supernodes") or []
        texts += [name for group in groups for name in group]
        if not all(isinstance(text, str) for text in texts):
            return "of its slug, tokens, ids, layers, types and supernodes not all are texts"
        if len(ids) < len(nodes) or not nodes:
            return "two nodes have one id" if nodes else "it has no nodes"
        for node in nodes:
            if not isinstance(node["ctx_idx"], int) or not 0 <= node["ctx_idx"] < len(tokens):
                return f"node {node['node_id']!r} is at no token of {len(tokens)}"
        if not all(isinstance(t["blocks"], list) for t in metadata.get("transcoders", {}).values()):
            return "its transcoders have no blocks"
        for link in links:
            if not {link["source"], link["target"]} <= ids or not math.isfinite(link["weight"]):
                return "a link is between nodes that are not there, or its weight is no number"
    except (KeyError, TypeError, AttributeError) as error:
        return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
    return ""
