"""A graph as the front ends read it: {slug}.json and graph-metadata.json.

Fields and ids are those of circuit-tracer (decoderesearch/circuit-tracer, frontend/graph_models.py)
and of Neuronpedia's schema (apps/webapp/app/api/graph/graph-schema.json). `circuit-tracer
start-server --graph_file_dir FOLDER` shows them; Neuronpedia takes the file as an upload. There the
error of block l and latent l of block 0 have one id: on such a collision the error's gets a suffix.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..io.errors import Refused
from ..io.files import read_json, write_whole
from .attribution_graph import Graph, Node

METADATA = "graph-metadata.json"
_SLUG = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{,99}")


def save_graph(
    graph: Graph,
    folder: str | Path,
    slug: str,
    *,
    scan: str | None = None,
    labels: Mapping[str, Mapping[int, str]] | None = None,
    supernodes: Mapping[str, Sequence[str]] | None = None,
    nodes: float = 0.8,
    edges: float = 0.98,
) -> Path:
    """Write a pruned graph to FOLDER/SLUG.json, and its metadata beside those of other graphs.

    Args:
        slug: name of the graph: letters, digits, - and _.
        scan: name under which a front end finds the features' pages; None: the language model's.
        labels: {transcoder: {latent: label}}.
        supernodes: {name: ids of nodes} that are shown as one.
        nodes, edges: shares of influence to keep.

    Returns:
        The file.

    Raises:
        ValueError: a slug of other characters, or a supernode of a node that is not there.
    """
    check_slug(slug)
    pruned = graph.prune(nodes, edges)
    ids = node_ids(graph)
    kept = pruned.nodes.nonzero()[:, 0].tolist()
    known = {ids[i] for i in kept}
    for name, members in (supernodes or {}).items():
        if missing := [m for m in members if m not in known]:
            raise Refused(f"supernode {name!r} has {missing[0]!r}, which is no node of this graph")
    metadata = {
        "slug": slug,
        "scan": scan or graph.model_name,
        "transcoder_list": sorted({node.sae for node in graph.nodes if node.sae}),
        "prompt_tokens": graph.tokens,
        "prompt": "".join(graph.tokens),
        "node_threshold": nodes,
        "schema_version": 1,
        "info": {"generator": {"name": "hfsae", "version": version("hfsae")}},
        "pruning_settings": {"node_threshold": nodes, "edge_threshold": edges},
        "replacement_score": graph.replacement_score,
        "completeness_score": graph.completeness_score,
        "largest_error_of_a_sum": graph.check(),
    }
    shown = [_node(graph, i, ids[i], float(pruned.influence[i]), labels or {}) for i in kept]
    links = [
        {"source": ids[s], "target": ids[t], "weight": float(graph.weights[t, s])}
        for t, s in pruned.edges.nonzero().tolist()
    ]
    grouped = [[name, *members] for name, members in (supernodes or {}).items()]
    q = {"pinnedIds": [], "supernodes": grouped, "linkType": "both", "clickedId": "", "sg_pos": ""}
    whole = {"metadata": metadata, "qParams": q, "nodes": shown, "links": links}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}.json"
    write_whole(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    listing = folder / METADATA
    others = read_json(listing).get("graphs", []) if listing.is_file() else []
    every = [g for g in others if g.get("slug") != slug] + [metadata]
    write_whole(listing, json.dumps({"graphs": every}, indent=1, ensure_ascii=False) + "\n")
    return path


def check_slug(slug: str) -> None:
    """Check the name of a graph.

    Raises:
        ValueError: it is long, or has other characters.
    """
    if not _SLUG.fullmatch(slug):
        raise Refused(
            f"slug is {slug[:80]!r}; use at most 100 letters, digits, - and _, as in "
            "capital-of-france"
        )


def node_ids(graph: Graph) -> list[str]:
    """The id of each node in the files, each once."""
    ids, taken = list[str](), set[str]()
    for node in graph.nodes:
        match node.kind:
            case "feature":
                name = f"{node.layer}_{graph.index_in_layer(node)}_{node.position}"
            case "error":
                name = f"0_{node.layer}_{node.position}"
            case "token":
                name = f"E_{node.index}_{node.position}"
            case _:
                name = f"{node.layer + 1}_{node.index}_{node.position}"
        while name in taken:
            name += "_error"
        taken.add(name)
        ids.append(name)
    return ids


def _node(
    graph: Graph, i: int, name: str, influence: float, labels: Mapping[str, Mapping[int, str]]
) -> dict[str, Any]:
    node: Node = graph.nodes[i]
    made: dict[str, Any] = {"node_id": name, "ctx_idx": node.position, "influence": influence}
    made |= {"run_idx": 0, "reverse_ctx_idx": 0, "is_target_logit": node.kind == "logit"}
    made |= {"token_prob": node.value if node.kind == "logit" else 0.0, "activation": None}
    layer, at = node.layer, node.position
    match node.kind:
        case "feature":
            latent = graph.index_in_layer(node)
            pair = (layer + latent) * (layer + latent + 1) // 2 + latent  # Cantor's
            made |= {"feature": pair, "layer": str(layer), "activation": node.value}
            made |= {"feature_type": "cross layer transcoder", "jsNodeId": f"{layer}_{latent}-0"}
            made["clerp"] = labels.get(node.sae, {}).get(node.index, "")
        case "error":
            made |= {"feature": -1, "layer": str(layer), "jsNodeId": f"{layer}_{at}-0"}
            made |= {"feature_type": "mlp reconstruction error", "clerp": f"error at {layer}"}
        case "token":
            made |= {"feature": at, "layer": "E", "jsNodeId": f"E_{node.index}-{at}"}
            made |= {"feature_type": "embedding", "clerp": graph.tokens[at]}
        case _:
            made |= {"feature": node.index, "layer": str(layer + 1), "feature_type": "logit"}
            text = graph.texts[node.index]
            made |= {"jsNodeId": f"L_{node.index}-{at}", "clerp": f"{text} (p={node.value:.3f})"}
    return made
