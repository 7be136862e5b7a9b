"""Answer questions by a span of their context; an answer does not depend on the rest of its batch.

A window has a distribution of first tokens and one of last tokens, in which its first token stands
for no answer. The answer is the span with the highest product of both in any window; there is none
if that is less likely than no answer by the factor that was chosen on validation data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from llmkit.data.examples.answers import NO_ANSWER, AnswerWindows, QuestionEncoder
from llmkit.data.examples.encoded import UNLABELLED
from llmkit.data.records.questions import ANSWERED, UNANSWERED, Answers, QuestionRow
from llmkit.data.records.tagging.words import CharacterSpan, stripped_span
from llmkit.distributed.processes import Processes
from llmkit.inference.labels.batched import (
    BatchedModel,
    load_head,
    refuse_head,
    share_of,
    summed,
)
from llmkit.inference.labels.classify import repeated_columns
from llmkit.models import build, classifier
from llmkit.models.classifier import is_answerer, longest_text, set_padding
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.predictions import DIGITS, Counted, with_input_columns

LONGEST_ANSWER, THRESHOLD_OF_NONE, MAY_BE_NONE = (
    "longest_answer",
    "no_answer_threshold",
    "may_be_none",
)
"""What the config.json of a model records besides columns: the maximum number of tokens of an
answer, the log-odds from which there is none, and whether there may be none."""

USUAL_LONGEST = 30
"""Maximum number of tokens of an answer, if training data has no longer one."""

FIRST_TOKEN, LAST_TOKEN, SPAN, NONE, LOSS = range(5)
"""The columns of what a model finds in a window: the first and the last token of its best span, the
log-probabilities of that and of no answer, and the loss of the right answer."""

WindowAnswers = NDArray[np.float64]
"""[windows, 5]"""


def position_losses(
    logits: Tensor, attention: Tensor, targets: Tensor | None
) -> tuple[Tensor, ...]:
    """The log-probabilities [windows, tokens] of logits, without padding, and if there are targets
    [windows] the negative ones of these; 0 where a target is UNLABELLED."""
    chances = logits.float().masked_fill(attention == 0, -torch.inf).log_softmax(1)
    if targets is None:
        return (chances,)
    known = targets != UNLABELLED
    losses = -chances.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return chances, torch.where(known, losses, 0.0)


def window_answers(
    starts: Tensor, ends: Tensor, context: Tensor, losses: Tensor | None, longest: int
) -> Tensor:
    """What is found in each window [windows, 5], from the log-probabilities [windows, tokens]."""
    inside = context == 1
    first = starts.masked_fill(~inside, -torch.inf)
    last = ends.masked_fill(~inside, -torch.inf)
    longest = min(longest, first.shape[1])
    following = torch.nn.functional.pad(last, (0, longest - 1), value=-torch.inf)
    scores = first[:, :, None] + following.unfold(1, longest, 1)  # [windows, first, length - 1]
    best, place = scores.flatten(1).max(1)
    begin = place // longest
    none = starts[:, NO_ANSWER] + ends[:, NO_ANSWER]
    loss = torch.zeros_like(none) if losses is None else losses
    columns = (begin, begin + place % longest, best, none, loss)
    return torch.stack([column.double() for column in columns], dim=1)


def found_in(
    logits: Tensor, attention: Tensor, context: Tensor, longest: int, labels: Tensor | None = None
) -> Tensor:
    """What is found in each window [windows, 5], from the logits [windows, tokens, 2]."""
    targets = [None, None] if labels is None else labels.unbind(1)
    starts, *first = position_losses(logits[..., 0], attention, targets[0])
    ends, *last = position_losses(logits[..., 1], attention, targets[1])
    losses = (first[0] + last[0]) / 2 if first else None
    return window_answers(starts, ends, context, losses, longest)


class FoundAnswers(NamedTuple):
    """The answers of rows."""

    spans: list[CharacterSpan]
    """[rows], the best span of each, with its text as the label."""
    odds: NDArray[np.float64]
    """[rows], the log-odds of no answer against the best span; NaN if the model's outputs are."""
    chances: NDArray[np.float64]
    """[rows, 2], the probabilities of the best span in its window, and of no answer."""

    def is_none(self, threshold: float) -> NDArray[np.bool_]:
        """[rows], whether there is no answer."""
        return np.asarray(self.odds > threshold)

    def texts(self, threshold: float) -> list[str]:
        """[rows], the answers; empty for none."""
        none = self.is_none(threshold).tolist()
        return ["" if out else span.label for span, out in zip(self.spans, none, strict=True)]


