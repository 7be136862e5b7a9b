"""Load a pretrained tokenizer or train a new one; code that comes with a tokenizer never runs."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmkit.config.schema import Config
from llmkit.errors import DataError, HubUnreachable, InputNotFound, Unsafe
from llmkit.models import directory, hub
from llmkit.models.control_tokens import control_tokens
from llmkit.models.tokenizer_saving import PROBE, default_config, read_back, savable_tokenizer

END_OF_TEXT = "<|endoftext|>"
"""The only special token of a tokenizer for language models that is trained here."""

_VOCABULARIES = ((4_000_000, 2048), (20_000_000, 4096), (200_000_000, 8192))
_LARGEST_VOCABULARY = 32768
_BYTES_PER_TOKEN = 64  # less text than this for each token is too little to learn it from
_SMALLEST_VOCABULARY = 512

_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}

_PROBES = ("a", "A", "0", ".", "\u3002", "\u4e00")
"""Texts of which every tokenizer can encode at least one."""


@dataclass(frozen=True)
class Framing:
    """The ids around each document."""

    opening: int
    closing: int


def train_bpe(
    texts: Iterable[str], vocab_size: int, model_type: str | None = None
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the texts, the same for the same texts.

    Words are split by GPT-2's pattern, every text decodes to itself, and `<|endoftext|>` separates
    texts. If transformers loads tokenizers of `model_type` with another rule, that rule is used.
    `vocab_size` is a maximum: merges that occur only once are not learned. Raises ConfigError for a
    model type whose tokenizer cannot be saved.
    """
    return _train(_without_frame, [END_OF_TEXT], texts, vocab_size, model_type)


