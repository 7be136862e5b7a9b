"""What a model learns responses from, and what it begins as: checked before weights are touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data import chats, look, packs, responses
from llmkit.data.chats import Chats
from llmkit.data.conversations import Conversation
from llmkit.data.packs import Packs
from llmkit.data.parts import many, told
from llmkit.data.responses import Responses
from llmkit.data.sources import Sources
from llmkit.errors import ConfigError, DataError
from llmkit.models import chat_template, load, lora, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.chat_template import Template
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import open_model
from llmkit.progress import Watch
from llmkit.reporting.console import Console
from llmkit.training.checkpoint import Checkpoint
from llmkit.training.tasks import defaults

LENGTH = 2048
"""Most tokens of a conversation where the model sets no limit."""

ROW, ROWS = 512, 40
"""Most tokens of a packed row where no conversation is longer, and rows that a small data set makes
at least, so that it has steps enough."""


@dataclass(frozen=True)
class Inputs:
    """All that a run needs but weights, checked."""

    config: Config
    """With the columns, the lengths and what `auto` of training comes to spelled out."""
    data: Chats
    tokenizer: PreTrainedTokenizerFast
    template: Template
    shape: PretrainedConfig
    encoded: dict[str, Responses]
    """`train`, and `validation` if there is any."""
    packs: dict[str, Packs]
    """The same in rows."""

    @property
    def content(self) -> dict[str, str]:
        """Content hashes by what they are of."""
        return {f"{name} data": each.fingerprint for name, each in self.encoded.items()}


def gather(config: Config, sources: Sources, console: Console, watch: Watch) -> Inputs:
    """The conversations, the tokenizer with its template and the shape of the model: all that can
    be wrong before weights are loaded."""
    model = pretrained.of_config(config)
    assert model is not None
    model.check_causal()
    shape, tokenizer = model.config, model.tokenizer
    tokenizers.check_fit(tokenizer, shape, config)
    template, said = chat_template.set_template(tokenizer, config.tokenizer.chat_template)
    template = replace(template, tokenizer=tokenizer_saving.kept(tokenizer, shape))
    data = chats.load_conversations(config, sources, watch, console.say, console.warn, tokenizer)
    console.say(said)
    rows = (each.contents for each in (*data.train, *data.validation))
    if found := control_tokens(tokenizer).warning(rows, "row"):
        console.warn(found)
    length = _max_length(config, shape)
    parts = {"train": data.train, "validation": data.validation}
    encoded = {
        name: _encoded(some, template, length, watch) for name, some in parts.items() if some
    }
    _report(data, encoded, console)
    if config.evaluation.responses and "validation" not in encoded:
        raise ConfigError(
            "there are no held-out prompts to answer",
            where="evaluation.responses",
            next="give data.validation_files, or leave out data.validation_fraction=0",
        )
    wish = config.data.block_size
    width = _width(encoded, shape) if wish == "auto" else wish
    settled = data.data.model_copy(update={"max_length": length, "block_size": width})
    config = config.model_copy(update={"data": settled})
    return _arranged(Inputs(config, data, template.tokenizer, template, shape, encoded, {}), width)


def unpacked(inputs: Inputs, requested: Config) -> Inputs:
    """The same with a row for each conversation, for a model that cannot keep them apart."""
    config = inputs.config.model_copy(update={"train": requested.train})
    return _arranged(replace(inputs, config=config), None)


def begin(inputs: Inputs, resumed: Checkpoint | None, console: Console) -> PreTrainedModel:
    """The model with the weights that the run starts or resumes with, which ends a text as the
    template ends a response."""
    config = inputs.config
    with_lora = config.model.lora.r is not None
    if resumed is not None and not with_lora:
        model = load.load_model(open_model(str(resumed.directory)))
    else:
        assert config.model.name_or_path is not None
        name, revision = config.model.name_or_path, config.model.revision
        model = load.load_model(open_model(name, revision), say=console.warn)
    own = model.generation_config.eos_token_id
    ends = own if isinstance(own, list) else [] if own is None else [own]
    model.generation_config.eos_token_id = list(dict.fromkeys([*ends, inputs.template.end_id]))
    if with_lora:
        lora.attach(model, config.model.lora, config.seed)
        if resumed is not None:
            lora.restore(model, resumed.directory)
    return model


def _limit(shape: PretrainedConfig) -> int:
    return int(getattr(shape.get_text_config(), "max_position_embeddings", None) or LENGTH)


def _max_length(config: Config, shape: PretrainedConfig) -> int:
    """Tokens to which conversations are cut: what the model takes, and a row."""
    data, limit = config.data, _limit(shape)
    for key, wish in (("max_length", data.max_length), ("block_size", data.block_size)):
        if wish != "auto" and wish > limit:
            raise ConfigError(
                f"{wish} tokens are more than the model's {limit} positions",
                where=f"data.{key}",
                next=f"write data.{key}={limit} or less",
            )
    row = limit if data.block_size == "auto" else data.block_size
    length = row if data.max_length == "auto" else data.max_length
    if length > row:
        raise ConfigError(
            f"conversations of {length} tokens do not fit into rows of {row}",
            where="data.max_length, data.block_size",
            next=f"write data.block_size={length}, or leave it out",
        )
    return length


def _width(encoded: dict[str, Responses], shape: PretrainedConfig) -> int:
    """Tokens of a packed row: no conversation is cut for it."""
    longest = max(int(each.lengths.max()) for each in encoded.values())
    return max(longest, min(ROW, _limit(shape), len(encoded["train"].ids) // ROWS))


def _encoded(
    some: Sequence[Conversation], template: Template, length: int, watch: Watch
) -> Responses:
    parted, rows = [], []
    for row, each in enumerate(some):
        messages = [message._asdict() for message in each.messages]
        texts = template.examples(messages, f"{each.path} row {each.number}")
        parted += texts
        rows += [row] * len(texts)
    with watch("tokenizing", len(parted)) as advance:
        return responses.encode(template.tokenizer, parted, length, rows, advance)


def _report(data: Chats, encoded: dict[str, Responses], console: Console) -> None:
    """Adds to the look at the data what became of it as tokens; raises DataError where nothing is
    left to learn."""
    rows: list[dict[str, Any]] = []
    for name, some in (("train", data.train), ("validation", data.validation)):
        if not some:
            continue
        each = encoded[name]
        places = [(some[row].path, some[row].number) for row in each.left_out]
        rows += [{"split": name, **look.place_of(place)} for place in places]
        if places:
            what = f"{many(len(places), 'row')} whose whole response is behind the cut"
            if not len(each):
                raise DataError(
                    f"all {what} after {each.max_length} tokens: nothing is left for {name}",
                    where=told(places),
                    next="raise data.max_length, or shorten the prompts",
                )
            console.warn(f"{what} after {each.max_length} tokens, left out: {told(places)}")
        if cut := int((each.uncut > each.max_length).sum()) - len(places):
            share = cut / len(each.uncut)
            console.warn(
                f"{many(cut, 'row')} of {name} ({share:.1%}) lose their end after "
                f"{each.max_length} tokens"
            )
    data.report["left_out"] = look.finding(rows)
    data.report["lengths"] = {name: each.report() for name, each in encoded.items()}


def _arranged(inputs: Inputs, width: int | None) -> Inputs:
    """The same in rows of this width, or in one for each conversation, and with what `auto` of
    training comes to for them."""
    pad = inputs.template.end_id  # never scored nor attended to
    rows = {
        name: packs.alone(each, pad) if width is None else packs.packed(each, width, pad)
        for name, each in inputs.encoded.items()
    }
    config, hidden = inputs.config, int(inputs.shape.get_text_config().hidden_size)
    train = defaults.completing(
        config.train,
        len(rows["train"]),
        int(rows["train"].lengths.mean()) if width is None else width,
        hidden,
        config.model.lora.r is not None,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    defaults.check_best(train, jobs.RESPONSE_METRICS, validated="validation" in rows)
    return replace(inputs, config=config.model_copy(update={"train": train}), packs=rows)
