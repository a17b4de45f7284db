"""Two continuations of one prompt side by side: the unsteered language model, and the steered one.

Both use the same random numbers, token for token, so only the steering differs. The steering
context is entered for one forward pass at a time, and left before a token is yielded: while a
caller holds a token, or drops the iterator, the language model is unchanged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from ..io.errors import Refused
from ..lm import cache_name, logits_at
from ..ops import gumbel, kl_of_logs

Phase = Literal["prompt", "generated"]
Steering = Callable[[Phase], AbstractContextManager[object]]


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling tokens."""

    max_new_tokens: int = 40
    temperature: float = 0.7
    """0: always the most likely token"""
    repetition_penalty: float = 1.1
    """as in transformers: above 1, earlier tokens become less likely"""
    seed: int = 16

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 1024),
            "temperature": (0.0, 5.0),
            "repetition_penalty": (1.0, 5.0),
            "seed": (0, 2**31 - 1),
        }
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), limits[field.name]
            if not (isfinite(value) and low <= value <= high):
                raise Refused(f"{field.name} is {value}; it can be {low} to {high}")


class Shift(NamedTuple):
    """A token's mean probability as the next one along the steered text, at temperature 1."""

    token_id: int
    plain: float
    """without steering"""
    steered: float


N_SHIFTS, LEAST_SHIFT = 10, 1e-4
"""`likelier` and `less_likely` hold at most this many tokens, each changed by at least this
much."""


class Pair(NamedTuple):
    """Both texts as generated so far, and the difference that steering made."""

    plain: str
    steered: str
    plain_ids: list[int]
    steered_ids: list[int]
    kl: float | None
    """KL(steered || plain) of the next token along the steered text, nats per generated token, at
    temperature 1: the size of the steering's effect; exactly 0 where steering changes nothing. Once
    both texts differ, rounding adds to it: about .001 in bfloat16. None until the end."""
    done: bool
    raised: list[float] | None = None
    """nats that the steering added to the log-probability of each token of the steered text, at
    temperature 1. None until the end."""
    likelier: list[Shift] | None = None
    """tokens whose probability steering raised most, the most first. None until the end."""
    less_likely: list[Shift] | None = None
    """tokens whose probability steering lowered most, the most first. None until the end."""


