"""A tokenizer as llama.cpp reads it: found by the structure of `tokenizer.json`, or refused.

llama.cpp splits text by a rule that a file only names, `tokenizer.ggml.pre`. A wrong name loads and
reads text as other tokens, without a word. So the name is given only to a tokenizer whose splitting
rule is that rule to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import Keys, TokenType
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmkit.errors import ConfigError
from llmkit.export.gguf.architectures import Metadata

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_SHORT}|{_LETTERS}|\p{{N}}|{_REST}": "qwen2",
}
"""llama.cpp's name of each pattern that splits text: of Llama 3, and of Qwen 2 and 3. Its rules for
GPT-4o's and Mistral NeMo's patterns split combining marks otherwise."""

BYTE_LEVEL, SINGLE_DIGITS = "gpt-2", "smollm"
"""llama.cpp's names of GPT-2's rule, and of the same with each digit apart."""

_WHOLE_WORDS = "llama-bpe"
"""The name with which llama.cpp takes a word that is a token, without merging."""

_SPECIAL = {
    "bos_token_id": Keys.Tokenizer.BOS_ID,
    "eos_token_id": Keys.Tokenizer.EOS_ID,
    "pad_token_id": Keys.Tokenizer.PAD_ID,
    "unk_token_id": Keys.Tokenizer.UNK_ID,
    "sep_token_id": Keys.Tokenizer.SEP_ID,
    "mask_token_id": Keys.Tokenizer.MASK_ID,
}


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer of llama.cpp."""

    pre: str
    """The name of the rule that splits text."""
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    special: Mapping[str, int]
    """The ids of special tokens, by llama.cpp's keys."""
    opens: bool
    """Whether the opening token is put before a text."""
    closes: bool
    chat_template: str | None
    normalizes: bool
    """Whether transformers brings text into the normal form NFC first; llama.cpp does not."""

    def metadata(self) -> Metadata:
        """The keys of the file."""
        found: Metadata = {
            Keys.Tokenizer.MODEL: "gpt2",
            Keys.Tokenizer.PRE: self.pre,
            Keys.Tokenizer.LIST: list(self.tokens),
            Keys.Tokenizer.TOKEN_TYPE: list(self.types),
            Keys.Tokenizer.MERGES: list(self.merges),
            Keys.Tokenizer.ADD_BOS: self.opens,
            Keys.Tokenizer.ADD_EOS: self.closes,
            **self.special,
        }
        if self.chat_template is not None:
            found[Keys.Tokenizer.CHAT_TEMPLATE] = self.chat_template
        return found


def vocabulary_of(
    tokenizer: PreTrainedTokenizerFast, size: int, end_ids: Sequence[int], name: str
) -> GgufVocabulary:
    """The tokenizer for a model with `size` embeddings, whose texts end with one of `end_ids`.

    Raises ConfigError for a tokenizer that llama.cpp cannot read texts with.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _splitting(backend["pre_tokenizer"])
    for fault in _faults(tokenizer, backend, pre, size):
        raise ConfigError(
            f"llama.cpp has no tokenizer like that of {name}: {fault}",
            where=f"{name} (tokenizer.json)",
            next="use `--format onnx` or `--format safetensors`, which keep tokenizer.json; "
            "`llmkit pretrain` without tokenizer.name_or_path trains one that llama.cpp has",
        )
    assert pre is not None
    tokens, types = _tokens(tokenizer, backend["added_tokens"], size)
    opens, closes = _frame(tokenizer) or (False, False)
    template = tokenizer.chat_template
    return GgufVocabulary(
        pre,
        tokens,
        types,
        [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["model"]["merges"]],
        _special_ids(tokenizer, end_ids),
        opens,
        closes,
        template if isinstance(template, str) else None,
        backend["normalizer"] is not None,
    )


def _splitting(pre_tokenizer: Any) -> str | None:
    """llama.cpp's name of the rule that splits text; None for a rule that it does not have."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    match steps[:-1]:
        case [] if last["use_regex"]:
            return BYTE_LEVEL
        case [{"type": "Digits", "individual_digits": True}] if last["use_regex"]:
            return SINGLE_DIGITS
        case [{"type": "Split", "behavior": "Isolated", "invert": False, "pattern": pattern}]:
            return None if last["use_regex"] else PATTERNS.get(pattern.get("Regex"))
    return None


