"""Make the small SAE that comes with the package: hfsae/shipped_sae/.

    python scripts/packaged_sae.py [FOLDER]

Trains scripts/recipes/packaged.yaml (some fifteen minutes on two cores), or takes FOLDER, where
`hfsae train` has done so; casts the weights to bfloat16, which halves them; and measures, collects
and writes the card anew from what is shipped, so that its numbers are those of the cast weights.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import hfsae
from hfsae import cards, recipe
from hfsae.cli import main as hfsae_command
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.machine import names
from hfsae.machine.seal import resealed
from hfsae.machine.visible import public_record
from hfsae.machine.weights import stamp
from hfsae.packaged import SHIPPED_SAE

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "scripts" / "recipes" / "packaged.yaml"
SHIPPED = (names.CONFIG, names.WEIGHTS, names.PROBE, names.CARD, names.FEATURES)
RECORDS = (names.TRAINING, names.EVALUATION)
BY_HAND = (names.PRESETS, names.LABELS)
LIMIT = 12_000_000  # bytes
KEPT = "<!-- hfsae:keep -->\n"
NOTE = """\
**What it is for.** It comes with the Python package, so that `hfsae demo` has something to show
before anything was trained: few latents, in bfloat16, and examples from little text. Many latents
stand for several things at once. For work, train a larger one (`scripts/quickstart.sh`).
"""


def main(argv: list[str]) -> None:
    if argv:
        trained = Path(argv[0])
    else:
        done = hfsae_command(["train", str(RECIPE), "--evaluation.n_tokens", "0"])
        trained = ROOT / "runs" / "packaged"
        if done != 0:
            raise SystemExit(done)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "packaged")
        cast(trained, folder)
        ship(folder)
    size = sum(path.stat().st_size for path in SHIPPED_SAE.rglob("*") if path.is_file())
    print(f"{SHIPPED_SAE}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{size:,} bytes are more than the package may take, {LIMIT:,}")


def cast(trained: Path, folder: Path) -> None:
    """The same SAE in bfloat16 (thresholds stay float32), measured anew."""
    sae = hfsae.load(trained, dtype="bfloat16")
    sae.config.dtype = torch.bfloat16
    sae.save_pretrained(folder)
    record = json.loads((trained / names.TRAINING).read_text(encoding="utf-8"))
    (folder / names.TRAINING).write_text(json.dumps({**record, **stamp(folder)}), encoding="utf-8")
    wanted, _ = parse_recipe(recipe_parser("train"), [str(RECIPE)])
    loaded = recipe.load(wanted.lm, "cpu")
    recipe.report(wanted, loaded, recipe.load_trained(folder), folder)


def ship(folder: Path) -> None:
    for name in written_by_hand(folder):
        shutil.copy(SHIPPED_SAE / name, folder / name)
    shutil.rmtree(SHIPPED_SAE, ignore_errors=True)
    SHIPPED_SAE.mkdir()
    for name in RECORDS:
        record = public_record(json.loads((folder / name).read_text(encoding="utf-8")), folder)
        record = resealed(record)
        (folder / name).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder / names.FIGURES)  # the app draws them
    (folder / names.CARD).unlink()
    written = cards.write_card(folder)
    with_note = written.read_text(encoding="utf-8").replace(KEPT, f"{KEPT}{NOTE}", 1)
    written.write_text(with_note, encoding="utf-8")
    for name in (*SHIPPED, *RECORDS, *BY_HAND[:1]):
        source = folder / name
        if source.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, SHIPPED_SAE / name)


def written_by_hand(folder: Path) -> list[str]:
    """Presets and labels, which are true of the very weights that they were written for."""
    weights = [place / names.WEIGHTS for place in (folder, SHIPPED_SAE)]
    if not weights[1].exists() or weights[0].read_bytes() != weights[1].read_bytes():
        print(f"other weights than before: look at the latents, and write {' and '.join(BY_HAND)}")
        return []
    return [name for name in BY_HAND if (SHIPPED_SAE / name).exists()]


if __name__ == "__main__":
    main(sys.argv[1:])
