"""Windows and Seen: what is kept of a stream is a fair sample, and stays small."""

import torch

from hfsae.activations import TokenBatch
from hfsae.features.summary import LatentStatistics


def add_rows(seen: LatentStatistics, latents: torch.Tensor) -> None:
    """latents: [rows, ctx, d_sae]."""
    n_rows, context, d_sae = latents.shape
    row, position = torch.ones(n_rows, context).nonzero(as_tuple=True)
    ids = torch.zeros(n_rows, context, dtype=torch.long)
    batch = TokenBatch(ids, ids == 0, ids)
    seen.add_block_(latents.reshape(-1, d_sae), row, position, batch)


def kept_bytes(seen: LatentStatistics) -> int:
    tensors = [*seen.top, *seen.sample, seen.histogram, seen.sum]
    return sum(t.numel() * t.element_size() for t in tensors)


def test_every_row_is_as_likely_to_be_sampled():
    seen = LatentStatistics(2000, top=1, reservoir=16, window=0, seed=0, device=torch.device("cpu"))
    for start in range(0, 64, 8):
        # activations rise along the stream: neither strength nor time may matter
        add_rows(seen, torch.arange(start, start + 8.0)[:, None, None].expand(8, 1, 2000) + 1)
    counts = torch.bincount(seen.sample.row.flatten(), minlength=64)
    # each is binomial with n = 2000 and p = 16 / 64: mean 500, standard deviation 19.4
    assert (counts - 500).abs().max() < 5 * 19.4
    assert all(len(set(rows)) == 16 for rows in seen.sample.row.tolist())


def test_of_equal_peaks_the_earliest_row_and_position_are_kept():
    seen = LatentStatistics(1, top=2, reservoir=1, window=1, seed=0, device=torch.device("cpu"))
    add_rows(seen, torch.tensor([[0.0, 3.0, 3.0], [3.0, 0.0, 1.0]])[..., None])
    add_rows(seen, torch.tensor([[3.0, 0.0, 0.0]])[..., None])
    assert seen.top.row.tolist() == [[0, 1]]
    assert seen.top.position.tolist() == [[1, 0]]
    assert seen.top.around.tolist() == [[[0.0, 3.0, 3.0], [0.0, 3.0, 0.0]]]


def test_what_is_kept_for_8192_latents_is_44_megabytes_however_many_tokens_come():
    seen = LatentStatistics(
        8192, top=10, reservoir=32, window=12, seed=0, device=torch.device("cpu")
    )
    before = kept_bytes(seen)
    # key, peak, row, position and 25 activations of 4 bytes; a histogram of 120 bins; a sum
    assert before == 8192 * ((10 + 32) * (4 + 25) * 4 + 120 * 4 + 8) < 45e6
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        add_rows(seen, torch.randn(4, 32, 8192, generator=generator).sub_(2).relu_())
    assert kept_bytes(seen) == before
    per_token = [*seen.tokens, *seen.documents]
    assert sum(t.numel() * t.element_size() for t in per_token) == 8 * 3 * 4 * 32


def test_keeping_windows_does_not_keep_the_latents_they_were_cut_from():
    seen = LatentStatistics(64, top=2, reservoir=2, window=2, seed=0, device=torch.device("cpu"))
    add_rows(seen, torch.rand(4, 8, 64))
    for tensor in [*seen.top, *seen.sample, *seen.tokens, *seen.documents]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
