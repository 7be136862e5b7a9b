"""`llmkit export`: a model -> a file of another program, verified against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.errors import UsageError
from llmkit.export.source import ExportSource, open_source
from llmkit.reporting.console import Console

COMMAND = "export"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Writes the model whole or not at all, verifies what was written, and returns what was and
    was not verified."""
    source = _opened(config, console)
    match config.export.written_format:
        case "onnx":
            from llmkit.export.onnx.exporting import export_onnx

            found = export_onnx(source, config, sources, console)
        case "peft":
            from llmkit.export.adapter import export_adapter

            found = export_adapter(source, config, console)
        case "safetensors":
            from llmkit.export.dense import export_safetensors

            found = export_safetensors(source, config, console)
        case _:
            from llmkit.export.gguf.exporting import export_gguf

            found = export_gguf(source, config.export, console)
    return _facts(config, source) | found


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks that the model can be exported, without loading its weights."""
    source = _opened(config, console)
    match config.export.written_format:
        case "onnx":
            from llmkit.export.onnx.exporting import check_onnx

            found = check_onnx(source, config)
        case "peft":
            from llmkit.export.adapter import check_adapter

            found = check_adapter(source)
        case "safetensors":
            from llmkit.export.dense import check_safetensors

            found = check_safetensors(source, config)
        case _:
            from llmkit.export.gguf.exporting import check_gguf

            found = check_gguf(source, config.export, console)
    return _facts(config, source) | found


def _opened(config: Config, console: Console) -> ExportSource:
    """The model; refuses labelled rows that would not be read."""
    if ("data", "test_files") in config._own and config.export.written_format != "onnx":
        raise UsageError(
            f"labelled rows are measured for onnx, not for {config.export.written_format}",
            where="data.test_files",
            next="remove them",
        )
    return open_source(config, console.warn)


def _facts(config: Config, source: ExportSource) -> dict[str, Any]:
    settings = config.export
    return {
        "command": COMMAND,
        "model": source.opened.name,
        **({} if settings.expert is None else {"expert": settings.expert}),
        "architecture": source.config.model_type,
        "format": settings.written_format,
        "type": settings.written_type,
        "output": str(Path(str(settings.output))),
    }
