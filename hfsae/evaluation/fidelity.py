"""Splice an SAE into its language model and measure the loss of fidelity.

Four runs ("arms") on the same rows: *clean*; *spliced*, with the reconstruction in the place of the
activation at the target site; *zero* and *mean*, with a constant there. Kept positions are those of
`TokenBatch.keep` whose clean activations lie within `norm_limits`. Every arm uses the same mask,
twice: other positions (BOS, other special tokens, outliers) keep the LM's own activation, and do
not count. A prediction counts if a kept position predicts the next token, of the same document and
row; there are fewer counted predictions than kept tokens.

A cross-layer transcoder is spliced as `splice` does it: its sources read what has passed the
targets before them. With other SAEs of several sites all is replaced by what was made of the clean
run.

So the zero arm does not zero BOS: that would break attention sinks, raise the arm's loss and
flatter `loss_recovered_zero`.

The host waits for the device once a batch, to learn which kept positions are outliers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from logging import getLogger

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import HarvestArguments
from ..activations.harvest import Batch, Harvester, refuse_not_finite
from ..activations.source import ActivationBatch
from ..activations.tokens import TextInput, TokenBatch, counted_predictions, token_rows
from ..io.errors import Refused
from ..lm import (
    Autoencoder,
    Sites,
    blocks_below,
    capture,
    check_arguments,
    contract,
    is_causal,
    own_passes,
    patch,
    running_as,
    splice,
    widths_of,
    writes_of,
)
from ..ops import Download, indices_of, kl_of_logs, upload
from .arguments import PREDICTIONS_AT_ONCE, EvaluationArguments, rows_at_once
from .metrics import DocumentSums
from .reconstructions import LateRefusals, Reconstructions
from .result import NO_PREDICTION, EvaluationResult

logger = getLogger(__name__)


_FAR = 0.12  # relative distance of L0 from its target
_FEW = 1000  # tokens: too few for a reliable L0


@torch.no_grad()
def evaluate(
    lm: PreTrainedModel,
    sae: Autoencoder,
    text: TextInput,
    args: EvaluationArguments | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mean: Float[Tensor, " d_out"] | None = None,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Fidelity of an SAE's reconstructions, and of the LM running on them, with intervals.

        result = hfsae.evaluate(lm, sae, ["one document", "another", ...])
        print(result.table())

    Token rows stay in memory (17 bytes a token), since they are read twice: for the mean of the
    kept activations, by runs that stop at the site, and then for the arms. Logits [rows, ctx,
    vocab] exist for the clean arm and one other arm at a time, in the LM's dtype; float32
    log-probabilities for 128 predictions at a time.

    Args:
        lm: A causal language model in eval mode.
        text: Documents as strings, a `TextArguments` (its side `args.side`), or rows of tokens
            (`TokenBatch`), for example from `PackedRows`.
        tokenizer: For text; None: the tokenizer that `hfsae.load_lm` loaded with the model.
        sae: Anything with `encode`, `decode` and `config.site`; if its `config.target_site`
            differs, it reads `site`, and its reconstructions replace `target_site`.
        mean: For mean ablation, instead of the evaluation set's mean; saves the first reading.
        norm_limits: Largest norm of a kept activation, by site, as in `Harvester.norm_limits`.
        progress: Called after each batch with the number of tokens (in `keep`) so far.

    Raises:
        ValueError: the SAE's config names no site, the LM is in training mode, no token is kept,
            activations, reconstructions or losses have NaN or infinity, or the SAE is not for this
            model or tokenizer (`hfsae.lm.contract`).
    """
    more = {"mean": mean, "norm_limits": norm_limits, "progress": progress}
    check_arguments("evaluate", lm, sae)
    args = args or EvaluationArguments()
    contract.check_model(lm, sae, tokenizer)
    rows = token_rows(text, lm, sae.config, tokenizer, side=args.side)
    return evaluate_all(lm, {"": sae}, rows, args, **more)[""]


