"""What masking must know of a vocabulary: which tokens are special, and which continue a word."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmkit.models.tokenizer import max_id

_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """[ids], whether a token is special or is none at all."""
    special = np.ones(max_id(tokenizer) + 1, dtype=np.bool_)
    special[list(tokenizer.get_vocab().values())] = False
    special[tokenizer.all_special_ids] = True
    return special


def continuing_tokens(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """[ids], whether a token continues the word before it.

    WordPiece says so itself (`##`). Of any other vocabulary, a token continues a word when it
    begins with a letter or a digit, or in the middle of one; so white space and punctuation begin
    words, and so does each letter of a script that is written without spaces (CJK).
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    continues = np.zeros(max_id(tokenizer) + 1, dtype=np.bool_)
    prefix = model.get("continuing_subword_prefix")
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    for token, number in tokenizer.get_vocab().items():
        if prefix:
            continues[number] = token.startswith(prefix)
        elif byte_level:
            continues[number] = _inside_bytes(bytes(_BYTES.get(letter, 32) for letter in token))
        else:
            continues[number] = _inside(token)
    return continues


def _inside(text: str) -> bool:
    """Whether a text would not begin a word (`▁` is no letter)."""
    return text[:1].isalnum() and unicodedata.east_asian_width(text[0]) not in "WF"


def _inside_bytes(text: bytes) -> bool:
    """The same for UTF-8 that may begin and end in the middle of a letter."""
    if not text:
        return False
    if 0x80 <= text[0] < 0xC0:
        return True
    whole = text.decode(errors="ignore")
    if whole and whole[0].encode()[0] == text[0]:
        return _inside(whole)
    # A letter in two bytes is most likely one of an alphabet, in three one of CJK.
    return text[0] < 0xE0
