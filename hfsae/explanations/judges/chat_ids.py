"""A question as token ids of a local model."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .base import Question

_HEADINGS = {"system": "", "user": "User: ", "assistant": "Assistant: "}


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
