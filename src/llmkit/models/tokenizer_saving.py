"""Ensure that a saved tokenizer loads unchanged: what AutoTokenizer reads back is compared with the
tokenizer in memory.

transformers chooses the class of a tokenizer by the model type in the same directory, regardless of
the tokenizer's files; for some types that class has its own normalizer and rule for splitting
words.
"""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import llmkit.models.transformer  # noqa: F401 (registers our architecture)
from llmkit.errors import ConfigError

PROBE = (
    " The year 2024 had 365 days, 3.14159 and 1,000,000: I'm, you're, WE'LL, it's. \t\t\n\n\n   x  "
    "caf\u00e9 e\u0301cole n\u0303 \u0e01\u0e47 \u0939\u093f\u0928\u094d\u0926\u0940 \u1e9b\u0323 "
    "\ufb01 \u2460 \u4f60\u597d\uff0c\u4e16\u754c \u6625\u7720 \ud55c\uad6d \u3042 \U0001f642"
    "\U0001f469\u200d\U0001f4bb\u2764\ufe0f def f(x):\n\treturn x**2  # <b>!=</b>\r\n  end... "
    "\u00a0\u3000 a_b-c/d \\n {}[]()\"' \u2019s \u2014 \u201cyes\u201d"
)
"""Digits, contractions, runs of spaces, tabs and lines, combining marks, CJK, emoji, code."""

_MAX_TOKENS = 8192
"""Maximum number of tokens of the vocabulary whose text is compared too."""


def savable_tokenizer(
    tokenizer: PreTrainedTokenizerFast, model_config: PretrainedConfig
) -> PreTrainedTokenizerFast:
    """The tokenizer, or an equivalent one, that AutoTokenizer loads unchanged when it is saved
    beside a model of this config.

    Raises ConfigError if transformers would load either of them with differences.
    """
    expected = reading(tokenizer)
    back = read_back(tokenizer, model_config)
    if reading(back) == expected:
        return tokenizer
    plain = _plain(tokenizer)
    if reading(plain) == expected == reading(read_back(plain, model_config)):
        return plain
    raise ConfigError(
        f"transformers would load this tokenizer differently once it is saved: as the "
        f"{type(back).__name__} of {model_config.model_type} models, "
        f"with {_difference(expected, back)}",
        where=f"tokenizer {tokenizer.name_or_path or 'that was trained'}, model type "
        f"{model_config.model_type}",
        next="use a tokenizer that was made for this model type, or another model.architecture",
    )


def default_config(model_type: str | None) -> PretrainedConfig | None:
    """The default config of a model type; None for an unknown type or one without a default."""
    if model_type is None or model_type not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[model_type]()
    # A config may reject its own defaults with any error.
    except Exception:
        return None


def read_back(
    tokenizer: PreTrainedTokenizerFast, model_config: PretrainedConfig
) -> PreTrainedTokenizerFast:
    """Saves the tokenizer beside a config, and loads it with AutoTokenizer."""
    with tempfile.TemporaryDirectory() as directory:
        model_config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )


def reading(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """How a tokenizer reads the probe and its own vocabulary, and its other settings that saving
    must preserve."""
    ids = sorted(tokenizer.get_vocab().values())
    some = [[id] for id in ids[:: 1 + len(ids) // _MAX_TOKENS]]
    texts = [PROBE, "".join(tokenizer.backend_tokenizer.decode_batch(some))]
    return {
        "other ids": [tokenizer(text, verbose=False)["input_ids"] for text in texts],
        "other ids of pairs": tokenizer("a", PROBE, verbose=False)["input_ids"],
        "other special tokens": {
            name: tokenizer.convert_tokens_to_ids(str(token))
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
        "other added tokens": {
            id: (token.content, token.special)
            for id, token in tokenizer.added_tokens_decoder.items()
        },
        "another vocabulary": len(tokenizer),
        "other control tokens in text": tokenizer.split_special_tokens,
        "another chat template": tokenizer.chat_template,
        "padding on another side": tokenizer.padding_side,
        "truncation on another side": tokenizer.truncation_side,
        "another greatest length": tokenizer.model_max_length,
        "other inputs": list(tokenizer.model_input_names),
    }


def _difference(expected: dict[str, Any], back: PreTrainedTokenizerFast) -> str:
    """Lists what differs in the tokenizer that was read back."""
    found = reading(back)
    return " and ".join(name for name, value in expected.items() if found[name] != value)


def _plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer as a plain PreTrainedTokenizerFast."""
    special = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if name.endswith("_token") or name == "additional_special_tokens"
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        split_special_tokens=tokenizer.split_special_tokens,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **special,
    )
