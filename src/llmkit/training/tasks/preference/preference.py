"""Preference tuning: learn which of two responses to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llmkit.config import jobs
from llmkit.config.schema import Config, TrainConfig
from llmkit.data.examples.preferences import EncodedPairs, encode_preferences
from llmkit.data.records.preferences import PREFERENCES
from llmkit.evaluation.preferences.margins import log_probabilities, pair_figures, pair_passages
from llmkit.models import directory as directories
from llmkit.models import logits, lora, pretrained
from llmkit.models.experts import balance
from llmkit.models.experts.balance import Balance
from llmkit.models.kernels.cross_entropy import linear_log_probabilities
from llmkit.models.pretrained import Pretrained
from llmkit.reporting import summary
from llmkit.reporting.held_out import PAIR_FIGURES, HeldOut
from llmkit.storage import cache
from llmkit.training import run_directory
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.preference import reference
from llmkit.training.tasks.responses.prompted import (
    Prompted,
    check_length,
    length_limit,
    open_responses,
    report_lengths,
)
from llmkit.training.tasks.responses.responding import write_measured
from llmkit.training.tasks.task import IGNORED, Batch, Examples, Loss, Session, Sums

_BASE = "reference model"


class PreferenceLoss(CausalLoss):
    """The mean loss of pairs: DPO (Rafailov et al. 2023, arXiv 2305.18290) or IPO (Azar et al.
    2024, arXiv 2310.12036)."""

    def __init__(
        self, settings: TrainConfig, linear_head: bool = False, balance: Balance | None = None
    ) -> None:
        super().__init__(n_bytes=0, linear_head=linear_head, balance=balance)
        self.settings, self.compilable = settings, ()

    @property
    def unchanged(self) -> dict[str, float]:
        """The figures of a model that is the reference: the loss is ln 2 for DPO, and chance
        decides which response it prefers."""
        loss, _ = self._of_margins(torch.zeros(1, dtype=torch.float64))
        return {"loss": float(loss), "accuracy": 0.5, "margin": 0.0}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sums over pairs of the loss, of the objective, which is smoothed and has the weighted
        loss of the chosen response, and of PAIR_FIGURES."""
        reference, pairs = batch["reference"], batch["pairs"]
        inputs = {key: each for key, each in batch.items() if key not in ("reference", "pairs")}
        whole = model.base_model if self.linear_head else model
        outputs: Any = self._outputs(model, whole, inputs)
        own, lengths = self._log_probabilities(model, outputs, inputs)
        found = self.of_pairs(own, reference, lengths)
        sums = {name: values[pairs].sum() for name, values in found.items()}
        if self.balance is not None:
            sums |= self.balance.sums(outputs.router_logits, batch.get("real"))
        return sums

    def of_pairs(self, own: Tensor, reference: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """`loss`, `objective` and PAIR_FIGURES of each pair [pairs], from the log-probabilities of
        both responses under the model and the reference, and their lengths in tokens [pairs, 2]."""
        is_ipo = self.settings.preference_loss == "ipo"
        found = pair_figures(own, reference, lengths if is_ipo else None)
        loss, objective = self._of_margins(found["margin"])
        if weight := self.settings.sft_weight:
            objective = objective - weight * own[:, 0] / lengths[:, 0].clamp(min=1)
        return {"loss": loss, "objective": objective, **found}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The means over all pairs: the loss, PAIR_FIGURES, and for a mixture of experts its
        load-balancing loss."""
        beside = super().figures(sums, predictions)
        found = {name: float(sums[name]) / max(1, predictions) for name in ("loss", *PAIR_FIGURES)}
        return found | {key: beside[key] for key in ("router_aux_loss",) if key in beside}

    def _of_margins(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """[pairs] each, the loss and its smoothed form."""
        beta, reversed = self.settings.beta, self.settings.label_smoothing_factor
        if self.settings.preference_loss == "ipo":
            loss = (margin - 1 / (2 * beta)) ** 2
            return loss, loss
        loss = -functional.logsigmoid(beta * margin)
        other = -functional.logsigmoid(-beta * margin)
        return loss, (1 - reversed) * loss + reversed * other if reversed else loss

    def _log_probabilities(self, model: Any, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """[pairs, 2] each, the log-probabilities of the responses, and their numbers of tokens."""
        places, targets = batch["places"], batch["targets"]
        chosen = targets.flatten()[places]
        if self.linear_head:
            hidden = outputs.last_hidden_state.flatten(0, 1).index_select(0, places)
            weight = model.get_output_embeddings().weight
            tokens = linear_log_probabilities(hidden, weight, chosen)
        else:
            logits = outputs.logits.flatten(0, 1).index_select(0, places).float()
            tokens = -functional.cross_entropy(logits, chosen, reduction="none")
        each = torch.zeros(targets.numel(), dtype=tokens.dtype, device=tokens.device)
        rows = each.index_copy(0, places, tokens).view_as(targets).sum(1)
        return rows.view(-1, 2), (targets != IGNORED).sum(1).view(-1, 2)


@dataclass(frozen=True)
class PreferenceTuning(Prompted[EncodedPairs]):
    """Fine-tuning on pairs of a chosen and a rejected response to the same prompt."""

    unit = "pairs"
    undivided = "preference tuning, which needs the whole reference model in each process"

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read the pairs, apply the chat template, and tokenize them."""
        assert pretrained is not None
        data, template = open_responses(asked, pretrained, session, PREFERENCES)
        limit = length_limit(pretrained.config)
        check_length(asked.data.max_length, limit, "max_length")
        length = limit if asked.data.max_length == "auto" else asked.data.max_length
        encoded = {
            name: encode_preferences(some, template, length, session.watch)
            for name, some in (("train", data.train), ("validation", data.validation))
            if some
        }
        report_lengths(data, encoded, session)
        train = defaults.preferring(
            asked.train,
            len(encoded["train"]),
            int(pretrained.config.get_text_config().hidden_size),
            asked.model.lora.r is not None,
        )
        defaults.check_best(train, jobs.PREFERENCE_METRICS, validated="validation" in encoded)
        config = asked.changed(data=data.data.changed(max_length=length), train=train)
        known = (session, asked, config, pretrained, data, template.tokenizer, pretrained.config)
        return cls(*known, encoded, template)

    @property
    def tokens_per_example(self) -> int:
        """The mean tokens of a pair."""
        return int(2 * self.examples.responses.lengths.mean())

    @cached_property
    def content(self) -> dict[str, str]:
        """The hashes of the tokenized pairs and of the model that training begins with."""
        base = directories.content_identity(self.pretrained.location, self.pretrained.revision)
        data = {f"{name} data": each.fingerprint for name, each in self.encoded.items()}
        return {**data, _BASE: base}

    def fitted(self, model: PreTrainedModel, begun: bool) -> Self:
        """The task with the log-probabilities of the reference: those of an earlier call, or
        computed with the model before training, without low-rank updates."""
        processes, say = self.session.processes, self.session.console.say
        begun_in = run_directory.begun_run(self.asked, self.command) if processes.is_main else None
        stored = None if begun_in is None else reference.read_reference(begun_in, self._key)
        found = stored or {name: np.zeros((len(e), 2), np.float32) for name, e in self._parts}
        if not processes.largest([stored is not None])[0]:
            say("computing the log-probabilities of the reference model, once")
            known = begun or self.lora is not None
            base = model if known else pretrained.load_model(self.pretrained)
            how = processes, "measuring the reference", self.session.watch
            with lora.switched_off(base.to(processes.device)):
                found = {
                    name: log_probabilities(base, each, *how).astype(np.float32)
                    for name, each in self._parts
                }
        elif processes.count > 1:  # the main process has read them
            found = {
                name: processes.sum(torch.from_numpy(values).to(processes.device)).cpu().numpy()
                for name, values in found.items()
            }
        parts = {name: replace(each, reference=found[name]) for name, each in self._parts}
        return replace(self, encoded=parts)

    def keep(self, directory: Path) -> None:
        """Write the log-probabilities of the reference, which a resumed run does not compute."""
        found = {
            name: each.reference.astype(np.float32)
            for name, each in self._parts
            if each.reference is not None
        }
        reference.write_reference(directory, self._key, found)

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples."""
        linear, routed = logits.has_linear_head(model), balance.balance_of(model)
        loss = PreferenceLoss(self.config.train, linear, routed)
        return lambda examples: loss

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Measure the model in `final/` on all held-out pairs; writes `evaluation.json`, and what
        became of each pair."""
        if self.validation is None:
            return {}
        assert isinstance(loss, PreferenceLoss)
        _, found = self._finished(figures)
        measured = {
            "pairs": len(self.validation),
            **found.figures(),
            "intervals": found.intervals(self.config.seed),
        }
        write_measured(Path(figures["run_dir"]), measured)
        for text in summary.of_preferences("validation", measured, loss.unchanged):
            self.session.console.warn(text)
        return {"validation": measured, "baseline": {"reference": loss.unchanged}}

    def passages(self, final: PreTrainedModel) -> HeldOut:
        """What the final model makes of each held-out pair."""
        assert self.validation is not None
        score = PreferenceLoss(self.config.train).of_pairs
        return pair_passages(final, self.validation, score, self.session.watch)

    @property
    def _parts(self) -> list[tuple[str, EncodedPairs]]:
        return list(self.encoded.items())

    @cached_property
    def _key(self) -> str:
        """A hash of what the log-probabilities of the reference depend on."""
        return cache.key(*self.content.items())
