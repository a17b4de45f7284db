"""From text to trained SAEs, and to activations alone: ours, the plain way, and SAELens's.

    python scripts/bench/end_to_end.py [--peers FOLDER] [--d_sae 8192] [--batch 2048]
    python scripts/bench/end_to_end.py --sides hfsae.train hfsae.train_six
    python scripts/bench/end_to_end.py --peers FOLDER [--rows 8 --tokens 8192] \\
        --output scripts/bench/results/end_to_end.json      # both make what README.md tells

SmolLM2-135M, the residual stream after block 15 of 30, rows of 128 tokens of the packaged wiki. All
sides read the same text with the same weights (ours in bfloat16, SAELens in float32 or, where its
name says so, under bfloat16 autocast), take equal batches, and train JumpReLU SAEs of the same
width; a turn is `--tokens` activations, made and trained on. Ours trains at its target L0 of 50;
what SAELens's costs does not depend on L0. "ahead" is with `shuffle.prefetch`, "compiled" with
`harvest.compile`. Peaks include the
language model and the text.

FOLDER is what `scripts/interop/environments.sh FOLDER saelens` made. How sides are compared:
`turns.py`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from kept import keep
from streams import SIDES
from turns import add_arguments, chosen, markdown, measure

from hfsae.activations import TextArguments, documents

SIZES = {"tokens": 16384, "batch": 2048, "rows": 16, "d_sae": 8192}
TABLES = {
    "Text to trained SAEs": (
        "train",
        "train_ahead",
        "train_compiled",
        "train_dense",
        "train_six",
        "train_six_ahead",
        "train_six_compiled",
    ),
    "Text to activations": (
        "harvest",
        "harvest_compiled",
        "cache",
        "plain_forward_bf16",
        "plain_forward_float32",
    ),
}


def write_inputs(folder: Path) -> dict[str, str]:
    """The packaged language model as a folder of Transformers, and text as lines of JSON."""
    # TransformerLens tells families by words in a path: "llama", "gemma" or "qwen" must not be in.
    model, text = folder / "smol", folder / "text.jsonl"
    sys.path.append(str(Path(__file__).parents[1] / "interop"))
    from write_saebench_inputs import write_model

    write_model(model)
    arguments = TextArguments("packaged:wiki", max_document_chars=2000, held_out_fraction=0.0)
    with text.open("w", encoding="utf-8") as lines:
        for document in documents(arguments, "train"):
            lines.write(json.dumps({"text": document.text}) + "\n")
    return {"model": str(model), "text": str(text), "cache": str(folder / "cache")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    add_arguments(parser, rounds=5)
    args = parser.parse_args()
    try:
        tables = {"": args.sides} if args.sides else TABLES
        sizes = {key: getattr(args, key) for key in SIZES}
        options = {**sizes, "turns": args.rounds + args.warmup}
        with tempfile.TemporaryDirectory() as folder:
            options |= write_inputs(Path(folder))
            for title, names in tables.items():
                kind = {"train": "train", "harvest": "harvest"}.get(names[0], "")
                known = {lib: [n for n in SIDES[lib] if n.startswith(kind)] for lib in SIDES}
                known["hfsae"] = list(SIDES["hfsae"])
                labels = chosen(args, known, names)
                rows = measure(Path(__file__).with_name("streams.py"), labels, options, args)
                for row in rows:
                    row["tokens/s"] = 1000 * args.tokens / row["median ms"]
                head = ", ".join(f"{key} {n}" for key, n in sizes.items())
                print(f"\n{title} ({head}, {args.threads} threads, {args.rounds} rounds)\n")
                print(markdown(rows), flush=True)
                if args.output:
                    run = {"title": title, **sizes, "rounds": args.rounds, "measured": rows}
                    keep(args.output, run, ["title", *sizes])
    except (ValueError, OSError) as error:
        print(f"end_to_end.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
