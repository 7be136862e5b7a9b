"""The training loop: all weight updates of llmkit happen here, for any loss.

One optimizer step, in order: which examples (a pure function of seed and step), the global count of
predictions, micro-batches whose summed loss is divided by that count, clipping, refusal of
non-finite gradients, learning rate (a pure function of the step), optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from llmkit.config.resolved import ResolvedTrain
from llmkit.distributed.processes import Processes, derived_seed
from llmkit.distributed.signals import StopSignal, stopped_by
from llmkit.errors import Diverged
from llmkit.models.kernels import dropout
from llmkit.progress import Watch
from llmkit.training import prefetch
from llmkit.training.checkpoint import State
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.prefetch import Input, share_of_rows
from llmkit.training.record import Recorder
from llmkit.training.schedule import rate
from llmkit.training.shards import wrapping
from llmkit.training.tasks.task import Batch, Examples, Loss, Rows, on_device

_WINDOW = 128
"""Number of previous steps that a loss is compared with."""

FEWEST = 32
"""Minimum number of previous steps for a comparison."""

DEVIATIONS = 6.0

LEAST_DEVIATION = 0.05
"""In nats; if losses hardly vary, small differences are not spikes."""


def spike_limit(recent: Sequence[float]) -> float:
    """The mean loss above which the next step is a spike."""
    if len(recent) < FEWEST:
        return math.inf
    # Exact sums are the same on every machine.
    mean = math.fsum(recent) / len(recent)
    variance = math.fsum((loss - mean) ** 2 for loss in recent) / len(recent)
    return mean + DEVIATIONS * max(LEAST_DEVIATION, math.sqrt(variance))


def after(recent: Sequence[float], loss: float) -> tuple[float, ...]:
    """The losses to compare the next step with.

    Spikes are included: a loss that has risen permanently soon stops being a spike.
    """
    return (*recent, loss)[-_WINDOW:]


Samples = Callable[[int], Mapping[str, Any]]
"""Makes a few samples of the model after the validation of a step, for metrics.jsonl."""


@dataclass(frozen=True)
class Work:
    """The model, optimizer, data and settings of a run."""

    objective: LossModule
    """The model and its loss."""
    optimizer: NamedOptimizer
    examples: Examples
    rows_of_step: Callable[[int], Rows]
    """The rows of a step, over all processes: a pure function."""
    validation: Examples | None
    validation_loss: Loss
    settings: ResolvedTrain
    seed: int
    processes: Processes

    @property
    def loss(self) -> Loss:
        """The training loss."""
        return self.objective.loss

    @property
    def model(self) -> PreTrainedModel:
        """The model being trained."""
        return self.objective.model

    @property
    def is_divided(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return wrapping.is_divided(self.objective)

    @cached_property
    def distributed(self) -> nn.Module:
        """The objective with gradients averaged over processes (itself if there is one process, or
        if each holds a part of it)."""
        if self.is_divided:
            return self.objective
        return self.processes.distribute(self.objective)


def train(work: Work, state: State, record: Recorder, stop: StopSignal, samples: Samples) -> State:
    """Trains until the plan is done and returns the final state.

    Validation and saving that are due at a step happen before the next step, so that a run resumed
    at that step does them too. Raises Stopped or Interrupted after saving when a signal arrives,
    Diverged after too many consecutive skipped steps or a loss spike that should stop the run, and
    WriteError if the last checkpoint cannot be saved.
    """
    settings = work.settings
    with prefetch.ahead(
        work.loss, work.examples, work.rows_of_step, settings.micro_batch_size, work.processes
    ) as input_of:
        while True:
            stop.saves = stop.saves or state.step > 0
            state, signal_number, due = _agree(work, state, record, stop)
            if not signal_number and due:
                state, signal_number = _validate(work, state, record, stop)
                if not signal_number:
                    _sample(work, state, record, samples)
                if not signal_number:  # the validation may have used up the time
                    state, signal_number, _ = _agree(work, state, record, stop)
            trouble = _trouble(state, settings)
            must = state.finished or bool(signal_number or trouble) or _is_new_best(state, settings)
            if state.step > 0 and (must or state.step % settings.save_steps == 0):
                record.save(state, must=must)
            if signal_number:
                raise stopped_by(signal_number, kept=record.kept())
            if trouble:
                what, next_step = trouble
                kept = f"weights from before that; {record.kept()}"
                raise Diverged(what, where=f"step {state.step}", kept=kept, next=next_step)
            if state.finished:
                return state
            state = _step(work, state, record, input_of(state.step))


def _sample(work: Work, state: State, record: Recorder, samples: Samples) -> None:
    """Record samples of the model, which processes that divide it make together."""
    if work.processes.is_main or work.is_divided:
        with wrapping.gathered_ends(work.objective):
            found = samples(state.step)
        if work.processes.is_main:
            record.sampled(state, found)


def _step(work: Work, state: State, record: Recorder, given: Input) -> State:
    """One optimizer step."""
    settings, predictions = work.settings, given.predictions
    found = _gradients(work, state.step, given)
    learning_rate = settings.learning_rate * rate(
        state.plan, state.step, settings.lr_scheduler_type, settings.warmup_steps
    )
    loss = found.loss / max(1, predictions)
    limit = spike_limit(state.recent_losses)
    state = _judged(state, loss, found.norm, limit)
    if state.nonfinite_steps:
        record.refused(state)
    spiked = state.spiked_step == state.step
    if spiked:
        record.spiked(state, loss, limit, given.rows)
    if state.nonfinite_steps or (spiked and settings.loss_spike != "warn"):
        work.optimizer.zero_grad()
        return state
    work.optimizer.step(learning_rate)
    work.optimizer.zero_grad()
    state = replace(
        state,
        predictions=state.predictions + predictions,
        unlogged_loss=state.unlogged_loss + found.loss,
        unlogged_predictions=state.unlogged_predictions + predictions,
    )
    return record.trained(state, learning_rate, found.norm, found.router_aux_loss)


class Gradients(NamedTuple):
    """Summary of the gradients of a step, over all processes."""

    loss: float
    """Summed."""
    norm: float
    """Before clipping."""
    router_aux_loss: float | None
    """The load-balancing loss of a mixture of experts."""


def _gradients(work: Work, step: int, given: Input) -> Gradients:
    """Compute the clipped gradients of a step into the weights' `grad`."""
    settings, processes, balance = work.settings, work.processes, work.loss.balance
    sums = torch.zeros(2, dtype=torch.float64, device=processes.device)
    routed = _routed(work, step, given)
    for index, (batch, masks) in enumerate(_batches(work, step, given)):
        last = index == len(given.micro_batches) - 1
        sync = processes.sync_only_if(last, work.distributed)
        with sync, masks, work.objective.compiled(), processes.in_training():
            own = work.distributed(batch)
            # Divide by the weight over all processes and undo DDP's averaging: a mean of means
            # would give short batches more weight.
            scales = [processes.count / (weight or 1.0) for weight in given.weights]
            parts = own["objective"].reshape(-1).unbind()
            objective = sum(part * scale for part, scale in zip(parts, scales, strict=True))
            if balance is not None:
                routed = processes.sum(own["routed"]) if routed is None else routed
                unbalanced = balance.loss(routed, own["probability"])
                objective = objective + balance.coefficient * processes.count * unbalanced
                sums[1] += unbalanced.detach()
            objective.backward()
        sums[0] += own["loss"].detach()
    norm = nn.utils.clip_grad_norm_(
        work.optimizer.parameters, settings.max_grad_norm or math.inf, foreach=True
    )
    # The only synchronisation with the device: a non-finite step must not update the weights.
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    loss, aux, grad_norm = torch.cat([processes.sum(sums), whole.double().reshape(1)]).tolist()
    return Gradients(loss, grad_norm, None if balance is None else aux)