def answers_of(
    windows: AnswerWindows, found: WindowAnswers, contexts: Sequence[str], asked: NDArray[np.int64]
) -> FoundAnswers:
    """The answers of the rows `asked`, whose windows have all been read."""
    spans, odds, chances = [], [], []
    edges = np.searchsorted(windows.owners, [asked, asked + 1])
    for row, begin, end in zip(asked.tolist(), *edges.tolist(), strict=True):
        here = found[begin:end]
        best = begin + int(here[:, SPAN].argmax())
        span = CharacterSpan(0, 0, "")
        if np.isfinite(found[best, SPAN]):
            first, last = int(found[best, FIRST_TOKEN]), int(found[best, LAST_TOKEN])
            span = CharacterSpan(*windows.characters(best, first, last), "")
            span = stripped_span(contexts[row], span)
        spans.append(span._replace(label=contexts[row][span.start : span.end]))
        none = float(here[:, NONE].min())
        chances.append((found[best, SPAN], none))
        odds.append(none - found[best, SPAN])
    pairs = np.exp(np.array(chances, dtype=np.float64).reshape(-1, 2))
    return FoundAnswers(spans, np.array(odds, dtype=np.float64), pairs)


@dataclass(frozen=True)
class Answerer(BatchedModel):
    """A trained model on its device that answers questions."""

    encoder: QuestionEncoder
    longest: int
    threshold: float
    """The log-odds from which there is no answer; infinite if there always is one."""

    def read_windows(
        self,
        encoded: AnswerWindows,
        processes: Processes | None = None,
        advance: Callable[[int], None] = lambda n_windows: None,
    ) -> WindowAnswers:
        """What is found in each window; several processes share them, and each gets all."""
        found = np.zeros((len(encoded), 5))
        apart = ("windows", "labels")
        for rows, batch in self.batches(encoded, processes, advance, apart=apart):
            known = batch.pop("windows").numpy() >= 0
            found[rows[known]] = self._found(batch)[known]
        return summed(found, processes)

    def logits_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits [windows, tokens, 2] of the first and of the last token."""
        made = self.outputs_of(batch)
        return torch.stack([made.start_logits, made.end_logits], -1)

    def _found(self, batch: dict[str, Tensor]) -> WindowAnswers:
        apart = {name: batch.pop(name, None) for name in ("context", "labels")}
        logits = self.logits_of(batch)
        given = {"attention": batch["attention_mask"], **apart}
        here = {name: each.to(logits.device) for name, each in given.items() if each is not None}
        return np.asarray(found_in(logits, **here, longest=self.longest).cpu().numpy())


@dataclass(frozen=True)
class AnswerPrediction:
    """The answer to one question."""

    question: str
    context: str
    answer: str | None
    """Empty if the context has none; None if the model's outputs are NaN or infinite."""
    start: int | None
    end: int | None
    """Its offsets in the context; None without an answer."""
    probability: float | None
    """That of the answer, or of there being none."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    cells: Mapping[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> dict[str, Any]:
        """The answer with its place and probability."""
        return {name: getattr(self, name) for name in ("answer", "start", "end", "probability")}

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        found = {"question": self.question, "context": self.context, **self.found}
        return {**found, "columns": dict(self.columns)} if self.columns else found

    def as_cells(self) -> dict[str, Any]:
        """The prediction as a table row: the columns of the input, then the answer."""
        texts = {"question": self.question, "context": self.context}
        return with_input_columns(dict(self.cells) or {**self.columns, **texts}, self.found)

    @property
    def counted(self) -> Counted:
        """What is counted."""
        names = {None: None, "": "no answer"}
        return Counted(names.get(self.answer, "answer"), self.probability)


def check_answerer(pretrained: Pretrained) -> None:
    """Raises DataError for a model that does not answer questions by a span."""
    if not is_answerer(pretrained.config):
        advice = "give a run of `llmkit finetune train.objective=question_answering`"
        raise refuse_head(pretrained, "which finds no answers in contexts", advice)


def known_answers(config: PretrainedConfig) -> Answers:
    """What a trained model may answer."""
    may_be_none = classifier.remembered(config, MAY_BE_NONE) is not False
    return Answers((ANSWERED, UNANSWERED) if may_be_none else (ANSWERED,))


def open_answerer(pretrained: Pretrained, device: torch.device, precision: str) -> Answerer:
    """Loads a model that answers questions, with its weights and its own tokenizer."""
    check_answerer(pretrained)
    tokenizer, config = pretrained.own_tokenizer, pretrained.config
    set_padding(tokenizer)
    encoder = QuestionEncoder(tokenizer, longest_text(config, tokenizer, build.ANSWER_MODEL))
    model = load_head(pretrained, build.ANSWER_MODEL, device)
    return Answerer(model, encoder, precision, *limits_of(config))


def limits_of(config: PretrainedConfig) -> tuple[int, float]:
    """The maximum number of tokens of an answer, and the log-odds from which there is none."""
    longest = classifier.remembered(config, LONGEST_ANSWER) or USUAL_LONGEST
    threshold = classifier.remembered(config, THRESHOLD_OF_NONE) or 0.0
    may_be_none = UNANSWERED in known_answers(config).classes
    return int(longest), float(threshold) if may_be_none else np.inf


def answer_rows(
    answerer: Answerer,
    windows: Iterable[Sequence[QuestionRow]],
    columns: Sequence[str],
    processes: Processes | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> Iterator[list[AnswerPrediction]]:
    """Predictions for the rows in order, a window of rows at a time, with `columns` copied from the
    rows; several processes share each window, and each gets all predictions."""
    for window in windows:
        encoded = answerer.encoder.encode([row.texts for row in window])
        part = share_of(advance, len(encoded), processes)
        read = answerer.read_windows(encoded, processes, part)
        yield answers_in(answerer, window, encoded, read, columns)


def answers_in(
    answerer: Answerer,
    rows: Sequence[QuestionRow],
    windows: AnswerWindows,
    read: WindowAnswers,
    columns: Sequence[str],
) -> list[AnswerPrediction]:
    """The predictions for rows, from what is found in their windows."""
    found = answers_of(windows, read, [row.texts[1] for row in rows], np.arange(len(rows)))
    none = found.is_none(answerer.threshold)
    return [
        _prediction(row, found.spans[n], bool(none[n]), found.chances[n], columns)
        for n, row in enumerate(rows)
    ]


def _prediction(
    row: QuestionRow,
    span: CharacterSpan,
    is_none: bool,
    chances: NDArray[np.float64],
    columns: Sequence[str],
) -> AnswerPrediction:
    given = repeated_columns(row, columns)
    question, context = row.texts
    if not np.isfinite(chances).all():
        return AnswerPrediction(question, context, None, None, None, None, *given)
    chance = round(float(chances[int(is_none)]), DIGITS)
    if is_none:
        return AnswerPrediction(question, context, "", None, None, chance, *given)
    return AnswerPrediction(question, context, span.label, span.start, span.end, chance, *given)
