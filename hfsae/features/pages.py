"""A latent as the front ends of others show it: circuit-tracer's page of a feature.

Fields are those of decoderesearch/circuit-tracer at 4bb8c0ea (circuit_tracer/frontend/
feature_models.py) and of hijohnnylin/neuronpedia at ebb8426f (apps/webapp/app/api/graph/
feature-details-schema.json). Both draw histograms with bins of equal width, where a store's widths
grow with the activation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..io.files import printable
from .store import FeatureStore, Latent

N_BINS = 40


def feature_page(store: FeatureStore, index: int) -> dict[str, Any]:
    """The page of a latent, as JSON holds it: tokens that it promotes and suppresses, its top
    examples and those of each quantile, the strongest first.

    Raises:
        IndexError: the store has no such latent.
        ValueError: the examples on disk are damaged.
    """
    latent, edges = store[index], store.meta["histogram_edges"]
    n, names = int(store.meta["arguments"]["quantiles"]), {"top": "Top activations"}
    names |= {f"quantile_{q}": f"Group {q} of {n}, 1 is the weakest" for q in range(n, 0, -1)}
    histogram, percentiles = even_histogram(latent, edges)
    quantiles: list[dict[str, Any]] = []
    for kind, name in names.items():
        examples = [
            {
                "tokens_acts_list": [round(a, 4) + 0.0 for a in example.activations],
                "train_token_ind": example.firing,
                "is_repeated_datapoint": False,
                "tokens": [printable(token) for token in example.tokens],
            }
            for example in latent.examples
            if example.kind == kind
        ]
        quantiles += [{"quantile_name": name, "examples": examples}] if examples else []
    return {
        "transcoder_id": str(store.meta.get("site") or ""),
        "index": index,
        "examples_quantiles": quantiles,
        "top_logits": [printable(token) for token, _ in latent.promoted],
        "bottom_logits": [printable(token) for token, _ in latent.suppressed],
        "act_min": 0.0,
        "act_max": latent.max_activation,
        "quantile_values": percentiles,
        "histogram": histogram,
        "activation_frequency": latent.density,
    }


def even_histogram(latent: Latent, edges: Sequence[float]) -> tuple[list[float], list[float]]:
    """Tokens in each of N_BINS equal bins from 0 to the latent's largest activation, and its
    percentiles 1 to 100; both as if activations lay evenly within each of the store's bins.

    Args:
        edges: of the store's bins, whose outer ones are open.
    """
    top = latent.max_activation
    inner = [edge for edge in edges[1:-1] if edge < top]
    counts = [*latent.histogram[: len(inner)], sum(latent.histogram[len(inner) :])]
    bounds, below = np.array([0.0, *inner, top]), np.array([0, *np.cumsum(counts)])
    tokens = np.diff(np.interp(np.linspace(0, top, N_BINS + 1), bounds, below))
    shares = np.interp(np.linspace(0.01, 1, 100) * below[-1], below, bounds)
    return tokens.round(3).tolist(), shares.round(4).tolist()
