"""Hashes and uniform draws that follow from numbers alone."""

import torch

from hfsae.features.summary import hashed, uniform


def test_each_document_is_as_likely_to_be_sampled_for_each_latent():
    documents = torch.arange(64)
    keys = uniform(documents, 2000, 0)
    chosen = keys.topk(16, dim=0).indices.flatten()
    counts = torch.bincount(chosen, minlength=64)
    # each is binomial with n = 2000 and p = 16 / 64: mean 500, standard deviation 19.4
    assert (counts - 500).abs().max() < 5 * 19.4
    assert (uniform(documents, 2000, 1) != keys).float().mean() > 0.99
    assert 0 <= keys.min() < 0.001 and 0.999 < keys.max() < 1


def test_hashes_are_those_of_splitmix64():
    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert mixed(0) == 0xE220A8397B1DCDAF  # the first output for seed 0, as published
    numbers = [0, 1, 17, -1, 2**62]
    expected = [mixed(mixed(number % 2**64) ^ mixed(5)) >> 1 for number in numbers]
    assert hashed(torch.tensor(numbers), 5).tolist() == expected
