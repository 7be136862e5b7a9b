"""Metrics, epochs, gains and losses of each domain of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmkit.data.examples.mixture import Mixture
from llmkit.data.text.documents import mark_hints
from llmkit.data.text.fingerprints import Overlap
from llmkit.data.text.token_file import TokenFile
from llmkit.storage import jsonl, outputs
from llmkit.training.tasks.task import Batch, Examples, Loss, Rows, Sums

BY_DOMAIN = "/"
"""Separates the name of a metric from its domain, as in `validation_loss/novels`."""


class ByDomain(Loss):
    """A loss that is also measured for each domain of a mixture; training is unchanged."""

    def __init__(
        self,
        whole: Loss,
        domains: Mapping[str, Loss],
        predictions: Mapping[str, int],
        together: Collection[str],
    ) -> None:
        """`domains` has the loss for the metrics of each domain, `predictions` their number.
        `whole` is the loss for the overall metrics, those of the domains `together`."""
        self.whole, self.domains, self.predictions = whole, dict(domains), predictions
        self.together = [name for name in self.domains if name in together]
        self.balance, self.compilable = whole.balance, whole.compilable

    def weights(self, examples: Examples, rows: Rows) -> tuple[float, ...]:
        """The weights given by the wrapped loss."""
        return self.whole.weights(examples, rows)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sums of the wrapped loss; for batches with `domain`, [domains, ..] of each sum."""
        if "domain" not in batch:
            return self.whole.sums(model, batch)
        domain = batch["domain"]  # [rows]
        sums: dict[str, Tensor] = {}
        for number in torch.unique(domain).tolist():
            here = domain == number
            own = {name: value[here] for name, value in batch.items() if name != "domain"}
            for name, value in self.whole.sums(model, own).items():
                if name not in sums:
                    sums[name] = value.new_zeros((len(self.domains), *value.shape))
                sums[name][number] = value
        return sums

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The routed tokens of the wrapped loss."""
        return self.whole.routed(model, batch)

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The overall metrics, then those of each domain."""
        numbers = {name: number for number, name in enumerate(self.domains)}
        overall = [numbers[name] for name in self.together]
        joined = {key: np.asarray(value[overall].sum(axis=0)) for key, value in sums.items()}
        found = self.whole.figures(joined, sum(self.predictions[name] for name in self.together))
        for name, loss in self.domains.items():
            here = {key: np.asarray(value[numbers[name]]) for key, value in sums.items()}
            figures = loss.figures(here, self.predictions[name])
            found |= {f"{key}{BY_DOMAIN}{name}": value for key, value in figures.items()}
        return found


def measured_by_domain(loss_of: Callable[[Any], Loss], validation: Examples | None) -> Loss:
    """The loss for these validation examples; for a mixture it is also measured by domain."""
    if not isinstance(validation, Mixture):
        return loss_of(validation)
    parts, together = validation.domains, validation.representative
    counts = {name: part.count(range(len(part))) for name, part in parts.items()}
    by_domain = {name: loss_of(part) for name, part in parts.items()}
    return ByDomain(loss_of(together), by_domain, counts, together.domains)


def whole(loss: Loss) -> Loss:
    """The wrapped loss."""
    return loss.whole if isinstance(loss, ByDomain) else loss


def names_of_figures(figures: Sequence[str], domains: Sequence[str]) -> list[str]:
    """The names of the validation metrics, overall and for each domain."""
    return [*figures, *(f"{figure}{BY_DOMAIN}{name}" for name in domains for figure in figures)]


def progress(examples: Mixture, step: int, **run: Any) -> dict[str, float]:
    """The epochs of each domain after a step, for metrics.jsonl."""
    found = examples.epochs(step, **run)
    return {f"epochs{BY_DOMAIN}{name}": number for name, number in found.items()}


def domain_report(
    shares: Mapping[str, float], figures: Mapping[str, Any], run: Path
) -> dict[str, dict[str, Any]]:
    """Each domain's share, epochs and validation metrics; if the model was measured before
    training, also those metrics and their changes. `figures` are those of the run."""
    metrics_file = run / outputs.METRICS
    begun, done = (
        jsonl.last_figures(metrics_file, 0),
        jsonl.last_figures(metrics_file, figures["step"]),
    )
    found: dict[str, dict[str, Any]] = {}
    for name, share in shares.items():
        found[name] = {"share": share, "epochs": done.get(f"epochs{BY_DOMAIN}{name}", 0.0)}
        before, after = _of(name, begun, "validation_"), _of(name, figures["validation"])
        if before:
            change = {key: value - before[key] for key, value in after.items() if key in before}
            found[name] |= {"before": before, "after": after, "change": change}
        elif after:
            found[name]["after"] = after
    return found


def _of(domain: str, figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric metrics of one domain with this prefix."""
    end = f"{BY_DOMAIN}{domain}"
    return {
        name.removeprefix(prefix).removesuffix(end): value
        for name, value in figures.items()
        if name.startswith(prefix) and name.endswith(end) and value is not None
    }


def data_warnings(
    learned: Mapping[str, TokenFile], overlaps: Mapping[str, Overlap]
) -> Iterator[str]:
    """Likely document separators in the text of each domain, and held-out text in the training
    data."""
    for tokens in learned.values():
        yield from mark_hints(tokens.marks, len(tokens.starts))
    for name, found in overlaps.items():
        if found.is_notable:
            yield (
                f"validation data{f' of {name}' if name else ''}: {found.sentence('document')} "
                "are in the training data too: its figures are not held-out figures"
            )
