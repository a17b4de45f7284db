"""Export SAEs for the readers, and make the table of differences. Run by parity.sh, with hfsae.

python scripts/interop/parity.py export FOLDER
    writes random SAEs of every architecture to FOLDER/ours/FORMAT/ARCHITECTURE in every format,
    what our SAEs compute beside them, and FOLDER/refused.json with what a format cannot hold.
python scripts/interop/parity.py table FOLDER PEERS
    loads FOLDER/theirs, reads what the readers printed to FOLDER/read/*.jsonl, prints the table and
    writes it to PARITY.md beside this file. Exit status 1 if anything differs by 1e-5 or more,
    cannot be read, or is missing.
"""

import json
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from fixture import D_IN, D_OUT, D_SAE, EXPECTED, fill, fresh, inputs, write
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

import hfsae
from hfsae.convert import FORMATS, find, load_folder, save_as

TOLERANCE = 1e-5
OUR_DIRECTION, THEIR_DIRECTION = "hfsae -> theirs", "theirs -> hfsae"
OBJECT = "sae.to_saelens()"
VARIANTS: dict[str, dict[str, Any]] = {
    "relu": {"model_type": "relu_sae"},
    "jumprelu": {"model_type": "jumprelu_sae"},
    "gated": {"model_type": "gated_sae"},
    "topk": {"model_type": "topk_sae", "k": 5},
    "topk_no_relu": {"model_type": "topk_sae", "k": 16, "relu": False},
    "batch_topk": {"model_type": "batch_topk_sae", "k": 5},
    "matryoshka_batch_topk": {"model_type": "matryoshka_batch_topk_sae", "k": 5},
    "matryoshka_jumprelu": {"model_type": "matryoshka_jumprelu_sae"},
    "topk_groupmax": {"model_type": "topk_sae", "k": 6, "selection": "groupmax"},
}
SCALED = {"activation_scale": 3.7}
TRANSCODER = {
    "site": "layers.1.mlp:in",
    "target_site": "layers.1.mlp",
    "activation_scale": 3.7,
    "target_scale": 2.3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "subtract_b_dec": {"subtract_b_dec": True},
    "scaled": SCALED,
    "scaled_subtract_b_dec": SCALED | {"subtract_b_dec": True},
    "layer_norm": {"token_norm": "layer_norm"},
    "layer_norm_subtract_b_dec": {"token_norm": "layer_norm", "subtract_b_dec": True},
    "unit_rms": {"token_norm": "unit_rms"},
    "unit_rms_subtract_b_dec": {"token_norm": "unit_rms", "subtract_b_dec": True},
    "heads": SCALED | {"site": "layers.1.self_attn.o_proj:in"},
    "skip": SCALED | {"skip_connection": True},
    "transcoder": TRANSCODER,
    "transcoder_other_width": TRANSCODER | {"d_out": D_OUT},
    "skip_transcoder": TRANSCODER | {"skip_connection": True},
    "skip_transcoder_other_width": TRANSCODER | {"skip_connection": True, "d_out": D_OUT},
}
# SAELens moves W_enc and W_dec of these to other units but not b_dec: the published tensors count.
EMBEDDING = "embedding/"


