"""Published figures of GPUs, and the shares of them that a run is taken to reach."""

from typing import NamedTuple

LM_SHARE = 0.35  # of published FLOP/s, in a language model's forward pass, not compiled
SAE_SHARE = 0.6  # in an SAE's large products
MEMORY_SHARE = 0.7  # of published bandwidth
LINK_SHARE = 0.6
HOST = 10e9  # bytes a second, a process, into or out of a bucket in main memory


class Card(NamedTuple):
    """A GPU's published figures, per second; without the doubling for sparse matrices."""

    name: str
    bf16: float
    float32: float
    bandwidth: float
    link: float
    """bytes one way between cards of one machine"""
    memory: float

    @property
    def assumptions(self) -> str:
        """The assumptions behind a time by formula."""
        return (
            f"by formula, not measured: {self.name} as published ({self.bf16 / 1e12:.0f} TFLOP/s "
            f"bfloat16, {self.float32 / 1e12:.0f} float32, {self.bandwidth / 1e12:.2g} TB/s, "
            f"{self.link / 1e9:.0f} GB/s between cards), taking {LM_SHARE:.0%} of its FLOP/s in "
            f"the language model, {SAE_SHARE:.0%} in SAEs, {MEMORY_SHARE:.0%} of its bandwidth, "
            f"{LINK_SHARE:.0%} of its link, and {HOST / 1e9:.0f} GB/s of main memory a process"
        )


# NVIDIA's data sheets: A100 80GB SXM, H100 SXM, H200 SXM (NVLink), L4 and L40S (PCIe 4 x16).
CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 19.5e12, 2.04e12, 300e9, 80e9),
        Card("H100", 989e12, 67e12, 3.35e12, 450e9, 80e9),
        Card("H200", 989e12, 67e12, 4.8e12, 450e9, 141e9),
        Card("L4", 121e12, 30.3e12, 0.3e12, 32e9, 24e9),
        Card("L40S", 362e12, 91.6e12, 0.864e12, 32e9, 48e9),
    )
}
