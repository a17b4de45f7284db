"""An LM and an SAE whose latents are known in closed form, without any of the code under test.

The site is what GPT-2 feeds its first block: token embedding plus position embedding. The SAE is
the identity with thresholds, so latent i at token t and position p is w[t, i] + v[p, i] where that
is above the threshold, and 0 elsewhere.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfsae.activations import TokenBatch
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig

HOSTILE = ("<s>", "\n", "\x00", "a\x1b[31mb", "Ġthe", "Ċ", "«", "\u202egnp", "'", '"', "🙂", "\\n")


@dataclass
class Planted:
    lm: GPT2LMHeadModel
    sae: JumpReLUSAE
    tokenizer: PreTrainedTokenizerFast
    threshold: float
    input_ids: Tensor
    hostile: tuple[str, ...] = HOSTILE
    """Texts of the first tokens."""

    @property
    def rows(self) -> TokenBatch:
        """Token 0 is special; each row is a document, numbered from 100."""
        ids = self.input_ids
        document = torch.arange(100, 100 + len(ids))[:, None].expand_as(ids)
        return TokenBatch(ids, ids != 0, document)

    def batches(self, size: int = 8) -> list[TokenBatch]:
        parts = (part.split(size) for part in self.rows)
        return [TokenBatch(*batch) for batch in zip(*parts, strict=True)]

    @torch.no_grad()
    def latents(self) -> Tensor:
        """[rows, ctx, d_sae], 0 where keep is False."""
        transformer = self.lm.transformer
        x = transformer.wte.weight[self.rows.input_ids] + transformer.wpe.weight
        return torch.where((x > self.threshold) & self.rows.keep[..., None], x, 0.0)


def plant(embedding: Tensor, position: Tensor, threshold: float, input_ids: Tensor) -> Planted:
    n_vocab, d = embedding.shape
    config = GPT2Config(
        vocab_size=n_vocab, n_embd=d, n_head=1, n_layer=2, n_positions=len(position)
    )
    lm = GPT2LMHeadModel(config).eval().requires_grad_(False)
    lm.transformer.wte.weight.copy_(embedding)
    lm.transformer.wpe.weight.copy_(position)
    sae = JumpReLUSAE(
        JumpReLUSAEConfig(d_in=d, d_sae=d, site="drop", initial_threshold=threshold, model_name="m")
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    words = [*HOSTILE, *(f" w{i}" for i in range(n_vocab))][:n_vocab]
    model = WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), bos_token="<s>")
    return Planted(lm, sae, tokenizer, threshold, input_ids)
