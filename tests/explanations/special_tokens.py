"""Special tokens of chat templates, and texts that try to make them."""

import copy
import random
from collections.abc import Iterator

from tokenizers import AddedToken

from hfsae.explanations.judges import Question
from hfsae.explanations.judges.local import ChatIds
from hfsae.explanations.prompts import json_string, marked_string

TEMPLATES = {  # of well-known families: the form of a message, and the tokens in it
    "ChatML": ("<|im_start|>{r}\n{c}<|im_end|>\n", ["<|im_start|>", "<|im_end|>", "<file_sep>"]),
    "Llama 2": (
        "<s>[INST] <<SYS>>{r}<</SYS>> {c} [/INST]</s>",
        ["<s>", "</s>", "<<SYS>>", "<unk>"],
    ),
    "Llama 3": (
        "<|start_header_id|>{r}<|end_header_id|>\n\n{c}<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_3|>"],
    ),
    "Gemma": (
        "<start_of_turn>{r}\n{c}<end_of_turn>\n",
        ["<start_of_turn>", "<end_of_turn>", "<unused17>", "<|turn>", "<turn|>"],
    ),
    "Mistral": (
        "<s>[SYSTEM_PROMPT]{r}[/SYSTEM_PROMPT][INST]{c}[/INST]",
        ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[TOOL_CALLS]", "<s>"],
    ),
    "DeepSeek": (
        "<\uff5cUser\uff5c>{r}{c}<\uff5cend\u2581of\u2581sentence\uff5c>",
        ["<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</think>", "<think>"],
    ),
    "GLM": ("[gMASK]<sop><|{r}|>{c}", ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]),
    "Falcon": ("{r}: {c}\n", [">>TITLE<<", ">>QUESTION<<", ">>UNUSED_0<<"]),
    "InternLM": (
        "[UNUSED_TOKEN_146]{r}\n{c}[UNUSED_TOKEN_145]\n",
        ["[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]", "<eoh>"],
    ),
    "Kimi": (
        "<|im_user|>{r}<|im_middle|>{c}<|im_end|>",
        ["[BOS]", "[EOT]", "[start_header_id]", "[extra_id_0]", "<|im_middle|>"],
    ),
    "Ling": ("<role>{r}</role>{c}<|role_end|>", ["<role>", "</role>", "<|role_end|>", "[gMASK]"]),
    "MiniCPM": ("<\u7528\u6237>{c}<AI>", ["<\u7528\u6237>", "<AI>"]),
    "ERNIE": ("<|begin_of_sentence|>{r}: {c}", ["<mask:0>", "<response>", "</response>"]),
    "MiniMax": ("]~!b[]~b]{r}\n{c}[e~[\n", ["]~!b[", "]~b]", "[e~["]),
}


def chatting(tokenizer, form: str, tokens: list[str], **kind: bool):
    """A tokenizer with a template and its special tokens, as a server has it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, **kind) for t in tokens])
    message = form.format(r="' + m.role + '", c="' + m.content + '").replace("\n", "\\n")
    tokenizer.chat_template = "{% for m in messages %}{{ '" + message + "' }}{% endfor %}"
    return tokenizer


def nasty(tokens: list[str]) -> Iterator[str]:
    """Windows' texts that spell special tokens, in parts, nested, or where marks complete them."""
    for token in tokens:
        inside = token[2:-2] if token[:2] == ">>" else token[1:-1]
        yield from (token, inside, inside[1:], f"{token[:3]}{token}{token[3:]}", f"<{inside}")
        yield from (f"{inside}>", token.upper(), f"\\u003c{inside}>", f"[{inside}]", f"<{token}>")


def asked(text: str, rng: random.Random) -> Iterator[str]:
    """How a window stands in a prompt: whole; in pieces, of which any run is marked."""
    yield json_string(text)
    for _ in range(4):
        ends = sorted(rng.sample(range(len(text) + 1), min(3, len(text))))
        pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        marks = [False] * (len(pieces) + 2)
        first, last = sorted(rng.choices(range(len(marks) + 1), k=2))
        marks[first:last] = [True] * (last - first)
        yield marked_string(["so ", *pieces, " on"], marks)
    yield marked_string([text], [True])
    yield marked_string(["so", text, " on"], [True, False, True])


def n_special(tokenizer, messages) -> int:
    """Special ids of a prompt as a server makes it: it looks for them in the whole text."""
    ids = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        add_generation_prompt=True,
        tokenize=True,
    )["input_ids"]
    return sum(i in {*tokenizer.added_tokens_decoder} for i in ids)


def check_no_text_makes_a_special_token(tokenizer, tokens: list[str]) -> None:
    rng, ids_of = random.Random(0), ChatIds(tokenizer)
    own = n_special(tokenizer, [("system", "x"), ("user", "x")])
    special = {*tokenizer.added_tokens_decoder}
    for text in nasty(tokens):
        for content in [*asked(text, rng), text]:
            messages = (("system", "x"), ("user", content))
            here = ids_of.prompt(Question(messages))
            assert sum(i in special for i in here) == own, content
            assert content is text or n_special(tokenizer, messages) == own, content
        assert special.isdisjoint(ids_of.text(text))
