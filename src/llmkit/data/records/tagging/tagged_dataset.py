"""Load a data set of tagged words: read, checked and split for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.examples.tagged import TaggedTable
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records import checks, labels
from llmkit.data.records.dataset import Labelled, ReadParts, check_known, finished
from llmkit.data.records.parts import (
    Part,
    Place,
    Read,
    RowProblem,
    filled,
    format_places,
    rows_of_files,
    rows_of_parts,
    training_sources,
)
from llmkit.data.records.tagging import tags
from llmkit.data.records.tagging.tagged import TaggedRow, read_tagged, resolve_tagged_columns
from llmkit.data.records.tagging.tags import BIO, TagSet
from llmkit.data.records.tagging.words import WordSpans
from llmkit.data.text.fingerprints import as_seen
from llmkit.errors import DataError
from llmkit.progress import Say, Watch
from llmkit.reporting.format import many


@dataclass
class TaggedPart(Part):
    """The usable rows of one key: their texts as the model reads them, their tags as `raws`."""

    words: list[WordSpans] = field(default_factory=list)
    sources: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    """[rows], where a row is, and the line of each word of a CoNLL file."""
    widened: list[Place] = field(default_factory=list)
    """Rows with spans that were widened to whole words."""

    def add(self, row: TaggedRow) -> None:
        """Adds a usable row as the model reads it."""
        assert row.tags is not None
        text, words = row.read()
        self.texts.append((text,))
        self.words.append(words)
        self.raws.append(tuple(str(self.interned.setdefault(tag, tag)) for tag in row.tags))
        self.places.append((row.path, row.number))
        self.sources.append((row.where, row.lines))
        if row.n_widened:
            self.widened.append(self.places[-1])

    def refuse(self, faults: Mapping[int, tuple[int, str]]) -> None:
        """Moves rows, given by their index, to the problems, each for a tag that is given by its
        word and a reason."""
        for row, (word, reason) in faults.items():
            (where, lines), place = self.sources[row], self.places[row]
            at = f"{place[0]}:{lines[word]}" if len(lines) else f"{where} word {word + 1}"
            self.problems.append(RowProblem("bad_tags", reason, at, place))
        kept = [row not in faults for row in range(len(self.raws))]
        self.texts, self.raws = list(compress(self.texts, kept)), list(compress(self.raws, kept))
        self.places = list(compress(self.places, kept))
        self.words = list(compress(self.words, kept))
        self.sources = list(compress(self.sources, kept))


def _reader(data: DataConfig) -> Read[TaggedRow]:
    return lambda found, advance, counts: read_tagged(found, data, advance=advance, counts=counts)


def load_tagged(
    config: Config,
    sources: Sources,
    watch: Watch,
    say: Say,
    warn: Say,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Labelled[TaggedTable, TagSet]:
    """Read, check and split all tagged words of a config.

    Guesses are reported, unusual rows raise warnings. Raises the errors of reading, and DataError
    for rows that cannot be used and are not allowed by `data.allow`.
    """
    found = training_sources(sources)
    data = resolve_tagged_columns(found["train"], config.data, say)
    rows = rows_of_parts(sources, data, _reader(data), watch, say)
    parts = {name: filled(TaggedPart(name), each) for name, each in rows.items()}
    known = _known(data, parts, say, warn)
    data = data.changed(tag_scheme=known.scheme)
    columns = {"text": data.text_column, "label": data.label_column}
    columns |= {} if data.mark_column is None else {"mark": data.mark_column}
    faults = list(checks.faults(parts, known, splitting=False))
    read = ReadParts(data, parts, known, columns, faults)
    read.refuse()
    _check_tags(parts["train"], known)
    for part in parts.values():
        checks.check_rows(part)
        part.seen = as_seen(part.texts, tokenizer)
        for sentence in _about_spans(part):
            warn(sentence)
    tables = {name: tagged_table(part, known) for name, part in parts.items()}
    loaded = finished(read, tables, config.seed, tokenizer, warn)
    words = sum(len(words) for words in parts["train"].words)
    report = {**loaded.report, "tag_scheme": known.scheme, "words": words}
    return replace(loaded, report=report)


def load_known_tags(
    found: Sequence[Source], data: DataConfig, name: str, known: TagSet, watch: Watch, warn: Say
) -> TaggedTable:
    """The rows of a part, such as `test`, with the tags of a trained model; columns are resolved.

    Raises the errors of reading, and DataError for rows that cannot be used, or whose tags are
    unknown, unless `data.allow` names the problem; such rows are skipped with a warning.
    """
    part = filled(TaggedPart(name), rows_of_files(name, found, _reader(data), watch))
    _follow_scheme(part, known, warn)
    check_known(part, known, data, warn)
    return tagged_table(part, known)


def tagged_table(part: TaggedPart, known: TagSet) -> TaggedTable:
    """The rows of a part with known tags, as a table; raises DataError if there are none."""
    rows = [row for row, raw in enumerate(part.raws) if not known.unknown(raw)]
    if not rows:
        raise DataError(f"no row of {part.key} has only known tags", where=part.key)
    return TaggedTable(
        [part.texts[row] for row in rows],
        [part.words[row] for row in rows],
        tags.flat_tags(known, (labels.each(part.raws[row]) for row in rows)),
        known,
        [part.places[row] for row in rows],
    )


def _known(data: DataConfig, parts: Mapping[str, TaggedPart], say: Say, warn: Say) -> TagSet:
    """The tags of the training rows; rows of all parts that do not follow their scheme become
    problems."""
    train = parts["train"]
    counts = Counter(tag for raw in train.raws for tag in labels.each(raw))
    if data.label_names is not None:
        names = labels.names_of_file(data, data.label_names)
        known = TagSet(_scheme(data, names), names, from_file=True)
    else:
        if counts and all(tag.isdigit() for tag in counts):
            warn("tags are numbers; data.label_names=FILE gives their names")
        scheme = _scheme(data, list(counts))
        known = tags.tag_set(scheme, counts)
    for part in parts.values():
        _follow_scheme(part, known, say)
    return known


def _scheme(data: DataConfig, names: Sequence[str]) -> str:
    return tags.scheme_of(names) if data.tag_scheme == "auto" else data.tag_scheme


def _follow_scheme(part: TaggedPart, known: TagSet, say: Say) -> None:
    """Names numbered tags, reads IOB1 as BIO, and moves rows whose tags do not follow the scheme
    to the problems."""
    if known.from_file:
        part.raws = [tuple(map(known.name, labels.each(raw))) for raw in part.raws]
    if known.scheme == BIO and tags.is_iob1(map(labels.each, part.raws)):
        say(f"the tags of {part.key} are IOB1, where B- only separates entities: read as BIO")
        part.raws = [tags.iob1_as_bio(labels.each(raw)) for raw in part.raws]
    if known.has_entities:
        found = {row: tags.tag_fault(known.scheme, labels.each(raw))
                 for row, raw in enumerate(part.raws)}  # fmt: skip
        part.refuse({row: fault for row, fault in found.items() if fault})


def _check_tags(train: TaggedPart, known: TagSet) -> None:
    """Raises DataError if the training rows have no entity, or words with only one tag."""
    if not train.raws:
        return
    present = {name for raw in set(train.raws) for name in known.present(raw)}
    if known.has_entities and not present:
        problem = f"no row of {train.key} has an entity"
    elif not known.has_entities and len(present) < 2:
        problem = f"every word of {train.key} has the tag {next(iter(present), '')!r}"
    else:
        return
    raise DataError(
        f"{problem}: there is nothing to learn",
        where=train.places[0][0],
        next="add rows of other tags; or is data.label_column right?",
    )


def _about_spans(part: TaggedPart) -> Iterator[str]:
    if part.widened:
        rows = many(len(part.widened), "row")
        yield (
            f"{rows} of {part.key} with a span that ends inside a word: widened to whole words "
            f"({format_places(part.widened)})"
        )
