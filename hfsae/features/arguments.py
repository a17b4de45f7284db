"""The section `collect` of a recipe. Importing it imports no torch."""

from dataclasses import asdict, dataclass

from ..io.bounds import check_least, check_most, check_seed

_MOST_OF_A_LATENT = 10**6


@dataclass
class CollectArguments:
    """The sizes of a latent's record: examples, windows, tokens, neighbours."""

    top: int = 10
    """Examples with the largest activations, per latent."""
    quantiles: int = 5
    """Groups of equal size, by activation, of a random sample of the rows a latent fires in."""
    per_quantile: int = 3
    """Examples per group, drawn at random."""
    reservoir: int = 32
    """Rows in that sample."""
    window: int = 12
    """Tokens shown on either side of the firing token, within its row."""
    lens_tokens: int = 10
    """Promoted tokens, and as many suppressed ones."""
    neighbours: int = 5
    """Latents with the most similar decoder rows."""
    seed: int = 0
    """Seed of the random sample."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 1 if name in ("top", "quantiles", "reservoir") else 0
            check_least(self, "collect.", **{name: least})
            if name != "seed":
                check_most(f"collect.{name}", value, _MOST_OF_A_LATENT)
        check_seed("collect.seed", self.seed)
