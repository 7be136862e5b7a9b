"""Evaluate answers to questions: exact match and F1 as the script of SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit import bootstrap
from llmkit.config.schema import Config
from llmkit.data.examples.answers import AnswerWindows
from llmkit.data.readers.files import Source
from llmkit.data.records import questions
from llmkit.data.records.question_dataset import load_known_questions
from llmkit.data.records.questions import UNANSWERED, QuestionTable
from llmkit.distributed.processes import Processes
from llmkit.evaluation.labels.measuring import (
    LoadPart,
    MeasuredRows,
    RowEvaluation,
    Score,
    check_finite_outputs,
)
from llmkit.inference.labels import answer
from llmkit.inference.labels.answer import LOSS, Answerer, FoundAnswers, answers_of
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out, summary
from llmkit.reporting.console import Console
from llmkit.reporting.held_out import HeldOut

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]*")
_WORD = re.compile(r"\w+")
_SHOWN = 100
"""Maximum number of characters shown of a context before and after an answer."""


def normalized_answer(text: str) -> str:
    """An answer in lower case without punctuation, articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 if a prediction equals one of the answers once both are normalized, otherwise 0."""
    return float(any(normalized_answer(predicted) == normalized_answer(one) for one in answers))


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """The largest F1 of the words that a prediction shares with an answer; if one of the two is
    empty, 1 if both are."""
    return max(_shared(normalized_answer(predicted), normalized_answer(one)) for one in answers)


def _shared(predicted: str, right: str) -> float:
    found, wanted = predicted.split(), right.split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def score_answers(table: QuestionTable, predicted: Sequence[str]) -> NDArray[np.float64]:
    """[rows, 2], exact match and F1 of each."""
    rows = zip(predicted, map(_right, table.answers), strict=True)
    scores = [(exact_match(text, right), answer_f1(text, right)) for text, right in rows]
    return np.array(scores, dtype=np.float64).reshape(-1, 2)


def _right(answers: Sequence[questions.Answer]) -> list[str]:
    """The answers that count, of which the script leaves out those that normalize to nothing."""
    return [one.text for one in answers if normalized_answer(one.text)] or [""]


def answer_figures(table: QuestionTable, scores: NDArray[np.float64]) -> dict[str, float]:
    """Exact match and F1 of all questions, and of those with and without answer."""
    has = table.strata().astype(bool)
    found: dict[str, float] = {}
    for end, chosen in (("", np.ones_like(has)), ("_answered", has), ("_unanswered", ~has)):
        if end == "" or (chosen.any() and not has.all()):
            exact, f1 = scores[chosen].mean(0).tolist() if chosen.any() else (0.0, 0.0)
            found |= {f"exact_match{end}": exact, f"f1{end}": f1}
    return found


def best_threshold(table: QuestionTable, found: FoundAnswers) -> float:
    """The log-odds from which to give no answer that maximize F1 on these rows: of equally good
    ones that nearest to 0; infinite if all questions have answers."""
    if UNANSWERED not in table.labels.classes:
        return np.inf
    always = score_answers(table, found.texts(np.inf))[:, 1]
    never = score_answers(table, [""] * len(table))[:, 1]
    order = np.argsort(found.odds, kind="stable")
    odds = found.odds[order]
    # After k rows in this order, the threshold lies between rows k - 1 and k.
    sums = np.concatenate([[0.0], np.cumsum(always[order])])
    sums += np.concatenate([[0.0], np.cumsum(never[order][::-1])])[::-1]
    edges = np.concatenate([[odds[0] - 1], (odds[1:] + odds[:-1]) / 2, [odds[-1] + 1]])
    possible = np.concatenate([[True], odds[1:] > odds[:-1], [True]])
    best = np.flatnonzero(possible & (sums >= sums[possible].max() - 1e-9))
    lowest, highest = np.append(-np.inf, odds)[best], np.append(odds, np.inf)[best]
    if ((lowest <= 0) & (highest > 0)).any():
        return 0.0
    return float(edges[best[np.abs(edges[best]).argmin()]])


def answer_figures_from(
    windows: AnswerWindows, table: QuestionTable
) -> Callable[[NDArray[np.float64]], dict[str, float]]:
    """The function that computes the metrics from what a model finds in each window [windows, 5],
    0 for windows that it has not read: of a subset, only rows with all windows count."""

    def figures(found: NDArray[np.float64]) -> dict[str, float]:
        unread = np.bincount(windows.owners[(found == 0).all(1)], minlength=len(table))
        chosen = unread == 0
        if not chosen.any():
            return {"exact_match": 0.0, "f1": 0.0}
        contexts = [context for _, context in table.texts]
        answers = answers_of(windows, found, contexts, np.flatnonzero(chosen))
        part = table.part(chosen)
        threshold = best_threshold(part, answers)
        scores = score_answers(part, answers.texts(threshold))
        overall = answer_figures(part, scores)
        return {name: overall[name] for name in ("exact_match", "f1")}

    return figures


@dataclass(frozen=True)
class MeasuredAnswers(MeasuredRows[QuestionTable]):
    """The results of one model on questions."""

    found: FoundAnswers
    predicted: Sequence[str]
    scores: NDArray[np.float64]
    """[rows, 2], exact match and F1."""
    losses: NDArray[np.float64]
    """[rows, 2], the sum of the losses of the windows, and their number."""

    def figures_of(self, chosen: NDArray[np.bool_], seed: int) -> dict[str, Any]:
        """The metrics on the chosen rows alone."""
        part = self.table.part(chosen)
        loss = _mean_loss(self.losses[chosen])
        return {"examples": len(part), "loss": loss, **answer_figures(part, self.scores[chosen])}

    def samples(self) -> Iterator[dict[str, Any]]:
        """Every row with its answers and the predicted one."""
        for row, (question, context) in enumerate(self.table.texts):
            yield {**self._row(row), "question": question, "context": context}

    def worst(self, most: int) -> Iterator[dict[str, Any]]:
        """The most probable of the answers that share the fewest words with a right one."""
        chances = np.where(self._is_none, self.found.chances[:, 1], self.found.chances[:, 0])
        losses = np.nan_to_num(self.losses[:, 0] / np.maximum(1, self.losses[:, 1]))
        for row in np.lexsort([-chances, self.scores[:, 1]]).tolist()[:most]:
            if self.scores[row, 1] < 1:
                text = f"{self.table.texts[row][0]} — {self._shown(row)}"
                yield {**self._row(row), "loss": float(losses[row]), "text": text}

    def paired_metric(self, other: MeasuredRows[QuestionTable]) -> str:
        """F1."""
        return "f1"

    def row_sums(self) -> NDArray[np.float64]:
        """[rows, 2], the F1 of each, and 1."""
        return np.column_stack([self.scores[:, 1], np.ones(len(self.scores))])

    def all_held_out(self) -> HeldOut:
        """Exact match, F1 and the loss of each row."""
        values = np.column_stack([self.scores, self.losses]).astype(np.float32)
        columns = dict(zip(held_out.ANSWER_COLUMNS, values.T, strict=True))
        return HeldOut(held_out.OF_ANSWERS, self.table.fingerprint, columns)

    @property
    def _is_none(self) -> NDArray[np.bool_]:
        return np.array([not text for text in self.predicted], dtype=np.bool_)

    def _row(self, row: int) -> dict[str, Any]:
        file, number = self.table.places[row]
        right = list(dict.fromkeys(one.text for one in self.table.answers[row]))
        place = {"file": file, "row": number, "label": right or "(no answer)"}
        return {**place, "predicted": self.predicted[row] or "(no answer)"}

    def _shown(self, row: int) -> str:
        """The context around the right answer, or else around the predicted one."""
        context, answers = self.table.texts[row][1], self.table.answers[row]
        start, end = self.found.spans[row].start, self.found.spans[row].end
        if answers:
            start, end = answers[0].start, answers[0].start + len(answers[0].text)
        first, last = max(0, start - _SHOWN), end + _SHOWN
        text = f"{context[first:start]}«{context[start:end]}»{context[end:last]}"
        before, after = "…" * (first > 0), "…" * (last < len(context))
        return " ".join(f"{before}{text}{after}".split())


class AnswerEvaluation(RowEvaluation[QuestionTable]):
    """How answers to questions are measured."""

    unit = "examples"

    def loader(
        self, config: Config, model: Pretrained, console: Console
    ) -> LoadPart[QuestionTable]:
        """Reads questions with their contexts and answers."""
        known = answer.known_answers(model.config)

        def load(found: Sequence[Source], name: str, warn: Say) -> QuestionTable:
            data = questions.resolve_question_columns(found, config.data, console.say)
            return load_known_questions(found, data, name, known, console.watch, warn)

        return load

    def open(self, model: Pretrained, device: torch.device, precision: str) -> Answerer:
        """The model with its weights."""
        return answer.open_answerer(model, device, precision)

    def measure(
        self,
        opened: Answerer,
        table: QuestionTable,
        processes: Processes | None,
        seed: int,
        watch: Watch,
    ) -> MeasuredAnswers:
        """Every metric of a model, with the threshold that its config records."""
        encoded, found, read = read_table(opened, table, processes, watch)
        predicted = found.texts(opened.threshold)
        scores = score_answers(table, predicted)
        owners, n_rows = encoded.owners, len(table)
        sums = np.bincount(owners, read[:, LOSS], n_rows), np.bincount(owners, minlength=n_rows)
        losses = np.column_stack(sums).astype(np.float64)
        drawn = bootstrap.resample(np.column_stack([scores, np.ones(n_rows)]), seed)
        means = drawn[:, :2] / drawn[:, 2:]
        figures = {
            "examples": n_rows,
            "loss": _mean_loss(losses),
            **answer_figures(table, scores),
            "intervals": {
                name: bootstrap.interval(means[:, n])
                for n, name in enumerate(("exact_match", "f1"))
            },
        }
        if np.isfinite(opened.threshold):
            figures[answer.THRESHOLD_OF_NONE] = opened.threshold
        return MeasuredAnswers("", table, figures, found, predicted, scores, losses)

    def baselines(self, train: QuestionTable | None, say: Say) -> Score:
        """The sentence of the context that shares the most words with the question; and never an
        answer, if that may be right."""

        def score(table: QuestionTable) -> dict[str, Any]:
            sentences = [_nearest_sentence(*texts) for texts in table.texts]
            found = {"nearest_sentence": answer_figures(table, score_answers(table, sentences))}
            if not all(table.answers):
                scores = score_answers(table, [""] * len(table))
                found["no_answer"] = answer_figures(table, scores)
            return found

        return score

    def protocol(self, table: QuestionTable) -> dict[str, Any]:
        """The definition of the metrics."""
        return {"metrics": "exact match and F1 of SQuAD, from 0 to 1"}

    def judge(self, name: str, figures: Mapping[str, Any], advice: str) -> Iterator[str]:
        """Warnings if the model is no better than its baselines."""
        return summary.of_answerer(name, figures, advice)


def read_table(
    opened: Answerer, table: QuestionTable, processes: Processes | None, watch: Watch
) -> tuple[AnswerWindows, FoundAnswers, NDArray[np.float64]]:
    """The windows of a table, the answers of its rows, and what is found in each window; raises
    DataError for outputs that are NaN or infinite."""
    encoded = opened.encoder.encode(table.texts, table.answers)
    count = 1 if processes is None else processes.count
    with watch("measuring", len(encoded) // count) as advance:
        read = opened.read_windows(encoded, processes, advance)
    contexts = [context for _, context in table.texts]
    found = answers_of(encoded, read, contexts, np.arange(len(table)))
    check_finite_outputs(found.chances, "row")
    return encoded, found, read


def _nearest_sentence(question: str, context: str) -> str:
    asked = set(_WORD.findall(question.lower()))
    sentences: list[str] = _SENTENCE.findall(context) or [context]
    return max(sentences, key=lambda one: len(asked & set(_WORD.findall(one.lower())))).strip()


def _mean_loss(losses: NDArray[np.float64]) -> float:
    return float(losses[:, 0].sum() / max(1.0, losses[:, 1].sum()))
