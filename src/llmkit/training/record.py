"""Record a run while it trains: metrics, timing, plan and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkit.config.resolved import ResolvedTrain
from llmkit.distributed.processes import Processes
from llmkit.errors import WriteError
from llmkit.reporting import samples
from llmkit.reporting.progress.training_display import TrainingDisplay, memory_used
from llmkit.reporting.run_record import LOWER_IS_BETTER
from llmkit.reporting.trackers import Tracking
from llmkit.storage import jsonl, outputs
from llmkit.storage.atomic import FileFacts
from llmkit.storage.jsonl import JsonLines
from llmkit.training import checkpoint
from llmkit.training.checkpoint import State
from llmkit.training.schedule import NEAR, Budget, Clock, readable_minutes

FAILED_SAVES = 3
"""Number of consecutive periodic checkpoints that may fail before the run stops."""


@dataclass
class Recorder:
    """Writes the run directory; only the main process writes.

    metrics.jsonl holds only deterministic values: it is byte-identical however often the run is
    interrupted. Times go to timing.jsonl.
    """

    directory: Path
    settings: ResolvedTrain
    processes: Processes
    display: TrainingDisplay
    clock: Clock
    save_model: Callable[[Path], Mapping[str, FileFacts] | None]
    """Writes the model into a directory, on all ranks together."""
    optimizer_tensors: Callable[[], dict[str, Tensor]]
    identity: Mapping[str, Any]
    unit: str = "tokens"
    """The unit of predictions: `tokens` or `examples`."""
    full_rate: float | None = None
    """Predictions per second at the machine's peak matrix rate."""
    budget: Budget | None = None
    most_steps: int | None = None
    tracking: Tracking | None = None
    """Receives the metrics besides the run directory, and sends none of them twice."""
    progress: Callable[[int], Mapping[str, float]] | None = None
    """More values of a step for metrics.jsonl, such as the epochs of each domain."""
    reported_steps: int = 0
    """The last reported length of the run."""
    saved: Path | None = None
    failed_saves: int = 0
    timed_at: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self.checkpoints = self.directory / outputs.CHECKPOINTS
        self.metrics = JsonLines(self.directory / outputs.METRICS)
        self.timing = JsonLines(self.directory / outputs.TIMING)

    def begin(self, state: State) -> None:
        """Truncate metrics to the steps completed so far, and send the trackers what they have
        missed."""
        self.timed_at = (time.monotonic(), state.predictions)
        self.reported_steps = state.plan.total_steps
        if self.processes.is_main:
            if (lost := state.metrics_size - self.metrics.size) > 0:
                self.display.console.warn(
                    f"{self.metrics.path} has lost {lost} bytes of steps that are not redone"
                )
            self.metrics.truncate(state.metrics_size)
            if self.tracking is not None:
                for record in jsonl.read_records(self.metrics.path):
                    self.tracking.log(_numbers(record), record["step"])

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Progress of a validation, whose time the budget records."""
        start = time.monotonic()
        with self.display.watch(label, total) as advance:
            yield advance
        if self.budget:
            self.budget.validated(time.monotonic() - start)

    def proposed_steps(self, state: State) -> int:
        """The length of the run that the clock suggests now, or 0."""
        if self.budget is None:
            return 0
        proposed = self.budget.steps(state.step, state.plan, self.most_steps)
        if state.evaluated_step == state.step > 0 and proposed - state.step <= NEAR * proposed:
            return state.step if proposed else 0  # it would be validated again immediately
        return proposed

    def allows_validation(self) -> bool:
        """Whether the time limit leaves time for a validation now."""
        return self.budget is None or self.budget.allows_validation()

    def validation_is_due(self, state: State, allowed: bool) -> bool:
        """Whether to validate at this step: at the end, and every `eval_steps` steps if it is
        `allowed` and the end is not near."""
        step, total, every = state.step, state.plan.total_steps, self.settings.eval_steps
        if step <= state.evaluated_step:
            return False
        if state.finished:
            again = self.budget is not None and step - state.evaluated_step <= NEAR * total
            return not (again and state.evaluated_step > 0)
        near = total - step < every and total - step <= NEAR * total
        return step % every == 0 and not near and (allowed or step == 0)

    def replanned(self, state: State) -> State:
        """Record a new length of the run, and report it if it differs clearly."""
        total, budget = state.plan.total_steps, self.budget
        if (
            budget
            and abs(total - self.reported_steps) > 0.1 * self.reported_steps
            and not state.finished
        ):
            self.display.console.say(
                f"new plan: about {total} steps fit into {readable_minutes(budget.seconds / 60)}, "
                f"{self.reported_steps} before"
            )
            self.reported_steps = total
        return self._note(state, {"total_steps": state.plan.total_steps})

    def refused(self, state: State) -> State:
        """Record a step with a non-finite loss or gradient; the weights were not updated."""
        self.display.console.warn(
            f"step {state.step} skipped: its loss or gradient is not finite "
            f"({state.nonfinite_steps} of {self.settings.max_nonfinite_steps} in a row)"
        )
        return self._note(state, {"refused": "non-finite"})

    def spiked(self, state: State, loss: float, limit: float, rows: Iterable[int]) -> State:
        """Record a step with a loss spike, with its rows."""
        kept = self.settings.loss_spike == "warn"
        self.display.console.warn(
            f"step {state.step} {'kept' if kept else 'skipped'}: its loss {loss:.4g} is above "
            f"{limit:.4g}, which is six standard deviations above the mean of the previous steps"
        )
        found = {"loss_spike": loss, "limit": limit, "rows": [int(row) for row in rows]}
        return self._note(state, found if kept else {"refused": "spike", **found})

    def trained(
        self,
        state: State,
        learning_rate: float,
        grad_norm: float,
        router_aux_loss: float | None = None,
    ) -> State:
        """Show a step, and record the mean loss since the last record every `logging_steps`
        steps."""
        self.display.step(state.step, state.plan.total_steps)
        last = state.step >= state.plan.total_steps
        if state.step % self.settings.logging_steps and not last:
            return state
        figures = {
            "train_loss": state.unlogged_loss / max(1, state.unlogged_predictions),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
        }
        if router_aux_loss is not None:
            figures["router_aux_loss"] = router_aux_loss
        state = replace(state, unlogged_loss=0.0, unlogged_predictions=0)
        self._time(state, figures)
        return self._note(state, {**figures, self.unit: state.predictions, **self._reached(state)})

    def validated(self, state: State, figures: Mapping[str, float]) -> State:
        """Record validation metrics, whether they are the best so far, and early stopping."""
        if state.step:  # the metrics at step 0 are not a result of the run
            state = self._compared(state, figures[self.settings.metric_for_best_model])
        for domain, shown in _by_domain(figures).items():
            place = f"  {domain}" if domain else f"validation at step {state.step}"
            self.display.console.say(f"{place}: {shown}")
        # JSON cannot represent non-finite numbers.
        noted = {f"validation_{k}": v if math.isfinite(v) else None for k, v in figures.items()}
        state = self._note(state, {**noted, **self._reached(state)})
        return self._stopped_early(state)

    def sampled(self, state: State, found: Mapping[str, Any]) -> None:
        """Show and record samples of the model after a validation."""
        console = self.display.console
        for sample in found.get("samples", ()):
            console.show(samples.text_sample(sample, console.stderr))
        if found:
            self._note(state, found)

    def save(self, state: State, must: bool) -> None:
        """Commits a checkpoint and deletes those beyond the limit.

        A failed periodic checkpoint is only a warning; raises WriteError if `must` or if too many
        have failed in a row. All processes return or raise alike.
        """
        try:
            self._save(state)
        except WriteError as fault:
            self.failed_saves += 1
            if must or self.failed_saves >= FAILED_SAVES:
                raise
            self.display.console.warn(
                f"checkpoint not saved, training continues: {fault.what} ({fault.where})"
            )
        else:
            self.failed_saves = 0

    def kept(self) -> str:
        """A description of the newest checkpoint."""
        found = [self.saved] if self.saved else outputs.checkpoints(self.checkpoints)
        return f"checkpoint {found[-1]}" if found else "nothing was saved yet"

    def _compared(self, state: State, value: float) -> State:
        """The state after comparing this validation with the best one."""
        figure = self.settings.metric_for_best_model.partition("/")[0]
        sign = -1 if figure in LOWER_IS_BETTER else 1
        best = state.best_metric is None or sign * value > sign * state.best_metric
        if best and math.isfinite(value):
            state = replace(state, best_step=state.step, best_metric=value)
            return replace(state, evaluations_since_best=0)
        return replace(state, evaluations_since_best=state.evaluations_since_best + 1)

    def _stopped_early(self, state: State) -> State:
        """The state with a plan that ends here if validation has not improved for long enough."""
        patience = self.settings.early_stopping_patience
        if patience is None or state.evaluations_since_best < patience or state.finished:
            return state
        self.display.console.say(
            f"stopping at step {state.step}: {self.settings.metric_for_best_model} was best at "
            f"step {state.best_step}, {patience} validations ago"
        )
        return self.replanned(replace(state, plan=state.plan.revised(state.step, state.step)))

    def _reached(self, state: State) -> Mapping[str, float]:
        return self.progress(state.step) if self.progress else {}

    def _save(self, state: State) -> None:
        is_main = self.processes.is_main
        with self.processes.alike():
            if is_main:
                self.metrics.flush()
                if self.tracking is not None:
                    self.tracking.flush()
        size = self.metrics.size if is_main else 0
        state = replace(state, seconds=self.clock.seconds(), metrics_size=size)
        self.saved = checkpoint.save_checkpoint(
            self.checkpoints,
            state,
            self.identity,
            self.save_model,
            self.optimizer_tensors(),
            self.processes,
        )
        if is_main:
            checkpoint.prune(
                self.checkpoints,
                self.settings.save_total_limit,
                state.best_step,
                self.display.console.warn,
            )

    def _note(self, state: State, figures: Mapping[str, Any]) -> State:
        if self.processes.is_main:
            self.metrics.append({"step": state.step, **figures})
            if self.tracking is not None:
                self.tracking.log(_numbers(figures), state.step)
        return state

    def _time(self, state: State, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        then, before = self.timed_at
        speed = (state.predictions - before) / max(1e-9, now - then)
        self.timed_at = (now, state.predictions)
        mfu = speed / self.full_rate if self.full_rate else None
        shown = [f"{speed:,.0f} {self.unit}/s", *([f"mfu {mfu:.0%}"] if mfu else [])]
        self.display.log(state.step, state.plan.total_steps, dict(figures), shown)
        if self.processes.is_main:
            self.timing.append(
                {
                    "step": state.step,
                    "seconds": round(self.clock.seconds(), 3),
                    f"{self.unit}_per_second": round(speed, 1),
                    **({"mfu": round(mfu, 4)} if mfu else {}),
                    "memory_bytes": memory_used(),
                }
            )


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a record."""
    return {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}


def _by_domain(figures: Mapping[str, float]) -> dict[str, str]:
    """The metrics of the whole (empty name) and of each domain, formatted for the console."""
    shown: dict[str, list[str]] = {}
    for name, value in figures.items():
        figure, _, domain = name.partition("/")
        shown.setdefault(domain, []).append(f"{figure.replace('_', ' ')} {value:.4f}")
    return {domain: "  ".join(parts) for domain, parts in shown.items()}
