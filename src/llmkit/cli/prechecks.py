"""Checks of input, model, packages and output that run before the libraries load."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit import extras
from llmkit.cli.help import FIRST
from llmkit.config import checks, keys
from llmkit.config.checks import Faults
from llmkit.config.inference import EXPORT_TYPES
from llmkit.config.schema import CleanConfig, Config, ExportConfig
from llmkit.config.types import name_and_model
from llmkit.data.readers.files import PipedInput, Sources
from llmkit.distributed import signals
from llmkit.errors import ConfigError, DataError, InputNotFound, Unsafe, UsageError, WriteError
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs, paths

_FILES_OF = {
    "pretrain": ("data.train_files", "data.validation_files"),
    "prepare": ("data.train_files", "data.validation_files"),
    "finetune": ("data.train_files", "data.validation_files", "data.test_files"),
    "predict": ("data.test_files",),
    "evaluate": ("data.test_files",),
    "generate": ("generation.prompts_file",),
    "export": ("data.test_files",),
    "clean": ("data.train_files", "data.validation_files", "data.test_files"),
}
"""Keys whose files a command reads."""

_FREE_TEXT = ("generation.prompts", "generation.system", "generation.stop")
"""Keys that hold text for the model."""


def check_code(config: Config, allowed: bool) -> None:
    """Raises Unsafe for a config that names code, unless the command line allows it to run."""
    if config.model.code is not None and not allowed:
        raise Unsafe(
            f"the config asks to run Python code ({config.model.code})",
            where="model.code",
            next="read the file first; then add --allow-code to the command line",
        )


def check_early(
    command: str, config: Config, sources: Sources, console: Console, faults: Faults
) -> None:
    """Finds the faults of input, model, packages and output that the command would raise later, and
    raises them together with those of the config."""
    _check_model(command, config, console, faults)
    _check_files(command, config, sources, console, faults)
    _check_named(command, config, faults)
    _check_extras(command, config, faults)
    if command == "serve":
        _check_server(config, faults)
    with faults.collected("output_dir"):
        _check_output(command, config)
    if not faults:
        _check_text(config)
        _check_input(command, config, sources)
        _check_need_of_model(command, config)
    _check_settings(command, config, faults)
    faults.check()


def _check_text(config: Config) -> None:
    """Refuses arguments that are not UTF-8: Python gives them lone surrogates, which no tokenizer
    accepts."""
    for path, value in keys.leaves(config.model_dump()):
        name = ".".join(path)
        for text in value if isinstance(value, list | tuple) else [value]:
            if name.startswith(_FREE_TEXT) and isinstance(text, str) and not _encodes(text):
                raise DataError(
                    "the text is not UTF-8",
                    where=f"{name}: {text.encode('utf-8', 'backslashreplace')!r}",
                    next="use a UTF-8 terminal, or put the text into a file",
                )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_input(command: str, config: Config, sources: Sources) -> None:
    data = config.data
    named = data.mixture and data.domains is None
    match command:
        case "pretrain" | "prepare" | "finetune" | "clean" if not (data.train_files or named):
            key = "data.train_files"
        case "evaluate" if not (data.test_files or data.mixture or config.evaluation.tasks):
            key = "data.test_files"
        case "evaluate" if not (data.test_files or data.train_files or named):
            key = "data.train_files"
        case "predict" if not data.test_files and sources.piped is None:
            key = "data.test_files"
        case "generate":
            _check_prompts(config, sources.piped)
            return
        case _:
            return
    raise InputNotFound(f"{key} is not given", where=key, next=f"try `{FIRST[command]}`")


def _check_prompts(config: Config, piped: PipedInput | None) -> None:
    settings = config.generation
    if not (settings.prompts or settings.prompts_file) and (
        piped is None or _is_empty(piped.stream)
    ):
        raise UsageError(
            "no prompt given",
            next='use --prompt "..." or --prompts-file, or pipe lines',
        )


def _is_empty(stream: Any) -> bool:
    """Whether a pipe or file ended before its first byte; an open pipe is not empty."""
    try:
        ready = select.select([stream], [], [], 0)[0]
        return bool(ready) and not stream.peek(1)
    except (OSError, ValueError, AttributeError):
        return False


def _check_model(command: str, config: Config, console: Console, faults: Faults) -> None:
    from llmkit.models import directory

    name = config.model.name_or_path
    with faults.collected("model.name_or_path"):
        if name is not None and not (command == "serve" and config.serve.models):
            _locate_model(name, console)
    with faults.collected("evaluation.compare_with"):
        for each in config.evaluation.compare_with if command == "evaluate" else ():
            _locate_model(each, console)
    reference = config.evaluation.reference_model if command == "evaluate" else None
    with faults.collected("evaluation.reference_model"):
        if reference is not None:
            _locate_model(reference, console)
    for domain, place_of in config.merge.experts.items() if command == "merge" else ():
        with faults.collected(f"merge.experts.{domain}"):
            directory.locate_model(place_of)
    for _, model in map(name_and_model, config.serve.models if command == "serve" else ()):
        with faults.collected("serve.models"):
            _locate_model(model, console)
    with faults.collected("tokenizer.name_or_path"):
        if config.tokenizer.name_or_path is not None:
            directory.locate_tokenizer(config.tokenizer.name_or_path)


def _locate_model(name: str, console: Console) -> None:
    """Locates a model, and reports the checkpoint that is used of an unfinished run."""
    from llmkit.models import directory

    place = Path(directory.locate_model(name))
    if place.parent.name == outputs.CHECKPOINTS and place != Path(name).expanduser():
        console.say(f"{name} has no final model yet: using its checkpoint {place.name}")


def _check_need_of_model(command: str, config: Config) -> None:
    name = config.model.name_or_path
    [*job] = checks.jobs(command, config)
    if name is None and job in (["finetune/completion"], ["finetune/preference"]):
        raise ConfigError(
            f"train.objective={config.train.objective} needs a pretrained model",
            where="model.name_or_path",
            next="pass a causal language model with --model, such as a run of `llmkit pretrain`",
        )
    needed = command in ("generate", "chat", "predict", "export")
    needed |= command == "evaluate" and config.evaluation.reference_column is None
    needed |= command == "serve" and not config.serve.models
    if needed and name is None:
        raise UsageError(
            f"`llmkit {command}` needs a model",
            where="model.name_or_path",
            next=f"pass a run directory, a model directory or a hub name: `{FIRST[command]}`",
        )


def _check_files(
    command: str, config: Config, sources: Sources, console: Console, faults: Faults
) -> None:
    """Adds missing input files to the faults, and reports the files in directories that are
    skipped."""
    named = list(_FILES_OF.get(command, ()))
    if command in ("pretrain", "prepare"):
        for name in config.data.mixture:
            named += [f"data.mixture.{name}.files", f"data.mixture.{name}.validation_files"]
    for key in named:
        with faults.collected(key):
            sentence, is_most = sources.skipped(key)
            if sentence:
                (console.warn if is_most else console.say)(f"{key}: {sentence}")


def _check_named(command: str, config: Config, faults: Faults) -> None:
    """Adds the other missing files that keys name to the faults."""
    data, generation, template = config.data, config.generation, config.tokenizer.chat_template
    named = {
        "data.label_names": data.label_names,
        "generation.json_schema": generation.json_schema,
        "model.code": config.model.code,
        "tokenizer.chat_template": None if template in ("auto", "plain") else template,
    }
    jobs = checks.jobs(command, config)
    for name, file in named.items():
        if file is not None and keys.all_keys()[tuple(name.split("."))].jobs & jobs:
            with faults.collected(name):
                _check_file(Path(file), name)


def _check_file(path: Path, key: str) -> None:
    if path.is_file():
        return
    near = [str(found) for found in paths.near(path) if found.is_file()]
    raise InputNotFound(
        f"{str(path)!r} does not exist",
        where=key,
        next=f"did you mean {' or '.join(near)}?" if near else "name a file that exists",
    )


def _check_extras(command: str, config: Config, faults: Faults) -> None:
    if command in ("pretrain", "finetune"):
        for name in config.report_to:
            with faults.collected("report_to"):
                extras.require(name, name, f"report_to={name}", "report_to")
    if command == "finetune" and config.model.lora.r is not None:
        with faults.collected("model.lora.r"):
            extras.require("peft", "lora", "LoRA", "model.lora")
    if command == "evaluate" and config.evaluation.tasks:
        with faults.collected("evaluation.tasks"):
            extras.require("lm_eval", "lm-eval", "a standard task", "evaluation.tasks")
    if command == "export":
        _check_packages(config, faults)
    if command == "clean":
        _check_cleaners(config.clean, faults)
    grammar = {name: getattr(config.generation, name) for name in ("regex", "json_schema")}
    for form, value in grammar.items():
        if command in ("generate", "chat") and value is not None:
            with faults.collected(key := f"generation.{form}"):
                extras.require("llguidance", "grammar", key, key)


def _check_packages(config: Config, faults: Faults) -> None:
    """Adds the missing packages of the format to export to the faults."""
    packages = {
        "gguf": ("gguf", ["gguf"]),
        "onnx": ("onnx", ["onnx", "onnxruntime", "onnxscript"]),
        "peft": ("lora", ["peft"]),
    }
    format = config.export.written_format
    with faults.collected("export.format"):
        extra, needed = packages.get(format, ("", []))
        for package in needed:
            extras.require(package, extra, f"export to {format}", "")


def _check_cleaners(settings: CleanConfig, faults: Faults) -> None:
    """Adds the missing packages of the stages to the faults."""
    with faults.collected("clean"):
        for package in ("rensa", "ftfy", "py3langid", "charset_normalizer"):
            extras.require(package, "clean", "`llmkit clean`", "")
    with faults.collected("clean.html"):
        for package in ("trafilatura", "lxml_html_clean") if settings.html else ():
            extras.require(package, "html", "clean.html", "clean.html")
    with faults.collected("clean.languages"):
        if settings.languages and find_spec("py3langid"):
            _check_languages(settings.languages)


def _check_languages(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that no text is found to be in: all text would be removed."""
    from llmkit.data.cleaning.language import UNKNOWN, known_languages

    known = known_languages()
    if unknown := [name for name in names if name not in (*known, UNKNOWN)]:
        raise ConfigError(
            f"{', '.join(unknown)} is not the code of a language that can be recognized",
            where="clean.languages",
            next=f"name codes such as en, de or zh; the codes are {', '.join(known)}",
        )