@torch.no_grad()
def _routed(work: Work, step: int, given: Input) -> Tensor | None:
    """The number of the step's tokens routed to each expert, over all processes.

    The load-balancing loss of each micro-batch needs it. It costs a forward pass without logits;
    None with one micro-batch per process, which counts its own tokens.
    """
    if work.loss.balance is None or len(given.micro_batches) == 1:
        return None
    counts: list[Tensor] = []
    for batch, masks in _batches(work, step, given):
        whole = wrapping.gathered_ends(work.objective)
        with whole, masks, work.objective.compiled(), work.processes.in_training():
            counts.append(work.loss.routed(work.model, batch))
    return work.processes.sum(torch.stack(counts).sum(0))


def _batches(
    work: Work, step: int, given: Input
) -> Iterator[tuple[Batch, AbstractContextManager[None]]]:
    """The micro-batches of a step on the device, each with a context that sets its dropout
    masks."""
    device = work.processes.device
    seed = derived_seed(work.seed, "dropout", step)
    for slots, prepared in zip(given.slots, given.micro_batches, strict=True):
        yield on_device(prepared, device), dropout.of_examples(seed, slots, device)


def _judged(state: State, loss: float, grad_norm: float, limit: float) -> State:
    """The state after a step with this mean loss, before the weights are updated."""
    step = state.step + 1
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return replace(state, step=step, nonfinite_steps=state.nonfinite_steps + 1)
    return replace(
        state,
        step=step,
        nonfinite_steps=0,
        recent_losses=after(state.recent_losses, loss),
        spiked_step=step if loss > limit else state.spiked_step,
    )


