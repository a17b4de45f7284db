"""A graph as the front ends read it: {slug}.json and graph-metadata.json.

Fields and ids are those of circuit-tracer (decoderesearch/circuit-tracer, frontend/graph_models.py)
and of Neuronpedia's schema (apps/webapp/app/api/graph/graph-schema.json). `circuit-tracer
start-server --graph_file_dir FOLDER` shows them; Neuronpedia takes the file as an upload. There the
error of block l and latent l of block 0 have one id: on such a collision the error's gets a suffix.

Pages of features lie in FOLDER/features/SLUG/ID.json, ID the `feature` of a node. circuit-tracer's
server has no address for them but that of graphs, and its page takes a scan that begins with "./"
for an address (assets/feature_examples/init-feature-examples.js at 4bb8c0ea): so `scan` is that. It
shows supernodes of its own address alone (attribution_graph/init-cg.js), Neuronpedia the file's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..io.errors import Refused
from ..io.files import parse_yaml, read_json, reading, write_whole
from ..models import SAE
from .attribution_graph import Graph, Node

METADATA = "graph-metadata.json"
_NO_PAGE = "No examples: this transcoder has no feature store; `hfsae collect` makes it"
_SLUG = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{,99}")


def save_graph(
    graph: Graph,
    folder: str | Path,
    slug: str,
    *,
    scan: str | None = None,
    labels: Mapping[str, Mapping[int, str]] | None = None,
    supernodes: Mapping[str, Sequence[str]] | None = None,
    pages: Mapping[str, Callable[[int], Mapping[str, Any]]] | None = None,
    nodes: float = 0.8,
    edges: float = 0.98,
) -> Path:
    """Write a pruned graph to FOLDER/SLUG.json, and its metadata beside those of other graphs.

    Args:
        slug, ...: as for `graph_content`.

    Returns:
        The file.

    Raises:
        ValueError: a slug of other characters, or a supernode of a node that is not there.
    """
    options: dict[str, Any] = {"scan": scan, "labels": labels, "supernodes": supernodes}
    options |= {"pages": pages, "nodes": nodes, "edges": edges}
    whole, written = graph_content(graph, slug, **options)
    folder = Path(folder)
    home = folder / "features" / slug
    (home if written and not scan else folder).mkdir(parents=True, exist_ok=True)
    for name, page in {} if scan else written.items():
        write_whole(home / f"{name}.json", json.dumps(page, ensure_ascii=False) + "\n")
    path = folder / f"{slug}.json"
    write_whole(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    listing = folder / METADATA
    others = read_json(listing).get("graphs", []) if listing.is_file() else []
    every = [g for g in others if g.get("slug") != slug] + [whole["metadata"]]
    write_whole(listing, json.dumps({"graphs": every}, indent=1, ensure_ascii=False) + "\n")
    return path


def graph_content(
    graph: Graph,
    slug: str,
    *,
    scan: str | None = None,
    labels: Mapping[str, Mapping[int, str]] | None = None,
    supernodes: Mapping[str, Sequence[str]] | None = None,
    pages: Mapping[str, Callable[[int], Mapping[str, Any]]] | None = None,
    nodes: float = 0.8,
    edges: float = 0.98,
) -> tuple[dict[str, Any], dict[int, Mapping[str, Any]]]:
    """What the file of a pruned graph holds, and its features' pages by a node's `feature`.

    Args:
        slug: name of the graph: letters, digits, - and _.
        scan: Neuronpedia's name of the language model, which has the features' pages; None: where
            `pages` are, or without any the language model's name.
        labels: {transcoder: {latent: label}}.
        supernodes: {name: nodes} that are shown as one, and pinned: ids, or "block/latent", a
            feature at all positions.
        pages: {transcoder: a function of a latent to its page}, as `hfsae.features.feature_page`;
            a feature without a label is named after the tokens of its top texts.
        nodes, edges: shares of influence to keep.

    Raises:
        ValueError: a slug of other characters, or a supernode of a node that is not there.
    """
    check_slug(slug)
    pruned = graph.prune(nodes, edges)
    ids = node_ids(graph)
    kept = pruned.nodes.nonzero()[:, 0].tolist()
    grouped = _grouped(graph, {ids[i]: graph.nodes[i] for i in kept}, supernodes or {})
    written = _pages([graph.nodes[i] for i in kept], graph, pages) if pages else {}
    place = f"./graph_data/features/{slug}" if pages else graph.model_name
    metadata = {
        "slug": slug,
        "scan": scan or place,
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
        "transcoders": {
            name: {"blocks": blocks, "digest": digest(sae)}
            for name, (sae, blocks) in graph.transcoders.items()
        },
    }
    shown = [_node(graph, i, ids[i], float(pruned.influence[i]), labels or {}) for i in kept]
    for node in shown:
        node["clerp"] = node["clerp"] or _fires_on(written.get(node["feature"], {}))
    links = [
        {"source": ids[s], "target": ids[t], "weight": float(graph.weights[t, s])}
        for t, s in pruned.edges.nonzero().tolist()
    ]
    pinned = list(dict.fromkeys(member for _, *members in grouped for member in members))
    q = {"pinnedIds": pinned, "supernodes": grouped, "linkType": "both"}
    q |= {"clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": q, "nodes": shown, "links": links}, written


def _fires_on(page: Mapping[str, Any]) -> str:
    """The strongest tokens of a page's first three texts; empty without texts."""
    tokens = []
    for group in page.get("examples_quantiles", [])[:1]:
        for example in group["examples"][:3]:
            acts = example["tokens_acts_list"]
            tokens.append(example["tokens"][acts.index(max(acts))].strip())
    return f"fires on {', '.join(dict.fromkeys(tokens))}" if any(tokens) else ""