def _check_server(config: Config, faults: Faults) -> None:
    """Adds missing packages, an address that cannot be used, and invalid keys to the faults."""
    from llmkit.serving.http import address, keys

    with faults.collected("serve"):
        for package in ("fastapi", "uvicorn", "prometheus_client"):
            extras.require(package, "serve", "`llmkit serve`", "")
    with faults.collected("serve.port"):
        address.check_address(config.serve)
    with faults.collected("serve.api_key_file"):
        keys.read_api_keys(config.serve)


def _check_settings(command: str, config: Config, faults: Faults) -> None:
    """Adds settings that the config class of a new model does not accept.

    This loads transformers, but only where `model.config` is set and the run needs it anyway."""
    model, jobs = config.model, checks.jobs(command, config)
    key = keys.all_keys()["model", "config"]
    if not (model.config and key.jobs & jobs) or model.name_or_path or model.code:
        return
    with signals.importing():
        from llmkit.models import build

    purposes = {
        "pretrain/causal": build.LANGUAGE_MODEL,
        "pretrain/masked": build.MASKED_MODEL,
        "pretrain/span_corruption": build.SEQ2SEQ_MODEL,
        "finetune/classification": build.CLASSIFIER_MODEL,
        "finetune/sequence_to_sequence": build.SEQ2SEQ_MODEL,
        "finetune/token_classification": build.TAGGER_MODEL,
        "finetune/question_answering": build.ANSWER_MODEL,
    }
    several = [purposes[job] for job in sorted(key.jobs & jobs)]
    architecture = model.architecture
    if architecture == "auto":
        usual = {build.LANGUAGE_MODEL.name: "qwen3", build.SEQ2SEQ_MODEL.name: "bart"}
        encoder = "bert" if config.train.next_sentence else "modernbert"
        architecture = usual.get(several[0].name, encoder)
    with suppress(ConfigError):  # an unsuitable architecture is refused later, with reasons
        for name, *parts in build.settings_faults(architecture, model.config, several):
            faults.add_of_key(f"model.config.{name}", *parts)


