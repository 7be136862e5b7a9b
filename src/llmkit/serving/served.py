"""The models that a server offers, by name, before their weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.config.schema import Config
from llmkit.config.types import name_and_model
from llmkit.distributed.launcher import n_processes
from llmkit.errors import ConfigError, DataError, UsageError
from llmkit.inference import encoder_decoder
from llmkit.inference.labels import answer, classify, tag
from llmkit.models import pretrained
from llmkit.models.classifier import head_of, remembered
from llmkit.models.pretrained import ModelKind, Pretrained

_TASKS: Mapping[ModelKind, str] = {
    "classifier": "classification",
    "tagger": "tagging",
    "answerer": "question_answering",
    "encoder-decoder": "sequence_to_sequence",
}


@dataclass(frozen=True)
class ServedModel:
    """A model without its weights, and the name that requests call it by."""

    name: str
    opened: Pretrained

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it gives; none for a model that writes texts."""
        if self.opened.kind == "answerer":
            return answer.known_answers(self.opened.config).classes
        if self.opened.kind == "tagger":
            return tag.tag_set_of(self.opened.config).classes
        return head_of(self.opened.config).names if self.opened.kind == "classifier" else ()

    @property
    def task(self) -> str:
        """What it does: `chat` (and completion), `completion`, `sequence_to_sequence`,
        `classification`, `tagging` or `question_answering`."""
        if (kind := self.opened.kind) in _TASKS:
            return _TASKS[kind]
        return "chat" if self.opened.tokenizer.chat_template else "completion"


def open_served(config: Config) -> list[ServedModel]:
    """The models of the config, each located and checked.

    Raises UsageError for a name that two models have, DataError for a model that can neither
    generate text nor label it, and the errors of `pretrained.open_model`.
    """
    found: dict[str, ServedModel] = {}
    for name, opened in _opened(config):
        if name in found:
            raise UsageError(
                f"two models have the name {name!r}: {found[name].opened.name} and {opened.name}",
                where="serve.models (--model)",
                next=f"give one another name: `--model NAME={opened.name}`",
            )
        _check_served(opened, config)
        found[name] = ServedModel(name, opened)
    _check_sharing(list(found.values()))
    return list(found.values())


def _check_sharing(several: Sequence[ServedModel]) -> None:
    """Raises ConfigError if there are several processes but not a single causal model that is split
    across them."""
    first = several[0].opened
    if n_processes() == 1 or (len(several) == 1 and first.is_divided and first.kind == "causal"):
        return
    raise ConfigError(
        f"{n_processes()} processes can serve only one causal model, split across them",
        where="model.tp_plan",
        next="write model.tp_plan=auto with one model, or start `llmkit serve` without a launcher",
    )


def _opened(config: Config) -> list[tuple[str, Pretrained]]:
    tokenizer = config.tokenizer.name_or_path
    pairs = [name_and_model(each) for each in config.serve.models]
    if pairs:
        models = [
            pretrained.divided(pretrained.open_model(model, None, tokenizer, True), config)
            for _, model in pairs
        ]
        return [
            (name or own_name(model.name), model)
            for (name, _), model in zip(pairs, models, strict=True)
        ]
    only = pretrained.to_use(config)
    if only is None:
        raise UsageError("no model is named", next="name one with --model")
    return [(own_name(only.name), only)]


def own_name(name_or_path: str) -> str:
    """The name of a model without another: that of its run or directory, or its hub name."""
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        return name_or_path
    path = path.resolve()
    return path.parent.name if path.name == "final" else path.name


def _check_served(opened: Pretrained, config: Config) -> None:
    if opened.kind == "masked":
        raise DataError(
            f"{opened.name} is a masked model, which neither continues text nor labels it",
            where="serve.models (--model)",
            next="serve a causal language model, a classifier or a tagger; `llmkit generate` fills "
            "masks, and `llmkit finetune` makes a classifier of it",
        )
    if opened.kind == "encoder-decoder":
        opened.check_purpose(opened.purpose)
        encoder_decoder.own_settings(opened)
        encoder_decoder.pair_tokenizer(opened, config.data)
    elif opened.kind == "answerer":
        answer.check_answerer(opened)
    elif opened.kind == "classifier":
        classify.check_classifier(opened)
    elif opened.kind == "tagger":
        _check_without_marks(opened)
    else:
        opened.check_causal()
    _check_tokenizer(opened)


def _check_without_marks(opened: Pretrained) -> None:
    """Raises DataError for a tagger whose tags are about a marked word of the text."""
    tag.check_tagger(opened)
    if remembered(opened.config, "mark_column"):
        raise DataError(
            f"{opened.name} tags words with respect to a marked word, which a request cannot mark",
            where="serve.models (--model)",
            next="use `llmkit predict` with the column of the marks",
        )


def _check_tokenizer(opened: Pretrained) -> None:
    """Raises DataError for a tokenizer with ids that the model has no embeddings for."""
    largest = max(opened.tokenizer.get_vocab().values())
    if largest >= opened.vocab_size:
        raise DataError(
            f"the tokenizer of {opened.name} has ids up to {largest}, but the model has "
            f"{opened.vocab_size} embeddings",
            where="serve.models (--model)",
            next="use the tokenizer that belongs to the model",
        )
