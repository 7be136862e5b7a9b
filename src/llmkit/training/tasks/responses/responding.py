"""What tasks that learn to write a text have in common: responses to prompts, or targets of
sources."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data.records.conversation_sets import Chats
from llmkit.data.text import fingerprints
from llmkit.data.text.fingerprints import Fingerprints
from llmkit.errors import ConfigError
from llmkit.evaluation.baselines import unigram_figures
from llmkit.models import pretrained
from llmkit.models.pretrained import open_model
from llmkit.reporting import held_out, summary
from llmkit.reporting.held_out import HeldOut
from llmkit.storage import atomic, outputs
from llmkit.storage.strict_json import json_text
from llmkit.training.tasks.finetuning import Finetuning, TokenRows
from llmkit.training.tasks.task import Examples, Loss


class TextExamples(TokenRows, Protocol):
    """Examples of texts to write."""

    @property
    def n_predictions(self) -> int:
        """Number of predictions in all rows."""


X = TypeVar("X", bound=TextExamples)


@dataclass(frozen=True)
class Responding(Finetuning[X]):
    """Fine-tuning of a model that writes a text for another text."""

    data: Chats[Any]

    unit = "tokens"

    @abstractmethod
    def passages(self, final: PreTrainedModel) -> HeldOut:
        """What the final model makes of each held-out text."""

    def answers(
        self, final: PreTrainedModel, directory: Path
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metrics of texts that the final model writes for held-out ones, empty if none are asked
        for, and those of baselines."""
        return {}, {}

    @property
    def counted(self) -> Mapping[str, int]:
        """The number of held-out texts."""
        return {}

    def seen(self) -> Fingerprints:
        """The fingerprints of the training texts that the model reads."""
        own = self.tokenizer if self.tokenizer.is_fast else None
        return fingerprints.of_rows([each.opening for each in self.data.train], own)

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Measure the model in `final/` on held-out texts, and generate the configured number of
        them; writes `evaluation.json`, and what became of each text."""
        if self.validation is None:
            return {}
        directory = Path(figures["run_dir"])
        final, found = self._finished(figures)
        measured: dict[str, Any] = {
            **found.figures(),
            "tokens": self.validation.n_predictions,
            **self.counted,
        }
        answers, baselines = self.answers(final, directory)
        if answers:
            measured["answers"] = answers
        measured |= {name: answers[name] for name in MAIN if baselines}
        write_measured(directory, measured)
        shown = dict(measured)
        if answers:
            numbers = answers.items()
            shown["answers"] = {n: each for n, each in numbers if isinstance(each, int | float)}
        unigram = unigram_figures(loss.figures, self.examples, self.validation)
        for text in summary.of_language_model(shown, unigram, figures["train_loss"]):
            self.session.console.warn(text)
        return {"validation": shown, "baseline": {"unigram": unigram, **baselines}}

    def _finished(self, figures: Mapping[str, Any]) -> tuple[PreTrainedModel, HeldOut]:
        """The model in `final/`, and what it makes of each held-out text, which is written."""
        opened = open_model(figures["model_dir"], encoder_decoder=True)
        final = pretrained.load_model(opened).to(self.session.processes.device).eval()
        found = self.passages(final)
        held_out.write_held_out(Path(figures["run_dir"]), found)
        return final, found


def write_measured(directory: Path, measured: Mapping[str, Any]) -> None:
    """Writes the figures on held-out texts to `evaluation.json`."""
    text = json_text({"validation": measured}, indent=1)
    atomic.replace_text(directory / outputs.MEASURED, text + "\n")


MAIN = ("bleu", "chrf", "rougeL")
"""Metrics of generated texts that are reported beside the loss, with those of baselines."""


def check_responses(config: Config, is_held_out: bool) -> None:
    """Raises ConfigError if texts for held-out ones are asked for, and nothing is held out."""
    if config.evaluation.responses and not is_held_out:
        raise ConfigError(
            "there are no held-out prompts to answer",
            where="evaluation.responses",
            next="give data.validation_files, or remove data.validation_fraction=0",
        )
