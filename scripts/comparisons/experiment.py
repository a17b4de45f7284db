"""A comparison at several sites, if asked, and what else is measured of its SAEs."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hfsae import Refused
from hfsae.comparison import (
    Comparison,
    Differences,
    arm_runs,
    check_comparison,
    measure,
    write_report,
)
from hfsae.explanations import ExplainArguments, ScoreArguments

from . import across_sites, causes, explaining, figures, together
from .across_sites import AcrossSites
from .foreign import ForeignSection
from .latents import LatentsSection
from .probed import ProbingSection, with_probing

logger = logging.getLogger(__name__)


@dataclass
class CausalArguments:
    """Interventions on single tokens, for one SAE of each arm and seed."""

    n_tokens: int = 0
    """Held-out tokens to intervene at, the same for every SAE; 0: none."""
    l0: float = 64.0
    """Target: of each arm and seed, the SAE whose measured L0 is nearest is used."""
    seed: int = 0
    """Seed of the choice of tokens."""

    def __post_init__(self) -> None:
        if self.n_tokens < 0 or not self.l0 > 0:
            raise Refused(
                f"causal.n_tokens must be 0 or more and causal.l0 positive, got {self.n_tokens} "
                f"and {self.l0:g}"
            )


@dataclass
class InterpretArguments:
    """Explanations of latents of each SAE by template, scored beside controls as `hfsae explain`
    does, all on the same held-out tokens."""

    n_latents: int = 0
    """Number of latents of each SAE, drawn among those that fire on 0.01 % of tokens to
    max_density; 0: none. `--explain`: 100."""
    n_tokens: int = 100_000
    """Held-out tokens to read."""
    scores: list[str] = field(default_factory=list)
    """Scores beside `lexical` by the packaged judge: detection, intruder and so on."""
    judged_latents: int = 40
    """Of these latents, how many are judged."""
    judged_seeds: int = 1
    """Seeds, from the first, whose SAEs are judged: each SAE takes minutes."""
    max_density: float = 0.1
    """Largest share of tokens that an explained latent fires on."""
    seed: int = 0
    """Seed of all that is drawn."""

    def __post_init__(self) -> None:
        if self.n_latents:
            self.lexical_arguments()
            self.judged_arguments()
        if self.scores and not self.n_latents:
            raise Refused(
                f"explain.scores is {self.scores}, but no latents are explained; add --explain"
            )
        if self.judged_seeds < 1:
            raise Refused(f"explain.judged_seeds must be 1 or more, got {self.judged_seeds}")
        self.asked()

    def lexical_arguments(self) -> ExplainArguments:
        """What is explained of each SAE."""
        return self._of(self.n_latents)

    def asked(self) -> ScoreArguments:
        """What the judge is asked."""
        return ScoreArguments(self.scores)

    def judged_arguments(self) -> ExplainArguments:
        """What is judged of an SAE: the first of the same latents."""
        return self._of(min(self.judged_latents, self.n_latents))

    def _of(self, n: int) -> ExplainArguments:
        limits = {"n_tokens": self.n_tokens, "max_density": self.max_density}
        return ExplainArguments(n_latents=n, seed=self.seed, **limits)


@dataclass
class Experiment(Comparison):
    """Arms, trained on the same activations and compared at equal L0, at one site or several."""

    at_sites: list[str] = field(default_factory=list)
    """Several sites, instead of sae.site: each has its SAEs and its report in folders of its own,
    and a report over all of them stands above."""
    causal: CausalArguments = field(default_factory=CausalArguments)
    explain: InterpretArguments = field(default_factory=InterpretArguments)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_sites and self.sae.get("site"):
            raise Refused(
                f"at_sites is {self.at_sites}, and sae.site {self.sae['site']}; give one of them"
            )
        if len(set(self.at_sites)) < len(self.at_sites):
            raise Refused(f"at_sites {self.at_sites} repeats a site; give each once")

    def at_each_site(self) -> dict[str, "Experiment"]:
        """The comparison at each of its sites, in folders of its own; alone where it has one."""
        return {
            site: replace(
                self,
                at_sites=[],
                sae={**self.sae, "site": site},
                training=replace(
                    self.training, output_dir=str(Path(self.training.output_dir, site))
                ),
                report=str(self.report_folder / site),
            )
            for site in self.at_sites
        } or {str(self.sae.get("site")): self}


def compare(experiment: Experiment, command: str = "") -> Path:
    """Measure what is missing and write the report, site by site, and then a report over the sites;
    returns its folder.

    Raises:
        ValueError: an invalid setting; checked before any training.
    """
    _check(experiment)
    return _compare(experiment, command).c.report_folder


def compare_together(experiments: Mapping[str, Experiment], folder: Path, command: str) -> Path:
    """Compare one after the other, and write one report on all of them; returns its folder.

    Args:
        experiments: By the command that makes one of them alone.

    Raises:
        ValueError: one has an invalid setting, or two write to one folder; checked before any
            training.
    """
    homes = [each.report_folder.resolve() for each in experiments.values()]
    if len({*homes, folder.resolve()}) <= len(homes):
        raise Refused(
            f"two of these reports would be written to one folder ({folder} is the one on all of "
            "them); give each a `report:` of its own"
        )
    for experiment in experiments.values():
        _check(experiment)
    compared = []
    for i, (own, experiment) in enumerate(experiments.items(), start=1):
        logger.info("comparison %d of %d: %s", i, len(experiments), own)
        compared.append(_compare(experiment, own))
    return together.write_report(compared, folder, command)


def _check(experiment: Experiment) -> None:
    for own in experiment.at_each_site().values():
        check_comparison(own)
    of_lm = {
        "causal.n_tokens": experiment.causal.n_tokens,
        "explain.n_latents (--explain)": experiment.explain.n_latents,
    }
    for name, n in of_lm.items():
        if n and experiment.kind != "text":
            raise Refused(
                f"{name} is {n}, but that needs a language model, and this comparison reads no "
                "text; leave it out"
            )


def _compare(experiment: Experiment, command: str) -> Differences | AcrossSites:
    of_sites = {}
    for site, own in experiment.at_each_site().items():
        if experiment.at_sites:
            logger.info("site %s (%d of %d)", site, len(of_sites) + 1, len(experiment.at_sites))
        own_command = f"{command} --at_sites '[{site}]'" if experiment.at_sites else command
        measured = measure(own, own_command)
        recipe = next(arm_runs(own)).recipe
        if own.causal.n_tokens:
            measured = causes.with_causes(own, measured, recipe, own_command)
        if own.explain.n_latents:
            measured = explaining.with_explanations(own, measured, recipe, own_command)
        of_sites[site] = Differences(own, with_probing(measured))
        write_report(of_sites[site], own_command, _sections(of_sites[site]))
    if len(of_sites) == 1:
        return next(iter(of_sites.values()))
    across = AcrossSites(experiment, of_sites)
    across_sites.write_report(across, command)
    return across


def _sections(differences: Differences) -> Iterator[str]:
    """What the report has more than that of `hfsae compare`."""
    own, measured = differences.c, differences.measured
    drawn = {"n_resamples": own.evaluation.bootstrap_samples, "seed": own.evaluation.seed}
    yield from ForeignSection(own, measured).all()
    if own.causal.n_tokens:
        yield from causes.section(differences)
    if own.explain.n_latents:
        section = LatentsSection(own, measured, **drawn)
        folder = own.report_folder
        figures.draw_interpretability(folder / "figures" / "interpretability.png", section)
        (folder / "latents.md").write_text(section.page(), encoding="utf-8")
        yield from section.all()
    yield from ProbingSection(own, measured, **drawn).all()