class Row(NamedTuple):
    """One comparison; `note` says why there is none."""

    form: str
    architecture: str
    direction: str
    latents: float | None = None
    recon: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is neither equal nor refused."""
        if self.latents is None or self.recon is None:
            return not self.note.startswith("refused")
        return not (self.latents < TOLERANCE and self.recon < TOLERANCE)  # also for NaN


@torch.no_grad()
def architectures() -> Iterator[tuple[str, hfsae.SAE]]:
    """Every variant with every option, filled with distinctive numbers that its name tells."""
    place = {"d_in": D_IN, "d_sae": D_SAE, "site": "layers.1", "model_name": "google/gemma-3-1b-pt"}
    for variant, fields in VARIANTS.items():
        for option, more in OPTIONS.items():
            name = f"{variant}_{option}".rstrip("_")
            sae = AutoModel.from_config(AutoConfig.for_model(**(place | fields | more)))
            fill(name, sae)
            if isinstance(sae, hfsae.BatchTopKSAE):  # a high draw would turn nearly all latents off
                sae.threshold.mul_(0.5)
            yield name, sae.eval()


@torch.no_grad()
def export(folder: Path) -> None:
    """Each architecture in each format, or the sentence that refuses it."""
    refused: dict[str, dict[str, str]] = {}
    ours = fresh(folder / "ours")
    for name, sae in architectures():
        x = inputs(name)
        out = sae(x)
        for form, files in FORMATS.items():
            place = ours / form / name
            single = files.files[0].startswith("*")
            if form == "hfsae":  # as trained: `convert` would fold it
                sae.save_pretrained(place)
            else:
                try:
                    save_as(sae, place / f"{name}.pt" if single else place, form)
                except ValueError as error:
                    refused.setdefault(form, {})[name] = str(error)
                    continue
            write(place, x, out.latents, out.recon)
    (folder / "refused.json").write_text(json.dumps(refused, indent=1) + "\n")


def from_hfsae(folder: Path) -> Iterator[Row]:
    """What the peers' readers found in our exports."""
    refused = json.loads((folder / "refused.json").read_text())
    names = [name for name, _ in architectures()]
    for form in [*(form for form in FORMATS if form != "hfsae"), OBJECT]:
        file = folder / "read" / f"{'to_saelens' if form == OBJECT else form}.jsonl"
        if not file.is_file():  # parity.sh runs no reader of it
            continue
        lines = {item["name"]: item for item in map(json.loads, file.read_text().splitlines())}
        refusals = refused.get("saelens" if form == OBJECT else form, {})
        for name in names:
            found = lines.get(name, {"error": "not read"})
            said = found.get("error", "")
            if name in refusals and (form != OBJECT or refusals[name] in said):
                yield Row(form, name, OUR_DIRECTION, note=f"refused: {refusals[name]}")
                continue
            yield Row(
                form, name, OUR_DIRECTION, found.get("latents"), found.get("recon"), note=said
            )


@torch.no_grad()
def to_hfsae(theirs: Path) -> Iterator[Row]:
    """What we make of the peers' files."""
    found = find(str(p.relative_to(theirs)) for p in theirs.rglob("*") if p.is_file())
    for path, form in found.items():
        place = theirs / path
        name = path.removeprefix(f"{form}/").removesuffix(".pt")
        name = name.partition("/")[0] if form == "openai" else name
        try:
            sae = load_folder(place, form, path).float()
        except ValueError as error:
            yield Row(form, name, THEIR_DIRECTION, note=f"refused: {error}")
            continue
        file = (place if place.is_dir() else place.parent) / EXPECTED
        if not file.is_file():
            yield Row(form, name, THEIR_DIRECTION, note="loaded, though it must be refused")
            continue
        yield Row(form, name, THEIR_DIRECTION, *differences(sae, load_file(file), path))


def differences(sae: hfsae.SAE, expected: dict[str, torch.Tensor], path: str) -> list[float]:
    """Of the latents and of the reconstruction, the largest; in the units of the published file."""
    scale = 1.0
    if EMBEDDING in path:
        scale = expected["x"].shape[-1] ** 0.5
        expected |= {key: expected[f"{key}_published"] for key in ("latents", "recon")}
    out = sae(scale * expected["x"])
    pairs = ((out.latents, expected["latents"]), (out.recon / scale, expected["recon"]))
    return [(found - wanted).abs().max().item() for found, wanted in pairs]


