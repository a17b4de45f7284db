"""Explain and score latents of each SAE of a comparison, all on the same activations."""

import json
import logging
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hfsae import SAE, LoadedLM, Recipe, Refused
from hfsae.activations import HarvestArguments
from hfsae.comparison import Comparison, Measured, save_results
from hfsae.explanations import (
    ExplainArguments,
    Explanations,
    ScoringRequest,
    explain,
    prompts_hash,
    scorers_of,
    untrained_like,
)
from hfsae.explanations.judges import JudgeArguments, judge_of
from hfsae.hub import is_sae
from hfsae.runs import load, load_trained, norm_limits, read_rows

logger = logging.getLogger(__name__)
_CONTROLS = ("", "shuffled_", "token_ceiling_")
_LEXICAL = ("pearson", "auprc", "auc", "auc_random")
_MATCHED_TOKENS = 2**14  # on which densities of the re-drawn weights are those of the SAE
_KEPT_PROMPTS = "ded3fe6ffeb2ed4eabb95832ab6b777956d39a1fcf383913ab2282a774c059fc"
"""Of detection and intruder, whose kept scores have no hash of their prompts."""
_UNKNOWN: dict[str, Any] = {"lexical": "", "judged": "", "refused": "", "examples": []}


def with_explanations(
    comparison: Comparison,
    measured: Sequence[Measured],
    recipe: Recipe,
    command: str,
) -> list[Measured]:
    """Explain latents of each SAE that has no scores with these arguments, and ask the judge about
    those of the first seeds; what is measured is written into the report's folder at once.

    Args:
        recipe: of any of the SAEs: the language model and the text.

    Raises:
        ValueError: the weights of an SAE are missing, or text is.
    """
    args, by_key = comparison.explain, {m.key: m for m in measured}
    plain_key = json.dumps(args.lexical_arguments().as_plain())
    asks = prompts_hash(scorers_of(args.asked(), JudgeArguments()), "template")
    parts = [args.judged_arguments().as_plain(), args.asked().as_plain()]
    judged_key = json.dumps([*parts, *([] if asks == _KEPT_PROMPTS else [asks])])
    judged_seeds = sorted({m.seed for m in measured})[: args.judged_seeds]
    plain = [key for key, m in by_key.items() if _told(m)["lexical"] != plain_key]
    judged = [
        key
        for key, m in by_key.items()
        if args.scores and m.seed in judged_seeds and _told(m)["judged"] != judged_key
    ]
    for key in (*plain, *judged):
        if not is_sae(by_key[key].folder):
            raise Refused(
                f"{by_key[key].folder} has no explanations with these settings and no weights to "
                "explain; leave --explain out, or give another --report, for which every SAE is "
                "trained"
            )
    if not plain and not judged:
        return list(measured)
    loaded = load(comparison.lm)
    # Activations are computed once: in the harvest's cache, or in a folder that ends with this.
    with TemporaryDirectory() as own:
        cache = {"cache": recipe.harvest.cache_folder or own, "cache_gb": recipe.harvest.cache_gb}
        harvest = HarvestArguments(**cache)

        def explained(
            m: Measured,
            sae: SAE,
            args: ExplainArguments,
            inquiry: ScoringRequest = ScoringRequest(),
        ) -> Explanations:
            return explain(
                loaded.lm,
                sae,
                read_rows(recipe, loaded, "test", args.n_tokens),
                args,
                source="template",
                tokenizer=loaded.tokenizer,
                norm_limits=norm_limits(sae, m.folder),
                harvest=harvest,
                inquiry=inquiry,
            )

        for i, key in enumerate(plain, start=1):
            m = by_key[key]
            logger.info("explain: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(plain))
            columns, facts = {}, {"lexical": plain_key, "refused": "", "examples": []}
            sae, own_args = _sae(m, loaded), args.lexical_arguments()
            try:
                result = explained(m, sae, own_args)
                columns |= _columns("latents", result.rows)
                columns |= _columns("directions", result.directions)
                facts["examples"] = [example._asdict() for example in result.examples]
            except Refused as error:
                logger.warning("%s: no scores: %s", m.folder, error)
                facts["refused"] = str(error)
            if columns:
                try:
                    other = untrained_like(
                        loaded.lm,
                        sae,
                        read_rows(recipe, loaded, "test", _MATCHED_TOKENS),
                        seed=own_args.seed,
                        norm_limits=norm_limits(sae, m.folder),
                        harvest=harvest,
                    )
                    columns |= _columns("untrained", explained(m, other, own_args).rows)
                except Refused as error:
                    logger.warning("%s: no scores of re-drawn weights: %s", m.folder, error)
            by_key[key] = _with(m, "lexical", columns, facts)
            save_results(comparison, [*by_key.values()], command)
        for i, key in enumerate(judged, start=1):
            m = by_key[key]
            logger.info("judge: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(judged))
            calls = comparison.report_folder / "calls" / f"{'-'.join(map(str, key))}.jsonl"
            columns = {}
            try:
                inquiry = ScoringRequest(args.asked(), judge_of(JudgeArguments(), calls))
                result = explained(m, _sae(m, loaded), args.judged_arguments(), inquiry)
                columns |= _columns("latents", result.rows, every=True)
                columns |= _columns("directions", result.directions, every=True)
            except Refused as error:
                logger.warning("%s: no scores by the judge: %s", m.folder, error)
            by_key[key] = _with(m, "judged", columns, {"judged": judged_key})
            save_results(comparison, [*by_key.values()], command)
    return [*by_key.values()]


def _told(m: Measured) -> dict[str, Any]:
    """Settings of an SAE's scores as JSON text, why it has none, and latents with evidence."""
    return _UNKNOWN | m.more.get("explained", {})


def _with(m: Measured, kind: str, columns: Mapping[str, Tensor], facts: dict[str, Any]) -> Measured:
    prefix = f"explained/{kind}/"
    others = {name: t for name, t in m.more_tensors.items() if not name.startswith(prefix)}
    new = {f"{prefix}{name}": t for name, t in columns.items()}
    return m._replace(
        more={**m.more, "explained": _told(m) | facts}, more_tensors={**others, **new}
    )


def _sae(m: Measured, loaded: LoadedLM) -> SAE:
    return load_trained(m.folder).to(loaded.lm.device)


def _columns(
    part: str, rows: Sequence[Mapping[str, Any]], every: bool = False
) -> dict[str, Tensor]:
    """The numbers of latents as columns: lexical scores, or every number."""
    names = ["latent", "density", *(f"{c}{name}" for c in _CONTROLS for name in _LEXICAL)]
    if every:
        numbers = (k for row in rows for k, v in row.items() if isinstance(v, int | float))
        names = list(dict.fromkeys(numbers))
    table = {name: [row.get(name) for row in rows] for name in names}
    return {
        f"{part}/{name}": torch.tensor([float("nan") if v is None else v for v in values]).float()
        for name, values in table.items()
        if any(v is not None for v in values)
    }
