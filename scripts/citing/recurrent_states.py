"""Can a latent's outer product take the place of what a recurrent model writes? WriteSAE
(arXiv:2605.12770): in 92.4 % of cases it changes the next token less than no write does.

    python scripts/citing/recurrent_states.py [--quick] OUT.json

No trained recurrent model comes with hfsae: byte_model.py trains a tiny one for minutes, on
Wikipedia. The states S_t of its second layer's heads, and their writes W = b_t k_t v_t^T
(gated_delta.py), on other documents are matrices in a file. SAEs of rank 1, and TopK ones as wide
or with as many parameters, learn each; FVU is of held-out documents. The substitution, on still
other documents, is of one write of one head, S_t - W + |W| A / |A|: A is the atom of the strongest
latent, of any that fires, of a silent one, of the strongest at another document's write
(shuffled), or an outer product of Gaussians; ablation leaves it out. Told: the share of documents
in which one of two has the smaller KL from the model's own distribution of the next byte, at the
write's position ("at") or summed over the 8 behind it ("after"), a mean over SAEs' seeds, with 95 %
intervals over documents. Latents and positions are our choice: the paper's are not public to us.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from byte_model import D_K, D_V, N_HEADS, losses, trained, windows
from claim import Run, mean, over_seeds, to_file
from gated_delta import divergences, matrices, recurrence, states
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import hfsae
from hfsae.runs import load_all_trained, read_recipe, run

FOLDER, LAYER, CONTEXT, AFTER, K, BATCH = Path(__file__).parent, 1, 128, 8, 16, 24
SIZES = {"steps": 700, "windows": 1200, "batches": 14, "d_sae": 1024, "n_tokens": 98304}
SMALL = {"steps": 3, "windows": 30, "batches": 1, "d_sae": 192, "n_tokens": 512}
OF_RANK_1 = {"model_type": "rank1_topk_sae", "matrix": [D_K, D_V]}
NAMES = ("strongest", "any", "silent", "shuffled", "outer", "ablation")
PAIRS = [(name, "ablation") for name in NAMES[:-1]] + [("strongest", x) for x in NAMES[2:-1]]


def saes_on(file: Path, kind: str, seed: int, sizes: dict[str, int]) -> dict[str, tuple]:
    """By arm, an SAE of the file's states or writes, and its FVU."""
    recipe, d_sae = read_recipe(FOLDER / "recipes/rank1_topk.yaml"), sizes["d_sae"]
    few = {"d_sae": d_sae * (D_K + D_V) // (D_K * D_V)}  # with as many parameters
    sae = {"site": kind, "d_sae": d_sae, "k": K, "subtract_b_dec": True, "model_type": "topk_sae"}
    recipe = replace(recipe, sae=sae, saes={"rank1": OF_RANK_1, "topk": {}, "few": few}, seed=seed)
    sides = {"held_out_fraction": 0.1, "validation_fraction": 0.0}
    activations = replace(recipe.activations, files=str(file), **sides)
    with tempfile.TemporaryDirectory() as out:
        training = replace(recipe.training, output_dir=out, n_tokens=sizes["n_tokens"])
        more = {"training": training, "collect_tokens": 0, "license": "other"}
        run(replace(recipe, activations=activations, **more))
        folders = {name: Path(out) / name for name in recipe.saes}
        saes, _ = load_all_trained(folders, "cpu")
        files = {name: (f / "evaluation.json").read_text("utf-8") for name, f in folders.items()}
        return {n: (saes[n], json.loads(files[n])["metrics"]["fvu"]["value"]) for n in saes}


@torch.no_grad()
def substituted(lm: PreTrainedModel, ids: Tensor, sae: hfsae.SAE, seed: int) -> dict[str, Tensor]:
    """By what takes a write's place, the KL at the write and behind it [rows, 2]."""
    rng = torch.Generator().manual_seed(seed)
    s, head = int(torch.randint(16, CONTEXT - AFTER, (), generator=rng)), seed % N_HEADS
    ids = ids[:, : s + AFTER + 1]
    of = recurrence(lm, ids, LAYER)
    write = of.writes[:, s, head]
    x = write if sae.config.site == "writes" else states(of)[:, s, head]
    latents = sae.encode(x.flatten(1))
    strongest, fires = latents.argmax(1), (latents > 0).float()
    silent = (1 - fires) * (fires.amax(0) + 1e-9)  # here, and rather not dead
    some, other = (torch.multinomial(p, 1, generator=rng)[:, 0] for p in (fires, silent))
    rows = {"strongest": strongest, "any": some, "silent": other, "shuffled": strongest.roll(1)}
    atoms = {name: sae.W_dec[i].view_as(write) for name, i in rows.items()}
    v, w = (torch.randn(len(ids), d, generator=rng) for d in (D_K, D_V))
    atoms |= {"outer": v[:, :, None] * w[:, None], "ablation": torch.zeros_like(write)}
    unit = {name: torch.nn.functional.normalize(a.flatten(1)) for name, a in atoms.items()}
    size = write.flatten(1).norm(dim=1, keepdim=True)
    changes = {name: (size * a).view_as(write) - write for name, a in unit.items()}
    kl = divergences(lm, ids, LAYER, s, head, changes)
    return {name: torch.stack([x[:, 0], x[:, 1:].sum(1)], 1) for name, x in kl.items()}


def wins(lm: PreTrainedModel, rows: Tensor, saes: Sequence[hfsae.SAE]) -> Run:
    """At the write and behind it, the share of wins and the median KL."""
    result, batches = Run(), [*enumerate(rows.split(BATCH))]
    parts = [[substituted(lm, ids, sae, i) for i, ids in batches] for sae in saes]
    kl = {name: torch.stack([torch.cat([x[name] for x in of]) for of in parts]) for name in NAMES}
    for i, place in enumerate(("at", "after")):
        shares = {f"{a} < {b}": (kl[a] < kl[b])[..., i].float().mean(0).tolist() for a, b in PAIRS}
        result[place] = {key: mean(values) for key, values in shares.items()}
        result[place]["kl"] = {name: float(x[..., i].median()) for name, x in kl.items()}
    return result


def measure(quick: bool) -> Iterator[Run]:
    hfsae.models.register_variants(str(FOLDER / "variants/rank1_topk.py"))
    sizes, texts = SMALL if quick else SIZES, hfsae.packaged.packaged_text("wiki")
    rows, others = windows(texts, range(7), CONTEXT)[0], windows(texts, range(7, 9), CONTEXT)
    test = windows(texts, range(9, 10), CONTEXT, 1)[0][: BATCH * sizes["batches"]]
    lm = trained(rows, sizes["steps"])
    result: Run = {"model": "gated delta rule, ours", "parameters": lm.num_parameters(), "k": K}
    result |= {"bytes": 32 * CONTEXT * sizes["steps"], "documents": len(test), "rows": []}
    result["loss"] = losses(lm, rows, test, LAYER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "matrices.safetensors"
        save_file(matrices(lm, *(x[: sizes["windows"]] for x in others), LAYER), file)
        for kind in ("states", "writes"):
            seeds = [saes_on(file, kind, seed, sizes) for seed in range(2 if quick else 3)]
            for arm in seeds[0]:
                saes, fvu = zip(*(of[arm] for of in seeds), strict=True)
                weights = 2 * saes[0].config.d_sae * (D_K + D_V if arm == "rank1" else D_K * D_V)
                row = {"of": kind, "arm": arm, "weights": weights, "fvu": over_seeds(fvu)}
                result["rows"].append(row | wins(lm, test, saes))
    yield result


if __name__ == "__main__":
    to_file(__doc__, measure)