def _faults(
    tokenizer: PreTrainedTokenizerFast, backend: Mapping[str, Any], pre: str | None, size: int
) -> Iterator[str]:
    model, normalizer = backend["model"], backend["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        yield f"it is not byte-level BPE, but {_kind(backend)}"
        return
    if normalizer not in (None, {"type": "NFC"}):
        yield f"it changes text before it reads it (normalizer {normalizer['type']})"
    if pre is None:
        yield f"llama.cpp does not split text by its rule, {json.dumps(backend['pre_tokenizer'])}"
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "unk_token"):
        if model.get(setting):
            yield f"{setting} is {model[setting]!r}"
    if not model["merges"]:
        yield "it has no merges, and GGUF has no empty lists"
    if missing := set(bytes_to_unicode().values()) - model["vocab"].keys():
        yield f"{len(missing)} of the 256 bytes are not tokens"
    for token in backend["added_tokens"]:
        marks = [name for name in ("single_word", "lstrip", "rstrip") if token[name]]
        yield from (f"its token {token['content']!r} has {mark}" for mark in marks)
    yield from _faults_of_ids(tokenizer, size)
    if pre is not None and bool(model.get("ignore_merges")) != (pre == _WHOLE_WORDS):
        yield from _unmerged(model, {token["content"] for token in backend["added_tokens"]})


def _faults_of_ids(tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[str]:
    if (largest := max(tokenizer.get_vocab().values())) >= size:
        yield f"it has ids up to {largest}, and the model has {size} embeddings"
    if tokenizer.eos_token_id is None:
        yield "it has no end-of-text token, and llama.cpp would take another"
    if _frame(tokenizer) is None:
        yield "it adds other tokens to a text than one at the beginning and one at the end"


def _kind(backend: Mapping[str, Any]) -> str:
    kind = str(backend["model"]["type"])
    return {"BPE": "a BPE of characters, as SentencePiece has"}.get(kind, kind)


def _unmerged(model: Mapping[str, Any], added: Collection[str]) -> Iterator[str]:
    """A fault where a word that is a token would be merged to other tokens: then it matters that
    llama.cpp looks for whole words first, or does not."""
    plain = Tokenizer(models.BPE(vocab=model["vocab"], merges=[_pair(m) for m in model["merges"]]))
    words = [word for word in model["vocab"] if word not in added]
    for word, found in zip(words, plain.encode_batch(words), strict=True):
        if found.ids != [model["vocab"][word]]:
            yield f"its token {word!r} is not what its merges make of that word"
            return


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _frame(tokenizer: PreTrainedTokenizerFast) -> tuple[bool, bool] | None:
    """Whether the tokenizer puts its opening token before a text, and its end behind; None if it
    adds anything else."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    for before in ([], [tokenizer.bos_token_id]):
        for after in ([], [tokenizer.eos_token_id]):
            if framed == [*before, *bare, *after]:
                return bool(before), bool(after)
    return None


def _tokens(
    tokenizer: PreTrainedTokenizerFast, added: Sequence[Mapping[str, Any]], size: int
) -> tuple[list[str], list[int]]:
    """The token of each id with its type; ids without a token get names such as `[PAD7]`."""
    known = {id: token for token, id in tokenizer.get_vocab().items()}
    kinds = {
        each["id"]: TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
        for each in added
    }
    tokens, types = [], []
    for id in range(size):
        tokens.append(known.get(id, f"[PAD{id}]"))
        types.append(kinds.get(id, TokenType.NORMAL) if id in known else TokenType.UNUSED)
    return tokens, [int(each) for each in types]


def _special_ids(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> dict[str, int]:
    found = {key: getattr(tokenizer, name) for name, key in _SPECIAL.items()}
    others = [id for id in end_ids if id != tokenizer.eos_token_id]
    # llama.cpp also ends a text at the end of a turn, of which a file states one
    found[Keys.Tokenizer.EOT_ID] = others[-1] if others else None
    return {key: int(id) for key, id in found.items() if id is not None}
