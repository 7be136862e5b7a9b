"""What masking must know of a vocabulary: which tokens are special, and where words
begin and end."""

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


def word_edges(tokenizer: PreTrainedTokenizerFast) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[ids] each: whether a token can continue the word before it, and whether it closes its own.

    WordPiece says so itself (`##`), and so do vocabularies that mark the ends of words (`</w>`). Of
    any other, a token continues a word when it begins with a letter or a digit, or in the middle of
    one, and closes it with white space behind it; so white space and punctuation begin words, and
    so does each letter of a script that is written without spaces (CJK).
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    n = max_id(tokenizer) + 1
    continues, closes = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    for token, number in tokenizer.get_vocab().items():
        if prefix:
            continues[number] = token.startswith(prefix)
        elif suffix:
            continues[number], closes[number] = True, token.endswith(suffix)
        else:
            text = token.replace("▁", " ").encode()
            if byte_level:
                text = bytes(_BYTES.get(letter, 32) for letter in token)
            continues[number] = _inside(text)
            closes[number] = text[-1:].isspace() and not text.isspace()
    return continues, closes


def _inside(text: bytes) -> bool:
    """Whether UTF-8 that may begin and end in the middle of a letter would not begin a word."""
    if not text:
        return False
    if 0x80 <= text[0] < 0xC0:
        return True
    first = text.decode(errors="ignore")[:1]
    if first and first.encode()[0] == text[0]:
        return first.isalnum() and unicodedata.east_asian_width(first) not in "WF"
    # A letter in two bytes is most likely one of an alphabet, in three one of CJK.
    return text[0] < 0xE0
