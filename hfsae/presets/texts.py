"""Texts of candidates for presets, each at all prompts, and what is measured of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.token_text import tokenise
from ..features import FeatureStore
from ..lm import Moment, activations_read, cast_for, intervene, special_ids, unspared
from ..models import SAE
from ..models.identity import refuse_values_of_others
from ..steering import SeededSampling, repetition, steer
from ..steering.pair import Sampling
from ..steering.strength import sampled_kl

PROMPTS = (
    "The story is about",
    "Once upon a time there was a",
    "My favourite thing to do is",
    "Today I want to tell you about",
)
SEEDS = (16, 17, 18)
"""The first is the app's."""
_FIRING = 0.3  # of a latent's largest activation: tokens from there on are about it
_TOGETHER, _LOGITS = 4, 2**30  # candidates whose texts are one batch; bytes of its logits


class Model(NamedTuple):
    """What is steered."""

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: SAE
    store: FeatureStore

    def steered(self, latent: int, strength: float) -> AbstractContextManager[None]:
        """The block in which a latent is added, in multiples of its largest activation."""
        largest = self.store.max_activations
        return steer(self.lm, self.sae, {latent: strength}, unit="max", max_activations=largest)

    def each_steered(
        self, latents: Sequence[int], strengths: float | Sequence[float]
    ) -> AbstractContextManager[None]:
        """The block in which each row of a batch has one latent added, as by `steered`."""
        maxima = self.store.max_activations
        refuse_values_of_others(maxima, self.sae.W_dec, "max_activations")
        largest = maxima[latents].to(self.sae.W_dec)
        amounts = torch.as_tensor(strengths).to(largest) * largest
        added = (amounts[:, None] * self.sae.W_dec[latents].detach())[:, None]
        spared = special_ids(self.lm)

        def write(moment: Moment) -> Tensor:
            new = moment.target + (added * self.sae.row_factor(moment.source)).to(moment.target)
            is_changed = unspared(moment.input_ids, spared).to(new.device)
            return new.where(is_changed[..., None], moment.target)

        return intervene(self.lm, self.sae, write)

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt."""
        bos = self.sae.config.bos != "none"
        return tokenise(self.tokenizer, prompt, bos=bos, max_tokens=512).ids


class Candidate(NamedTuple):
    """A latent, and the words that it stands for, in small letters, the commonest first."""

    latent: int
    words: tuple[str, ...]
    strength: float = 0.0
    """at which its texts are written"""
    raised: float = 0.0
    """nats: what its words contribute to the KL of the next token"""


class Attempt(NamedTuple):
    """A candidate at one prompt."""

    candidate: Candidate
    prompt: str
    kl: float
    """mean over the texts of all prompts"""
    repetition: float
    """largest of the texts"""
    hits: float
    """tokens of a text on which the latent fires, mean; less those without steering"""
    n_seeds: int
    """texts in which it fires on more tokens than without steering"""
    surprise: float = 0.0
    """`surprise_of` the texts of all prompts, mean"""
    steered: str = ""
    """the text of the first seed"""


class Texts(NamedTuple):
    """The prompts with each seed, one row each, and their texts without steering."""

    tokens: dict[str, Tensor]
    plain: Tensor
    """[rows, n_tokens]"""


@torch.no_grad()
def unsteered(model: Model, n_tokens: int) -> Texts:
    rows = [model.ids(prompt) for prompt in PROMPTS for _ in SEEDS]
    longest = max(map(len, rows))
    pad = model.tokenizer.pad_token_id or 0
    tokens = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
    }
    _, plain = sampled_kl(model.lm, tokens, nullcontext(), n_tokens, _sampling())
    return Texts(tokens, plain)


@torch.no_grad()
def surprise_of(model: Model, prompt: str, text: str) -> float:
    """How much less likely the model as it is finds a text behind a prompt than it expects, nats a
    token: minus its log-probability, less the entropy of the predictions along it. Of texts drawn
    from the model at temperature 1 the mean is 0."""
    row = torch.tensor([model.ids(prompt)])
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    tokens = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    return float(surprises(model, tokens, ids)) if ids.numel() else 0.0


def surprises(model: Model, tokens: Mapping[str, Tensor], ids: Tensor) -> Float[Tensor, " rows"]:
    """`surprise_of`, of texts [rows, n] behind their prompts."""
    whole = torch.cat([tokens["input_ids"], ids], dim=1).to(model.lm.device)
    mask = torch.cat([tokens["attention_mask"], torch.ones_like(ids)], dim=1).to(model.lm.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    n = ids.shape[1]
    logits = model.lm(input_ids=whole, attention_mask=mask, position_ids=positions).logits
    more = []
    for row, new in zip(logits, whole, strict=True):  # logits may be large: row by row
        log = row[-n - 1 : -1].float().log_softmax(-1)
        entropy = -(log.exp() * log).sum(-1)
        more.append((-log.gather(-1, new[-n:, None])[:, 0] - entropy).mean())
    return torch.stack(more).cpu()


def together(vocab_size: int, n_tokens: int) -> int:
    """Candidates whose texts are written in one batch: fewer for a large vocabulary."""
    each = 4 * len(PROMPTS) * len(SEEDS) * n_tokens * vocab_size
    return max(1, min(_TOGETHER, _LOGITS // each))


def _sampling(repeats: int = 1) -> SeededSampling:
    """The same random numbers at each call, others in each row of texts."""
    return SeededSampling(SEEDS[0], Sampling.temperature, repeats)


@torch.no_grad()
def attempts_of(
    model: Model, some: Sequence[Candidate], texts: Texts, n_tokens: int
) -> Iterator[list[Attempt]]:
    """Each candidate at all prompts; all texts are written at once."""
    n_rows = len(texts.plain)
    tokens = {name: rows.repeat(len(some), 1) for name, rows in texts.tokens.items()}
    each = [candidate for candidate in some for _ in range(n_rows)]
    block = model.each_steered([c.latent for c in each], [c.strength for c in each])
    how, cached = _sampling(len(some)), not model.sae.config.needs_whole_text
    kls, generated = sampled_kl(model.lm, tokens, block, n_tokens, how, use_cache=cached)
    surprise = surprises(model, tokens, generated)
    parts = (each.split(n_rows) for each in (kls, generated, surprise))
    for candidate, kl, rows, surprise in zip(some, *parts, strict=True):
        before = firings(model, candidate.latent, texts.plain)
        after = firings(model, candidate.latent, rows)
        made = []
        for i, prompt in enumerate(PROMPTS):
            part = slice(i * len(SEEDS), (i + 1) * len(SEEDS))
            gains = [new - old for new, old in zip(after[part], before[part], strict=True)]
            again = max(repetition(row[None]) for row in rows[part])
            hits, n_seeds = sum(gains) / len(gains), sum(gain > 0 for gain in gains)
            steered = str(model.tokenizer.decode(rows[part][0], skip_special_tokens=True))
            numbers = float(kl.mean()), again, hits, n_seeds, float(surprise.mean())
            made.append(Attempt(candidate, prompt, *numbers, steered))
        yield made


def firings(model: Model, latent: int, ids: Tensor) -> list[int]:
    """On how many tokens of each row [rows, n] the latent fires, read without steering."""
    x = activations_read(model.lm, model.sae.config, input_ids=ids.to(model.lm.device))
    latents = model.sae.encode(cast_for(model.sae, x.flatten(0, 1)))
    activation = latents[:, latent].float().cpu().reshape(ids.shape)
    about = activation >= _FIRING * float(model.store.max_activations[latent])
    return about[:, 1:].sum(1).tolist()  # the first token's activations are outliers
