"""Explain and score latents of each SAE of a comparison, all on the same activations."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch

from ..activations import HarvestArguments
from ..evaluation.untrained import SAMPLE_TOKENS
from ..explanations import ExplainArguments, Explanations, Inquiry, explain
from ..explanations.judges import JudgeArguments, judge_of
from ..explanations.redrawn import untrained_like
from ..explanations.scores import LEXICAL
from ..explanations.study import write_record
from ..hub import is_sae
from ..lm import LoadedLM
from ..machine.checksums import of_others, stamp
from ..machine.files import read_json
from ..machine.names import CALLS, EXPLANATIONS, EXPLANATIONS_RECORD
from ..machine.refused import Refused
from ..models import SAE
from ..recipe import Recipe, load_trained, norm_limits, read_rows
from ..recipe.explaining import TEMPLATE, save_named, settings_of
from .arms import InterpretArguments
from .latent_scores import Columns, Explained, write_judged, write_lexical
from .results import Measured

logger = logging.getLogger(__name__)
_CONTROLS = ("", "shuffled_", "token_ceiling_")


def lexical_key(args: InterpretArguments) -> str:
    """The settings that scores without a judge depend on, as JSON text."""
    return json.dumps(args.lexical_arguments().as_plain())


def judged_key(args: InterpretArguments) -> str:
    """The settings that scores by the judge depend on, as JSON text."""
    return json.dumps([args.judged_arguments().as_plain(), args.asked().as_plain()])


def measure_missing(
    measured: Sequence[Measured],
    recipe: Recipe,
    load: Callable[[], LoadedLM],
    args: InterpretArguments,
) -> None:
    """Explain latents of each SAE that has no scores with these arguments, and write them into its
    folder: those of all latents, and those by the judge for the first seeds.

    Args:
        recipe: of any of the SAEs: the language model and the text.

    Raises:
        ValueError: the weights of an SAE are missing, or text is.
    """
    judged_seeds = sorted({m.seed for m in measured})[: args.judged_seeds]
    plain = [m for m in measured if m.explained.lexical_args != lexical_key(args)]
    judged = [
        m
        for m in measured
        if args.scores and m.seed in judged_seeds and m.explained.judged_args != judged_key(args)
    ]
    for m in (*plain, *judged):
        if not is_sae(m.folder):
            raise Refused(
                f"{m.folder} has no explanations with these settings and no weights to explain; "
                "leave --explain out, or give another --report, for which every SAE is trained"
            )
    if not plain and not judged:
        return
    with _study(recipe, load(), args) as study:
        for i, m in enumerate(plain, start=1):
            logger.info("explain: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(plain))
            study.score(m.folder)
        for i, m in enumerate(judged, start=1):
            logger.info("judge: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(judged))
            study.judge(m.folder)


@contextmanager
def _study(recipe: Recipe, loaded: LoadedLM, args: InterpretArguments) -> Iterator["_Study"]:
    """A study whose activations are computed once, in the harvest's cache or in a folder of its
    own that ends with it."""
    with TemporaryDirectory() as own:
        cache = {"cache": recipe.harvest.cache_folder or own, "cache_gb": recipe.harvest.cache_gb}
        yield _Study(recipe, loaded, args, HarvestArguments(**cache))


class _Study(NamedTuple):
    recipe: Recipe
    loaded: LoadedLM
    args: InterpretArguments
    harvest: HarvestArguments

    def score(self, folder: Path) -> None:
        """Scores of an SAE's latents and controls; its folder gets names, if it has none."""
        sae = self._sae(folder)
        key, args = lexical_key(self.args), self.args.lexical_arguments()
        is_free = not _has_names(folder)
        try:
            result = self._explained(sae, folder, args, is_free)
        except Refused as error:
            logger.warning("%s: no scores: %s", folder, error)
            write_lexical(folder, Explained(lexical_args=key, refused=str(error)))
            return
        if is_free:
            save_named(result, folder)
        columns = {**_columns("latents", result.rows), **_columns("directions", result.directions)}
        columns |= self._untrained(sae, folder, args)
        write_lexical(folder, Explained(columns, key, result.examples))

    def judge(self, folder: Path) -> None:
        """Scores by the judge of some of the same latents."""
        inquiry = Inquiry(self.args.asked(), judge_of(JudgeArguments(), folder / CALLS))
        try:
            result = self._explained(
                self._sae(folder), folder, self.args.judged_arguments(), inquiry=inquiry
            )
            columns = {
                **_columns("latents", result.rows, every=True),
                **_columns("directions", result.directions, every=True),
            }
        except Refused as error:
            logger.warning("%s: no scores by the judge: %s", folder, error)
            columns = {}
        key = judged_key(self.args)
        write_judged(folder, Explained(judged=columns, judged_args=key))

    def _sae(self, folder: Path) -> SAE:
        return load_trained(folder).to(cast(Any, self.loaded.lm.device))

    def _explained(
        self,
        sae: SAE,
        folder: Path,
        args: ExplainArguments,
        notes_plan: bool = False,
        inquiry: Inquiry = Inquiry(),
    ) -> Explanations:
        return explain(
            self.loaded.lm,
            sae,
            read_rows(self.recipe, self.loaded, "test", args.n_tokens),
            args,
            settings={**settings_of(self.recipe), **stamp(folder)},
            source=TEMPLATE,
            tokenizer=self.loaded.tokenizer,
            norm_limits=norm_limits(sae, folder),
            harvest=self.harvest,
            note_plan=lambda plan: write_record(folder, plan) if notes_plan else None,
            inquiry=inquiry,
        )

    def _untrained(self, sae: SAE, folder: Path, args: ExplainArguments) -> Columns:
        """The columns of an SAE of re-drawn weights; none where too few of its latents fit."""
        limits = norm_limits(sae, folder)
        rows = read_rows(self.recipe, self.loaded, "test", SAMPLE_TOKENS)
        how = {"seed": args.seed, "norm_limits": limits, "harvest": self.harvest}
        try:
            other = untrained_like(self.loaded.lm, sae, rows, **how)
            return _columns("untrained", self._explained(other, folder, args).rows)
        except Refused as error:
            logger.warning("%s: no scores of re-drawn weights: %s", folder, error)
            return {}


def _has_names(folder: Path) -> bool:
    """Whether `hfsae explain` has named latents of these weights: its files stay."""
    record = folder / EXPLANATIONS_RECORD
    names = [EXPLANATIONS_RECORD, EXPLANATIONS]
    if not (folder / EXPLANATIONS).is_file() or any(of_others(folder, names)):
        return False
    return record.is_file() and "scores" in read_json(record)


def _columns(part: str, rows: Sequence[Mapping[str, Any]], every: bool = False) -> Columns:
    """The numbers of latents as columns: lexical scores, or every number."""
    names = ["latent", "density", *(f"{c}{name}" for c in _CONTROLS for name in LEXICAL)]
    if every:
        numbers = (k for row in rows for k, v in row.items() if isinstance(v, int | float))
        names = list(dict.fromkeys(numbers))
    table = {name: [row.get(name) for row in rows] for name in names}
    return {
        f"{part}/{name}": torch.tensor([float("nan") if v is None else v for v in values]).float()
        for name, values in table.items()
        if any(v is not None for v in values)
    }