def _trouble(state: State, settings: ResolvedTrain) -> tuple[str, str] | None:
    """The reason why the run must stop and the next action, or None."""
    if state.nonfinite_steps >= settings.max_nonfinite_steps:
        return (
            f"the loss or gradient of {state.nonfinite_steps} consecutive steps was not finite",
            "lower train.learning_rate or train.max_grad_norm, and check the data",
        )
    if settings.loss_spike == "stop" and state.spiked_step == state.step > 0:
        return (
            "the loss spiked; metrics.jsonl names the rows of the step",
            "check those rows; to continue without that step, add train.loss_spike=skip or warn",
        )
    return None


@torch.no_grad()
def measure(
    work: Work, examples: Examples, watch: Watch, stop: StopSignal
) -> dict[str, float] | None:
    """The metrics over all examples, each counted once, in fp32 and without dropout.

    fp32 gives the same metrics as plain transformers with the saved model. Memory does not grow
    with the number of examples. None if a signal arrived: partial results are never reported.
    """
    processes, size = work.processes, work.settings.micro_batch_size
    totals: dict[str, torch.Tensor] = {}
    rows = np.asarray(examples.longest_first())
    # Round-robin: every process gets as many long examples as the others.
    parts = [rows[first :: processes.count] for first in range(processes.count)]
    dealt = np.concatenate([*parts, [-1]])
    slots = share_of_rows(len(rows), size, processes.rank, processes.count)
    work.model.eval()
    try:
        with watch("validation", len(slots)) as advance:
            for part in slots:
                if processes.largest([stop.received])[0]:
                    return None
                batch = on_device(examples.batch(dealt[part]), processes.device)
                for key, value in work.objective(batch).items():
                    totals[key] = totals.get(key, 0) + value.double()
                advance(1)
    finally:
        work.model.train()
    sums = {key: processes.sum(value).cpu().numpy() for key, value in totals.items()}
    return work.validation_loss.figures(sums, examples.count(rows))


def _agree(work: Work, state: State, record: Recorder, stop: StopSignal) -> tuple[State, int, bool]:
    """The state with the plan by the main process's clock, the signal that any process received,
    and whether to validate now."""
    main = work.processes.is_main
    proposal = record.proposed_steps(state) if main else 0
    allowed = main and record.allows_validation()
    signal_number, total_steps, allows = work.processes.largest([stop.received, proposal, allowed])
    if total_steps and int(total_steps) != state.plan.total_steps:
        state = replace(state, plan=state.plan.revised(state.step, int(total_steps)))
        state = record.replanned(state)
    return state, int(signal_number), record.validation_is_due(state, bool(allows))


def _validate(work: Work, state: State, record: Recorder, stop: StopSignal) -> tuple[State, int]:
    figures = None
    if work.validation is not None:
        figures = measure(work, work.validation, record.watch, stop)
        if figures is None:
            return state, int(work.processes.largest([stop.received])[0])
    state = replace(state, evaluated_step=state.step)
    return (record.validated(state, figures) if figures else state), 0


def _is_new_best(state: State, settings: ResolvedTrain) -> bool:
    """Whether this step is the best so far and its weights may become the final model."""
    return settings.load_best_model_at_end and state.best_step == state.step > 0
