"""A question as token ids of a local model."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .base import Question

_HEADINGS = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Wording:
    """Messages and texts to ids: by the tokenizer's chat template where it has one, else as plain
    text with headings.

    Text is data: a special token that is spelled out in it becomes ordinary tokens, so that all
    special ids of a prompt are the template's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        template = str(self.tokenizer.chat_template or "")
        added = self.tokenizer.added_tokens_decoder.items()
        special = {i: str(t) for i, t in added if t.special or _is_tag_of(template, str(t))}
        texts = {*special.values(), *self.tokenizer.all_special_tokens}
        self._special = sorted(text for text in texts if len(text) > 1)
        ids = {*special, *self.tokenizer.convert_tokens_to_ids(self._special)}
        single = {i for i, text in special.items() if len(text) == 1}
        self._special_ids = frozenset(ids - single - self._unknown())
        self._of_template: dict[tuple[str, ...], list[int]] = {}  # special ids, by roles

    def _unknown(self) -> set[int]:
        """The id of what the vocabulary lacks, which any text may have; GPT-2's is its EOS."""
        own = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        return {self.tokenizer.unk_token_id} - own - {None}

    def prompt(self, question: Question) -> list[int]:
        """The ids of a question, up to the answer."""
        roles = tuple(role for role, _ in question.messages)
        contents = [self._data(text) for _, text in question.messages]
        if not self.tokenizer.chat_template:
            blocks = [_HEADINGS.get(r, "") + t for r, t in zip(roles, contents, strict=True)]
            return self._begun("\n\n".join([*blocks, _HEADINGS["assistant"].strip()]))
        ids = self._ids(self._chat(roles, contents))
        if roles not in self._of_template:
            plain = self._ids(self._chat(roles, ["x"] * len(roles)))
            self._of_template[roles] = self._specials(plain)
        if self._specials(ids) == self._of_template[roles]:
            return ids
        return self._piece_by_piece(roles, contents)

    def _specials(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._special_ids]

    def _piece_by_piece(self, roles: tuple[str, ...], contents: Sequence[str]) -> list[int]:
        """The ids where a text's have special ones, as of a tokenizer that normalises texts before
        it looks for them: each text by itself, without these."""
        written = self._chat(roles, [f"\ue000{n}\ue001" for n in range(len(roles))])
        ids: list[int] = []
        for n, piece in enumerate(re.split("\ue000(\\d+)\ue001", written)):
            ids += self._ids(piece) if n % 2 == 0 else self.text(contents[int(piece)])
        return ids

    def choice(self, text: str) -> list[int]:
        """The ids of an answer."""
        return self._ids(text if self.tokenizer.chat_template else f" {text}")

    def context(self, text: str) -> list[int]:
        """The ids of a text's beginning, never none."""
        return self._begun(self._data(text))

    def text(self, text: str) -> list[int]:
        """The ids of a text that goes on."""
        return [i for i in self._ids(self._data(text)) if i not in self._special_ids]

    def _begun(self, text: str) -> list[int]:
        """The ids of a text, with the special ones that the tokenizer adds."""
        made = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        pairs = zip(made["input_ids"], made["special_tokens_mask"], strict=True)
        ids = [i for i, is_added in pairs if is_added or i not in self._special_ids]
        first = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        return ids or [next(i for i in first if i is not None)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _chat(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Messages in the form of the chat template."""
        pairs = zip(roles, contents, strict=True)
        messages = [{"role": role, "content": content} for role, content in pairs]
        try:
            return self._written(messages)
        except (TemplateError, ValueError):  # some know no system message
            return self._written(_without_system(messages))

    def _written(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )

    def _data(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _is_tag_of(template: str, token: str) -> bool:
    """Whether it is a tag of the template, such as <think>, which need not be a special token."""
    return token[:1] in ("<", "[") and len(token) > 1 and token in template


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same with the system's text at the head of the next message."""
    texts, rest = [], []
    for message in messages:
        if message["role"] == "system":
            texts.append(message["content"])
        else:
            content = "\n\n".join([*texts, message["content"]])
            rest.append({"role": message["role"], "content": content})
            texts = []
    return rest
