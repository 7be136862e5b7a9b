"""The LoRA updates of a run in the layout of PEFT, for its base model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.config.schema import Config, LoraConfig
from llmkit.errors import ConfigError, InputNotFound
from llmkit.export.comparing import compare_outputs, probe_ids
from llmkit.export.source import ExportSource
from llmkit.models import lora, pretrained
from llmkit.models.classifier import load_body, longest_text
from llmkit.models.directory import check_whole
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.console import Console
from llmkit.reporting.run_record import RunRecord, read_run
from llmkit.storage import atomic, outputs

_FROZEN_TOLERANCE = 1e-3
"""Largest difference of logits from those of the merged model, relative to the largest."""

_TASKS = {"classifier": "SEQ_CLS", "causal": "CAUSAL_LM"}


@dataclass(frozen=True)
class RunUpdates:
    """The LoRA updates of a checkpoint, and the model that they belong to."""

    checkpoint: Path
    base: Pretrained
    settings: LoraConfig


def check_adapter(source: ExportSource) -> dict[str, Any]:
    """Checks that the run has LoRA updates and that their base model is there.

    Raises ConfigError or InputNotFound if it has none.
    """
    found = _updates(source)
    return {"base_model": found.base.name, "checkpoint": found.checkpoint.name}


def export_adapter(source: ExportSource, config: Config, console: Console) -> dict[str, Any]:
    """Writes a directory for `peft.PeftModel.from_pretrained`, which appears once its model gives
    the outputs of the run's own.

    Raises what `check_adapter` raises, WriteError where the disk does not take it, and ConfigError
    if the base model is not the one that the run began with.
    """
    updates = _updates(source)
    with console.loading_model():
        model = source.load(console.watch, console.warn)
        base = _load_base(updates, source)
    rows = probe_ids(source.tokenizer, longest_text(model.config, source.tokenizer))
    verified: dict[str, Any] = {}

    def fill(directory: Path) -> None:
        _write(directory, updates, base, source)
        with console.waiting("comparing the outputs with the model…"):
            made = peft.PeftModel.from_pretrained(base, directory).eval()
            figures = compare_outputs(model, made, rows)
        if figures["largest_difference"] > _FROZEN_TOLERANCE:
            raise _other_base(updates, figures["largest_difference"])
        verified["outputs"] = figures

    output = Path(str(config.export.output))
    atomic.commit(output, fill, {"export": "peft"})
    if Path(updates.base.location).is_dir():
        console.warn(
            f"the updates name their base model by its path, {_base_name(updates)}: if it moves, "
            "change base_model_name_or_path in adapter_config.json"
        )
    return {
        "bytes": (output / "adapter_model.safetensors").stat().st_size,
        "base_model": updates.base.name,
        "loading": _loading_line(source, output),
        "verified": verified,
        "not_verified": [],
    }


def _updates(source: ExportSource) -> RunUpdates:
    run = _run_of(source)
    settings = LoraConfig.model_validate((run.config.get("model") or {}).get("lora") or {})
    if settings.r is None:
        raise ConfigError(
            "the run was trained without LoRA, and has no updates apart from its weights",
            where=f"{run.directory} (model.lora.r)",
            next="export the whole model with `--format safetensors`",
        )
    given = run.config["model"]
    base = pretrained.open_model(str(given["name_or_path"]), given.get("revision"))
    return RunUpdates(_checkpoint(source, run), base, settings)


def _run_of(source: ExportSource) -> RunRecord:
    """The run that the model is of."""
    location = Path(source.opened.location)
    for directory in (location.parent, location.parent.parent):
        if (directory / outputs.RUN).is_file():
            return read_run(directory)
    raise ConfigError(
        f"{source.opened.name} is the model of no run: LoRA updates are kept in its checkpoints",
        where="model.name_or_path",
        next="name the run directory of `llmkit finetune model.lora.r=8`",
    )


def _checkpoint(source: ExportSource, run: RunRecord) -> Path:
    """The checkpoint whose updates are merged into the model."""
    location = Path(source.opened.location)
    if location.name == outputs.FINAL:
        step = atomic.read_manifest(location)["step"]
        saved = outputs.checkpoints(run.directory / outputs.CHECKPOINTS)
        location = next((each for each in saved if int(each.name[5:]) == step), location)
    if not (location / lora.LORA_FILE).is_file():
        again = shlex.join(run.command_line)
        raise InputNotFound(
            f"the checkpoint with the LoRA updates of the model is gone: {lora.LORA_FILE}",
            where=str(location),
            next=f"train it again with `{again}`, or export the whole model with "
            "`--format safetensors`",
        )
    check_whole(location, weights=True)
    return location


def _load_base(updates: RunUpdates, source: ExportSource) -> PreTrainedModel:
    if source.opened.kind == "classifier":
        return load_body(updates.base, source.config, 0).eval()
    return pretrained.load_model(updates.base).eval()


def _write(
    directory: Path, updates: RunUpdates, base: PreTrainedModel, source: ExportSource
) -> None:
    """Writes weights, settings and tokenizer."""
    stored = load_file(updates.checkpoint / lora.LORA_FILE)
    weights = {_peft_name(name): tensor for name, tensor in stored.items()}
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    _settings(updates, base, stored, source).save_pretrained(str(directory))
    source.tokenizer.save_pretrained(directory)
    ends = Path(source.opened.location) / "generation_config.json"
    if ends.is_file():
        (directory / ends.name).write_bytes(ends.read_bytes())


def _peft_name(name: str) -> str:
    return "base_model.model." + name.replace(".default.", ".")


def _settings(
    updates: RunUpdates, base: nn.Module, stored: Mapping[str, Tensor], source: ExportSource
) -> peft.LoraConfig:
    marker = ".lora_A.default.weight"
    layers = [name.removesuffix(marker) for name in stored if name.endswith(marker)]
    heads = {name.rpartition(".")[0] for name in stored if ".lora_" not in name}
    return peft.LoraConfig(
        task_type=_TASKS.get(source.opened.kind),
        base_model_name_or_path=_base_name(updates),
        revision=updates.base.revision,
        inference_mode=True,
        target_modules=_shortened(layers, base),
        modules_to_save=sorted(heads) or None,
        **lora.scaling(updates.settings),
    )


def _shortened(layers: list[str], base: nn.Module) -> list[str]:
    """The last parts of the names of the layers where they mean the same layers, as most configs
    write them; else the whole names."""
    leaves = {name.rpartition(".")[2] for name in layers}
    meant = {
        name
        for name, module in base.named_modules()
        if name.rpartition(".")[2] in leaves and hasattr(module, "weight")
    }
    return sorted(leaves if meant == set(layers) else layers)


def _base_name(updates: RunUpdates) -> str:
    location = Path(updates.base.location)
    return str(location.resolve()) if location.is_dir() else updates.base.location


def _loading_line(source: ExportSource, output: Path) -> str:
    """The line of Python that loads the model with its updates."""
    auto, labels = "CausalLM", ""
    if source.opened.kind == "classifier":
        auto, labels = "SequenceClassification", f", num_labels={len(source.config.id2label)}"
    return f"peft.AutoPeftModelFor{auto}.from_pretrained({str(output)!r}{labels})"


def _other_base(updates: RunUpdates, difference: float) -> ConfigError:
    return ConfigError(
        f"the base model with the updates gives other outputs than the run's model (by "
        f"{difference:.2g}): it is not the one that the run began with",
        where=f"{updates.base.name} (model.name_or_path of the run)",
        kept="nothing was written",
        next="restore that model, or export the whole model with `--format safetensors`",
    )
