"""How a merged model uses its experts: the share of each in a domain, and what routing costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from llmkit.data.text.token_file import Places
from llmkit.distributed.processes import Processes
from llmkit.evaluation import perplexity
from llmkit.evaluation.likelihood import RowsToScore, Scores, own_batches, score_rows
from llmkit.evaluation.segments import Segments, Survey
from llmkit.models.experts import routing
from llmkit.models.experts.record import ExpertsRecord
from llmkit.models.logits import ChosenLogits
from llmkit.progress import Watch

LITTLE = 0.01
"""An expert with a smaller share of the domain that it was trained on counts as unused."""


@dataclass(frozen=True)
class ScoredText:
    """A text of several domains, and how it is scored."""

    rows: RowsToScore
    segments: Segments
    survey: Survey
    processes: Processes
    batch_tokens: int | None
    watch: Watch

    def score(self, model: PreTrainedModel, keep: int = 0) -> Scores:
        """The scores of a model, with those of the first `keep` tokens."""
        how = (self.rows, self.segments, self.processes, self.batch_tokens, self.watch)
        return score_rows(ChosenLogits(model), *how, keep)

    def bits_per_byte(self, scores: Scores) -> NDArray[np.float64]:
        """[domains], the bits per byte of each domain."""
        rows = perplexity.by_domain(scores, self.segments, self.survey)
        return np.array([row["bits_per_byte"] for row in rows])

    @torch.inference_mode()
    def shares(self, model: PreTrainedModel) -> NDArray[np.float64]:
        """[domains, layers, experts], the mean weight of each expert at the scored tokens."""
        totals: torch.Tensor | None = None
        counts = torch.zeros(len(self.survey.domains), dtype=torch.float64)
        with self.watch("routing", len(self.rows)) as advance:
            for numbers in self._batches(model):
                batch = self.rows.batch(numbers)
                inputs = {name: each.to(model.device) for name, each in batch.inputs.items()}
                weights = routing.expert_weights(model, inputs)[:, batch.chosen.to(model.device)]
                domains = torch.from_numpy(self._domains(batch.places))
                found = weights.double().cpu().transpose(0, 1)  # [scored, layers, experts]
                if totals is None:
                    totals = found.new_zeros(len(counts), *found.shape[1:])
                totals.index_add_(0, domains, found)
                counts += torch.bincount(domains, minlength=len(counts))
                advance(min(len(numbers) * self.processes.count, len(self.rows)))
        assert totals is not None
        sums = [self.processes.sum(each.to(model.device)).cpu() for each in (totals, counts)]
        return np.asarray((sums[0] / sums[1].clamp(min=1)[:, None, None]).numpy())

    def _batches(self, model: PreTrainedModel) -> Iterator[Places]:
        return own_batches(self.rows, ChosenLogits(model), self.processes, self.batch_tokens)

    def _domains(self, places: Places) -> Places:
        """The number of the domain of each place."""
        segments = self.segments.of(places)
        documents = np.searchsorted(self.segments.of_document, segments, side="right") - 1
        return np.asarray(self.survey.domain_of_document[documents])


def measure_experts(
    model: PreTrainedModel, record: ExpertsRecord, scores: Scores, text: ScoredText
) -> dict[str, list[dict[str, Any]]]:
    """Rows of two tables: `experts`, with the share of each expert in each domain and its bits per
    byte alone; and `routing`, with the regret of the model in each domain, its bits per byte above
    those of the best expert. `scores` are those of the model."""
    alone = [text.bits_per_byte(text.score(each)) for each in routing.members(model, record)]
    shares, routed = text.shares(model), text.bits_per_byte(scores)
    bits_of = np.stack(alone, axis=1)  # [domains, experts]
    found: dict[str, list[dict[str, Any]]] = {
        "experts": [
            {**row, "bits_per_byte_alone": float(bits)}
            for row, bits in zip(
                share_rows(shares, text.survey, record.names), bits_of.flat, strict=True
            )
        ],
        "routing": [],
    }
    for number, domain in enumerate(text.survey.domains):
        bits = bits_of[number].tolist()
        best = int(np.argmin(bits))
        found["routing"].append(
            {
                "domain": domain,
                "bits_per_byte": float(routed[number]),
                "best_expert": record.names[best],
                "regret": float(routed[number]) - bits[best],
            }
        )
    return found


def share_rows(
    shares: NDArray[np.float64], survey: Survey, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each domain and expert from `ScoredText.shares`: the share of the expert in the
    domain, as the mean over the layers and of each layer."""
    return [
        {
            "domain": domain,
            "expert": name,
            "share": float(shares[number, :, expert].mean()),
            "share_by_layer": shares[number, :, expert].tolist(),
        }
        for number, domain in enumerate(survey.domains)
        for expert, name in enumerate(names)
    ]


def unused_experts(model: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning for each expert that is hardly used in the domain that it was trained on, or in any
    domain if its own is not measured."""
    measured = {row["domain"] for row in rows}
    found = [
        f"{model}: the expert of {row['expert']} has only {row['share']:.1%} of the routing weight "
        "in its own domain: the router does not recognise the domain"
        for row in rows
        if row["expert"] == row["domain"] and row["share"] < LITTLE
    ]
    others = dict.fromkeys(row["expert"] for row in rows if row["expert"] not in measured)
    for name in others:
        most = max(row["share"] for row in rows if row["expert"] == name)
        if most < LITTLE:
            found.append(
                f"{model}: the expert of {name} has at most {most:.1%} of the routing weight in "
                "any domain: nothing is routed to it"
            )
    return found