@torch.no_grad()
def evaluate_all(
    lm: PreTrainedModel,
    saes: Mapping[str, Autoencoder],
    batches: Iterable[TokenBatch],
    args: EvaluationArguments | None = None,
    *,
    mean: Float[Tensor, " d_out"] | None = None,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
    losses: bool = True,
) -> dict[str, EvaluationResult]:
    """`evaluate` for several SAEs of one target site, by name: same results, but all SAEs share
    one run of the clean arm and of both ablations.

    Args:
        losses: False: reconstructions alone, in a small part of the time: runs end at the site,
            and the metrics lack those of the LM's losses.

    Raises:
        ValueError: as in `evaluate`; or the SAEs have several target sites, or there is no SAE.
    """
    check_arguments("evaluation.evaluate_all", lm)
    args = args or EvaluationArguments()
    targets = {str(writes_of(sae.config)) for sae in saes.values()}
    if len(targets) != 1:
        raise Refused(
            f"these SAEs have {len(targets)} target sites ({', '.join(sorted(targets))}"
            "); evaluate the SAEs of one site at a time"
        )
    writes = writes_of(next(iter(saes.values())).config)
    if lm.training:
        raise Refused("the LM is in training mode: dropout differs between arms; call lm.eval()")
    for sae in saes.values():
        contract.check_model(lm, sae, getattr(batches, "tokenizer", None))
    limits = dict(norm_limits or {})
    rows = [
        TokenBatch(*(part.cpu() for part in batch))
        for batch in _first_tokens(batches, args.most_tokens)
    ]
    for batch, sae in product(rows, saes.values()):
        contract.check_rows(lm, sae, batch.input_ids, batch.document)
    source = "given by the caller" if losses else "not needed"
    if mean is None and losses:
        means = {at: mean_activation(lm, at, rows, norm_limits=limits) for at in writes.names}
        mean = writes.joined(means)
        source = "kept activations of the evaluation set at the target site"
    arms = _Arms(saes, lm, mean if losses else None, limits, args.sae_batch_tokens)
    done = 0
    for batch in rows:
        if losses:  # in groups of rows whose logits fit into memory
            n = rows_at_once(batch.input_ids.shape[1], lm.config.get_text_config().vocab_size)
            for part in zip(*(x.split(n) for x in batch), strict=True):
                arms.add(TokenBatch(*part))
        else:
            arms.add_reconstructions(batch)
        done += int(batch.keep.sum())
        if progress is not None:
            progress(done)
    arms.late.tell()
    side = getattr(batches, "split", None)
    results = {}
    for name in saes:
        sums = arms.losses[name].per_document()
        if not (len(sums.get("tokens", ())) if losses else arms.n_kept):
            raise Refused(NO_PREDICTION)
        more = {"losses": sums, "mean_source": source, "side": side}
        results[name] = arms.reconstructions.result(name, args, **more)
    for name, result in results.items():
        # In measurements, texts of other kinds gave an L0 13 to 45 % above the target; held-out
        # texts of the same kind stay within a few per cent of it.
        target, l0 = getattr(saes[name].config, "l0_goal", None), result.metrics["l0"].value
        if target and abs(l0 / target - 1) > _FAR and result.n_tokens >= _FEW:
            logger.warning(
                "%sL0 is %.1f on this text, %+.0f%% off the SAE's target of %s: the text is unlike "
                "its training text, or its training ended too early",
                *(f"{name}: " if name else "", l0, 100 * (l0 / target - 1), target),
            )
    return results


@torch.no_grad()
def mean_activation(
    lm: PreTrainedModel,
    site: str,
    batches: Iterable[Batch],
    *,
    norm_limits: Mapping[str, float] | None = None,
) -> Float[Tensor, " d"]:
    """Mean of the kept activations at a site, float64 on the CPU; each run stops at the site.

    Raises:
        ValueError: no position is kept.
    """
    limits = dict(norm_limits or {})
    harvest = Harvester(lm, list({site, *limits}), HarvestArguments(), norm_limits=limits)
    sums = [Download(harvest(batch).activations[site].double().sum(dim=0)) for batch in batches]
    if not harvest.kept:
        raise Refused(
            f"no position is left to evaluate on: {harvest.dropped_special} are special or "
            f"padding, {harvest.dropped_outliers} above norm_limits; give more inputs or higher "
            "limits"
        )
    return torch.stack([each.value() for each in sums]).sum(dim=0) / harvest.kept


def _first_tokens(batches: Iterable[TokenBatch], n: int | None) -> Iterator[TokenBatch]:
    """The first rows that hold n kept tokens: the same rows for every batch size."""
    seen = 0
    for batch in batches:
        kept = batch.keep.sum(dim=1)
        if n is not None:
            n_rows = int((seen + kept.cumsum(dim=0) - kept < n).sum())
            batch = TokenBatch(*(part[:n_rows] for part in batch))
        yield batch
        seen += int(batch.keep.sum())
        if n is not None and seen >= n:
            return


