"""Load a data set of questions: read, checked and split for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import checks
from llmkit.data.records.dataset import Labelled, ReadParts, check_known, finished
from llmkit.data.records.labels import each
from llmkit.data.records.parts import Part, filled, rows_of_files, rows_of_parts, training_sources
from llmkit.data.records.questions import (
    ANSWERED,
    NO_TEXT,
    UNANSWERED,
    Answer,
    Answers,
    QuestionRow,
    QuestionTable,
    reader,
    resolve_question_columns,
)
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError
from llmkit.progress import Say, Watch


@dataclass
class QuestionPart(Part):
    """The usable questions of one key: the texts of their answers as `raws`."""

    starts: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, row: QuestionRow) -> None:
        """Adds a usable question."""
        super().add(row)
        self.starts.append(row.starts)

    def table(self, known: Answers) -> QuestionTable:
        """The usable questions as a table."""
        answers = [
            () if raw == NO_TEXT else tuple(map(Answer, starts, each(raw)))
            for raw, starts in zip(self.raws, self.starts, strict=True)
        ]
        return QuestionTable(self.texts, answers, known, self.places)


def load_questions(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Labelled[QuestionTable, Answers]:
    """Read, check and split all questions of a config; questions on one context stay together.

    Raises the errors of reading, and DataError for answers that are not in their context
    unless `data.allow` has `bad_answers`.
    """
    data = resolve_question_columns(training_sources(sources)["train"], config.data, say)
    rows = rows_of_parts(sources, data, reader(data), watch, say)
    parts = {name: filled(QuestionPart(name), each) for name, each in rows.items()}
    found = Counter(raw == NO_TEXT for raw in parts["train"].raws)
    known = Answers((ANSWERED, UNANSWERED) if found[True] else (ANSWERED,))
    columns = {"text": data.text_column, "label": data.label_column}
    read = ReadParts(data, parts, known, columns, list(checks.faults(parts, known, False)))
    read.refuse()
    for part in parts.values():
        checks.check_rows(part)
        part.seen = as_seen(part.texts, tokenizer)
    if not found[False]:
        raise DataError(
            "no question of data.train_files has an answer: there is nothing to learn",
            where=parts["train"].places[0][0],
            next="add questions with answers; or is data.label_column right?",
        )
    made = {name: part.table(known) for name, part in parts.items()}
    loaded = finished(read, made, config.seed, tokenizer, warn)
    if UNANSWERED not in known.classes and any(() in table.answers for table in made.values()):
        warn("no training question is without answer, so the model always gives one")
    contexts = loaded.train.counts()["contexts"]
    return replace(loaded, report={**loaded.report, "contexts": contexts})


def load_known_questions(
    found: Sequence[Source], data: DataConfig, name: str, known: Answers, watch: Watch, warn: Say
) -> QuestionTable:
    """The questions of a part, such as `test`, for a trained model; columns are resolved."""
    part = filled(QuestionPart(name), rows_of_files(name, found, reader(data), watch))
    check_known(part, known, data, warn)
    return part.table(known)
