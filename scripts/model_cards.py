"""Write the cards in model_cards/ again, from the records that lie beside them.

python scripts/model_cards.py                             render all, Gemma 2's from its recipe
python scripts/model_cards.py runs/quickstart quickstart  first take over a run's records

Of a run's features only the latents that its card shows are taken, and of its metrics all but the
densities of single latents. tests/test_model_cards.py holds the committed cards to this. A folder
with weights is scripts/packaged_sae.py's, and left as it is.
"""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from transformers import AutoConfig

from hfsae import cards
from hfsae.io import resealed, sealed, without_local_paths

CARDS = Path(__file__).parent.parent / "model_cards"
RECIPES = Path(__file__).parent / "recipes"
# name of the card: recipe, which of its SAEs, width of its site
PLANNED = {"gemma2_2b_16k_layer12_res": ("gemma2_2b_16k.yaml", "layers.12/res", 2304)}


def main(argv: list[str]) -> None:
    if len(argv) not in (0, 2) or any(word.startswith("-") for word in argv):
        sys.exit(__doc__)
    if argv:
        take_over(Path(argv[0]), CARDS / argv[1])
    for name, (recipe, sae, d_in) in PLANNED.items():
        plan(RECIPES / recipe, sae, d_in, CARDS / name)
    for folder in sorted(path.parent for path in CARDS.glob("*/config.json")):
        if (folder / "model.safetensors").is_file():
            continue
        text = cards.render_card(folder)
        (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
        print(folder / "README.md")


def take_over(run: Path, folder: Path) -> None:
    """Copy what a card is made from, without what lies where on the machine."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "figures", folder / "figures")
    for name in ("config", "training", "evaluation"):
        record = without_local_paths(
            json.loads((run / f"{name}.json").read_text(encoding="utf-8")), run
        )
        record.pop("density", None)
        write_json(folder / f"{name}.json", resealed(record))
    shutil.copy(run / "fingerprint.safetensors", folder)
    chosen = [latent["latent"] for latent in cards.shown_latents(run)]
    (folder / "features").mkdir()
    columns = ["latent", "density", "promoted_tokens"]
    rows = pq.read_table(run / "features" / "latents.parquet", columns=columns).to_pylist()
    for row in rows:
        row["promoted_tokens"] = row["promoted_tokens"] if row["latent"] in chosen else []
    pq.write_table(pa.Table.from_pylist(rows), folder / "features" / "latents.parquet")
    wanted = [("latent", "in", chosen), ("kind", "=", "top"), ("rank", "<", 3)]
    examples = pq.read_table(run / "features" / "examples.parquet", filters=wanted)
    pq.write_table(examples, folder / "features" / "examples.parquet")
    take_over_names(run / "features", folder / "features", chosen)


def take_over_names(run: Path, folder: Path, chosen: list[int]) -> None:
    """Copy the record of names and the report; of the names those of the latents that are shown."""
    if not (run / "explanations.json").is_file():
        return
    record = json.loads((run / "explanations.json").read_text(encoding="utf-8"))
    parts = sealed(without_local_paths(record, run.parent), {})  # not with the whole tables
    write_json(folder / "explanations.json", parts)
    shutil.copy(run / "explanations.md", folder)
    wanted = [("latent", "in", chosen)]
    columns = ["latent", "explanation", "source"]
    names = pq.read_table(run / "explanations.parquet", columns=columns, filters=wanted)
    pq.write_table(names, folder / "explanations.parquet")


def plan(recipe: Path, name: str, d_in: int, folder: Path) -> None:
    """What a recipe tells of an SAE before it is trained."""
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    lm, text = given["lm"], given["text"]
    config = AutoConfig.for_model(
        **{**given["sae"], **given["saes"][name]},
        d_in=d_in,
        model_name=lm["name"],
        model_dtype=lm["dtype"],
        model_attention=lm["attn_implementation"],
        bos=text["bos"],
    )
    plain = config.to_diff_dict()
    plain.pop("transformers_version", None)
    sections = {key: given[key] for key in ("lm", "text", "harvest", "shuffle", "training", "seed")}
    command = f"accelerate launch --num_processes 8 scripts/train.py scripts/recipes/{recipe.name}"
    planned = {"planned": True, "sae_as_trained": plain, "command": command}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"architectures": ["JumpReLUSAE"], **plain})
    write_json(folder / "training.json", {**sections, **planned})


def write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
