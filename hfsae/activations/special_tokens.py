"""Which tokens are special: BOS and the like, and chat roles, which have no name of their own."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_added: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, frozenset[int]]] = WeakKeyDictionary()
"""by tokenizer its length, and its tokens added as special"""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokenizer's special tokens, and of tokens added as special."""
    return sorted({*tokenizer.all_special_ids, *_added_as_special(tokenizer)})


def special_among(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> set[int]:
    """Those of some ids that are special: quicker than all of them, for each of many texts."""
    named, added = {*tokenizer.all_special_ids}, _added_as_special(tokenizer)
    return {id_ for id_ in ids if id_ in named or id_ in added}


def _added_as_special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Listed once, as Gemma's tokenizer takes milliseconds to list its 6,384 added tokens."""
    n, known = len(tokenizer), _added.get(tokenizer)
    if known is None or known[0] != n:
        listed = tokenizer.added_tokens_decoder
        known = n, frozenset(id_ for id_, token in listed.items() if token.special)
        _added[tokenizer] = known
    return known[1]
