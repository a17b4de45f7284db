"""Names of all latents from the examples that `hfsae collect` stored, without a score.

Scores need windows that explain and others that test; a latent without them has a name all the
same, as long as one example of it is stored.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from ..features import FeatureStore
from .explainers import Explainer, Material, Name, WindowText, one_label, template
from .windows import Window

if TYPE_CHECKING:
    import pyarrow

STORED = "template, stored examples"
"""Source of such a name by template in explanations.parquet."""
UNSCORED = "unscored"
"""Key in explanations.json of the reason why no name has a score."""
_COLUMNS = ["latent", "activation", "firing", "tokens"]


def stored_names(
    store: FeatureStore,
    but: Collection[int] = (),
    explainer: Explainer = template,
    source: str = STORED,
) -> list[dict[str, Any]]:
    """Rows for explanations.parquet of the latents that have examples, in their order; those that
    the explainer has no name for are absent.

    Args:
        but: latents to leave out, since they have an explanation.
        source: the column of that name.

    Raises:
        ValueError: the examples on disk are damaged.
    """
    left_out, densities = {*but}, store.latents["density"].to_pylist()
    needs_activations = explainer is not template
    materials = [m for m in _materials(store, needs_activations) if m.latent not in left_out]
    told = explainer(materials).items()
    names = {i: name if isinstance(name, Name) else Name(name, None) for i, name in told}
    return [
        {
            "latent": m.latent,
            "explanation": one_label(names[m.latent].text),
            "sure": names[m.latent].sure,
            "source": source,
            "density": densities[m.latent],
            "n_shown": len(m.shown),
        }
        for m in sorted(materials, key=lambda m: m.latent)
        if m.latent in names
    ]


def _materials(store: FeatureStore, needs_activations: bool) -> Iterator[Material]:
    """All examples of each latent, as its windows."""
    shown: dict[int, list[WindowText]] = {}
    columns = [*_COLUMNS, "activations"] if needs_activations else _COLUMNS
    for batch in store.examples.to_batches(columns=columns):
        for latent, spelt in _spelt(batch):
            shown.setdefault(latent, []).append(spelt)
    for latent, windows in shown.items():
        yield Material(latent, windows)


def _spelt(batch: "pyarrow.RecordBatch") -> Iterator[tuple[int, WindowText]]:
    """(latent, example) of some rows."""
    lists, offsets = batch.column("tokens"), batch.column("tokens").offsets.to_pylist()
    texts = lists.values.to_pylist()
    facts = (batch.column(name).to_pylist() for name in ("latent", "activation", "firing"))
    values = batch.column("activations").to_pylist() if "activations" in batch.schema.names else []
    for i, (latent, activation, firing) in enumerate(zip(*facts, strict=True)):
        tokens = texts[offsets[i] : offsets[i + 1]]
        if 0 <= firing < len(tokens):
            own = tuple(value or 0.0 for value in values[i]) if values else ()
            yield (
                latent,
                WindowText(tokens, firing, Window(0, len(tokens), firing, activation, ""), own),
            )
