"""Train and evaluate the missing SAEs of a comparison; existing results stay."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from ..cards import write_card
from ..cost import check_memory
from ..lm import LoadedLM
from ..machine.files import read_json, sweep, write_whole
from ..machine.lock import locked
from ..machine.names import CHECKPOINTS, CONFIG, FINGERPRINT, REPORT, TRAINING, existing
from ..machine.refused import Refused
from ..recipe import (
    Loaded,
    as_plain,
    check,
    evaluate_saes,
    finish,
    inputs_of,
    load,
    load_all_trained,
    load_inputs,
    locked_run,
    run,
    save_recipe,
    stale_stages,
)
from ..training.trainer import make_accelerator, sum_products_in_float32
from . import across_sites, causes, explaining, results, together
from .across_sites import AcrossSites, at_site
from .arms import ArmRun, Comparison, arm_runs
from .differences import Differences
from .report import write_report

logger = logging.getLogger(__name__)


def compare(comparison: Comparison, command: str = "") -> Path:
    """Train and evaluate missing SAEs, seed by seed, and write the report; returns its folder.

    With `at_sites`: all of that site by site, and then a report over the sites.

    Raises:
        ValueError: the comparison has an invalid setting; checked before any training.
    """
    _refuse_invalid(comparison)
    return _compare(comparison, command).c.report_folder


def compare_together(comparisons: Mapping[str, Comparison], folder: Path, command: str) -> Path:
    """Compare one after the other, and write one report on all of them; returns its folder.

    Args:
        comparisons: By the command that makes one of them alone.

    Raises:
        ValueError: one has an invalid setting, or two write to one folder; checked before any
            training.
    """
    homes = [c.report_folder.resolve() for c in comparisons.values()]
    if len({*homes, folder.resolve()}) <= len(homes):
        raise Refused(
            f"two of these reports would be written to one folder ({folder} is the one on all of "
            "them); give each a `report:` of its own"
        )
    for comparison in comparisons.values():
        _refuse_invalid(comparison)
    compared = []
    for i, (own, comparison) in enumerate(comparisons.items(), start=1):
        logger.info("comparison %d of %d: %s", i, len(comparisons), own)
        compared.append(_compare(comparison, own))
    with locked(folder, wait=True):
        return together.write_report(compared, folder, command)


def _compare(comparison: Comparison, command: str) -> Differences | AcrossSites:
    sum_products_in_float32()
    if not comparison.at_sites:
        return _compare_at_site(comparison, command)
    of_sites = {}
    for i, site in enumerate(comparison.at_sites, start=1):
        logger.info("site %s (%d of %d)", site, i, len(comparison.at_sites))
        own = at_site(comparison, site)
        of_sites[site] = _compare_at_site(own, f"{command} --at_sites '[{site}]'")
    if len(of_sites) == 1:
        return next(iter(of_sites.values()))
    across = AcrossSites(comparison, of_sites)
    with locked(comparison.report_folder, wait=True):
        across_sites.write_report(across, command)
    return across


def _compare_at_site(comparison: Comparison, command: str) -> Differences:
    """Train and evaluate what is missing, and write the report."""
    runs = list(arm_runs(comparison))
    kept = results.kept(comparison.report_folder, runs)
    missing = [r for r in runs if not all(results.is_known(r, name, kept) for name in r.folders)]
    if missing:
        _refuse_absent(missing)
        device = make_accelerator(comparison.training).device
        for each in missing:
            if each.seed == missing[0].seed:  # other seeds cost the same
                check_memory(each.recipe, *check(each.recipe), device)
        loaded = load_inputs(comparison, str(device))
        inputs_of(missing[0].recipe, loaded).check()  # before anything is trained
        pace = _Pace(missing)
        for seed, of_seed in groupby(missing, key=lambda r: r.seed):
            _train_and_evaluate(list(of_seed), loaded, f"seed {seed}", command, pace)
    measured = results.read(runs, kept)
    if comparison.causal.n_tokens:
        _intervene(comparison, runs[0], measured)
        measured = results.read(runs, kept)
    if comparison.explain.n_latents:
        _explain(comparison, runs[0], measured)
        measured = results.read(runs, kept)
    # Other parts of the comparison may end at the same time and write to the same report.
    with locked(comparison.report_folder, wait=True):
        sweep(comparison.report_folder)
        differences = Differences(comparison, measured)
        _link(comparison, measured, write_report(differences, command))
    return differences


def _link(comparison: Comparison, measured: Sequence[results.Measured], report: Path) -> None:
    """Write the comparison's arms and the link to the report into the SAEs' cards."""
    arms = [comparison.title(arm) for arm in comparison.arms]
    for m in measured:
        path = m.folder / TRAINING
        if not path.is_file() or comparison.arms[m.arm].get("made_by"):
            continue  # the SAE is in the report only, or another library's
        href = comparison.report_url or os.path.relpath(report / REPORT, m.folder)
        compared = {"arm": comparison.title(m.arm), "arms": arms, "report": href}
        record = read_json(path)
        if record.get("compared") != compared:
            write_whole(path, json.dumps({**record, "compared": compared}, indent=1) + "\n")
            write_card(m.folder)


def _intervene(comparison: Comparison, run: ArmRun, measured: Sequence[results.Measured]) -> None:
    def load_precisely() -> LoadedLM:
        device = str(make_accelerator(comparison.training).device)
        return load(replace(comparison.lm, dtype="float32"), device)

    chosen = causes.nearest(measured, comparison.causal.l0)
    causes.measure_missing(chosen, run.recipe, load_precisely, comparison.causal)


def _explain(comparison: Comparison, run: ArmRun, measured: Sequence[results.Measured]) -> None:
    def load_lm() -> LoadedLM:
        return load(comparison.lm, str(make_accelerator(comparison.training).device))

    explaining.measure_missing(measured, run.recipe, load_lm, comparison.explain)


def _refuse_invalid(comparison: Comparison) -> None:
    for own in [at_site(comparison, site) for site in comparison.at_sites] or [comparison]:
        _refuse_invalid_at_site(own)


def _refuse_invalid_at_site(comparison: Comparison) -> None:
    runs = list(arm_runs(comparison))
    if comparison.evaluation.n_tokens == 0:
        raise Refused(
            "evaluation.n_tokens is 0, but a comparison evaluates its SAEs; give 1 or more"
        )
    of_lm = {
        "causal.n_tokens": comparison.causal.n_tokens,
        "explain.n_latents (--explain)": comparison.explain.n_latents,
    }
    for name, n in of_lm.items():
        if n and comparison.kind != "text":
            raise Refused(
                f"{name} is {n}, but that needs a language model, and this comparison reads no "
                "text; leave it out"
            )
    if make_accelerator(comparison.training).num_processes > 1:
        raise Refused(
            "a comparison runs in one process; start it without a launcher, and divide it with "
            "--only and --seeds"
        )
    targets: dict[str, str] = {}  # site: the first arm that writes there
    for each in runs:
        if each.seed == comparison.seeds[0]:  # invalid settings, before clashes with a folder
            _, configs = check(each.recipe)
            for config in configs.values():
                targets.setdefault(str(config.writes), each.arm)
            if len(targets) > 1:
                (one, arm), (another, other) = list(targets.items())[:2]
                raise Refused(
                    f"arm {arm} is at {one}, arm {other} at {another}; compare at one site at a "
                    "time"
                )
        if not each.made_by:
            stale_stages(each.recipe)


def _refuse_absent(runs: Sequence[ArmRun]) -> None:
    """Refuse arms of other libraries whose SAEs are missing.

    Raises:
        ValueError: SAEs of another library are not there.
    """
    for each in runs:
        folders = each.folders.values() if each.made_by else ()
        if absent := [folder for folder in folders if not (folder / TRAINING).is_file()]:
            raise Refused(
                f"arm {each.arm} is made by {each.made_by}, and its SAE {absent[0]} is not there: "
                "in a clone of hfsae scripts/bench/peers.py makes it; or leave the arm out with "
                "--only"
            )


class _Pace:
    """How long the training that is left takes, by what was trained so far."""

    def __init__(self, runs: Sequence[ArmRun]) -> None:
        self.left = sum(self._tokens(each) for each in runs if not _is_trained(each))
        self.done, self.seconds = 0, 0.0

    @staticmethod
    def _tokens(each: ArmRun) -> int:
        """Tokens times SAEs."""
        return each.recipe.training.n_tokens * len(each.folders)

    def count(self, each: ArmRun, seconds: float) -> None:
        self.left, self.done = self.left - self._tokens(each), self.done + self._tokens(each)
        self.seconds += seconds
        if self.left:
            minutes = self.seconds / self.done * self.left / 60
            logger.info("about %.0f min of training left, and evaluations", max(1, minutes))


def _train_and_evaluate(
    runs: Sequence[ArmRun], loaded: Loaded, title: str, command: str, pace: _Pace
) -> None:
    with ExitStack() as stack:
        for each in runs:
            root = Path(each.recipe.training.output_dir)
            if not each.made_by:
                stack.enter_context(locked_run(root, each.folders.values()))
        _train_and_evaluate_alone(runs, loaded, title, command, pace)


def _train_and_evaluate_alone(
    runs: Sequence[ArmRun], loaded: Loaded, title: str, command: str, pace: _Pace
) -> None:
    saes_of_runs: dict[str, tuple[ArmRun, str]] = {}
    for i, each in enumerate(runs, start=1):
        logger.info("%s, arm %s (%d of %d)", title, each.arm, i, len(runs))
        if not _is_trained(each):
            start = time.monotonic()
            _train(each, loaded, command)
            pace.count(each, time.monotonic() - start)
        saes_of_runs |= {f"{each.arm}/{name}": (each, name) for name in each.folders}
        if not each.made_by:  # with this file, `hfsae train` gives the same numbers
            save_recipe(Path(each.recipe.training.output_dir), as_plain(each.recipe))
    missing = {key: of for key, of in saes_of_runs.items() if not results.is_measured(*of)}
    folders = {key: each.folders[name] for key, (each, name) in missing.items()}
    saes, limits = load_all_trained(folders, inputs_of(runs[0].recipe, loaded).device)
    logger.info("%s: evaluating %d SAEs", title, len(saes))
    for key, result in evaluate_saes(runs[0].recipe, loaded, saes, limits).items():
        results.write(result, *missing[key])
        if not missing[key][0].made_by:
            finish(folders[key])


def _is_trained(each: ArmRun) -> bool:
    is_left = Path(each.recipe.training.output_dir, CHECKPOINTS).exists()
    made = (existing(f, file) for f in each.folders.values() for file in (CONFIG, FINGERPRINT))
    return bool(each.made_by) or (all(path.is_file() for path in made) and not is_left)


def _train(each: ArmRun, loaded: Loaded, command: str) -> None:
    """Train all SAEs of a run. Evaluation comes later, for all arms together."""
    evaluation = replace(each.recipe.evaluation, n_tokens=0)
    run(replace(each.recipe, evaluation=evaluation), command, loaded)