def _pages(
    nodes: Sequence[Node], graph: Graph, pages: Mapping[str, Callable[[int], Mapping[str, Any]]]
) -> dict[int, Mapping[str, Any]]:
    """Of the features among nodes, by the name of its file; blank where there is no store, since
    the front end would leave the page before it."""
    blank = {"examples_quantiles": [{"quantile_name": _NO_PAGE, "examples": []}]}
    blank |= {"top_logits": ["-"], "bottom_logits": ["-"]}
    return {
        _feature_id(layer, latent): pages[sae](index) if sae in pages else {"index": index} | blank
        for sae, layer, latent, index in {
            (node.sae, node.layer, graph.index_in_layer(node), node.index)
            for node in nodes
            if node.kind == "feature"
        }
    }


def digest(sae: SAE) -> str:
    """What tells trained SAEs apart: a hash of the encoder's bias."""
    return sha256(sae.b_enc.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]


def read_supernodes(path: str | Path) -> dict[str, list[str]]:
    """{name: nodes} of a YAML file, for `save_graph`.

    Raises:
        ValueError: there is no such file, it is not YAML, or no mapping of names to lists of nodes.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"there is no file {path}; give a YAML file of {{name: [nodes]}}")
    with reading(path):
        content = parse_yaml(path.read_text(encoding="utf-8"), as_texts=True)
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(m, list) and m and all(isinstance(i, str) for i in m) for m in lists):
        raise Refused(
            f"{path} is no mapping of names to lists of nodes; write for example "
            "capitals: [15/123, 8_77_4], a feature at all positions and the id of a node"
        )
    return content


def _grouped(
    graph: Graph, there: Mapping[str, Node], supernodes: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """[name, *ids] of each supernode, with the ids that a pattern stands for.

    Raises:
        ValueError: a member is no node that pruning kept.
    """
    by_feature: dict[str, list[str]] = {}
    for name, node in there.items():
        if node.kind == "feature":
            key = f"{node.layer}/{graph.index_in_layer(node)}"
            by_feature.setdefault(key, []).append(name)
    grouped = []
    for name, members in supernodes.items():
        found = [by_feature.get(m, [m] if m in there else []) for m in members]
        if not all(found):
            missing = members[found.index([])]
            raise Refused(
                f"supernode {name!r} has {missing!r}, which is no node of this graph after pruning"
            )
        grouped.append([name, *dict.fromkeys(i for ids in found for i in ids)])
    return grouped


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


def _feature_id(layer: int, latent: int) -> int:
    """Cantor's number of the pair."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


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
            pair = _feature_id(layer, latent)
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
