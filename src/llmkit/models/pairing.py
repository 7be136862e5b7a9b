"""A model with a tokenizer that a config names: refused where ids would mean other tokens."""

from __future__ import annotations

from itertools import chain

from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.models import tokenizer as tokenizers
from llmkit.models.location import locate
from llmkit.models.tokenizer_saving import PROBE

_PROBES = (*PROBE.split(), PROBE, "Once upon a time there was. HELLO World 12345", "床前明月光")


def of_config(config: Config) -> PreTrainedTokenizerFast | None:
    """The tokenizer that a config names, or else the named model's own; None without either.

    Raises ConfigError for one that does not belong to the named model.
    """
    if (name := config.model.name_or_path) is not None:
        return of_model(name, config.model.revision, config.tokenizer.name_or_path)
    return tokenizers.named(config)


def of_model(name: str, revision: str | None, other: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, or the other one that is named for it; raises ConfigError where
    that does not belong to the model."""
    if other is None:
        return tokenizers.load(locate(name), revision)
    given = tokenizers.load(other)
    check_belongs(given, other, name, revision)
    return given


def check_belongs(
    given: PreTrainedTokenizerFast, other: str, name: str, revision: str | None
) -> None:
    """Raise ConfigError where a tokenizer gives text other ids than the model's own, or an id of
    the model's vocabulary to another token; tokens that it adds are no difference."""
    place = locate(name)
    try:
        own = tokenizers.load(place, revision)
    except (DataError, InputNotFound):  # the model comes without one
        return
    if difference := _differing(own, given):
        raise ConfigError(
            f"{other} is another tokenizer than that of {name}: {difference}, so the model would "
            "read other tokens than it was trained on",
            where="tokenizer.name_or_path",
            next="leave tokenizer.name_or_path out: the model's own tokenizer is used",
        )


def _differing(own: PreTrainedTokenizerFast, given: PreTrainedTokenizerFast) -> str:
    """In what two tokenizers differ; empty where one can stand for the other."""
    known = {id: token for token, id in own.get_vocab().items()}
    added = own.added_tokens_decoder.keys() | given.added_tokens_decoder.keys()
    tokens = given.get_vocab().items()
    moved = sum(id in known and known[id] != token for token, id in tokens if id not in added)
    if moved:
        return f"{moved:,} of {len(known):,} ids mean other tokens"
    ids = [
        [each.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES]
        for each in (own, given)
    ]
    if ids[0] == ids[1]:
        return ""
    several = len(set(chain(*ids[0])) ^ set(chain(*ids[1])))
    return f"it splits text otherwise ({several:,} tokens differ in a short probe)"
