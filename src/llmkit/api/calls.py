"""The commands as functions: the keywords are keys, and the result is the object of `--json`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from llmkit.api.keywords import (
    AnyPath,
    DataSection,
    EvaluateKeys,
    FinetuneKeys,
    GenerateKeys,
    ModelSection,
    PredictKeys,
    PretrainKeys,
    Switches,
)
from llmkit.distributed import launcher
from llmkit.errors import Interrupted, UsageError
from llmkit.storage.strict_json import json_text, plain

if TYPE_CHECKING:
    from llmkit.cli.request import Request
    from llmkit.config.given import GivenOption
    from llmkit.data.readers.files import PipedInput

Paths = AnyPath | Iterable[AnyPath]


class DataFrame(Protocol):
    """A table of pandas, or another that gives its rows as mappings."""

    @property
    def columns(self) -> Any:
        """Their names."""

    def to_dict(self, orient: Any, /) -> Any:
        """The rows, for `records`."""


RowsToPredict = Iterable[Mapping[str, Any] | str] | DataFrame

Result = dict[str, Any]


def pretrain(
    config: AnyPath | None = None,
    *,
    text: Paths | None = None,
    data: Paths | DataSection | None = None,
    model: AnyPath | ModelSection | None = None,
    output_dir: AnyPath | None = None,
    **keys: Unpack[PretrainKeys],
) -> Result:
    """Trains a language model on raw text, or resumes training it, as `llmkit pretrain` does.

    >>> run = pretrain(text="corpus.txt", output_dir="runs/mine", train={"max_minutes": 5})
    >>> run["validation"]["perplexity"], run["model_dir"]

    The result has `run_dir`, `model_dir`, `step`, `validation` and `warnings`. See `llmkit.api` for
    what all functions have in common.
    """
    named = {"text": text, "data": data, "model": model, "output_dir": output_dir}
    return _call("pretrain", config, named, keys)


def finetune(
    config: AnyPath | None = None,
    *,
    csv: Paths | None = None,
    data: Paths | DataSection | None = None,
    model: AnyPath | ModelSection | None = None,
    output_dir: AnyPath | None = None,
    **keys: Unpack[FinetuneKeys],
) -> Result:
    """Trains a classifier on labelled rows, or a model that responds, as `llmkit finetune` does.

    >>> run = finetune(csv="reviews.csv", model="runs/mine", output_dir="runs/stars")
    >>> run["validation"]["accuracy"], run["validation"]["baseline"]

    The result is like that of `pretrain`. See `llmkit.api` for what all functions have in common.
    """
    named = {"csv": csv, "data": data, "model": model, "output_dir": output_dir}
    return _call("finetune", config, named, keys)


def evaluate(
    config: AnyPath | None = None,
    *,
    text: Paths | None = None,
    csv: Paths | None = None,
    data: Paths | DataSection | None = None,
    model: Paths | ModelSection | None = None,
    **keys: Unpack[EvaluateKeys],
) -> Result:
    """Measures models on text, rows or tasks, as `llmkit evaluate` does; several are compared.

    >>> evaluate(model="runs/mine", text="other.txt")["perplexity"]
    >>> evaluate(model=["runs/a", "runs/b"], csv="test.csv", evaluation={"worst": 3})

    The result has the metrics with their intervals and their `protocol`. See `llmkit.api` for what
    all functions have in common.
    """
    named = {"text": text, "csv": csv, "data": data, "model": model}
    return _call("evaluate", config, named, keys)


def predict(
    config: AnyPath | None = None,
    *,
    rows: RowsToPredict | None = None,
    csv: Paths | None = None,
    data: Paths | DataSection | None = None,
    model: AnyPath | ModelSection | None = None,
    output: AnyPath | None = None,
    **keys: Unpack[PredictKeys],
) -> Result:
    """Labels rows with a classifier, as `llmkit predict` does.

    >>> found = predict(model="runs/stars", rows=["wonderful", "never again"])
    >>> [each["label"] for each in found["predictions"]]

    `rows` are texts, mappings, or a data frame. Without `output`, the result has `predictions`: for
    each row its text, `label`, `probabilities` and other `columns`. See `llmkit.api` for what all
    functions have in common.
    """
    named = {"csv": csv, "data": data, "model": model, "output": output}
    return _call("predict", config, named, keys, rows)


def generate(
    config: AnyPath | None = None,
    *,
    prompt: str | Iterable[str] | None = None,
    prompts_file: AnyPath | None = None,
    model: AnyPath | ModelSection | None = None,
    output: AnyPath | None = None,
    **keys: Unpack[GenerateKeys],
) -> Result:
    """Continues prompts with a language model, as `llmkit generate` does.

    >>> found = generate(model="runs/mine", prompt="Once", generation={"max_new_tokens": 20})
    >>> [each["text"] for each in found["generated"]]

    Without `output`, the result has `generated`: for each text its `prompt`, `text`, `tokens`,
    `logprob` and `finish_reason`; of a masked model, for each prompt its `text` with the masks
    filled, and `masks`. See `llmkit.api` for what all functions have in common.
    """
    named = {"prompt": prompt, "prompts_file": prompts_file, "model": model, "output": output}
    return _call("generate", config, named, keys)


def _call(
    command: str,
    config: AnyPath | None,
    named: Mapping[str, Any],
    keys: Mapping[str, Any],
    rows: RowsToPredict | None = None,
) -> Result:
    """Carries out a command, and returns what `--json` would print."""
    from llmkit.api import host
    from llmkit.cli import faults
    from llmkit.reporting.console import Console

    console = Console(True, bool(keys.get("quiet")), [], [])
    with host.hosted_call():
        try:
            request = _request(command, config, named, keys, rows)
            found = request.carry_out(console, host.borrowed_libraries)
        except BaseException as error:
            fault = faults.as_fault(error)
            if isinstance(fault, Interrupted):
                raise KeyboardInterrupt(str(fault)) from None
            if fault is None or fault is error:
                raise
            raise fault from error
    result: Result = plain({**(found or {}), "warnings": console.warnings})
    return result


def _request(
    command: str,
    config: AnyPath | None,
    named: Mapping[str, Any],
    keys: Mapping[str, Any],
    rows: RowsToPredict | None,
) -> Request:
    """The request of a call; raises LlmkitError for arguments that are not what they should be."""
    from llmkit.cli.request import Request
    from llmkit.config.checks import Faults
    from llmkit.config.given import GivenOption
    from llmkit.config.load import read_keywords

    launcher.check_environment()
    path = None if config is None else _config_file(command, config)
    given = list(_keywords(command, named, keys))
    piped = None
    if rows is not None:
        piped = _as_input(rows)
        own = {"data.test_files": (), "data.format": "jsonl"}  # rather than those of the file
        given += [GivenOption("rows", key, value) for key, value in own.items()]
    wrong = Faults(command)
    read = read_keywords(command, path, given, wrong)
    allow_code = bool(keys.get("allow_code"))
    line = [command, *([str(path)] if path else []), *read.own]
    line += ["--allow-code"] if allow_code else []
    return Request(command, line, read.config, wrong, piped, bool(keys.get("dry_run")), allow_code)


def _config_file(command: str, config: object) -> Path:
    """The path of CONFIG; raises UsageError for anything else, such as data, and InputNotFound if
    it is missing."""
    from llmkit.cli import arguments

    if not isinstance(config, str | PathLike):
        raise UsageError(
            f"CONFIG should be the path of a YAML file; got {_kind(config)}",
            next=f"pass keys as keywords: `{command}(seed=1)`, or `{command}(**keys)`",
        )
    name = os.fsdecode(config)
    if command in arguments.DATA_OPTIONS and arguments.is_data(name):
        option = arguments.DATA_OPTIONS[command][0].lstrip("-").replace("-", "_")
        raise UsageError(f"{name} is data, not a config", next=f"pass it as `{option}=`")
    path = Path(name).expanduser()
    arguments.check_config(command, path, is_call=True)
    return path


def _keywords(
    command: str, named: Mapping[str, Any], keys: Mapping[str, Any]
) -> Iterator[GivenOption]:
    """The keys that the keywords of a call set: parameters stand for keys, as options do.

    Raises UsageError for values that are neither those of a key nor a section.
    """
    from llmkit.cli.options import OPTIONS
    from llmkit.config.given import GivenOption

    meant = {
        flag.lstrip("-").replace("-", "_"): option.key
        for option in OPTIONS[command]
        for flag in option.names
    }
    for name, value in {**named, **keys}.items():
        if _holds_frame(value):
            raise _needs_file(command, name)
    for name, value in named.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            yield GivenOption(name, name, value)
        elif name == "model" and command == "evaluate" and not isinstance(value, str | PathLike):
            first, *others = _several(name, value)
            yield GivenOption(name, meant[name], first)
            if others:
                yield GivenOption(name, "evaluation.compare_with", others)
        else:
            yield GivenOption(name, meant[name], value)
    for name, value in keys.items():
        if name not in Switches.__annotations__:
            yield GivenOption(name, name, value)


def _several(name: str, value: object) -> Iterable[Any]:
    """The items of a value that may be a list; raises UsageError if it has none."""
    items = list(value) if isinstance(value, Iterable) else []
    if not items:
        raise UsageError(
            f"`{name}` should be a name or path, or several; got {_kind(value)}",
            next=f'pass text, as in `{name}="runs/mine"`, or a list of texts',
        )
    return items


def _kind(value: object) -> str:
    """The value in a message: its type, and whether it is empty."""
    empty = isinstance(value, Sized) and not len(value)
    return f"an empty {type(value).__name__}" if empty else f"{type(value).__name__}"


def _holds_frame(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_frame, value.values()))
    return hasattr(value, "columns")


def _needs_file(command: str, name: str) -> UsageError:
    """The error for a data frame where files are named, which a run records and reads again."""
    instead = 'write it to a file: `frame.to_csv("rows.csv", index=False)`'
    return UsageError(
        f"`{name}` names files, and this is a data frame",
        next="pass it as `rows=`" if command == "predict" else instead,
    )


def _as_input(rows: RowsToPredict) -> PipedInput:
    """The rows as JSON lines; raises UsageError for a value that has no rows, and for a row that is
    neither text nor a mapping."""
    from llmkit.config.types import as_yaml_value
    from llmkit.data.readers.files import PipedInput

    lines = []
    for number, row in enumerate(_records(rows)):
        if not isinstance(row, str | Mapping):
            raise UsageError(
                f"a row should be text or a mapping; got {_kind(row)}",
                where=f"rows[{number}]",
                next='pass texts, or mappings such as `{"text": "wonderful", "id": 1}`',
            )
        cells = {"text": row} if isinstance(row, str) else as_yaml_value(row)
        lines.append(json_text(cells) + "\n")
    return PipedInput(io.BytesIO("".join(lines).encode()), "rows")


def _records(rows: Any) -> Iterable[Any]:
    """The rows one by one."""
    if isinstance(rows, str | Mapping):
        return [rows]
    try:
        found: Iterable[Any] = rows.to_dict("records") if hasattr(rows, "columns") else rows
        return iter(found)
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f"`rows` should be texts, mappings or a data frame of pandas; got {_kind(rows)}",
            next="pass a list of texts or mappings; other tables give one with `to_dicts()` "
            "(polars) or `to_pylist()` (pyarrow)",
        ) from error
