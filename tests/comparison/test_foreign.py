"""The report's section on foreign texts, from measurements made by hand."""

from pathlib import Path
from types import SimpleNamespace

from comparisons.foreign import ForeignSection

from hfsae.comparison import Measured


def sae(arm, seed, l0, fvu, **texts) -> Measured:
    name, metrics = f"target_l0_{l0}", {"l0": float(l0), "fvu": fvu, "delta_loss": 0.1}
    foreign = {text: {"l0": 2.0 * l0, "fvu": x, "delta_loss": 0.4} for text, x in texts.items()}
    return Measured(arm, seed, name, l0, Path(name), metrics, {}, {}, foreign=foreign)


def text_of(saes) -> str:
    comparison = SimpleNamespace(title=str.upper, arms=["a", "b"], at_l0=[20.0, 80.0])
    return "\n\n".join(ForeignSection(comparison, saes).all())


def test_values_on_each_text_are_interpolated_at_the_l0_of_held_out_documents():
    swept = [
        sae("a", seed, l0, fvu, mail=3 * fvu, code=(2 + seed) * fvu)
        for seed in (0, 1)
        for l0, fvu in ((10, 0.4), (40, 0.1))  # 20 and 0.2 are in the middle of their logarithms
    ]
    text = text_of([*swept, sae("b", 0, 20, 0.2, mail=0.5)])
    assert "### At an L0 of 20" in text and "At an L0 of 80" not in text
    assert "| A | 0.200 / 0.100 / 20.0 | 0.600 / 0.400 / 40.0 (3.00 x) |" in text
    assert "| 0.500 / 0.400 / 40.0 (2.50 x) |" in text
    assert "| B | 0.200 / 0.100 / 20.0 | 0.500 / 0.400 / 40.0 (2.50 x) | - |" in text


def test_without_foreign_texts_there_is_no_section():
    assert text_of([sae("a", 0, 20, 0.2)]) == ""
