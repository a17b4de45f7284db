"""How far an encoder's own output moves when it runs on an SAE's reconstructions.

A vision model predicts no token, so there is no loss to recover: its output itself
is compared with that of the run as it is. The output is the pooled vector of a row, or, where the
model has none, the last hidden state at the kept positions. Runs ("arms"), as in `fidelity`:
*spliced*, with the reconstruction in the place of the activation at the target site, and as
controls *zero* and *mean*, with a constant there; all at the same kept positions, within
`norm_limits`. Other positions, such as a CLS token that is not kept, stay the model's own.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..activations.harvest import InputBatch
from ..io.errors import Refused
from ..lm import (
    Autoencoder,
    capture,
    cast_for,
    check_arguments,
    contract,
    forward,
    is_causal,
    reads_of,
    splice,
    widths_of,
    writes_of,
)
from .arguments import EvaluationArguments
from .fidelity import mean_activation, within_limits, writing
from .metrics import Definition, DocumentSums, Metric, estimate, spreads

ARMS = ("spliced", "zero", "mean")
_RUN_ON = {
    "spliced": "on the reconstruction at kept positions",
    "zero": "with zero at the target site's kept positions",
    "mean": "with the mean activation at the target site's kept positions",
}


def _cosine_change(arm: str) -> Definition:
    return Definition(
        f"output_cosine_change.{arm}.v1",
        "1",
        f"mean over outputs of 1 - cos(output, output of the model {_RUN_ON[arm]}); the cosine "
        "with a zero vector is 0",
        lambda s: s[f"{arm} cosine"] / s["tokens"],
    )


def _output_fvu(arm: str) -> Definition:
    return Definition(
        f"output_fvu.{arm}.v1",
        "1",
        f"sum |output - output of the model {_RUN_ON[arm]}|^2 / sum |output - mean output|^2 (in "
        "the interval the mean stays that of all)",
        lambda s: s[f"{arm} error"] / s["spread"],
    )


def _output_recovered(arm: str) -> Definition:
    return Definition(
        f"output_recovered.{arm}.v1",
        "1",
        f"1 - output_fvu_spliced / output_fvu_{arm}: 1 is an unchanged output, 0 no better than "
        f"{arm} ablation of the target site at kept positions",
        lambda s: 1 - s["spliced error"] / s[f"{arm} error"],
    )


OUTPUTS: dict[str, Definition] = {
    **{f"output_cosine_change_{arm}": _cosine_change(arm) for arm in ARMS},
    **{f"output_fvu_{arm}": _output_fvu(arm) for arm in ARMS},
    **{f"output_recovered_{arm}": _output_recovered(arm) for arm in ARMS[1:]},
}


@torch.no_grad()
def output_change(
    model: PreTrainedModel,
    sae: Autoencoder,
    batches: Iterable[InputBatch],
    args: EvaluationArguments | None = None,
    *,
    mean: Float[Tensor, " d_out"] | None = None,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Metric]:
    """The metrics of `OUTPUTS`, with intervals over documents.

        change = output_change(encoder.model, sae, source.inputs("test", 20_000))

    Args:
        model: A vision model, in eval mode.
        sae: Anything with `encode`, `decode` and `config.site`; a transcoder reads at `site` and
            its reconstructions replace `target_site`.
        batches: Inputs. Without `mean` they are read twice, so a list, or `InputSource.inputs`.
        args: Its `bootstrap_samples`, `seed` and `sae_batch_tokens`.
        mean: For mean ablation; None: that of the kept activations in `batches`.
        norm_limits: Largest norm of a kept activation, by site, as in `Harvester.norm_limits`.
        progress: Called after each batch with the number of kept positions so far.

    Raises:
        ValueError: no position is kept, the batches can be read only once, the model is in training
            mode, activations or outputs have NaN or infinity, or the SAE is not for this model
            (`hfsae.lm.contract`).
    """
    check_arguments("evaluation.output_change", model, sae)
    args, limits = args or EvaluationArguments(), dict(norm_limits or {})
    if model.training:
        raise Refused("the model is in training mode: dropout differs between arms; call .eval()")
    contract.check_model(model, sae)
    if mean is None:
        if iter(batches) is batches:
            raise Refused(
                "these batches can be read only once, and the mean activation takes a reading of "
                "its own; give a list, source.inputs(side), or mean="
            )
        writes = writes_of(sae.config)
        means = {at: mean_activation(model, at, batches, norm_limits=limits) for at in writes.names}
        mean = writes.joined(means)
    arms = _Arms(model, sae, mean, limits, args.sae_batch_tokens)
    for batch in batches:
        arms.add(batch)
        if progress is not None:
            progress(arms.n_kept)
    if not arms.n_kept:
        raise Refused("no position is kept to evaluate on; give more inputs or higher norm limits")
    bootstrap = {"n_resamples": args.bootstrap_samples, "seed": args.seed}
    return estimate(OUTPUTS, arms.of_documents(), **bootstrap)


class _Arms:
    """Runs the arms batch by batch, and sums by document how far the outputs move."""

    def __init__(
        self,
        model: PreTrainedModel,
        sae: Autoencoder,
        mean: Float[Tensor, " d_out"],
        limits: dict[str, float],
        n_at_once: int,
    ) -> None:
        self.model, self.sae, self.mean, self.limits = model, sae, mean, limits
        self.reads, self.writes = reads_of(sae.config), writes_of(sae.config)
        self.sites = list(widths_of(sae.config))
        self.n_at_once = n_at_once
        self.sums, self.n_kept = DocumentSums(), 0

    def add(self, batch: InputBatch) -> None:
        """All arms of a batch."""
        keep = batch.keep.to(self.model.device)
        with capture(self.model, [*{*self.sites, *self.limits}]) as acts:
            clean = forward(self.model, batch.inputs)
        keep = within_limits(acts, keep, self.limits, self.sites)
        if not keep.any():
            return
        self.n_kept += int(keep.sum())
        row, vectors = _outputs(clean, keep)
        values: dict[str, Tensor] = {
            "tokens": vectors.new_ones(len(vectors)),
            "square": vectors.square().sum(dim=-1),
            "x": vectors,
        }
        for arm, written in self._written(acts, keep).items():
            with self._running_on(arm, written, keep):
                changed = _outputs(forward(self.model, batch.inputs), keep)[1]
            if not changed.isfinite().all():
                raise Refused(
                    "the model's output has NaN or infinity when it runs "
                    f"{_RUN_ON[arm]}: values overflow its dtype, or weights are damaged; try "
                    "another lm.dtype (bfloat16, float32)"
                )
            values[f"{arm} error"] = (changed - vectors).square().sum(dim=-1)
            values[f"{arm} cosine"] = 1 - F.cosine_similarity(changed, vectors, dim=-1)
        self.sums.add(batch.document.to(row.device)[row], values)

    def _written(
        self, acts: Mapping[str, Tensor], keep: Bool[Tensor, "rows ctx"]
    ) -> dict[str, Tensor]:
        """By arm, what stands at the target sites' kept positions: [n, d_out] or [d_out]."""
        kept = {site: x[keep.to(x.device)] for site, x in acts.items()}
        recons = []
        for x in self.reads.joined(kept).split(self.n_at_once):
            x = cast_for(self.sae, x)
            recons.append(self.sae.decode(self.sae.encode(x), x))
        return {
            "spliced": torch.cat(recons),
            "zero": torch.zeros_like(self.mean),
            "mean": self.mean,
        }

    def _running_on(
        self, arm: str, written: Tensor, keep: Bool[Tensor, "rows ctx"]
    ) -> AbstractContextManager[None]:
        """A causal SAE's sources read in the run itself, as in `fidelity`."""
        if arm == "spliced" and is_causal(self.sae.config):
            return splice(self.model, self.sae, keep=keep, spare_tokens=())
        return writing(self.model, self.writes, keep, written)

    def of_documents(self) -> dict[str, Float[Tensor, " documents"]]:
        """The sums behind `OUTPUTS`, by document."""
        sums = dict(self.sums.per_document())
        x, square, n = sums.pop("x"), sums.pop("square"), sums["tokens"]
        sums["spread"] = spreads(x, square, n, x.sum(dim=0) / n.sum())
        return sums


def _outputs(
    output: Any, keep: Bool[Tensor, "rows ctx"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]:
    """Output vectors, float64, and the row of each: pooled ones of rows that keep a position, or
    the last hidden states at kept positions, or at all where there are others."""
    pooled = getattr(output, "pooler_output", None)
    if isinstance(pooled, Tensor):
        rows = keep.any(dim=1).nonzero()[:, 0].to(pooled.device)
        return rows, pooled[rows].double()
    hidden = output.last_hidden_state
    keep = keep.to(hidden.device)
    if keep.shape != hidden.shape[:2]:
        keep = keep.any(dim=1, keepdim=True).expand(hidden.shape[:2])
    return keep.nonzero()[:, 0], hidden[keep].double()