def train_bpe_with_frame(
    texts: Iterable[str], vocab_size: int, model_type: str | None = None
) -> PreTrainedTokenizerFast:
    """The same for a classifier: [CLS] opens each text, and [SEP] closes it and each text of a
    pair."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    return _train(_with_frame, special, texts, vocab_size, model_type)


def train_bpe_with_end(
    texts: Iterable[str], vocab_size: int, model_type: str | None = None, sentinels: int = 0
) -> PreTrainedTokenizerFast:
    """The same for an encoder-decoder model, whose decoder starts with <pad>."""
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(sentinels))]
    return _train(_with_end, special, texts, vocab_size, model_type)


def _with_end(backend: Tokenizer) -> PreTrainedTokenizerFast:
    end = ("</s>", backend.token_to_id("</s>"))
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [end])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _without_frame(backend: Tokenizer) -> PreTrainedTokenizerFast:
    # Padding is never scored nor attended to, so it can share a token.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _with_frame(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _train(
    wrap: Callable[[Tokenizer], PreTrainedTokenizerFast],
    special: list[str],
    texts: Iterable[str],
    vocab_size: int,
    model_type: str | None,
) -> PreTrainedTokenizerFast:
    """A tokenizer that transformers loads unchanged when it is saved beside a model of this
    type."""
    model_config = default_config(model_type)
    if model_config is None:
        return wrap(_byte_level_bpe(texts, vocab_size, special))
    first = wrap(_byte_level_bpe([PROBE] * 2, 2048, special))
    back = read_back(first, model_config)
    if back(PROBE)["input_ids"] == first(PROBE)["input_ids"]:
        return savable_tokenizer(wrap(_byte_level_bpe(texts, vocab_size, special)), model_config)
    made = wrap(_byte_level_bpe(texts, vocab_size, special, back.backend_tokenizer))
    return savable_tokenizer(read_back(made, model_config), model_config)


def _byte_level_bpe(
    texts: Iterable[str], vocab_size: int, special: list[str], like: Tokenizer | None = None
) -> Tokenizer:
    """BPE on bytes, with words split by GPT-2's pattern or like another tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if like is not None:
        backend.pre_tokenizer = like.pre_tokenizer
        if like.normalizer is not None:
            backend.normalizer = like.normalizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def auto_vocab_size(n_bytes: int) -> int:
    """The vocabulary size for this much training text: it grows with the text up to a maximum."""
    for limit, size in _VOCABULARIES:
        if n_bytes < limit:
            return min(size, max(_SMALLEST_VOCABULARY, n_bytes // _BYTES_PER_TOKEN))
    return _LARGEST_VOCABULARY


def load_tokenizer(
    name_or_path: str,
    revision: str | None = None,
    config: PretrainedConfig | None = None,
    slow: bool = False,
) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a directory, a run or a hub name; only an existing directory is local.

    `config` is that of the tokenizer's model, if it was loaded and checked. `slow` ones may be
    written in Python. Raises InputNotFound, HubUnreachable, Unsafe for one that would run code, and
    DataError for one without a fast implementation.
    """
    place = directory.locate_tokenizer(name_or_path)
    local = Path(place).is_dir()
    if local:
        _refuse_code(Path(place), ("tokenizer_config.json", *([] if config else ["config.json"])))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place,
            config=config,
            revision=revision,
            trust_remote_code=False,
            local_files_only=local or not hub.hub_answers(name_or_path, revision),
        )
    except BaseException as fault:  # the library may raise anything for a file it cannot read
        if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
            raise _translate_error(name_or_path, local, fault) from fault
        raise
    if not slow and not (isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.is_fast):
        raise DataError(
            f"{name_or_path} has a {type(tokenizer).__name__}, which has no fast implementation",
            where="tokenizer.name_or_path",
            next="use a tokenizer with a tokenizer.json",
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise DataError(
            f"model_max_length is {tokenizer.model_max_length!r}, not a number",
            where=f"{name_or_path} (tokenizer_config.json)",
            next="correct or remove it",
        )
    return tokenizer


def configured_tokenizer(config: Config) -> PreTrainedTokenizerFast | None:
    """The tokenizer that a config names; None without one."""
    name = config.tokenizer.name_or_path
    return None if name is None else load_tokenizer(name)


def framing(tokenizer: PreTrainedTokenizerFast) -> Framing:
    """The ids that open and close a document.

    The closing id is the end of sequence. The opening id is the last one that the tokenizer itself
    adds before every text, else the closing id. Raises DataError without an end-of-text token.
    """
    closing = tokenizer.eos_token_id
    if closing is None:
        raise DataError(
            "the tokenizer has no end-of-text token, which must separate documents",
            where="tokenizer.name_or_path",
            next="add eos_token to its tokenizer_config.json (often [SEP]), or use another",
        )
    before = opening(tokenizer)
    return Framing(before[-1] if before else closing, closing)


def opening(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids that the tokenizer itself adds before every text, without repeats in a row."""
    for probe in _PROBES:
        bare = tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
        framed = tokenizer(probe, verbose=False)["input_ids"]
        for place in range(len(framed) if bare else 0):
            if framed[place : place + len(bare)] == bare:
                return tuple(id for id, _ in groupby(framed[:place]))
    return ()


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast, text: str, split_special_tokens: bool = True
) -> tuple[int, ...]:
    """The ids of a text to continue: opened by the tokenizer as a document is, but not closed.

    Names of control tokens are text; without `split_special_tokens` they become the tokens, and an
    opening that the text already has is not repeated.
    """
    before = opening(tokenizer)
    if split_special_tokens:
        return (*before, *control_tokens(tokenizer).ids(text))
    ids = control_tokens(tokenizer).ids_of_rendered(text)
    return ids if before and ids[: len(before)] == before else (*before, *ids)


def set_frame(tokenizer: PreTrainedTokenizerFast) -> None:
    """Uses the separator, such as BERT's [SEP], as end of sequence if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token


def read_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes the tokenizer read names of control tokens as text, also after saving and loading."""
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256 of everything that determines the ids of a text."""
    frame = framing(tokenizer) if tokenizer.eos_token_id is not None else Framing(-1, -1)
    slow = None if tokenizer.is_fast else tokenizer.get_vocab()
    backend = slow or json.loads(tokenizer.backend_tokenizer.to_str())
    # Changed by calls and by saving; our encoding ignores both.
    backend |= {"truncation": None, "padding": None}
    text = json.dumps([backend, frame.opening, frame.closing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def max_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The highest id of the tokenizer: a model needs more embeddings than this."""
    return int(max(tokenizer.get_vocab().values()))


def special_ids(tokenizer: PreTrainedTokenizerFast, *names: str) -> dict[str, int]:
    """The ids of these special tokens, if the tokenizer has them."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return {name: number for name, number in ids.items() if number is not None}


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """bool [ids]: whether an id is special, or belongs to no token."""
    special = np.ones(max_id(tokenizer) + 1, dtype=np.bool_)
    special[list(tokenizer.get_vocab().values())] = False
    special[tokenizer.all_special_ids] = True
    return special


def word_edges(tokenizer: PreTrainedTokenizerFast) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """bool [ids] each: whether a token can continue the previous word, and whether it ends a word.

    WordPiece marks continuations (`##`), and some vocabularies mark the ends of words (`</w>`). In
    any other vocabulary, a token continues a word if it starts with a letter or digit, or in the
    middle of one, and ends a word if it ends with white space. So white space and punctuation start
    words, and so does each letter of a script that is written without spaces (CJK).
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
            continues[number] = _continues_word(text)
            closes[number] = text[-1:].isspace() and not text.isspace()
    return continues, closes


def check_fit(
    tokenizer: PreTrainedTokenizerFast, model_config: PretrainedConfig, config: Config
) -> None:
    """Raises DataError for a tokenizer with ids for which the model has no embedding."""
    embeddings = model_config.get_text_config().vocab_size
    if (largest := max_id(tokenizer)) >= embeddings:
        raise DataError(
            f"the tokenizer has ids up to {largest}, the model has {embeddings} embeddings",
            where=f"model {config.model.name_or_path or config.model.architecture}, "
            f"tokenizer {config.tokenizer.name_or_path}",
            next="use the model's own tokenizer: remove tokenizer.name_or_path",
        )


def _refuse_code(path: Path, names: Sequence[str]) -> None:
    for name in names:
        try:
            settings = json.loads((path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as fault:
            raise DataError(
                f"{path / name} is not JSON: {fault}", where=str(path / name)
            ) from fault
        code = settings.get("auto_map") if isinstance(settings, dict) else None
        if code and (name == "tokenizer_config.json" or "AutoTokenizer" in code):
            raise Unsafe(
                f"{path} has a tokenizer that would run its own code (`auto_map` in {name})",
                where=str(path / name),
                next="use a tokenizer that needs only tokenizer.json",
            )


def _translate_error(name: str, local: bool, fault: BaseException) -> Exception:
    """Our error for an error of the library."""
    text = " ".join(str(fault).split())
    where = "tokenizer.name_or_path"
    if "trust_remote_code" in text or "custom code" in text:
        return Unsafe(
            f"{name} has a tokenizer that would run its own code",
            where=where,
            next="use a tokenizer that needs only tokenizer.json",
        )
    if local:
        return DataError(
            f"cannot read a tokenizer from {name}: {text}",
            where=where,
            next="it needs tokenizer.json, or vocab.json with merges.txt, or vocab.txt",
        )
    if "is not a valid model identifier" in text or "404" in text:
        return InputNotFound(f"{name} is neither a directory nor on the hub", where=where)
    if isinstance(fault, OSError):
        return HubUnreachable(
            f"cannot download the tokenizer {name}: {text}",
            where=where,
            next="check the network, or use a local directory",
        )
    return DataError(f"cannot read the tokenizer {name}: {text}", where=where)


def _continues_word(text: bytes) -> bool:
    """Whether UTF-8, which may start or end inside a character, continues a word."""
    if not text:
        return False
    if 0x80 <= text[0] < 0xC0:
        return True
    first = text.decode(errors="ignore")[:1]
    if first and first.encode()[0] == text[0]:
        return first.isalnum() and unicodedata.east_asian_width(first) not in "WF"
    # A character of two bytes is most likely from an alphabet, one of three bytes from CJK.
    return text[0] < 0xE0
