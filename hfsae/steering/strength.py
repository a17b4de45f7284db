"""Suggests a steering strength: the largest one whose texts stay within a budget.

Two measures of the same sampled, steered texts show the effect of a strength:

    kl          KL(steered || unsteered) of the next-token distributions, nats a generated token:
                the mean over the tokens of the steered texts, which the unsteered model reads too
    repetition  1 - distinct / all n-grams of n = 3 tokens, mean over texts (seq-rep-n of Welleck et
                al. 2020, arXiv:1908.04319): 0 if no three tokens recur, near 1 in a loop

Both measures are needed, because the unsteered model soon predicts a loop too, and then the KL
falls again.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ..io.errors import Refused
from ..lm import logits_at, special_ids
from ..ops import gumbel, kl_of_logs

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""To try by default, and then on by doubling: whatever the unit is."""
DOUBLINGS = 12
NGRAM = 3


class Trial(NamedTuple):
    """The effect of one strength."""

    strength: float
    kl: float
    """nats a token"""
    repetition: float
    """0 to 1"""
    within: bool
    """whether both measures are within the budget"""
    generated: Int[Tensor, "rows n_tokens"]
    """the sampled texts"""


class Suggestion(NamedTuple):
    """The largest strength within the budget (0 if none is), and all trials."""

    strength: float
    trials: list[Trial]
    """By size of strength; the first is strength 0, the unsteered model."""

    @property
    def passed(self) -> bool:
        """Whether a larger strength is over the budget; if not, this is the largest that was
        tried."""
        return any(abs(t.strength) > abs(self.strength) for t in self.trials if not t.within)

    def table(self) -> str:
        """One line for each trial, and one more where none is over the budget."""
        lines = ["strength  KL nats/token  repetition"]
        for trial in self.trials:
            mark = "" if trial.within else "  over budget"
            numbers = f"{trial.strength:>8.3g}  {trial.kl:>13.3f}  {trial.repetition:>10.3f}"
            lines.append(numbers + mark)
        if not self.passed:
            lines.append("the budget was not passed: a larger strength may be within it, too")
        return "\n".join(lines)


