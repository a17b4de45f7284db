"""How far an encoder's own output moves when it runs on an SAE's reconstructions.

A vision model predicts no token, so there is no loss to recover: its output itself
is compared with that of the run as it is. The output is the pooled vector of a row, or, where the
model has none, the last hidden state at the kept positions. Runs ("arms"), as in `fidelity`:
*spliced*, with the reconstruction in the place of the activation at the target site, and as
controls *zero* and *mean*, with a constant there; all at the same kept positions, within
`norm_limits`. Other positions, such as a CLS token that is not kept, stay the model's own.
"""

from collections.abc import Callable, Iterable, Mapping
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
from ..ops import indices_of, upload
from .arguments import EvaluationArguments
from .fidelity import at_places, mean_activation, within_limits, writing
from .metrics import Definition, DocumentSums, Metric, estimate, spreads
from .reconstructions import LateRefusals

_RUN_ON = {
    "spliced": "on the reconstruction at kept positions",
    "zero": "with zero at the target site's kept positions",
    "mean": "with the mean activation at the target site's kept positions",
}


OUTPUTS: dict[str, Definition] = {
    **{
        f"output_cosine_change_{arm}": Definition(
            f"output_cosine_change.{arm}.v1",
            "1",
            f"mean over outputs of 1 - cos(output, output of the model {run_on}); the cosine "
            "with a zero vector is 0",
            lambda s, arm=arm: s[f"{arm} cosine"] / s["tokens"],
        )
        for arm, run_on in _RUN_ON.items()
    },
    **{
        f"output_fvu_{arm}": Definition(
            f"output_fvu.{arm}.v1",
            "1",
            f"sum |output - output of the model {run_on}|^2 / sum |output - mean output|^2 (in "
            "the interval the mean stays that of all)",
            lambda s, arm=arm: s[f"{arm} error"] / s["spread"],
        )
        for arm, run_on in _RUN_ON.items()
    },
    **{
        f"output_recovered_{arm}": Definition(
            f"output_recovered.{arm}.v1",
            "1",
            f"1 - output_fvu_spliced / output_fvu_{arm}: 1 is an unchanged output, 0 no better "
            f"than {arm} ablation of the target site at kept positions",
            lambda s, arm=arm: 1 - s["spliced error"] / s[f"{arm} error"],
        )
        for arm in ("zero", "mean")
    },
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
    writes, sites = writes_of(sae.config), list(widths_of(sae.config))
    if mean is None:
        if iter(batches) is batches:
            raise Refused(
                "these batches can be read only once, and the mean activation takes a reading of "
                "its own; give a list, source.inputs(side), or mean="
            )
        means = {at: mean_activation(model, at, batches, norm_limits=limits) for at in writes.names}
        mean = writes.joined(means)
    mean = mean.to(model.device)
    sums, late, n_kept = DocumentSums(), LateRefusals(), 0
    for batch in batches:
        with capture(model, [*{*sites, *limits}]) as acts:
            clean = forward(model, batch.inputs)
        late.tell()
        keep = within_limits(acts, batch.keep.cpu(), limits, sites)
        n_kept += int(keep.sum())
        if keep.any():
            row, vectors = _outputs(clean, keep)
            values: dict[str, Tensor] = {
                "tokens": vectors.new_ones(len(vectors)),
                "square": vectors.square().sum(dim=-1),
                "x": vectors,
            }
            at = indices_of(keep.flatten(), model.device)
            kept = {site: at_places(x, at) for site, x in acts.items()}
            recons = []
            for x in reads_of(sae.config).joined(kept).split(args.sae_batch_tokens):
                x = cast_for(sae, x)
                recons.append(sae.decode(sae.encode(x), x))
            arms = {"spliced": torch.cat(recons), "zero": torch.zeros_like(mean), "mean": mean}
            runs = {arm: writing(model, writes, at, x) for arm, x in arms.items()}
            if is_causal(sae.config):  # its sources read in the run itself, as in `fidelity`
                on_device = upload(keep, model.device)
                runs["spliced"] = splice(model, sae, keep=on_device, spare_tokens=())
            for arm, run in runs.items():
                with run:
                    changed = _outputs(forward(model, batch.inputs), keep)[1]
                late.add(
                    ~changed.isfinite(),
                    f"the model's output has NaN or infinity when it runs {_RUN_ON[arm]}: values "
                    "overflow its dtype, or weights are damaged; try another lm.dtype (bfloat16, "
                    "float32)",
                )
                values[f"{arm} error"] = (changed - vectors).square().sum(dim=-1)
                values[f"{arm} cosine"] = 1 - F.cosine_similarity(changed, vectors, dim=-1)
            sums.add(batch.document.cpu()[row], values)
        if progress is not None:
            progress(n_kept)
    late.tell()
    if not n_kept:
        raise Refused("no position is kept to evaluate on; give more inputs or higher norm limits")
    of_documents = dict(sums.per_document())
    x, square, n = of_documents.pop("x"), of_documents.pop("square"), of_documents["tokens"]
    of_documents["spread"] = spreads(x, square, n, x.sum(dim=0) / n.sum())
    bootstrap = {"n_resamples": args.bootstrap_samples, "seed": args.seed}
    return estimate(OUTPUTS, of_documents, **bootstrap)


def _outputs(
    output: Any, keep: Bool[Tensor, "rows ctx"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]:
    """Output vectors, float64, and the row of each in main memory: pooled ones of rows that keep a
    position, or the last hidden states at kept positions, or at all where there are others."""
    pooled = getattr(output, "pooler_output", None)
    if isinstance(pooled, Tensor):
        rows = keep.any(dim=1).nonzero()[:, 0]
        return rows, pooled[upload(rows, pooled.device)].double()
    hidden = output.last_hidden_state
    if keep.shape != hidden.shape[:2]:
        keep = keep.any(dim=1, keepdim=True).expand(hidden.shape[:2])
    at = indices_of(keep.flatten(), hidden.device)
    return keep.nonzero()[:, 0], at_places(hidden, at).double()
