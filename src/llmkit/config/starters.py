"""The commented starter configs: found in the installation, and filled in for a user."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llmkit
from llmkit.config.yaml12 import parse_scalar


class Starter(NamedTuple):
    """A kind of job, with its command, the key of its files and the starter config."""

    command: str
    files: str
    """The key that names its data; empty where the data is given on the command line."""
    name: str
    about: str
    data: str
    """An example of its data as options; empty where no option names it."""
    needs_model: bool = False
    run: str = ""
    """The run directory that its commands name; by default it is named after the config."""


_TRAINED, _TESTED = "data.train_files", "data.test_files"
_TEXT, _ROWS = "--text corpus.txt", "--csv rows.csv"

STARTERS = {
    "pretrain": Starter("pretrain", _TRAINED, "pretrain.yaml", "a language model", _TEXT),
    "masked": Starter(
        "pretrain", _TRAINED, "pretrain-masked.yaml", "a masked language model", _TEXT
    ),
    "next-sentence": Starter(
        "pretrain",
        _TRAINED,
        "pretrain-next-sentence.yaml",
        "a masked language model that also predicts the next sentence",
        _TEXT,
    ),
    "mixture": Starter(
        "pretrain",
        "data.mixture",
        "pretrain-mixture.yaml",
        "a language model on several domains",
        "",
    ),
    "experts": Starter(
        "pretrain",
        "data.mixture",
        "experts.yaml",
        "experts of several domains, merged into one model",
        "",
        run="runs/seed",
    ),
    "classifier": Starter("finetune", _TRAINED, "finetune.yaml", "a text classifier", _ROWS),
    "tagger": Starter(
        "finetune",
        _TRAINED,
        "finetune-tagging.yaml",
        "a tagger of words",
        "--csv train.conll",
    ),
    "translation": Starter(
        "finetune",
        _TRAINED,
        "finetune-sequence-to-sequence.yaml",
        "a model that translates",
        "--csv pairs.csv",
    ),
    "summarization": Starter(
        "finetune",
        _TRAINED,
        "finetune-summarization.yaml",
        "a model that summarises",
        "--csv articles.csv",
    ),
    "question-answering": Starter(
        "finetune",
        _TRAINED,
        "finetune-questions.yaml",
        "a model that answers questions from contexts",
        "--csv train.json",
    ),
    "completion": Starter(
        "finetune",
        _TRAINED,
        "finetune-completion.yaml",
        "a model that responds",
        "--csv chats.jsonl",
        needs_model=True,
    ),
    "preference": Starter(
        "finetune",
        _TRAINED,
        "finetune-preference.yaml",
        "a model tuned on preferences",
        "--csv pairs.jsonl",
        needs_model=True,
    ),
    "generate": Starter(
        "generate", "", "generate.yaml", "texts from prompts", "--prompt TEXT", needs_model=True
    ),
    "predict": Starter(
        "predict", _TESTED, "predict.yaml", "labels for rows", _ROWS, needs_model=True
    ),
    "evaluate": Starter(
        "evaluate",
        _TESTED,
        "evaluate-text.yaml",
        "the perplexity of a text",
        _TEXT,
        needs_model=True,
    ),
    "evaluate-labels": Starter(
        "evaluate",
        _TESTED,
        "evaluate-labels.yaml",
        "the accuracy of a classifier",
        _ROWS,
        needs_model=True,
    ),
}
"""What `llmkit init` can begin, by the name of the job."""


def starter_text(job: str) -> str:
    """The starter config of a job, without the line that only an editor reads."""
    package = Path(llmkit.__file__).parent
    installed = package / "configs"
    directory = installed if installed.is_dir() else package.parent.parent / "configs"
    text = (directory / STARTERS[job].name).read_text(encoding="utf-8")
    lines = (line for line in text.split("\n") if "yaml-language-server" not in line)
    return "\n".join(lines).removeprefix("#\n")


def name_in_comments(text: str, config: str, run: str, filled: Collection[str]) -> str:
    """The starter with its commands rewritten for the path of the config and its run directory,
    and without the options whose keys are filled in."""
    named = re.search(r"^output_dir: (\S+)", text, re.MULTILINE)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.startswith("#"):
            continue
        if named:
            line = line.replace(named[1], run)
        if re.search(_STARTER, line):
            line = re.sub(_STARTER, lambda _: shlex.quote(config), line)
            other = rf" --model (?!{re.escape(run)}(\s|$))\S+"
            for options, key in ((r" --(text|csv) \S+", "data"), (other, "model")):
                if any(each.startswith(f"{key}.") for each in filled):
                    line = re.sub(options, "", line)
        lines[number] = line
    return "\n".join(lines)


_STARTER = re.compile(r"configs/[\w-]+\.yaml")


def fill_in(text: str, values: Mapping[str, Any]) -> str:
    """The config with these values at their dotted keys, its comments kept.

    A key that is commented out is taken in; one that is missing is added to its section.
    """
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        text = _set(text, section, name, f"{name}: {_as_yaml(value)}")
    return text


def fill_domains(text: str, files: Mapping[str, str]) -> str:
    """The config of a mixture with a domain of equal weight for each file; unchanged without
    any."""
    if not files:
        return text
    lines = text.split("\n")
    start, end = _mixture(lines)
    block = [
        line
        for name, path in files.items()
        for line in (f"    {name}:", f"      files: {_as_yaml(path)}", "      weight: 1")
    ]
    return "\n".join([*lines[: start + 1], *block, *lines[end:]])


def without_mixture(text: str) -> str:
    """The config without the domains of its mixture."""
    lines = text.split("\n")
    start, end = _mixture(lines)
    return "\n".join([*lines[:start], *lines[end:]])


def name_experts(text: str, names: Sequence[str]) -> str:
    """The config with a command for each of these experts in its comments, and with all in that of
    the merge; unchanged without any."""
    if not names:
        return text
    lines = list[str]()
    for line in text.split("\n"):
        if not line.startswith("#") or " --expert " not in line:
            lines.append(line)
        elif "=" in line:
            given = " ".join(f"--expert {name}=runs/{name}" for name in names)
            lines.append(re.sub(r"--expert \S+=\S+( --expert \S+=\S+)*", given, line))
        elif " --expert " not in lines[-1]:
            made = (
                re.sub(r"--expert \S+ -o \S+", f"--expert {n} -o runs/{n}", line) for n in names
            )
            lines += made
    return "\n".join(lines)


def _mixture(lines: Sequence[str]) -> tuple[int, int]:
    """The lines of `data.mixture`, from the key on."""
    start = next(number for number, line in enumerate(lines) if line.startswith("  mixture:"))
    end = start + 1
    while end < len(lines) and lines[end].startswith("    "):
        end += 1
    return start, end


def _set(text: str, section: str, name: str, line: str) -> str:
    lines = text.split("\n")
    indent = "  " if section else ""
    start, end = _section(lines, section)
    if start is None:
        return f"{text.rstrip()}\n\n{section}:\n{indent}{line}\n"
    pattern = re.compile(rf"{indent}(# )?{name}:[^#]*?(\s+#.*)?$")
    for number in range(start, end):
        if found := pattern.match(lines[number]):
            comment = found[2] or ""
            lines[number] = f"{indent}{line}{' ' if comment else ''}{comment.strip()}"
            return "\n".join(lines)
    return "\n".join([*lines[:start], f"{indent}{line}", *lines[start:]])


def _section(lines: Sequence[str], section: str) -> tuple[int | None, int]:
    """The lines of a section below its heading; the whole file for the keys of the top level."""
    if not section:
        return 0, len(lines)
    heads = [n for n, line in enumerate(lines) if re.match(rf"{section}:(\s|$)", line)]
    if not heads:
        return None, 0
    after = (n for n in range(heads[0] + 1, len(lines)) if re.match(r"\w", lines[n]))
    return heads[0] + 1, next(after, len(lines))


def _as_yaml(value: Any) -> str:
    """A value in one line of YAML; JSON, of which YAML is a superset, where a plain word will not
    do."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_scalar(value) == value:
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return json.dumps(value, ensure_ascii=False)
