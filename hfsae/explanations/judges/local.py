"""Answers from a language model on this machine: greedy texts, and log-probabilities of choices."""

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...io.processor import multiplies_bfloat16
from ...lm import LoadedLM, cache_name, load_lm, logits_at
from .base import (
    PACKAGED,
    PACKAGED_MODEL,
    Answer,
    JudgeArguments,
    Question,
    failure_of,
    without_thoughts,
)
from .calls import Judge

_MAX_LOGITS = 2**27  # of a batch: 512 MiB in float32
_OVERHEAD = 32  # tokens that a forward pass costs besides its own, about
_HEADINGS = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Local(Judge):
    """Answers of a causal language model: greedy text, and exact log-probabilities.

    A question with `choices` is answered by the likeliest of them, without generation. The model is
    loaded at the first question that calls.jsonl does not answer.

    Args:
        calls: file of all answers; None: they are not kept.
        loaded: the model; None: the one that the arguments name, in bfloat16 where the processor
            multiplies that fast.
    """

    has_probabilities = True

    def __init__(
        self, args: JudgeArguments, calls: Path | None = None, *, loaded: LoadedLM | None = None
    ) -> None:
        super().__init__(args, calls)
        self._loaded, self._is_ready = loaded, False

    def _new_answers(self, questions: Mapping[str, Question]) -> Iterator[tuple[str, Answer, int]]:
        if not questions:
            return
        if not self._is_ready:
            self._prepare()
        chosen, generated, long = [], [], []
        for question in questions.values():
            prompt = self.ids.prompt(question)
            n = len(prompt) + (0 if question.choices else question.max_tokens)
            reason = f"question and answer have {n:,} tokens; the model reads {self.room:,}"
            if n > self.room:
                long.append([(question, Answer(None, reason, None, len(prompt)))])
            else:
                (chosen if question.choices else generated).append((question, prompt))
        for batch in chain(long, self._chosen(chosen), self._generated(generated)):
            self._calls.note(batch)
            for question, answer in batch:
                yield self._calls.key(question), answer, 1

    def _chosen(
        self, asked: Sequence[tuple[Question, list[int]]]
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Log-probabilities of choices; those with the same tokens before the last are one row."""
        items: list[Continuation] = []
        places: list[dict[str, tuple[int, int]]] = []  # of each question: choice -> item, end
        for question, prompt in asked:
            bodies: dict[tuple[int, ...], list[str]] = {}
            ids = {choice: tuple(self.ids.choice(choice)) for choice in question.choices}
            for choice, tokens in ids.items():
                bodies.setdefault(tokens[:-1], []).append(choice)
            places.append({})
            for body, choices in bodies.items():
                places[-1] |= {choice: (len(items), k) for k, choice in enumerate(choices)}
                items.append((tuple(prompt), body, tuple(ids[c][-1] for c in choices)))
        waiting = [len({i for i, _ in place.values()}) for place in places]
        owner = {i: q for q, place in enumerate(places) for i, _ in place.values()}
        scores: dict[int, list[float]] = {}
        seconds = [0.0] * len(asked)
        for batch in batches(items, self._args.batch_size, self.vocabulary):
            begin, done = time.perf_counter(), []
            scores |= zip(batch, self.scorer.score([items[i] for i in batch]), strict=True)
            share = (time.perf_counter() - begin) / len(batch)
            for q in (owner[i] for i in batch):
                waiting[q], seconds[q] = waiting[q] - 1, seconds[q] + share
                if not waiting[q]:
                    values = {c: scores[i][k] for c, (i, k) in places[q].items()}
                    best, n_in = max(values, key=lambda c: values[c]), len(asked[q][1])
                    done.append((asked[q][0], Answer(best, None, values, n_in, 1, seconds[q])))
            yield done

    def _generated(
        self, asked: Sequence[tuple[Question, list[int]]]
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Greedy answers; questions of similar length are one batch."""
        order = sorted(asked, key=lambda pair: (pair[0].max_tokens, len(pair[1])))
        for start in range(0, len(order), self._args.batch_size):
            batch = order[start : start + self._args.batch_size]
            begin = time.perf_counter()
            rows = self._generate([p for _, p in batch], max(q.max_tokens for q, _ in batch))
            seconds = (time.perf_counter() - begin) / len(batch)
            yield [
                (question, self._read(question, len(prompt), row, seconds))
                for (question, prompt), row in zip(batch, rows, strict=True)
            ]

    def _prepare(self) -> None:
        """Load the model, with what asking it takes."""
        loaded = self._loaded
        if loaded is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            dtype = "bfloat16" if multiplies_bfloat16(device) else "float32"
            is_packaged = self._args.model == PACKAGED
            name = PACKAGED_MODEL if is_packaged else self._args.model
            source = "packaged" if is_packaged else "auto"
            loaded = load_lm(name, source=source, dtype=dtype, device=device)
        self._lm: PreTrainedModel = loaded.lm
        self.ids, self.scorer = ChatIds(loaded.tokenizer), ContinuationScorer(loaded.lm)
        text_config = loaded.lm.config.get_text_config()
        self.room = int(getattr(text_config, "max_position_embeddings", 0) or 2**20)
        self.vocabulary = int(text_config.vocab_size)
        ends = getattr(loaded.lm.generation_config, "eos_token_id", None)
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        eos: Any = loaded.tokenizer.eos_token_id
        self.eos = sorted({*ends, *([] if eos is None else [eos])})
        self._is_ready = True

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]], n_tokens: int) -> list[list[int]]:
        """The likeliest next tokens of each prompt, up to the end of the text."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, seen) in enumerate(zip(prompts, mask, strict=True)):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            seen[width - len(prompt) :] = 1
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=n_tokens,
            eos_token_id=self.eos or None,
            pad_token_id=self.eos[0] if self.eos else 0,
        )
        lm: Any = self._lm
        more = {"attention_mask": mask.to(lm.device), **logits_at(lm, [-1])}
        out: Tensor = lm.generate(ids.to(lm.device), generation_config=settings, **more)
        return out[:, width:].tolist()

    def _read(self, question: Question, n_in: int, row: list[int], seconds: float) -> Answer:
        """The answer in generated ids."""
        row = row[: question.max_tokens]
        n = next((i for i, token in enumerate(row) if token in self.eos), len(row))
        stop = "length" if n == len(row) == question.max_tokens else "stop"
        whole = self.ids.tokenizer.decode(row[:n], skip_special_tokens=True)
        text = without_thoughts(whole)
        failure = failure_of(text, stop, question)
        return Answer(None if failure else text, failure, None, n_in, n, seconds)


class ChatIds:
    """Messages and texts to ids: by the tokenizer's chat template where it has one, else as plain
    text with headings.

    Text is data: a special token that is spelled out in it becomes ordinary tokens, so that all
    special ids of a prompt are the template's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        template = str(self.tokenizer.chat_template or "")
        added = self.tokenizer.added_tokens_decoder.items()
        # Also the template's own tags, such as <think>, which need not be special tokens.
        special = {
            i: str(token)
            for i, token in added
            if token.special
            or (len(str(token)) > 1 and str(token)[0] in "<[" and str(token) in template)
        }
        texts = {*special.values(), *self.tokenizer.all_special_tokens}
        self._special = sorted(text for text in texts if len(text) > 1)
        ids = {*special, *self.tokenizer.convert_tokens_to_ids(self._special)}
        single = {i for i, text in special.items() if len(text) == 1}
        # Any text may have the id of what the vocabulary lacks; GPT-2's is its EOS.
        own = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        unknown = {self.tokenizer.unk_token_id} - own - {None}
        self._special_ids = frozenset(ids - single - unknown)
        self._of_template: dict[tuple[str, ...], list[int]] = {}  # special ids, by roles

    def prompt(self, question: Question) -> list[int]:
        """The ids of a question, up to the answer."""
        roles = tuple(role for role, _ in question.messages)
        contents = [self._data(text) for _, text in question.messages]
        if not self.tokenizer.chat_template:
            blocks = [_HEADINGS.get(r, "") + t for r, t in zip(roles, contents, strict=True)]
            text = "\n\n".join([*blocks, _HEADINGS["assistant"].strip()])
            made = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
            pairs = zip(made["input_ids"], made["special_tokens_mask"], strict=True)
            return [i for i, is_added in pairs if is_added or i not in self._special_ids]
        ids = self._ids(self._chat(roles, contents))
        if roles not in self._of_template:
            plain = self._ids(self._chat(roles, ["x"] * len(roles)))
            self._of_template[roles] = [i for i in plain if i in self._special_ids]
        if [i for i in ids if i in self._special_ids] == self._of_template[roles]:
            return ids
        # A text has special ids, as of a tokenizer that normalises texts before it looks for them:
        # the template's pieces and each text by itself, without these.
        written = self._chat(roles, [f"\ue000{n}\ue001" for n in range(len(roles))])
        ids = []
        for n, piece in enumerate(re.split("\ue000(\\d+)\ue001", written)):
            ids += self._ids(piece) if n % 2 == 0 else self.text(contents[int(piece)])
        return ids

    def choice(self, text: str) -> list[int]:
        """The ids of an answer."""
        return self._ids(text if self.tokenizer.chat_template else f" {text}")

    def text(self, text: str) -> list[int]:
        """The ids of a text by itself."""
        return [i for i in self._ids(self._data(text)) if i not in self._special_ids]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _chat(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Messages in the form of the chat template: where it knows no system message, this one
        stands at the head of the next."""
        pairs = list(zip(roles, contents, strict=True))
        try:
            return self._of_messages(pairs)
        except (TemplateError, ValueError):
            system, rest = [], []
            for role, content in pairs:
                if role == "system":
                    system.append(content)
                else:
                    rest.append((role, "\n\n".join([*system, content])))
                    system = []
            return self._of_messages(rest)

    def _of_messages(self, pairs: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in pairs]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )

    def _data(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


Continuation = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Ids of a context, one or more; those that follow it, perhaps none; the last token's, in one or
several versions."""


def batches(items: Sequence[Continuation], size: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices of items, batch by batch: neighbours share as long a beginning as possible, and one
    more joins them where that costs less than a batch of its own.

    Args:
        size: items of a batch, at most.
    """
    batch: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: (items[i][0], len(items[i][1]))):
        if batch:
            lengths = [len(items[j][0]) + len(items[j][1]) for j in (*batch, i)]
            shared = _n_shared(items[batch[0]][0], items[batch[-1]][0])
            all_shared = _n_shared(items[batch[0]][0], items[i][0])
            together = all_shared + sum(length - all_shared for length in lengths)
            apart = shared + sum(length - shared for length in lengths[:-1])
            apart += lengths[-1] + _OVERHEAD
            longest = max(len(items[j][1]) for j in (*batch, i))
            is_small = (longest + 1) * vocabulary * len(lengths) <= _MAX_LOGITS
            if len(batch) == size or together > apart or not is_small:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def _n_shared(first: Sequence[int], last: Sequence[int]) -> int:
    """Length of the beginning that two sequences share; the last id of neither counts."""
    n = min(len(first), len(last)) - 1
    return next((i for i in range(n) if first[i] != last[i]), n)


class ContinuationScorer:
    """Scores batches; the beginning that a batch shares is computed once, and kept for the next."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._prefix: tuple[int, ...] = ()
        self._cache: Any = None

    @torch.inference_mode()
    def score(self, items: Sequence[Continuation]) -> list[list[float]]:
        """For each item log p(body and end | context) for each of its ends, in nats."""
        lm, device = self._lm, self._lm.device
        contexts = [context for context, *_ in items]
        n_shared = _n_shared(min(contexts), max(contexts))
        cache = self._cache_of(contexts[0][:n_shared])
        n_shared = n_shared if cache is not None else 0
        rows = [(context + body)[n_shared:] for context, body, _ in items]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, fed in zip(ids, rows, strict=True):
            row[: len(fed)] = torch.tensor(fed)
        # Padding is on the right, where no token attends to it.
        first = [len(context) - n_shared - 1 for context in contexts]
        starts = zip(first, items, strict=True)
        places = sorted({at + k for at, (_, body, _) in starts for k in range(len(body) + 1)})
        more = {}
        if cache is not None:  # a view for all rows: the model appends to copies of it
            view = copy.copy(cache)
            view.layers = [copy.copy(layer) for layer in cache.layers]
            for layer in view.layers:
                layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
                layer.values = layer.values.expand(len(ids), -1, -1, -1)
            more[cache_name(lm)] = view
        more |= logits_at(lm, places)
        logits = lm(input_ids=ids.to(device), use_cache=cache is not None, **more).logits
        if logits.shape[1] != len(places):  # a model that computes all of them
            logits = logits[:, places]
        sums = []
        for row, ((_, body, ends), start) in enumerate(zip(items, first, strict=True)):
            at = places.index(start)
            scores = logits[row, at : at + len(body) + 1].float().log_softmax(-1)
            ids = torch.tensor(body, dtype=torch.long, device=scores.device)
            total = scores[:-1].gather(1, ids[:, None]).sum(dtype=torch.float64)
            sums.append([float(total + scores[-1, end]) for end in ends])
        return sums

    def _cache_of(self, prefix: tuple[int, ...]) -> Any:
        """Keys and values of a beginning; None for an empty one, or where the model has others."""
        if not prefix:
            return None
        if prefix != self._prefix or self._cache is None:
            ids = torch.tensor([prefix], device=self._lm.device)
            out = self._lm(input_ids=ids, use_cache=True, **logits_at(self._lm, [-1]))
            cache = getattr(out, cache_name(self._lm), None)
            layers = getattr(cache, "layers", None) or [None]
            is_plain = all(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers)
            self._prefix, self._cache = prefix, cache if is_plain else None
        return self._cache