def within_limits(
    acts: Mapping[str, Tensor],
    keep: Bool[Tensor, "rows ctx"],
    limits: Mapping[str, float],
    sites: Iterable[str],
) -> Bool[Tensor, "rows ctx"]:
    """Kept positions without norm outliers, in main memory, for which it waits for the device;
    refuses what is not finite there.

    Args:
        keep: in main memory.
        limits: the largest norm of a kept activation, by site.
        sites: those whose activations must be finite.
    """
    sites = list(sites)
    is_finite = [acts[at].sum(dim=-1, dtype=torch.float32).isfinite() for at in sites]
    is_within = [
        torch.linalg.vector_norm(acts[at], dim=-1, dtype=torch.float32) <= limit
        for at, limit in limits.items()
    ]
    known = torch.stack([x.to(is_finite[0].device) for x in (*is_finite, *is_within)]).cpu()
    keep = keep & known[len(sites) :].all(dim=0)
    if not known[: len(sites), keep].all():  # a large sum decides nothing
        refuse_not_finite({at: acts[at][keep.to(acts[at].device)] for at in sites})
    return keep


def at_places(x: Float[Tensor, "rows ctx d"], at: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Activations at positions, each numbered row * ctx + its place in the row."""
    return x.flatten(0, 1)[at.to(x.device)]


def writing(
    lm: PreTrainedModel, writes: Sites, at: Int64[Tensor, " n"], value: Tensor
) -> AbstractContextManager[None]:
    """Within it the model runs with `value`, [n, d_out] or [d_out], at positions of the target
    sites, numbered as in `at_places`."""

    def replace(part: Tensor, activation: Tensor) -> Tensor:
        places = (at.to(activation.device),)
        new = activation.flatten(0, 1).index_put(places, part.to(activation))
        return new.view_as(activation)

    return patch(lm, {at: partial(replace, part) for at, part in writes.split(value).items()})


class _Arms:
    """Runs the arms batch by batch, and sums their fidelity and losses for each SAE."""

    def __init__(
        self,
        saes: Mapping[str, Autoencoder],
        lm: PreTrainedModel,
        mean: Tensor | None,
        limits: dict[str, float],
        n_at_once: int,
    ) -> None:
        self.saes, self.lm, self.limits = saes, lm, limits
        self.mean = None if mean is None else mean.to(lm.device)
        self.sites = {*widths_of(*(sae.config for sae in saes.values()))}
        self.writes = writes_of(next(iter(saes.values())).config)
        one_pass = any(is_causal(sae.config) for sae in saes.values())
        self.runs = _SharedRuns(lm, [*(self.sites if one_pass else self.writes.names)])
        self.reconstructions = Reconstructions(saes, n_at_once)
        self.late = self.reconstructions.late
        self.losses = {name: DocumentSums() for name in saes}
        self.n_kept = 0

    def add_reconstructions(self, batch: TokenBatch) -> None:
        """Fidelity alone: the run ends at the last site."""
        input_ids = upload(batch.input_ids, self.lm.device)
        with capture(self.lm, self._captured, stop_early=True) as acts:
            self.lm(input_ids=input_ids, use_cache=False)
        keep = self._keep(acts, batch)
        kept = self._kept(acts, indices_of(keep.flatten(), self.lm.device), batch.document[keep])
        for name in self.saes if len(kept.document) else ():
            self.reconstructions.add(name, kept)

    def add(self, batch: TokenBatch) -> None:
        """All arms."""
        input_ids = upload(batch.input_ids, self.lm.device)
        with capture(self.lm, self._captured) as acts:
            clean = self.runs.first(input_ids)
        self.runs.check(input_ids, clean)
        keep = self._keep(acts, batch)
        if not keep.any():
            return
        at = indices_of(keep.flatten(), self.lm.device)
        counted = counted_predictions(batch._replace(keep=keep))
        row, place = counted.nonzero(as_tuple=True)
        predictions = torch.stack([row, place, batch.input_ids[:, 1:][counted]])
        in_parts = upload(predictions, clean.device).split(PREDICTIONS_AT_ONCE, dim=1)
        assert self.mean is not None  # by evaluate_all
        constants = {"zero": torch.zeros_like(self.mean), "mean": self.mean}
        shared = {}
        for arm, constant in constants.items():
            logits = self._replaced(input_ids, at, constant)
            shared[arm] = torch.cat([_nll(_log_probs(logits, part), part) for part in in_parts])
            del logits  # before the next arm's
        _refuse_not_finite(shared, "the language model gives", self.late)
        shared["tokens"] = torch.ones_like(shared["zero"])
        kept = self._kept(acts, at, batch.document[keep])
        for name, sae in self.saes.items():
            recon = self.reconstructions.add(name, kept)
            if not is_causal(sae.config):
                spliced = self._replaced(input_ids, at, recon)
            else:  # its sources read in this run what has passed the targets before them
                self.late.tell()  # before `splice` refuses the same in other words
                on_device = upload(keep, self.lm.device)
                with splice(self.lm, sae, keep=on_device, spare_tokens=()):
                    spliced = self.runs.again(input_ids)
            losses = _comparison(clean, spliced, in_parts)
            _refuse_not_finite(losses, f"the language model with SAE {name!r} gives", self.late)
            self.losses[name].add(batch.document[:, :-1][counted], {**losses, **shared})

    @property
    def _captured(self) -> list[str]:
        return list({*self.sites, *self.limits})

    def _keep(self, acts: Mapping[str, Tensor], batch: TokenBatch) -> Bool[Tensor, "rows ctx"]:
        self.late.tell()  # of the batch before, which the device has finished or is about to
        keep = within_limits(acts, batch.keep, self.limits, self.sites)
        self.n_kept += int(keep.sum())
        return keep

    def _kept(self, acts: Mapping[str, Tensor], at: Tensor, document: Tensor) -> ActivationBatch:
        return ActivationBatch({site: at_places(acts[site], at) for site in self.sites}, document)

    def _replaced(self, input_ids: Tensor, at: Tensor, value: Tensor) -> Tensor:
        """Logits with `value`, [n, d_out] or [d_out], at these positions of the target sites."""
        with writing(self.lm, self.writes, at, value):
            return self.runs.again(input_ids)


def _comparison(
    clean: Float[Tensor, "rows ctx vocab"],
    spliced: Float[Tensor, "rows ctx vocab"],
    in_parts: Sequence[Int64[Tensor, "3 _"]],
) -> dict[str, Float[Tensor, " n"]]:
    """Cross-entropies of both arms and KL(clean || spliced), for each counted prediction."""
    found: dict[str, list[Tensor]] = {"clean": [], "spliced": [], "kl": []}
    for part in in_parts:
        p, q = _log_probs(clean, part), _log_probs(spliced, part)
        found["clean"].append(_nll(p, part))
        found["spliced"].append(_nll(q, part))
        found["kl"].append(kl_of_logs(p, q))
    return {name: torch.cat(values) for name, values in found.items()}


def _refuse_not_finite(
    losses: Mapping[str, Float[Tensor, " n"]], subject: str, late: LateRefusals
) -> None:
    for arm, values in losses.items():
        late.add(
            ~values.isfinite(),
            f"{subject} NaN or infinite losses for {{n}} of {len(values)} predictions ({arm}): "
            "activations overflow its dtype, or weights are damaged; try another lm.dtype "
            "(bfloat16, float32) or lm.attn_implementation (eager)",
        )


def _log_probs(
    logits: Float[Tensor, "rows ctx vocab"], part: Int64[Tensor, "3 n"]
) -> Float[Tensor, "n vocab"]:
    """Float32, at predictions: each a row, a place in it, and the token that follows."""
    return logits[part[0], part[1]].float().log_softmax(dim=-1)


def _nll(log_probs: Float[Tensor, "n vocab"], part: Int64[Tensor, "3 n"]) -> Float[Tensor, " n"]:
    return -log_probs.gather(-1, part[2][:, None]).squeeze(-1)


class _SharedRuns:
    """Runs an LM again on the same rows, but without the blocks below the first of some sites.

    In a stack of decoder blocks without a KV cache, the output of the block beneath is the only
    input from below, so a stored copy of it replaces the lower blocks. If a model passes anything
    else upwards, the check on the first batch (logits equal to the bit) fails: then all blocks run.
    """

    def __init__(self, lm: PreTrainedModel, sites: Sequence[str]) -> None:
        self.lm, self.checked = lm, False
        self.blocks = min((blocks_below(lm, site) for site in sites), key=len)
        self.output: object = None

    def first(self, input_ids: Tensor) -> Tensor:
        """Logits of a plain run."""
        if not self.blocks:
            return self.lm(input_ids=input_ids, use_cache=False).logits
        with own_passes("the block below the site") as passes:

            def keep(module: nn.Module, inputs: object, output: object) -> None:
                if passes.reached():
                    self.output = output

            handle = self.blocks[-1].register_forward_hook(keep)
            try:
                return self.lm(input_ids=input_ids, use_cache=False).logits
            finally:
                handle.remove()

    def check(self, input_ids: Tensor, logits: Tensor) -> None:
        """On the first batch: compare the logits of `again` and `first`; share only if equal."""
        if self.blocks and not self.checked:
            self.checked = True
            if not torch.equal(self.again(input_ids), logits):
                self.blocks = []
                logger.info("this LM's lower blocks cannot be skipped; each arm runs all blocks")

    def again(self, input_ids: Tensor) -> Tensor:
        """Logits of a run on the same rows; patches at the site or above take effect."""
        returning = dict.fromkeys(self.blocks, lambda *args, **kwargs: self.output)
        with running_as(returning):
            return self.lm(input_ids=input_ids, use_cache=False).logits
