"""A study of SAEs in folders: their latents and the controls, on held-out text that is read once
for each SAE."""

import json
import logging
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hfsae.explanations import (
    CorpusActivations,
    Evidence,
    ExplainArguments,
    Window,
    order_of,
    read,
    select,
    window_text,
)
from hfsae.io import refuse_changed, refuse_mixture, weights_hash
from hfsae.runs import (
    SAEInContext,
    check_held_out,
    limits_of,
    load_lm_for,
    names_apart,
    read_rows,
)

from .plan import (
    EXPLANATIONS,
    FOLDERS,
    N_ODD,
    PLAN,
    Item,
    Kind,
    Plan,
    Refused,
    Shown,
    StudyArguments,
    arranged,
    printable,
    write_whole,
)

logger = logging.getLogger(__name__)
_MOST_DIRECTIONS = 100  # each takes 4 bytes a token
_LEAST_LATENTS = 20  # that a selection of latents needs
_LONGEST = 40  # characters of a token that is shown
_APART = 0.1  # difference of L0 that is worth a warning


def make(placed: Sequence[SAEInContext], study: Path, args: StudyArguments) -> Plan:
    """Write the plan of a study of SAEs into a folder.

    Args:
        placed: SAEs in their folders, all on one language model.

    Raises:
        ValueError: as `check_study`; an SAE has too few latents that fit.
    """
    check_study(placed, study)
    folders = [one.folder for one in placed]
    for folder in folders:
        refuse_mixture(folder, ["training.json"])
        refuse_changed(folder, ["evaluation.json"])  # whose L0 goes into the plan
    recipe = placed[0].recipe
    loaded = load_lm_for(*placed)
    items = []
    for number, one in enumerate(placed):
        rows = read_rows(one.recipe, loaded, "test", args.n_tokens)
        with tqdm(total=args.n_tokens, desc=one.folder.name, unit="token") as bar:
            reading = read(
                loaded.lm,
                one.sae,
                rows,
                order_of(_drawing(args), one.sae.config.d_sae, _explained(args, one.folder)),
                n_directions=min(_MOST_DIRECTIONS, args.n_of("controls") * len(placed)),
                keep_all=False,
                seed=args.seed,
                norm_limits=limits_of(one, loaded),
                progress=bar.update,
            )
        items.append(items_of(reading, args, loaded.tokenizer, number, len(placed), one.folder))
    plan = Plan(vars(args), recipe.lm.name, _described(folders), arranged(items, args))
    plan.save(study)
    paths = {sae["name"]: str(f.resolve()) for sae, f in zip(plan.saes, folders, strict=True)}
    write_whole(study / FOLDERS, json.dumps(paths, indent=1) + "\n")
    return plan


def check_study(placed: Sequence[SAEInContext], study: Path) -> None:
    """Check a study's folder and its SAEs.

    Raises:
        ValueError: the folder has a plan already, or is an SAE's; SAEs are of different language
            models; one is named twice, or has no held-out text.
    """
    if (study / PLAN).exists():
        raise Refused(f"{study} holds a study already; give another folder")
    taken = {folder.resolve() for one in placed for folder in (one.folder, one.root)}
    if study.resolve() in taken or any(
        (study / name).exists() for name in ("config.json", "recipe.yaml")
    ):
        raise Refused(f"{study} is the folder of an SAE; give a study a folder of its own")
    first = placed[0]
    for one in placed:
        if one.recipe.lm.name != first.recipe.lm.name:
            raise Refused(
                f"{one.folder} belongs to {one.recipe.lm.name} and {first.folder} to "
                f"{first.recipe.lm.name}; a study compares SAEs of one language model"
            )
    if len({one.folder.resolve() for one in placed}) < len(placed):
        raise Refused("a folder is named twice; name each SAE once")
    for one in placed:
        check_held_out(one, "people rate text")


def _drawing(args: StudyArguments) -> ExplainArguments:
    """As `hfsae explain` draws latents: the same order for the same seed."""
    return ExplainArguments(
        n_latents=max(_LEAST_LATENTS, args.n_latents),
        n_tokens=args.n_tokens,
        min_density=args.min_density,
        max_density=args.max_density,
        window=args.window,
        shown=args.windows,
        least=args.windows,
        seed=args.seed,
    )


def _explained(args: StudyArguments, folder: Path) -> list[int] | None:
    """Latents that have scores; None: all."""
    if not args.explained:
        return None
    table, record = EXPLANATIONS
    path = folder / table
    if not path.is_file():
        raise Refused(f"{path} is missing, and --explained draws from it; `hfsae explain {folder}`")
    refuse_mixture(folder, [record, table])
    refuse_changed(folder, [record])
    columns = pq.read_table(path, columns=["latent", "pearson"]).to_pydict()
    pairs = zip(columns["latent"], columns["pearson"], strict=True)
    return [latent for latent, score in pairs if score is not None]


