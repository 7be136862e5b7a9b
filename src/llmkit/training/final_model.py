"""Save the model of a run: in its checkpoints, and finished in `final/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config.resolved import ResolvedTrain
from llmkit.distributed.processes import Processes
from llmkit.errors import NoValidCheckpoint
from llmkit.models import build, lora
from llmkit.models.experts import balance, saving
from llmkit.reporting import plots
from llmkit.storage import atomic, outputs
from llmkit.storage.atomic import FileFacts
from llmkit.training import checkpoint
from llmkit.training.checkpoint import State
from llmkit.training.shards import files, model_files
from llmkit.training.shards.files import TensorSet
from llmkit.training.tasks.task import Examples, Task

_COMPARED = 4  # number of examples to verify merged LoRA weights with


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    processes: Processes | None = None,
) -> dict[str, FileFacts]:
    """Writes model and tokenizer for plain transformers, and returns the facts of the files that
    this process has hashed; LoRA updates are merged and also saved apart.

    All processes must call it. Raises Diverged instead of saving a non-finite weight.
    """
    is_main = processes is None or processes.is_main
    hashed: dict[str, FileFacts] = {}
    if model_files.is_streamable(model):
        hashed = files.write_tensors(directory, model_files.model_tensors(model), processes)
        if lora.is_attached(model):
            updates = files.groups_of(lora.trained_weights(model))
            apart = TensorSet(lora.LORA_STEM, "the weight", updates)
            hashed |= files.write_tensors(directory, apart, processes)
        if is_main:
            saving.save_configs(model, directory)
    elif is_main:
        _save_whole(model, directory)
    if is_main:
        tokenizer.save_pretrained(directory)
    return hashed


def _save_whole(model: PreTrainedModel, directory: Path) -> None:
    """Writes a model that one process holds, in files that its class chooses."""
    for name, weight in model.named_parameters():
        files.check_savable(name, weight, "the weight", directory)
    model.save_pretrained(directory)


def describe_model(model: PreTrainedModel) -> Iterator[str]:
    """Yields lines on a model: its class, its number of parameters, and a loss that it lacks."""
    weights, name = model.num_parameters(), type(model).__name__
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    partly = f", {trained:,} of them trained" if trained != weights else ""
    yield f"model: {name}, {weights:,} parameters{partly}"
    if balance.are_unbalanced(model):
        yield (
            f"{name} routes tokens to experts without a load-balancing loss: transformers has none "
            "for it"
        )
    if balance.has_constant_routing(model.config):
        yield (
            "each token has one expert, whose weight is always 1: the routers get no gradient, and "
            "stay as they are"
        )


def loading_note(model: PreTrainedModel) -> str | None:
    """A sentence on what plain transformers needs to load the model; None if it needs nothing."""
    if (line := loading_line(model)) is None:
        return None
    needed = line if line.startswith("import") else "run the file of model.code"
    kind = model.config.model_type
    return f"transformers has no architecture `{kind}`: {needed} before from_pretrained"


def loading_line(model: PreTrainedModel) -> str | None:
    """The line of Python that registers the architecture of the model with transformers; None if it
    is registered already."""
    if model.config.model_type not in build.registered_architectures():
        return None
    module, own = type(model).__module__, "llmkit.models.transformer"
    if not module.startswith("llmkit."):
        return "# run the file of model.code here"
    return f"import {own if module.startswith(own) else module}"


def model_of_step(model: PreTrainedModel, run: Path, step: int, is_whole: bool) -> PreTrainedModel:
    """The model of one of the run's checkpoints; LoRA updates are merged if this process holds only
    a part of the weights."""
    saved = checkpoint.read_checkpoint(
        checkpoint.directory_of(run / outputs.CHECKPOINTS, step)
    ).directory
    if not (is_whole and lora.is_attached(model)):
        best: PreTrainedModel = type(model).from_pretrained(saved, dtype=torch.float32)
        return best
    lora.restore_lora(model, saved)
    return model


def check_unfinished(run: Path) -> None:
    """Raises NoValidCheckpoint if a finished run would be trained again from scratch."""
    final = run / outputs.FINAL
    if final.exists() and _step_of(final) != 0:
        raise NoValidCheckpoint(
            "the run is finished and its checkpoints are gone",
            where=str(run / outputs.CHECKPOINTS),
            kept=f"{final}, untouched",
            next="use that model, or choose another output_dir to train it again",
        )


def is_written(run: Path, step: int) -> bool:
    """Whether `final/` holds the undamaged model of this step."""
    try:
        return bool(atomic.verify(run / outputs.FINAL)["step"] == step)
    except (atomic.DamagedError, LookupError):
        return False


def _step_of(final: Path) -> int | None:
    try:
        return int(atomic.read_manifest(final)["step"])
    except (atomic.DamagedError, LookupError):
        return None


def export_final(
    task: Task,
    model: PreTrainedModel,
    run: Path,
    settings: ResolvedTrain,
    state: State,
    is_whole: bool,
) -> None:
    """Write `final/` from the last or the best step, and draw the loss curve.

    If this process holds only a part of the weights, the model comes from its checkpoint.
    """
    step, picture = final_step(settings, state), run / "loss.png"
    if not is_written(run, step):
        is_held = is_whole and step == state.step
        chosen = model if is_held else model_of_step(model, run, step, is_whole)
        picture.unlink(missing_ok=True)
        write_final(chosen, task.tokenizer, run, step, task.examples, task.accompany)
    if picture.exists():
        return
    unit = "nats per token" if task.unit == "tokens" else f"per {task.unit.removesuffix('s')}"
    title = f"{run.name}: {type(model).__name__}"
    how = (title, unit, settings.metric_for_best_model)
    plots.draw_loss_curve(run / outputs.METRICS, picture, *how)


def final_step(settings: ResolvedTrain, state: State) -> int:
    """The step whose weights become the final model."""
    best = state.best_step if settings.load_best_model_at_end else None
    return state.step if best is None else best


def write_final(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    step: int,
    examples: Examples,
    accompany: Callable[[PreTrainedModel, Path], None],
) -> None:
    """Writes `final/` atomically, like a checkpoint, with the files that `accompany` adds; merged
    LoRA weights are verified on examples first."""

    def fill(directory: Path) -> dict[str, FileFacts]:
        hashed = save_model(model, tokenizer, directory)
        if lora.is_attached(model):
            (directory / lora.LORA_FILE).unlink()
            merged = type(model).from_pretrained(directory, dtype=torch.float32)
            lora.check_merge(model, merged, examples.batch(range(min(_COMPARED, len(examples)))))
        accompany(model, directory)
        return hashed

    atomic.clean(run)
    atomic.commit(run / outputs.FINAL, fill, {"step": step})
