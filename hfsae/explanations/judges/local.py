"""Answers from a language model on this machine: greedy texts, and log-probabilities of choices."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...io.processor import multiplies_bfloat16
from ...lm import LoadedLM, cache_name, load_lm
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
        order = sorted(asked, key=lambda pair: pair[1])  # so that a batch shares its beginning
        for start in range(0, len(order), self._args.batch_size):
            batch, begin = order[start : start + self._args.batch_size], time.perf_counter()
            rows: list[tuple[int, list[int], tuple[int, ...]]] = []  # question, prompt, and more
            ends: list[dict[str, int]] = []  # of each row the last token of its choices
            for q, (question, prompt) in enumerate(batch):
                bodies: dict[tuple[int, ...], dict[str, int]] = {}
                for choice in question.choices:
                    *body, last = self.ids.choice(choice)
                    bodies.setdefault(tuple(body), {})[choice] = last
                rows += [(q, prompt, body) for body in bodies]
                ends += bodies.values()
            values: list[dict[str, float]] = [{} for _ in batch]
            scored = self._scores([(prompt, body) for _, prompt, body in rows])
            for (q, _, body), of_row, scores in zip(rows, ends, scored, strict=True):
                ids = torch.tensor(body, dtype=torch.long, device=scores.device)
                total = scores[:-1].gather(1, ids[:, None]).sum(dtype=torch.float64)
                values[q] |= {c: float(total + scores[-1, last]) for c, last in of_row.items()}
            seconds = (time.perf_counter() - begin) / len(batch)
            done = []
            for (question, prompt), of in zip(batch, values, strict=True):
                best = max(question.choices, key=lambda choice: of[choice])
                done.append((question, Answer(best, None, of, len(prompt), 1, seconds)))
            yield done

    @torch.inference_mode()
    def _scores(self, rows: Sequence[tuple[list[int], tuple[int, ...]]]) -> Iterator[Tensor]:
        """For each prompt and the tokens after it: log-probabilities [tokens + 1, vocabulary] of
        each of these and of the next. The beginning that all prompts share is computed once."""
        lm: Any = self._lm
        prompts = [prompt for prompt, _ in rows]
        first, last, n = min(prompts), max(prompts), min(map(len, prompts)) - 1
        n_shared = next((i for i in range(n) if first[i] != last[i]), n)
        more: dict[str, Any] = {}
        if n_shared and not getattr(lm, "_is_stateful", False):
            cache = DynamicCache()
            before = torch.tensor([prompts[0][:n_shared]], device=lm.device)
            more = {cache_name(lm): cache, "use_cache": True}
            lm(input_ids=before, logits_to_keep=1, **more)
            if cache.get_seq_length() == n_shared:
                cache.batch_repeat_interleave(len(rows))
            else:
                more = {}
        n_shared = n_shared if more else 0
        # Padding is on the right, where no token attends to it.
        ids = torch.zeros(len(rows), max(len(p) + len(b) for p, b in rows), dtype=torch.long)
        for row, (prompt, body) in zip(ids, rows, strict=True):
            row[: len(prompt) + len(body)] = torch.tensor([*prompt, *body])
        starts = [len(prompt) - 1 for prompt in prompts]
        spans = [range(at, at + len(b) + 1) for at, (_, b) in zip(starts, rows, strict=True)]
        places = sorted({*chain(*spans)})
        # A tensor of places: for a slice, which is not contiguous, a processor's product with the
        # vocabulary takes fifty times longer in bfloat16.
        keep = torch.tensor(places, device=lm.device) - n_shared
        more = more or {"use_cache": False}
        logits = lm(input_ids=ids[:, n_shared:].to(lm.device), logits_to_keep=keep, **more).logits
        for row, start, (_, body) in zip(logits, starts, rows, strict=True):
            at = places.index(start)
            yield row[at : at + len(body) + 1].float().log_softmax(-1)

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
        self.ids = ChatIds(loaded.tokenizer)
        text_config = loaded.lm.config.get_text_config()
        self.room = int(getattr(text_config, "max_position_embeddings", 0) or 2**20)
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
        device = lm.device
        out: Tensor = lm.generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
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
