"""The model of a run as files: in its checkpoints, and finished in `final/`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit import durable
from llmkit.errors import Diverged, NoValidCheckpoint
from llmkit.models import lora
from llmkit.training import checkpoint
from llmkit.training.tasks import Examples

FINAL = "final"
"""The finished model, in the run directory."""

_COMPARED = 4  # examples that the merged model of LoRA updates is tried with


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer as plain transformers reads them; LoRA updates merged, and beside.

    Raises Diverged rather than save a weight that is no number.
    """
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise Diverged(
                f"the weight {name} is not finite; it was not saved",
                where=str(directory),
                kept="all earlier checkpoints",
                next="lower train.learning_rate in a new run, and check the data",
            )
    if lora.is_attached(model):
        lora.save(model, directory)
    else:
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def restore_model(model: PreTrainedModel, directory: Path) -> None:
    """Gives the model the weights that `save_model` wrote."""
    if lora.is_attached(model):
        lora.restore(model, directory)
    else:
        saved = type(model).from_pretrained(directory, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())


def take(model: PreTrainedModel, run: Path, step: int) -> None:
    """Gives the model the weights of one of the run's checkpoints."""
    saved = checkpoint.named(checkpoint.directory_of(run / "checkpoints", step))
    restore_model(model, saved.directory)


def check_unfinished(run: Path) -> None:
    """Raises NoValidCheckpoint where a finished model would be trained once more from nothing."""
    final = run / FINAL
    if final.exists() and _step_of(final) != 0:
        raise NoValidCheckpoint(
            "the run is finished and its checkpoints are gone",
            where=str(run / "checkpoints"),
            kept=f"{final}, untouched",
            next="use that model, or choose another output_dir to train it anew",
        )


def _step_of(final: Path) -> int | None:
    try:
        return int(durable.read_manifest(final)["step"])
    except (durable.DamagedError, LookupError):
        return None


def write_final(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    step: int,
    examples: Examples,
) -> None:
    """Writes `final/` by the protocol of a checkpoint; merged LoRA updates are tried on examples
    before it is done."""

    def fill(directory: Path) -> None:
        save_model(model, tokenizer, directory)
        if lora.is_attached(model):
            (directory / lora.FILE).unlink()
            merged = type(model).from_pretrained(directory, dtype=torch.float32)
            lora.check_merge(model, merged, examples.batch(range(min(_COMPARED, len(examples)))))

    durable.clean(run)
    durable.commit(run / FINAL, fill, {"step": step})
