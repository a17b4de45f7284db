"""An activation stream with a known answer: sparse sums of unit directions."""

import torch
from torch import Tensor


class PlantedStream:
    """x = 9 * (about `l0` of n_features unit directions, each times 0.5 to 1.5) + noise."""

    def __init__(
        self, batch_size=256, d=16, n_features=32, l0=3.0, sites=("layers.1",), world=(0, 1)
    ):
        generator = torch.Generator().manual_seed(7)
        directions = torch.randn(n_features, d, generator=generator)
        self.directions = torch.nn.functional.normalize(directions, dim=1)
        self.batch_size, self.l0, self.sites, self.world = batch_size, l0, sites, world
        self.progress = lambda done, total: None
        self.position = 0

    def _make(self, seed: int, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        n_features, d = self.directions.shape
        on = torch.rand(n, n_features, generator=generator) < self.l0 / n_features
        size = 0.5 + torch.rand(n, n_features, generator=generator)
        x = 9 * ((on * size) @ self.directions)
        x += 0.3 * torch.randn(n, d, generator=generator)
        return {site: (i + 1) * x for i, site in enumerate(self.sites)}

    def next_batch(self) -> dict[str, Tensor]:
        self.position += 1
        batch = self._make(self.position, self.batch_size)
        rank, n_ranks = self.world
        return {site: x.chunk(n_ranks)[rank] for site, x in batch.items()}

    def sample(self, n: int) -> dict[str, Tensor]:
        return self._make(0, min(n, 4096))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
