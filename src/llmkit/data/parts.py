"""The labelled rows of one key in memory: those that can be used, and where the others are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmkit.config.schema import DataConfig
from llmkit.data import labelled
from llmkit.data.labelled import Counts
from llmkit.data.labels import Raw
from llmkit.data.sources import Source
from llmkit.data.splits import Texts, identity
from llmkit.progress import Watch

SHOWN = 20
"""Rows that a message or a finding lists; it counts all."""

Place = tuple[str, int]
"""A file, and a row of it, counted from 1."""


@dataclass
class Part:
    """The rows of one key: those that can be used, and where the others are."""

    name: str
    """`train`, `validation` or `test`."""
    texts: list[Texts] = field(default_factory=list)
    raws: list[Raw] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    seen: list[Texts] = field(default_factory=list)
    """The texts as the model tells them apart, where its tokenizer is known."""
    blank: list[tuple[Place, str]] = field(default_factory=list)
    """Rows without text or label, and which of the two."""
    counts: Counts = field(default_factory=Counts)
    files: dict[str, int] = field(default_factory=dict)
    """Every file, and how many rows it has."""

    @property
    def key(self) -> str:
        return f"data.{self.name}_files"

    @property
    def identities(self) -> list[Texts]:
        """What the rows have in common with others if the model reads them as the same; without a
        tokenizer, if nothing but the white space around their texts differs."""
        return self.seen or [identity(texts) for texts in self.texts]

    def __len__(self) -> int:
        return len(self.texts) + len(self.blank)


def read_part(found: Sequence[Source], data: DataConfig, name: str, watch: Watch) -> Part:
    """All rows of one key, read into memory; raises what reading raises."""
    part, known = Part(name), dict[Raw, Raw]()
    part.files = {str(source.path): 0 for source in found}
    size = sum(source.n_bytes for source in found)
    with watch(f"reading {part.key}", size) as advance:
        for row in labelled.read_rows(
            found, data, extra=False, advance=advance, counts=part.counts
        ):
            place = (row.path, row.number)
            part.files[row.path] += 1
            if not any(text.strip() for text in row.texts):
                part.blank.append((place, "text"))
            elif row.label is None:
                part.blank.append((place, "label"))
            else:
                part.texts.append(row.texts)
                part.raws.append(known.setdefault(row.label, row.label))
                part.places.append(place)
    return part


def told(places: Iterable[Place]) -> str:
    """Some places as a message lists them."""
    several = list(places)
    by_file: dict[str, list[str]] = {}
    for path, number in several[:SHOWN]:
        by_file.setdefault(path, []).append(str(number))
    said = [
        f"{path} row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for path, numbers in by_file.items()
    ]
    return "; ".join(said) + (" ..." if len(several) > SHOWN else "")


def many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"