class SeededSampling(LogitsProcessor):
    """Sampling for `generate(do_sample=False, logits_processor=[SeededSampling(seed)])`.

    Adds Gumbel noise to logits / temperature: the argmax of the sum is a sample of their softmax.
    The noise has its own generator: other threads cannot change it, and equal seeds give steered
    and unsteered logits equal noise, for one row that of `generate_pair`. Temperature 0 is greedy.
    Use one object per call of generate.

    Args:
        repeats: how often the rows of one batch repeat; equal rows get equal noise.
    """

    def __init__(self, seed: int, temperature: float = 1.0, repeats: int = 1):
        if not 0 <= temperature < float("inf"):
            raise Refused(f"temperature is {temperature}; it must be 0 or more, and finite")
        self._generator, self._temperature = torch.Generator().manual_seed(seed), temperature
        self._repeats = repeats

    def __call__(
        self, input_ids: Int[Tensor, "rows ctx"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        if self._temperature == 0:
            return scores
        shape = (len(scores) // self._repeats, scores.shape[1])
        noise = gumbel(torch.rand(shape, generator=self._generator, dtype=torch.float64)).float()
        return scores.float() / self._temperature + noise.repeat(self._repeats, 1).to(scores.device)


@torch.no_grad()
def suggest_strength(
    lm: PreTrainedModel,
    tokens: Mapping[str, Tensor] | Tensor,
    steered: Callable[[float], AbstractContextManager[None]],
    *,
    strengths: Sequence[float] = STRENGTHS,
    doublings: int = DOUBLINGS,
    max_kl: float | None = 2.0,
    max_repetition: float | None = 0.3,
    n_tokens: int = 32,
    refine: int = 2,
    seed: int = 0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    use_cache: bool = True,
    progress: Callable[[Trial], object] | None = None,
) -> Suggestion:
    """The largest strength with steered texts within a KL budget and a repetition budget.

        hfsae.suggest_strength(
            lm, tokenizer(prompts, return_tensors="pt", padding=True),
            lambda strength: hfsae.steer(lm, sae, {1234: strength}, mode="clamp"),
        ).strength

    Tries every strength, in order of size, with the same seed; where all are within the budget, it
    goes on doubling the last one until one is not. Then it halves the gap between the last strength
    within the budget and the next one, `refine` times. Definitions: see the module.

    Args:
        tokens: prompts, as for `generate`: several rows are padded on the left; or token ids alone.
        steered: strength -> a context for generation; any unit, mode and number of latents.
        strengths: numbers of one sign, in the unit that `steered` uses.
        doublings: the most; where the budget is not passed then, `Suggestion.passed` is False.
        max_kl: nats a token; None: no KL budget. Above about 2, texts of small models are no longer
            sentences.
        max_repetition: 0 to 1; None: no repetition budget. The unsteered model's repetition counts.
        n_tokens: number of tokens to generate for each prompt; EOS is suppressed.
        temperature: of the sampling; the KL compares distributions at temperature 1.
        repetition_penalty: of the sampling, as in transformers: above 1, earlier tokens become less
            likely.
        use_cache: False for an SAE of several sites (`hfsae.lm.intervene`): pass it here.
        progress: called after each trial, in place of the progress bar; an exception ends the
            sweep.

    Raises:
        ValueError: no budget is given, or strengths are empty, of both signs, or not finite.
    """
    order = sorted(map(float, strengths), key=abs)
    if not order or not all(map(isfinite, order)) or min(order) * max(order) <= 0:
        raise Refused(
            f"strengths are {list(strengths)}; use finite numbers of one sign, such as (0.5, 1, 2)"
        )
    if isinstance(tokens, Tensor):
        tokens = {"input_ids": torch.atleast_2d(tokens)}
    if max_kl is None and max_repetition is None:
        raise Refused("no budget: give max_kl (nats a token), max_repetition (0 to 1) or both")

    bar = tqdm(
        total=1 + len(order) + refine,
        desc="strengths",
        unit="trial",
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
        disable=progress is not None,
    )

    def attempt(strength: float) -> Trial:
        block = steered(strength) if strength else nullcontext()
        how = SeededSampling(seed, temperature), repetition_penalty
        kls, generated = sampled_kl(lm, tokens, block, n_tokens, *how, use_cache=use_cache)
        kl, again = float(kls.mean()), repetition(generated)
        within = (max_kl is None or kl <= max_kl) and (
            max_repetition is None or again <= max_repetition
        )
        trial = Trial(strength, kl, again, within, generated)
        if progress is not None:
            progress(trial)
        bar.set_postfix_str(f"{strength:.3g}: KL {kl:.3g}", refresh=False)
        bar.total = max(bar.total, bar.n + 1)  # doubling takes as many as it takes
        bar.update()
        return trial

    with bar:
        trials = [attempt(strength) for strength in (0.0, *order)]
        n_within = next((i for i, t in enumerate(trials[1:]) if not t.within), len(order))
        best = order[n_within - 1] if n_within else 0.0
        over = order[n_within] if n_within < len(order) else None
        while over is None and len(trials) <= len(order) + doublings:
            trials.append(attempt(2 * best))
            best, over = (2 * best, None) if trials[-1].within else (best, 2 * best)
        for _ in range(refine):
            if over is not None:
                trials.append(attempt(middle := (best + over) / 2))
                best, over = (middle, over) if trials[-1].within else (best, middle)
        bar.total = bar.n  # without a strength over the budget, there is no gap to halve
    return Suggestion(best, sorted(trials, key=lambda trial: abs(trial.strength)))


def sampled_kl(
    lm: PreTrainedModel,
    tokens: Mapping[str, Tensor],
    block: AbstractContextManager[None],
    n_tokens: int,
    sampling: SeededSampling,
    repetition_penalty: float = 1.0,
    *,
    use_cache: bool = True,
) -> tuple[Float[Tensor, " rows"], Int[Tensor, "rows n_tokens"]]:
    """KL(steered || unsteered) along texts sampled from the steered model, nats a token; and these
    texts."""
    ids = tokens["input_ids"].to(lm.device)
    mask = tokens.get("attention_mask", torch.ones_like(ids)).to(lm.device)
    config = GenerationConfig(
        use_cache=use_cache,
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        do_sample=False,
        repetition_penalty=repetition_penalty,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=special_ids(lm)[0] if special_ids(lm) else 0,
        eos_token_id=getattr(lm.generation_config, "eos_token_id", None),
    )
    generate: Any = lm.generate
    with block:
        out = generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampling]),
            **logits_at(lm, [-1]),
        )
    whole = torch.cat([mask, mask.new_ones(len(ids), n_tokens)], dim=1)
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    clean = lm(input_ids=out.sequences, attention_mask=whole, position_ids=positions).logits
    clean = clean[:, ids.shape[1] - 1 : -1]
    kls = []
    for i, row in enumerate(clean):  # logits may be large: row by row
        own = torch.stack([step[i] for step in out.logits])
        p, q = F.log_softmax(own.float(), dim=-1), F.log_softmax(row.float(), dim=-1)
        kls.append(kl_of_logs(p, q).mean().clamp(min=0))  # rounding may take it below
    return torch.stack(kls).cpu(), out.sequences[:, ids.shape[1] :].cpu()


def repetition(ids: Int[Tensor, "rows n"], n: int = NGRAM) -> float:
    """1 - distinct / all n-grams of tokens, mean over rows; 0 where a row is shorter than n."""
    shares = []
    for row in ids.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)
