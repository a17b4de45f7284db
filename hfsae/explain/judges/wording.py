"""A question as token ids of a local model."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .base import Question

_HEADINGS = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Wording:
    """Messages and texts to ids: by the tokenizer's chat template where it has one, else as plain
    text with headings.

    Text is data: a special token that is spelled out in it becomes ordinary tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        added = self.tokenizer.added_tokens_decoder.values()
        spelled = {str(token) for token in added if token.special}
        self._special = sorted(spelled | {*self.tokenizer.all_special_tokens})

    def prompt(self, question: Question) -> list[int]:
        """The ids of a question, up to the answer."""
        messages = [{"role": r, "content": self._data(t)} for r, t in question.messages]
        if not self.tokenizer.chat_template:
            blocks = [_HEADINGS.get(m["role"], "") + m["content"] for m in messages]
            return self._begun("\n\n".join([*blocks, _HEADINGS["assistant"].strip()]))
        try:
            written = self._chat(messages)
        except (TemplateError, ValueError):  # some know no system message
            written = self._chat(_without_system(messages))
        return self._ids(written)

    def choice(self, text: str) -> list[int]:
        """The ids of an answer."""
        return self._ids(text if self.tokenizer.chat_template else f" {text}")

    def context(self, text: str) -> list[int]:
        """The ids of a text's beginning, never none."""
        return self._begun(self._data(text))

    def text(self, text: str) -> list[int]:
        """The ids of a text that goes on."""
        return self._ids(self._data(text))

    def _begun(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        first = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        return ids or [next(i for i in first if i is not None)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )

    def _data(self, text: str) -> str:
        for token in self._special:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


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
