"""What a run writes down while it trains: metrics, timing, plan and checkpoints."""

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
from llmkit.reporting.training_display import TrainingDisplay, memory_used
from llmkit.storage import outputs
from llmkit.storage.jsonl import JsonLines
from llmkit.training import checkpoint
from llmkit.training.checkpoint import State
from llmkit.training.schedule import NEAR, Budget, Clock, readable_minutes

LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "mse", "mae"}
"""Validation figures that fall while a model gets better; all others rise."""

FAILED_SAVES = 3
"""Periodic checkpoints that may fail in a row before the run stops."""


@dataclass
class Recorder:
    """The run directory as the main process writes it; other processes only follow.

    metrics.jsonl holds deterministic figures only: it is the same, byte for byte, however often the
    run was interrupted. Times go to timing.jsonl.
    """

    directory: Path
    settings: ResolvedTrain
    processes: Processes
    display: TrainingDisplay
    clock: Clock
    save_model: Callable[[Path], None]
    optimizer_tensors: Callable[[], dict[str, Tensor]]
    identity: Mapping[str, Any]
    unit: str = "tokens"
    """What a prediction is called: `tokens` or `examples`."""
    full_rate: float | None = None
    """Predictions per second that the machine's matrix rate allows."""
    budget: Budget | None = None
    most_steps: int | None = None
    track: Callable[[Mapping[str, float], int], None] | None = None
    """Where figures go besides the run directory: accelerate's trackers."""
    progress: Callable[[int], Mapping[str, float]] | None = None
    """What else is told of the data that a step has reached, such as the epochs of each domain."""
    said_steps: int = 0
    """The length of the run as it was last said."""
    saved: Path | None = None
    failed_saves: int = 0
    looked_at: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self.checkpoints = self.directory / "checkpoints"
        self.metrics = JsonLines(self.directory / "metrics.jsonl")
        self.timing = JsonLines(self.directory / "timing.jsonl")

    def begin(self, state: State) -> None:
        """Goes back to the lines that belong to the steps done."""
        self.looked_at = (time.monotonic(), state.predictions)
        self.said_steps = state.plan.total_steps
        if self.processes.is_main:
            if (lost := state.metrics_size - self.metrics.size) > 0:
                self.display.console.warn(
                    f"{self.metrics.path} has lost {lost} bytes of steps that are not redone"
                )
            self.metrics.truncate(state.metrics_size)

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Progress of a validation, whose time the budget learns."""
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
            return state.step if proposed else 0  # it would be validated again at once
        return proposed

    def allows_validation(self) -> bool:
        """Whether a validation now leaves the minutes to the training."""
        return self.budget is None or self.budget.allows_validation()

    def validation_is_due(self, state: State, allowed: bool) -> bool:
        """Whether to validate at this step: at the end, and at every `eval_steps` where that is
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
        """Notes a new length of the run, and says it where it is clearly another."""
        total, budget = state.plan.total_steps, self.budget
        if budget and abs(total - self.said_steps) > 0.1 * self.said_steps and not state.finished:
            self.display.console.say(
                f"about {total} steps fit into {readable_minutes(budget.seconds / 60)}"
            )
            self.said_steps = total
        return self._note(state, {"total_steps": state.plan.total_steps})

    def refused(self, state: State) -> State:
        """Notes a step whose loss or gradient was no number; the weights did not move."""
        self.display.console.warn(
            f"step {state.step} refused: its loss or gradient is no finite number "
            f"({state.nonfinite_steps} of {self.settings.max_nonfinite_steps} in a row)"
        )
        return self._note(state, {"refused": "non-finite"})

    def spiked(self, state: State, loss: float, limit: float, rows: Iterable[int]) -> State:
        """Notes a step whose loss stands out, with the rows that it was made of."""
        action = {"warn": "noted", "skip": "refused", "stop": "refused"}[self.settings.loss_spike]
        self.display.console.warn(
            f"step {state.step} {action}: its loss is {loss:.4g}, above {limit:.4g}, which is six "
            "standard deviations over that of the steps before"
        )
        found = {"loss_spike": loss, "limit": limit, "rows": [int(row) for row in rows]}
        return self._note(state, found if action == "noted" else {"refused": "spike", **found})

    def trained(
        self,
        state: State,
        learning_rate: float,
        grad_norm: float,
        router_aux_loss: float | None = None,
    ) -> State:
        """Shows a step, and notes the mean loss since the last note when a note is due."""
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
        """Notes validation figures and whether they are the best so far, or should be the last."""
        if state.step:  # what the run began with is no result of it
            state = self._compared(state, figures[self.settings.metric_for_best_model])
        for domain, shown in _by_domain(figures).items():
            place = f"  {domain}" if domain else f"validation at step {state.step}"
            self.display.console.say(f"{place}: {shown}")
        # JSON has no word for what is no number.
        noted = {f"validation_{k}": v if math.isfinite(v) else None for k, v in figures.items()}
        state = self._note(state, {**noted, **self._reached(state)})
        return self._stopped_early(state)

    def looked(self, state: State, found: Mapping[str, Any]) -> None:
        """Notes what a look at the model after a validation gave."""
        if found:
            self._note(state, found)

    def save(self, state: State, must: bool) -> None:
        """Commits a checkpoint and deletes those beyond the limit.

        A periodic one that fails is tried again at the next; raises WriteError when `must` or when
        too many have failed in a row. All processes come out of it the same way.
        """
        fault: Exception | None = None
        if self.processes.is_main:
            try:
                self._save(state)
            except Exception as error:  # told to the others before it is raised
                fault = error
        failed = bool(self.processes.largest([float(fault is not None)])[0])
        self.failed_saves = self.failed_saves + 1 if failed else 0
        if not failed:
            return
        fault = fault or WriteError("the main process could not save", where=str(self.checkpoints))
        if must or self.failed_saves >= FAILED_SAVES or not isinstance(fault, WriteError):
            raise fault
        self.display.console.warn(
            f"checkpoint not saved, training continues: {fault.what} ({fault.where})"
        )

    def kept(self) -> str:
        """The newest checkpoint, in words."""
        found = [self.saved] if self.saved else outputs.checkpoints(self.checkpoints)
        return f"checkpoint {found[-1]}" if found else "nothing was saved yet"

    def _compared(self, state: State, value: float) -> State:
        """The state with this validation weighed against the best one."""
        figure = self.settings.metric_for_best_model.partition("/")[0]
        sign = -1 if figure in LOWER_IS_BETTER else 1
        best = state.best_metric is None or sign * value > sign * state.best_metric
        if best and math.isfinite(value):
            state = replace(state, best_step=state.step, best_metric=value)
            return replace(state, evaluations_since_best=0)
        return replace(state, evaluations_since_best=state.evaluations_since_best + 1)

    def _stopped_early(self, state: State) -> State:
        """The state with a plan that ends here, when validation has not been the best for long."""
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
        self.metrics.flush()
        state = replace(state, seconds=self.clock.seconds(), metrics_size=self.metrics.size)
        self.saved = checkpoint.save_checkpoint(
            self.checkpoints, state, self.identity, self.save_model, self.optimizer_tensors()
        )
        checkpoint.prune(
            self.checkpoints,
            self.settings.save_total_limit,
            state.best_step,
            self.display.console.warn,
        )

    def _note(self, state: State, figures: Mapping[str, Any]) -> State:
        if self.processes.is_main:
            self.metrics.append({"step": state.step, **figures})
            if self.track is not None:
                numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
                self.track(numbers, state.step)
        return state

    def _time(self, state: State, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        then, before = self.looked_at
        speed = (state.predictions - before) / max(1e-9, now - then)
        self.looked_at = (now, state.predictions)
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


def _by_domain(figures: Mapping[str, float]) -> dict[str, str]:
    """The figures of the whole, under no name, and of each domain, as people read them."""
    shown: dict[str, list[str]] = {}
    for name, value in figures.items():
        figure, _, domain = name.partition("/")
        shown.setdefault(domain, []).append(f"{figure.replace('_', ' ')} {value:.4f}")
    return {domain: "  ".join(parts) for domain, parts in shown.items()}
