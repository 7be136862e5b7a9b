"""The steps, time and memory to expect of a run, for `--dry-run`.

Nothing is computed with the model, so time and memory are estimates. The speed is that of one
transformer layer of about this size with random weights, measured on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.distributed.processes import Processes
from llmkit.models import build
from llmkit.reporting.format import clock, many
from llmkit.storage import outputs
from llmkit.training import probe, resolve, run_directory
from llmkit.training.forecast import compiling, cost
from llmkit.training.schedule import Clock
from llmkit.training.tasks import defaults
from llmkit.training.tasks.task import Task


@dataclass(frozen=True)
class Workload:
    """What a run trains, and on how much."""

    model: PreTrainedModel
    """On the meta device; weights that are not trained need no gradients."""
    config: Config
    """The config with everything resolved that the task resolves."""
    n_examples: int
    is_counted: bool
    """Whether the number of examples is exact."""
    n_validation: int
    tokens: int
    """Typical number of tokens of an example."""
    longest: int
    """Number of tokens of the longest example."""
    lengths_differ: bool
    """Whether batches are padded to different lengths."""
    from_scratch: bool

    @property
    def optimizer(self) -> str:
        """The optimizer of the run."""
        return defaults.optimizer(self.config.train, self.from_scratch)


def expect(asked: Config, command: str, work: Workload, processes: Processes) -> dict[str, Any]:
    """The steps of a run and those that are done, and estimates of the remaining seconds and of the
    peak memory of a process in bytes."""
    train, kind = work.config.train, processes.device.type
    width = int(work.model.config.get_text_config().hidden_size)
    batch = defaults.global_batch_size(train, work.n_examples, work.tokens, width, kind)
    share = math.ceil(batch / processes.count)
    fixed = _used(processes) + cost.fixed_memory(work.model, work.optimizer, work.config.model.lora)
    example = work.longest * cost.memory_per_token(work.model, processes.precision)
    size = _micro_batch(work, share, (_total(processes) - fixed) / example, processes)
    logits = cost.memory_of_logits(work.model, size * work.longest, kind)
    most = defaults.most_steps(train, work.n_examples, batch)
    operations = _operations(work, share)
    per_step = operations / _rate(work, size, processes)
    steps = resolve.planned_steps(train, most, per_step, Clock())
    if relative := _compiled_share(work, steps * per_step, size, processes):
        per_step *= relative
        steps = resolve.planned_steps(train, most, per_step, Clock())
    minutes, done = resolve.time_limit(train), min(steps, _steps_done(asked, command))
    seconds = steps * per_step * (1 + _validating(work, steps, batch, steps * per_step))
    seconds = min(seconds, math.inf if minutes is None else 60 * minutes)
    return {
        "steps": steps,
        "steps_exact": minutes is None and (work.is_counted or steps == train.max_steps),
        "steps_done": done,
        "seconds": round(seconds * (steps - done) / max(1, steps), 1),
        "memory_bytes": round(fixed + size * example + logits),
        "micro_batch_size": size,
    }


def outline_of_task(task: Task, model: PreTrainedModel, **sizes: Any) -> dict[str, Any]:
    """What a dry run reports of a task whose data is opened: the model, which may be on the meta
    device, the `sizes`, what to expect, and the data."""
    return {
        "command": task.command,
        "run_dir": str(run_directory.locate_run(task.asked, task.command)),
        "architecture": model.config.model_type,
        "parameters": model.num_parameters(),
        **sizes,
        "expected": _expect_of_task(task, model),
        **task.data_report,
    }


def _expect_of_task(task: Task, model: PreTrainedModel) -> dict[str, Any]:
    examples, validation = task.examples, task.validation
    work = Workload(
        model=model,
        config=task.config,
        n_examples=len(examples),
        is_counted=True,
        n_validation=len(validation) if validation else 0,
        tokens=task.tokens_per_example,
        longest=probe.row_length(examples, examples.longest_first()[0]),
        lengths_differ=probe.lengths_differ(examples),
        from_scratch=task.from_scratch,
    )
    return expect(task.asked, task.command, work, task.session.processes)


def expectation_sentence(found: Mapping[str, Any], device: str) -> str:
    """The same as a sentence."""
    steps = f"{'' if found['steps_exact'] else 'about '}{many(found['steps'], 'step')}"
    if found["steps_done"]:
        steps += f", of which {found['steps_done']:,} are done"
    memory = f"{_gigabytes(found['memory_bytes'])} of {'GPU ' if device == 'cuda' else ''}memory"
    seconds = clock(found["seconds"])
    return f"{steps}; by estimate {seconds} of training on this machine, and {memory}"


def memory_warning(found: Mapping[str, Any], processes: Processes) -> str | None:
    """A warning if a run is expected to need more memory than the device has."""
    needed, total = found["memory_bytes"], _total(processes)
    if needed <= total:
        return None
    return (
        f"the run needs about {_gigabytes(needed)} of memory, and this device has "
        f"{_gigabytes(total)}: choose a smaller model, a smaller train.micro_batch_size, or a "
        "larger machine"
    )


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes < 1e11 else f"{n_bytes / 1e9:,.0f} GB"


def _used(processes: Processes) -> int:
    """Bytes that the process uses before it has a model; a GPU counts only tensors."""
    return 0 if processes.device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _total(processes: Processes) -> int:
    """Bytes of memory of the device."""
    if processes.device.type == "cuda":
        return int(torch.cuda.get_device_properties(processes.device).total_memory)
    return int(psutil.virtual_memory().total)


def _micro_batch(work: Workload, share: int, fitting: float, processes: Processes) -> int:
    """The micro-batch size that a run will choose for this share of the batch, if `fitting`
    examples fit into memory."""
    asked = work.config.train.micro_batch_size
    if asked != "auto":
        return min(asked, share)
    if processes.device.type == "cpu":
        return probe.even_share(share, probe.usual_micro_batch(work.tokens))
    size = share
    while size > max(1.0, fitting):  # as a run tries them
        size = math.ceil(size / 2)
    return size


def _operations(work: Workload, share: int) -> float:
    """The operations of a step with this share of the batch."""
    products = share * work.tokens * cost.operations_per_token(work.model, work.tokens)
    return products + (cost.operations_of_muon(work.model) if work.optimizer == "muon" else 0)


def _compiled_share(work: Workload, seconds: float, size: int, processes: Processes) -> float:
    """Time of a compiled step relative to one that is not; 0 if a run that takes this long without
    compilation will not be compiled."""
    kind = compiling.kind_of_run(work.model, work.longest, size, processes)
    expected, asked = compiling.expected_compilation(kind), work.config.train.compile
    if asked == "auto":
        asked = compiling.compiling_pays(seconds, work.lengths_differ, expected)[0]
    return expected.share if asked else 0.0


def _rate(work: Workload, size: int, processes: Processes) -> float:
    shape = work.model.config.get_text_config()
    width = int(shape.hidden_size)
    heads: int = getattr(shape, "num_attention_heads", None) or max(1, width // build.HEAD_SIZE)
    how = processes.device, processes.precision
    return probe.layer_rate(width // heads, heads, work.tokens, size, *how)


def _validating(work: Workload, steps: int, batch: int, seconds: float) -> float:
    """The cost of all validations as a share of the training."""
    train, held_out = work.config.train, work.n_validation
    if not (held_out and steps):
        return 0.0
    if train.max_eval_samples != "auto":
        held_out = min(held_out, train.max_eval_samples)
    share = defaults.validation_share(held_out, steps * batch, steps)
    return share * steps // defaults.intervals(train, steps, share, seconds)["eval_steps"]


def _steps_done(asked: Config, command: str) -> int:
    """The step of the newest checkpoint of this run; 0 for a new one."""
    directory = run_directory.begun_run(asked, command)
    saved = outputs.checkpoints(directory / outputs.CHECKPOINTS) if directory else []
    return int(saved[-1].name.removeprefix("step-")) if saved else 0