def _check_output(command: str, config: Config) -> None:
    from llmkit.reporting import predictions, results
    from llmkit.storage import resumable
    from llmkit.training import run_directory

    settings = config.evaluation
    checks: dict[str, Callable[[], None]] = {
        "pretrain": lambda: run_directory.check_run_directory(config, command),
        "finetune": lambda: run_directory.check_run_directory(config, command),
        "merge": lambda: run_directory.check_run_directory(config, command),
        "predict": lambda: predictions.check_predictions_file(config.predict),
        "export": lambda: _check_new_output(config.export),
        "clean": lambda: _check_cleaned(config.clean),
        "evaluate": lambda: results.check_output_files(
            (settings.output, settings.log_samples, settings.per_token, settings.label_errors)
        ),
    }
    if command in checks:
        checks[command]()
    if command == "generate" and config.generation.output_file is not None:
        resumable.check_result_file(Path(config.generation.output_file))


def _check_cleaned(settings: CleanConfig) -> None:
    """Raises UsageError without an output, and WriteError for one that cannot be used."""
    if settings.output is not None:
        outputs.check_cleaned_directory(Path(settings.output))


def _check_new_output(settings: ExportConfig) -> None:
    """Raises UsageError without an output or a format, and WriteError if the output of `export`
    exists or cannot be created."""
    if settings.output is None:
        raise UsageError(
            "export.output is not given",
            where="export.output",
            next=f"name what to write with `--output`: `{FIRST['export']}`",
        )
    if settings.written_format == "auto":
        raise UsageError(
            f"the name {settings.output} does not tell the format",
            where="export.format",
            next=f"pass `--format`, one of {', '.join(EXPORT_TYPES)}",
        )
    path = Path(settings.output)
    if path.exists() or path.is_symlink():
        raise WriteError(
            f"{path} exists",
            where=f"export.output: {path}",
            kept="it, untouched",
            next="name another output, or remove it",
        )
    atomic.check_writable(path)
