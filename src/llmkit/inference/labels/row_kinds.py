"""How rows are read and labelled, by the kind of model: texts, sources, words or questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.pair_tokenizer import PairTokenizer
from llmkit.data.readers import roles
from llmkit.data.readers.files import Source
from llmkit.data.readers.tables import Table
from llmkit.data.records import labelled, questions
from llmkit.data.records.labelled import Row
from llmkit.data.records.parts import Counts
from llmkit.data.records.questions import QuestionRow
from llmkit.data.records.tagging import tagged
from llmkit.data.records.tagging.tagged import TaggedRow
from llmkit.distributed.processes import Processes
from llmkit.inference.encoder_decoder import TargetGenerator, first_texts, target_generator
from llmkit.inference.labels import answer, classify, tag
from llmkit.inference.labels.answer import Answerer
from llmkit.inference.labels.classify import Classifier
from llmkit.inference.labels.tag import Tagger
from llmkit.inference.requests import PromptRequest
from llmkit.models.classifier import head_of
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say
from llmkit.reporting.predictions import with_input_columns
from llmkit.storage import outputs


@dataclass(frozen=True)
class _Texts:
    """Texts, which a classifier labels."""

    opened: Pretrained

    @property
    def names(self) -> tuple[str, ...]:
        return head_of(self.opened.config).names

    def open(self, processes: Processes) -> Classifier:
        return classify.open_classifier(self.opened, processes.device, processes.precision)

    label: ClassVar[Any] = staticmethod(classify.classify_rows)

    def columns(self, found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
        return classify.resolve_columns(
            data,
            self.opened.config,
            lambda each: roles.resolve_label_columns(found, each, say, False),
        )

    def columns_of(self, table: Table, source: Source, data: DataConfig, say: Say) -> DataConfig:
        if table.format == "txt":
            classify.check_number_of_texts(self.opened.config, 0, str(source.path))
            return data.changed(text_column=0)
        return classify.resolve_columns(
            data,
            self.opened.config,
            lambda each: roles.resolve_by_table(each, table, source, say, False, False),
        )

    def read(
        self, found: Sequence[Source], data: DataConfig, advance: Callable[[int], None]
    ) -> Iterator[Row]:
        return labelled.read_rows(found, data, labelled=False, advance=advance)

    def rows_of(self, table: Table, data: DataConfig, name: str) -> Iterator[Row]:
        return labelled.rows_of(table, data, name, False, True, Counts())


@dataclass(frozen=True)
class WrittenPrediction:
    """The text that an encoder-decoder model writes for the source of a row."""

    text: str
    generated_text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    cells: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the input, as in `Prediction`."""

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        found = {"text": self.text, outputs.WRITTEN: self.generated_text}
        return {**found, "columns": dict(self.columns)} if self.columns else found

    def as_cells(self) -> dict[str, Any]:
        """The prediction as a table row, like that of `Prediction`: the input, then the text."""
        own = {outputs.WRITTEN: self.generated_text}
        return with_input_columns(dict(self.cells) or {**self.columns, "text": self.text}, own)

    @property
    def counted(self) -> None:
        """Nothing is counted of texts."""


@dataclass
class Translator:
    """An encoder-decoder model that writes a text for each row; processes share them."""

    generator: TargetGenerator
    precision: str
    seed: int
    truncated: int = 0
    """Number of sources that were cut."""

    @property
    def encoder(self) -> PairTokenizer:
        return self.generator.pairs


def _write_rows(
    model: Translator,
    windows: Iterable[Sequence[Row]],
    columns: Sequence[str],
    processes: Processes,
    advance: Callable[[float], None],
) -> Iterator[list[WrittenPrediction]]:
    """The texts for the rows in order, a window of rows at a time."""
    for window in windows:
        items = [PromptRequest(" ".join(row.texts), f"{row.path} row {row.number}")
                 for row in window]  # fmt: skip
        texts, cut = first_texts(model.generator, items, model.seed, processes=processes)
        model.truncated += cut
        yield [
            WrittenPrediction(item.prompt, text, *classify.repeated_columns(row, columns))
            for item, text, row in zip(items, texts, window, strict=True)
        ]
        advance(1.0)


@dataclass(frozen=True)
class _Sources(_Texts):
    """Source texts, for which an encoder-decoder model writes others."""

    config: Config

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def open(self, processes: Processes) -> Any:
        asked, device = self.config.predict.precision, processes.device
        precision = "fp32" if asked == "auto" and device.type == "cpu" else processes.precision
        config = self.config.changed(generation={"precision": precision})
        generator = target_generator(config, self.opened, device)
        return Translator(generator, precision, config.sampling_seed)

    label: ClassVar[Any] = staticmethod(_write_rows)


@dataclass(frozen=True)
class _Words:
    """Words of texts, which a tagger labels."""

    opened: Pretrained

    @property
    def names(self) -> tuple[str, ...]:
        return tag.tag_set_of(self.opened.config).classes

    def open(self, processes: Processes) -> Tagger:
        return tag.open_tagger(self.opened, processes.device, processes.precision)

    label: ClassVar[Any] = staticmethod(tag.tag_rows)

    def columns(self, found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
        return tag.resolve_columns_of(self.opened, found, data, say, labelled=False)

    def columns_of(self, table: Table, source: Source, data: DataConfig, say: Say) -> DataConfig:
        data = tag.with_remembered_columns(data, self.opened.config, table)
        return roles.resolve_tag_columns(table, str(source.path), data, say, labelled=False)

    def read(
        self, found: Sequence[Source], data: DataConfig, advance: Callable[[int], None]
    ) -> Iterator[TaggedRow]:
        return tagged.read_tagged(found, data, labelled=False, extra=True, advance=advance)

    def rows_of(self, table: Table, data: DataConfig, name: str) -> Iterator[TaggedRow]:
        return tagged.tagged_rows(table, data, name, False, True, Counts())


@dataclass(frozen=True)
class _Questions:
    """Questions with contexts, in which a model finds answers."""

    opened: Pretrained

    @property
    def names(self) -> tuple[str, ...]:
        return answer.known_answers(self.opened.config).classes

    def open(self, processes: Processes) -> Answerer:
        return answer.open_answerer(self.opened, processes.device, processes.precision)

    label: ClassVar[Any] = staticmethod(answer.answer_rows)

    def columns(self, found: Sequence[Source], data: DataConfig, say: Say) -> DataConfig:
        return questions.resolve_question_columns(found, data, say, labelled=False)

    def columns_of(self, table: Table, source: Source, data: DataConfig, say: Say) -> DataConfig:
        return roles.resolve_answer_columns(table, str(source.path), data, say, labelled=False)

    def read(
        self, found: Sequence[Source], data: DataConfig, advance: Callable[[int], None]
    ) -> Iterator[QuestionRow]:
        return questions.reader(data, labelled=False)(found, advance, Counts())

    def rows_of(self, table: Table, data: DataConfig, name: str) -> Iterator[QuestionRow]:
        return questions.question_rows(table, data, name, False, Counts())


RowKind = _Texts | _Words | _Questions
"""How rows are read and labelled for one kind of model."""


def row_kind_of(opened: Pretrained, config: Config) -> RowKind:
    """How rows are read and labelled for the model; raises DataError for another kind of model."""
    if opened.kind == "encoder-decoder":
        return _Sources(opened, config)
    if opened.kind == "tagger":
        return _Words(opened)
    if opened.kind == "answerer":
        return _Questions(opened)
    classify.check_classifier(opened)
    return _Texts(opened)