def items_of(
    reading: CorpusActivations,
    args: StudyArguments,
    tokenizer: PreTrainedTokenizerBase,
    sae: int,
    n_saes: int,
    folder: Path | None = None,
) -> list[Item]:
    """The items of one SAE, without the repeats.

    Args:
        sae: its number; the controls of each SAE are other directions.

    Raises:
        ValueError: too few latents or directions fit.
    """
    explained = None if folder is None else _explained(args, folder)
    chosen = select(reading, _drawing(args), explained)
    rng = random.Random(f"{args.seed} {sae}")
    latents = rng.sample(chosen.latents, min(args.n_latents, len(chosen.latents)))
    directions = chosen.directions[sae::n_saes][: args.n_of("controls")]
    if len(latents) < args.n_latents or len(directions) < args.n_of("controls"):
        raise Refused(
            f"{len(latents)} latents and {len(directions)} random directions have {args.windows} "
            f"windows on each half of the text, and a study needs {args.n_latents} and "
            f"{args.n_of('controls')}; give more --n_tokens, or fewer --windows or --n_latents"
        )
    pages = _Pages(reading, tokenizer, sae)
    intruders = rng.sample(latents, args.n_of("intruders"))
    return [
        *(pages.meaning("latent", evidence) for evidence in latents),
        *(pages.meaning("direction", evidence) for evidence in directions),
        *(pages.intruder(evidence, latents, rng) for evidence in intruders),
    ]


class _Pages:
    """What is shown of the latents of one SAE."""

    def __init__(
        self, reading: CorpusActivations, tokenizer: PreTrainedTokenizerBase, sae: int
    ) -> None:
        self.reading, self.tokenizer, self.sae = reading, tokenizer, sae
        self._of_intruders = np.zeros(len(reading.ids), dtype=bool)

    def meaning(self, kind: Kind, evidence: Evidence) -> Item:
        """A latent or a direction, strongest window first."""
        highest = max(window.activation for window in evidence.shown)
        windows = [self._shown(window, evidence, highest) for window in evidence.shown]
        return Item(kind, self.sae, evidence.latent, evidence.density, windows)

    def intruder(self, own: Evidence, latents: Sequence[Evidence], rng: random.Random) -> Item:
        """Strong windows of the half that is not shown elsewhere, and one of another latent on
        which this one is silent; each marked by its own strongest token. A window that stands in
        an earlier item is taken as intruder only where there is no other: who remembers it would
        know the answer."""
        activations, seen = own.activations(len(self.reading.ids)), self._of_intruders
        for strong in own.active[: N_ODD - 1]:
            seen[strong.start : strong.stop] = True
        silent = _silent(own, activations, latents, rng)
        new = (pair for pair in silent if not seen[pair[1].start : pair[1].stop].any())
        other, window = next(new, silent[0])
        seen[window.start : window.stop] = True
        windows = [self._shown(w, own, w.activation) for w in own.active[: N_ODD - 1]]
        odd = secrets.randbelow(N_ODD)  # a seed would tell raters who know it
        windows.insert(odd, self._shown(window, other, window.activation))
        item = Item("intruder", self.sae, own.latent, own.density, windows)
        item.odd, item.other = odd, other.latent
        return item

    def _shown(self, window: Window, evidence: Evidence, highest: float) -> Shown:
        activations = evidence.activations(len(self.reading.ids))
        tokens, _, _, values = window_text(self.reading, window, self.tokenizer, activations)
        shares = np.array(values) / highest
        strengths = np.ceil(np.clip(shares, 0, 1) * 3).astype(int).tolist()
        marks = "".join(map(str, visible_marks(tokens, strengths)))
        return Shown([shown_token(token) for token in tokens], marks)


def visible_marks(tokens: Sequence[str], strengths: Sequence[int]) -> list[int]:
    """Strengths of marks, with those of tokens without text (later parts of a character that
    several tokens spell) at the token before that has it."""
    marks, at = [0] * len(tokens), 0
    for i, (token, strength) in enumerate(zip(tokens, strengths, strict=True)):
        at = i if token else at
        marks[at] = max(marks[at], strength)
    return marks


def shown_token(token: str) -> str:
    """A token as it is shown: any blank but a line end is a space."""
    blanks = "".join(" " if c.isspace() and c != "\n" else c for c in token)
    return printable(blanks)[:_LONGEST]


def _silent(
    own: Evidence, activations: np.ndarray, latents: Sequence[Evidence], rng: random.Random
) -> list[tuple[Evidence, Window]]:
    """Strong windows of other latents without any firing of this one, in a random order."""
    pairs = [
        (other, window)
        for other in rng.sample(latents, len(latents))
        for window in other.active[: N_ODD - 1]
        if other.latent != own.latent and not activations[window.start : window.stop].any()
    ]
    if not pairs:
        raise Refused(
            f"latent {own.latent} fires in all strong windows of the others; give a lower "
            "--max_density"
        )
    return pairs


def _described(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, L0 and weights of each SAE; L0s far apart are worth a warning."""
    saes = []
    for folder, name in zip(folders, names_apart(folders), strict=True):
        l0, path = None, folder / "evaluation.json"
        if path.is_file():
            with suppress(LookupError, TypeError, ValueError):
                l0 = round(float(json.loads(path.read_text())["metrics"]["l0"]["value"]), 2)
        saes.append({"name": name, "l0": l0, "weights_sha256": weights_hash(folder)})
    l0s = [sae["l0"] for sae in saes if sae["l0"]]
    if l0s and max(l0s) > (1 + _APART) * min(l0s):
        logger.warning(
            "these SAEs have an L0 of %s: differences may come from that",
            ", ".join(f"{l0:.1f}" for l0 in l0s),
        )
    return saes
