"""Answers from a language model on this machine."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ...lm import LoadedLM, load_lm
from ...machine.processor import multiplies_bfloat16
from ...machine.refused import Refused
from .base import PACKAGED, PACKAGED_MODEL, Answer, JudgeArguments, Progress, Question, Usage
from .calls import calls_of
from .replies import failure_of, without_thoughts
from .scoring import Continuation, ContinuationScorer, batches
from .wording import Wording


class Local:
    """Answers of a causal language model: greedy text, and exact log-probabilities.

    A question with `choices` is answered by the likeliest of them, without generation. The model is
    loaded at the first question that calls.jsonl does not answer.

    Args:
        calls: file of all answers; None: they are not kept.
        loaded: the model; None: the one that the arguments name, in bfloat16 where the processor
            multiplies that fast.
    """

    has_log_likelihood = True

    def __init__(
        self, args: JudgeArguments, calls: Path | None = None, *, loaded: LoadedLM | None = None
    ) -> None:
        self.name, self.usage = args.shown_model, Usage()
        self._args, self._calls, self._loaded = args, calls_of(args, calls), loaded

    def answer(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Answer]:
        """The answers, in the order of the questions; those in calls.jsonl are taken from there.

        Raises:
            ValueError: the model cannot be loaded.
        """
        keys = [self._calls.key(question) for question in questions]
        answers = {key: self._calls.answer(key) for key in keys}
        new = {k: q for k, q in zip(keys, questions, strict=True) if answers[k] is None}
        self.usage.n_repeated += len(keys) - len(new)
        failed: dict[str, Answer] = {}
        for batch in self._answered(list(new.values())):
            self._calls.note(batch)
            for question, answer in batch:
                self.usage.add(answer)
                failed[self._calls.key(question)] = answer
            if progress is not None:
                progress(len(keys) - len(new) + len(failed), self.usage)
        self._calls.close()
        return [answers[key] or failed[key] for key in keys]

    def log_likelihood(
        self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
    ) -> list[float]:
        """log p(text | context) of pairs (context, text), in nats, summed over the text's tokens.

        A text without tokens has 0.

        Raises:
            ValueError: the model cannot be loaded, or a pair is longer than it can read.
        """
        keys = [self._calls.key_of_pair(*pair) for pair in pairs]
        values = {key: self._calls.log_likelihood(key) for key in keys}
        new = {k: p for k, p in zip(keys, pairs, strict=True) if values[k] is None}
        self.usage.n_repeated += len(keys) - len(new)
        n_done = len(keys) - len(new)
        for batch in self._scored(list(new.values())):
            self._calls.note_pairs(batch)
            values |= {self._calls.key_of_pair(*pair): value for pair, value in batch}
            n_done += len(batch)
            if progress is not None:
                progress(n_done, self.usage)
        self._calls.close()
        return [float(values[key] or 0.0) for key in keys]

    def settle(self, about: str) -> None:
        """All answers are there."""

    def _scored(
        self, pairs: Sequence[tuple[str, str]]
    ) -> Iterator[list[tuple[tuple[str, str], float]]]:
        if not pairs:
            return
        model = self._model()
        items = []
        for context, text in pairs:
            ids = tuple(model.wording.text(text))
            items.append(Continuation(tuple(model.wording.context(context)), ids[:-1], ids[-1:]))
            n = len(items[-1].context) + len(ids)
            if n > model.room:
                raise Refused(
                    f"a context and text have {n:,} tokens, and {self.name!r} reads "
                    f"{model.room:,}; give shorter ones, or another model"
                )
        for batch in batches(items, self._args.batch_size, model.vocabulary):
            begin = time.perf_counter()
            scores = model.scorer.score([items[i] for i in batch])
            seconds = (time.perf_counter() - begin) / len(batch)
            for i in batch:
                n_tokens = len(items[i].fed) + len(items[i].ends)
                self.usage.add(Answer("", n_tokens_in=n_tokens, seconds=seconds))
            yield [(pairs[i], sum(s, 0.0)) for i, s in zip(batch, scores, strict=True)]

    def _answered(self, questions: Sequence[Question]) -> Iterator[list[tuple[Question, Answer]]]:
        if not questions:
            return
        model = self._model()
        prompts = [model.wording.prompt(question) for question in questions]
        short = []
        for question, prompt in zip(questions, prompts, strict=True):
            n = len(prompt) + (0 if question.choices else question.max_tokens)
            if n <= model.room:
                short.append((question, prompt))
            else:
                reason = f"question and answer have {n:,} tokens; the model reads {model.room:,}"
                yield [(question, Answer(None, reason, None, len(prompt)))]
        yield from self._chosen(model, [pair for pair in short if pair[0].choices])
        yield from self._generated(model, [pair for pair in short if not pair[0].choices])

    def _chosen(
        self, model: "_Model", asked: Sequence[tuple[Question, list[int]]]
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Log-probabilities of choices; those with the same tokens before the last are one row."""
        items: list[Continuation] = []
        places: list[dict[str, tuple[int, int]]] = []  # of each question: choice -> item, end
        for question, prompt in asked:
            bodies: dict[tuple[int, ...], list[str]] = {}
            ids = {choice: tuple(model.wording.choice(choice)) for choice in question.choices}
            for choice, tokens in ids.items():
                bodies.setdefault(tokens[:-1], []).append(choice)
            places.append({})
            for body, choices in bodies.items():
                places[-1] |= {choice: (len(items), k) for k, choice in enumerate(choices)}
                items.append(Continuation(tuple(prompt), body, tuple(ids[c][-1] for c in choices)))
        waiting = [len({i for i, _ in place.values()}) for place in places]
        owner = {i: q for q, place in enumerate(places) for i, _ in place.values()}
        scores: dict[int, list[float]] = {}
        seconds = [0.0] * len(asked)
        for batch in batches(items, self._args.batch_size, model.vocabulary):
            begin, done = time.perf_counter(), []
            scores |= zip(batch, model.scorer.score([items[i] for i in batch]), strict=True)
            share = (time.perf_counter() - begin) / len(batch)
            for q in (owner[i] for i in batch):
                waiting[q], seconds[q] = waiting[q] - 1, seconds[q] + share
                if not waiting[q]:
                    values = {c: scores[i][k] for c, (i, k) in places[q].items()}
                    done.append((asked[q][0], _best(values, len(asked[q][1]), seconds[q])))
            yield done

    def _generated(
        self, model: "_Model", asked: Sequence[tuple[Question, list[int]]]
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Greedy answers; questions of similar length are one batch."""
        order = sorted(asked, key=lambda pair: (pair[0].max_tokens, len(pair[1])))
        for start in range(0, len(order), self._args.batch_size):
            batch = order[start : start + self._args.batch_size]
            begin = time.perf_counter()
            rows = model.generate([p for _, p in batch], max(q.max_tokens for q, _ in batch))
            seconds = (time.perf_counter() - begin) / len(batch)
            yield [
                (question, model.read(question, len(prompt), row, seconds))
                for (question, prompt), row in zip(batch, rows, strict=True)
            ]

    def _model(self) -> "_Model":
        if self._loaded is None:
            self._loaded = _load(self._args.model)
        if not hasattr(self, "_made"):
            self._made = _Model(self._loaded)
        return self._made


def _best(values: dict[str, float], n_tokens_in: int, seconds: float) -> Answer:
    return Answer(max(values, key=lambda c: values[c]), None, values, n_tokens_in, 1, seconds)


def _load(name: str) -> LoadedLM:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if multiplies_bfloat16(device) else "float32"
    if name == PACKAGED:
        return load_lm(PACKAGED_MODEL, source="packaged", dtype=dtype, device=device)
    return load_lm(name, dtype=dtype, device=device)


class _Model:
    """A loaded model with what asking it takes."""

    def __init__(self, loaded: LoadedLM) -> None:
        self.lm: PreTrainedModel = loaded.lm
        self.wording, self.scorer = Wording(loaded.tokenizer), ContinuationScorer(loaded.lm)
        text_config = loaded.lm.config.get_text_config()
        self.room = int(getattr(text_config, "max_position_embeddings", 0) or 2**20)
        self.vocabulary = int(text_config.vocab_size)
        ends = getattr(loaded.lm.generation_config, "eos_token_id", None)
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        eos: Any = loaded.tokenizer.eos_token_id
        self.eos = sorted({*ends, *([] if eos is None else [eos])})

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], n_tokens: int) -> list[list[int]]:
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
        lm: Any = self.lm
        device = lm.device
        out: Tensor = lm.generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        return out[:, width:].tolist()

    def read(self, question: Question, n_in: int, row: list[int], seconds: float) -> Answer:
        """The answer in generated ids."""
        row = row[: question.max_tokens]
        n = next((i for i, token in enumerate(row) if token in self.eos), len(row))
        stop = "length" if n == len(row) == question.max_tokens else "stop"
        whole = self.wording.tokenizer.decode(row[:n], skip_special_tokens=True)
        text = without_thoughts(whole)
        failure = failure_of(text, stop, question)
        return Answer(None if failure else text, failure, None, n_in, n, seconds)