class _Stream:
    """One continuation: its cache, all its ids, and the generated ones."""

    def __init__(
        self,
        lm: PreTrainedModel,
        ids: Sequence[int],
        sampling: Sampling,
        eos: set[int],
        cached: bool = True,
    ):
        self.lm, self.sampling, self.eos, self.cached = lm, sampling, eos, cached
        cache = {cache_name(lm): DynamicCache(config=lm.config)} if cached else {}
        self.fed, self.ids, self.new = 0, list(ids), []
        self.options: dict[str, Any] = {**cache, "use_cache": cached}
        self.penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)

    @property
    def phase(self) -> Phase:
        return "generated" if self.fed else "prompt"

    @property
    def finished(self) -> bool:
        full = len(self.new) >= self.sampling.max_new_tokens
        return full or bool(self.new and self.new[-1] in self.eos)

    def step(self, noise: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """Run the model on the unread tokens and sample one; noise: independent Gumbel numbers.
        Returns the model's logits."""
        unread = self.ids[self.fed :] if self.cached else self.ids
        fresh = torch.tensor([unread], device=self.lm.device)
        out = self.lm(input_ids=fresh, **self.options)
        logits = raw = out.logits[0, -1].float().cpu()
        self.fed = len(self.ids)
        if self.sampling.repetition_penalty != 1:
            logits = self.penalise(torch.tensor([self.ids]), logits[None].clone())[0]  # pyright: ignore
        if self.sampling.temperature > 0:
            # the largest of log p + Gumbel noise is a draw from p
            logits = logits / self.sampling.temperature + noise
        token = int(logits.argmax())
        self.ids.append(token)
        self.new.append(token)
        return raw


@torch.no_grad()
def generate_pair(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    steering: Steering,
    sampling: Sampling | None = None,
    stopped: Callable[[], bool] = lambda: False,
    *,
    plain_ids: Sequence[int] | None = None,
    cached: bool = True,
) -> Iterator[Pair]:
    """Generate both texts: yields a `Pair` after every token, and once more with `done` at the end.

    Args:
        steering: a function from a phase to a context for one forward pass of the steered text; the
            phase is "prompt" or "generated".
        stopped: called after every token; True ends the texts.
        plain_ids: the unsteered text's own prompt, such as a conversation with other answers;
            None: the same.
        cached: whether the steered text is read with a KV cache; not with an SAE of several sites,
            which needs the whole text in each pass (`hfsae.lm.intervene`).

    Raises:
        ValueError: the prompt is empty, or too long for the model.
    """
    sampling = sampling or Sampling()
    plain_ids = prompt_ids if plain_ids is None else plain_ids
    text_config, n_new = lm.config.get_text_config(), sampling.max_new_tokens
    room = getattr(text_config, "max_position_embeddings", None)
    for ids in (prompt_ids, plain_ids):
        if len(ids) == 0:
            raise Refused("the prompt is empty; write a prompt")
        if room is not None and len(ids) + n_new > room:
            raise Refused(
                f"the prompt's {len(ids):,} tokens and {n_new:,} new ones exceed the model's limit "
                f"of {room:,}; shorten one of them"
            )
    configured = getattr(lm.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    eos = {int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None}
    head = lm.get_output_embeddings()
    n_vocab = int(text_config.vocab_size if head is None else head.weight.shape[0])
    plain = _Stream(lm, plain_ids, sampling, eos)
    steered = _Stream(lm, prompt_ids, sampling, eos, cached)
    steered_logits: list[Tensor] = []
    plain_logits: list[Tensor] = []  # as long as both texts are equal
    generator = torch.Generator().manual_seed(sampling.seed)
    while not (plain.finished and steered.finished):
        uniform = torch.rand(n_vocab, generator=generator, dtype=torch.float64)
        noise, are_equal = gumbel(uniform), plain.ids == steered.ids
        if not steered.finished:
            with steering(steered.phase):
                steered_logits.append(steered.step(noise.float()))
        if not plain.finished:
            logits = plain.step(noise.float())
            plain_logits += [logits] if are_equal else []
        yield _pair(tokenizer, plain, steered, None)
        if stopped():
            break
    if n_left := len(steered_logits) - len(plain_logits):  # read in one pass
        ids = torch.tensor([steered.ids[:-1]], device=lm.device)
        options = logits_at(lm, range(-n_left, 0))  # a prompt's logits may be large
        logits = lm(input_ids=ids, use_cache=False, **options).logits
        plain_logits += logits[0, -n_left:].float().cpu()
    kl, raised, n = 0.0, [], len(steered.new)
    means = torch.zeros(2, len(steered_logits[0]), dtype=torch.float64)  # plain, steered
    for token, *both in zip(steered.new, steered_logits, plain_logits, strict=True):
        p, q = (logits.log_softmax(-1) for logits in both)
        kl += float(kl_of_logs(p, q))
        raised.append(float(p[token] - q[token]))
        means += torch.stack((q, p)).exp() / n
    ends = {"raised": raised, "likelier": _shifts(means, 1), "less_likely": _shifts(means, -1)}
    yield _pair(tokenizer, plain, steered, max(0.0, kl / n))._replace(**ends)


def _pair(
    tokenizer: PreTrainedTokenizerBase, plain: _Stream, steered: _Stream, kl: float | None
) -> Pair:
    first, second = (
        str(tokenizer.decode(stream.new, skip_special_tokens=True)) for stream in (plain, steered)
    )
    return Pair(first, second, list(plain.new), list(steered.new), kl, kl is not None)


def _shifts(means: Float[Tensor, "2 vocab"], sign: int) -> list[Shift]:
    """The tokens whose mean probability differs most in this direction; means: plain, steered."""
    changes, ids = (sign * (means[1] - means[0])).topk(min(N_SHIFTS, means.shape[1]))
    ids = ids[changes >= LEAST_SHIFT].tolist()
    return [Shift(i, float(means[0, i]), float(means[1, i])) for i in ids]
