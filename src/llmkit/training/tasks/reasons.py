"""Why the settings of a run that were `auto` have their values, in a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from transformers import PreTrainedModel

from llmkit.config.resolved import Resolved
from llmkit.training.schedule import readable_minutes
from llmkit.training.tasks.task import Task


def of_choices(
    task: Task, model: PreTrainedModel, resolved: Resolved, origins: Mapping[str, str]
) -> dict[str, str]:
    """The reason of each value with the origin `auto`, by key. The rules and the measurements
    behind them are in `.github/decisions/0006-auto-settings.md`."""
    width = int(model.config.get_text_config().hidden_size)
    known = {**_of_machine(resolved), **_of_data(task), **_of_size(task)}
    known |= _of_training(task, resolved, width)
    chosen = [key for key, origin in origins.items() if origin == "auto"]
    return {key: known[name] for key in chosen if (name := _rule(key, known))}


def _rule(key: str, known: Iterable[str]) -> str | None:
    """The name under which a key has a reason: settings of a model and domains share theirs."""
    shared = (
        f"{key.rpartition('.')[0]}.*",
        re.sub(r"^data\.mixture\..+\.", "data.mixture.*.", key),
    )
    return next((name for name in (key, *shared) if name in known), None)


def _of_size(task: Task) -> dict[str, str]:
    size, minutes = task.asked.model.size, task.asked.train.max_minutes
    because = f"model.size={size}" if size else "the amount of text"
    if minutes and not size:
        because += f", and {readable_minutes(minutes)} on this machine"
    if task.command == "finetune":
        because = f"model.size={size}" if size else "the usual size of a new classifier"
    return {
        "model.architecture": "learns fastest from random weights at this size",
        "model.config.*": f"follows from {because}",
        "tokenizer.vocab_size": "follows from the amount of text",
        "data.block_size": f"suits {because}"
        if task.from_scratch
        else "as long as the positions of the model allow, at most 512",
    }


def _of_data(task: Task) -> dict[str, str]:
    found = "found by the names and the content of the columns"
    roles = (
        "text", "label", "prompt", "response", "messages", "source", "target", "chosen", "rejected",
    )  # fmt: skip
    columns = [f"{role}_column" for role in roles]
    return {
        **{f"data.{name}": found for name in columns},
        **{f"data.{name}": "detected in the files" for name in ("format", "delimiter", "header")},
        "data.mixture.*.weight": "its tokens ^ (1 / data.mixture_temperature)",
        "model.lora.alpha": "twice the rank",
        "model.lora.target_modules": "every linear layer",
        "data.isolate_documents": "this objective reads the documents of a row together",
        "data.problem_type": "follows from the labels",
        "data.max_length": "the maximum length that the model reads",
        "data.max_target_length": "the maximum length that the model reads",
        "generation.*": "the setting of the model",
        "generation.do_sample": "the likeliest text is the usual translation",
        "generation.num_beams": "usual for encoder-decoder models",
        "generation.max_new_tokens": "the length of the longest target",
        "tokenizer.chat_template": "the tokenizer's own, or one with headings",
        "train.objective": "the usual one of a new model"
        if task.from_scratch
        else "what the model was trained for",
        "train.mask_probability": "the usual share for this architecture",
    }


def _of_training(task: Task, resolved: Resolved, width: int) -> dict[str, str]:
    train, minutes = resolved.train, task.asked.train.max_minutes
    new, tunes = task.from_scratch, task.command == "finetune"
    steps = "what fits into the time limit" if minutes else "the limit of the schedule"
    if minutes and train.max_steps:
        steps = f"what fitted into {readable_minutes(minutes)}"
    rate = (
        "higher for small models, new heads and LoRA than for large pretrained models"
        if tunes
        else f"inverse to the width of {width}, at most 0.006"
        if new
        else f"0.04 / {width}, at most 0.0003: low for pretrained weights"
    )
    return {
        **({"train.eval_steps": "once per epoch"} if tunes else {}),
        "train.max_steps": steps,
        "train.num_train_epochs": "usual for fine-tuning",
        "train.global_batch_size": "usual for fine-tuning, at most the number of examples"
        if tunes
        else f"enough tokens per step for a width of {width}",
        "train.optimizer": "learns new weights clearly faster"
        if train.optimizer == "muon"
        else "usual for pretrained weights and for classifiers",
        "train.learning_rate": rate,
        "train.lr_scheduler_type": "falls to zero at the last step",
        "train.warmup_steps": f"{train.warmup_steps:.2g} of the steps, usual for such runs",
        "train.weight_decay": "usual for fine-tuning"
        if tunes
        else "half of the epochs, from 0.1 to 2: more epochs overfit sooner"
        if new
        else "usual for pretrained weights",
        "train.adam_beta2": "usual for fine-tuning" if tunes else "usual for pretraining",
        "train.head_scale": "a new head learns faster than the pretrained body"
        if train.head_scale != 1
        else "the head is as new as the body, or trained already",
        "train.metric_for_best_model": "every class counts the same"
        if train.metric_for_best_model == "f1_macro"
        else "what the training minimises",
        "train.load_best_model_at_end": "later steps may overfit"
        if train.load_best_model_at_end
        else "at most one epoch, so the last step is the best",
    }


def _of_machine(resolved: Resolved) -> dict[str, str]:
    train = resolved.train
    return {
        "train.micro_batch_size": "what fits into memory and is fast; changes no number",
        "train.precision": "this device multiplies bf16 faster than fp32"
        if train.precision == "bf16"
        else "this device has no fast bf16",
        "train.compile": "saves more time than compiling takes"
        if train.compile
        else "compiling would not pay off",
        "train.logging_steps": "about 50 lines in a run",
        "train.save_steps": "about ten checkpoints in a run",
        "train.eval_steps": "validations take at most about a tenth of the training",
        "train.max_eval_samples": "all, or what validates in a twentieth of the time limit",
    }