def table(rows: list[Row], versions: str) -> str:
    """PARITY.md."""
    text = f"""# Parity with other libraries

Made by `scripts/interop/parity.sh FOLDER`; {versions}.

Files that each library wrote are loaded by hfsae (theirs -> hfsae), and files that hfsae wrote are
loaded by that library (hfsae -> theirs), on 16 random inputs in float32. Given is the largest
absolute difference of latents and of reconstructions; anything from 1e-05 on fails. Gemma Scope's
files are read by SAELens' own loaders; OpenAI's package is not on PyPI, and its published forward
pass is restated. `{OBJECT}` compares the object that it returns. Refused is what a
format, or hfsae, cannot hold: nothing is written or loaded, and a sentence says why.

| format | direction | compared | refused | failed | latents | recon |
| --- | --- | --- | --- | --- | --- | --- |
"""
    for form, direction in dict.fromkeys((row.form, row.direction) for row in rows):
        group = [row for row in rows if (row.form, row.direction) == (form, direction)]
        numbers = [row for row in group if row.latents is not None and row.recon is not None]
        failed = sum(row.failed for row in group)
        refused = sum(row.note.startswith("refused") for row in group)
        worst = [
            f"{max((getattr(row, key) for row in numbers), default=float('nan')):.1e}"
            for key in ("latents", "recon")
        ]
        cells = [form, direction, str(len(numbers)), str(refused), str(failed), *worst]
        text += f"| {' | '.join(cells)} |\n"
    text += _held(rows)
    theirs = (row for row in rows if row.direction == THEIR_DIRECTION and row.latents is None)
    text += f"\nOf theirs are refused: {', '.join(f'{r.form} {r.architecture}' for r in theirs)}.\n"
    for row in rows:
        if row.failed:
            note = row.note.replace("|", "/").replace("\n", " ")
            text += f"\nFAILED: {row.form} {row.architecture}, {row.direction}: {note}\n"
    return text


def _held(rows: list[Row]) -> str:
    """How many of our SAEs of each variant, and with each option, a format holds."""
    ours = [row for row in rows if row.direction == OUR_DIRECTION]
    forms = [*dict.fromkeys(row.form for row in ours)]
    n = {"variant": len(OPTIONS), "option": len(VARIANTS)}
    text = (
        f"\nHow many of our SAEs each format holds: of a variant, with {n['variant']} options "
        f"each; with an option, of {n['option']} variants.\n\n| | {' | '.join(forms)} |\n"
        f"| --- |{' ---: |' * len(forms)}\n"
    )
    names = {v: [f"{v}_{o}".rstrip("_") for o in OPTIONS] for v in VARIANTS}
    names |= {o or "(none)": [f"{v}_{o}".rstrip("_") for v in VARIANTS] for o in OPTIONS}
    for title, own in names.items():
        held = [r for r in ours if r.latents is not None and r.architecture in own]
        cells = [str(sum(row.form == form for row in held)) for form in forms]
        text += f"| {title} | {' | '.join(cells)} |\n"
    return text


def versions(peers: Path) -> str:
    """Of everything that took part."""
    wanted = (
        (peers / name / "wanted").read_text().split()
        for name in ("saelens", "sparsify", "dictionary_learning")
    )
    asked = dict.fromkeys(word for words in wanted for word in words)
    ours = f"hfsae's own torch {torch.__version__}, transformers {transformers.__version__}"
    return f"Python {platform.python_version()}, {', '.join(asked)}; {ours}"


def main() -> int:
    """Do what is asked for."""
    warnings.simplefilter("ignore")
    command, folder, *more = sys.argv[1:]
    if command == "export":
        export(Path(folder))
        return 0
    rows = [*to_hfsae(Path(folder) / "theirs"), *from_hfsae(Path(folder))]
    text = table(rows, versions(Path(more[0])))
    (Path(__file__).parent / "PARITY.md").write_text(text)
    print(text)
    for row in rows:
        if row.note.startswith("refused"):
            print(f"{row.form} {row.architecture} {row.note}", file=sys.stderr)
    compared = {(row.form, row.direction) for row in rows if row.latents is not None}
    expected = {(row.form, row.direction) for row in rows}
    failed = [row for row in rows if row.failed]
    for row in failed:
        print(f"FAILED: {row}", file=sys.stderr)
    return int(bool(failed) or compared != expected)


if __name__ == "__main__":
    sys.exit(main())
