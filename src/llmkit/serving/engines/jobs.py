"""The work of one request, and the events that the engine's thread reports of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmkit.data.examples.encoded import Encoded
from llmkit.inference.generated import FinishReason, Sample, Step
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.inference.sequence import Sequence as TokenSequence

if TYPE_CHECKING:
    from llmkit.inference.encoder_decoder import TargetGenerator


@dataclass(frozen=True)
class Begun:
    """The first result is there."""


@dataclass(frozen=True)
class NewText:
    """New text of one of the texts of a job that is streamed."""

    place: int
    """Which text, in the order of prompts and then of their continuations."""
    text: str
    steps: Sequence[Step]
    ended: FinishReason | None


@dataclass(frozen=True)
class FirstSent:
    """Follows the first text of a stream: whoever takes it from the queue has sent that
    text, and sets `reached`."""

    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Done:
    """The job is complete, and its results can be read."""


@dataclass(frozen=True)
class Failed:
    """The job has ended without a result."""

    fault: Exception


Event = Begun | NewText | FirstSent | Done | Failed


@dataclass(eq=False)
class TextJob:
    """Prompts to continue."""

    prompts: Sequence[Prompt]
    sampler: Sampler
    is_streamed: bool = False
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    sequences: list[TokenSequence] = field(default_factory=list)
    has_begun: bool = False
    samples: Sequence[Sample] = ()
    """All samples, once it is done."""

    @property
    def n_prompt_tokens(self) -> int:
        """Number of tokens of its prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)


@dataclass(eq=False, kw_only=True)
class TargetJob(TextJob):
    """Sources to write texts for."""

    generator: TargetGenerator
    found: dict[int, list[Sample]] = field(default_factory=dict)
    """The texts of each source."""


@dataclass(eq=False)
class LabelJob:
    """Texts, or pairs of texts, to label."""

    texts: Sequence[tuple[str, ...]]
    encoded: Encoded
    """The texts, or their windows, which batches are made of."""
    keep: Callable[[int, NDArray[np.float32]], None]
    """Keeps the outputs of one row of `encoded`."""
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


Job = TextJob | LabelJob
