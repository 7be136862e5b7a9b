"""Checks of a config: collects all faults with their places, and finds contradicting keys."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmkit.config import keys, suggestions
from llmkit.config.inference import EXPORT_TYPES
from llmkit.config.jobs import TASKS, command_of_keys, jobs_of, metrics
from llmkit.config.schema import (
    Config,
    ExportConfig,
    GenerationConfig,
    LoraConfig,
    TrainConfig,
)
from llmkit.config.suggestions import Writing
from llmkit.config.types import Form
from llmkit.config.yaml12 import KeyPath, dump
from llmkit.errors import ConfigError, LlmkitError, listed


@dataclass(frozen=True, order=True)
class ConfigPlace:
    """Where a value was given; places in the file come first."""

    form: Form
    number: int
    text: str

    @property
    def is_own(self) -> bool:
        """Whether it belongs to this command alone; a YAML file may be shared by several."""
        return self.form != Form.YAML

    @property
    def source(self) -> str:
        """The origin of the value, as `--print-config` shows it."""
        return "command line" if self.is_own else self.text


NO_PLACE = ConfigPlace(Form.ARGUMENT, 0, "config")
"""The place of a value that was not given."""


@dataclass
class Faults:
    """The faults of a config, to be raised together."""

    command: str
    places: dict[KeyPath, ConfigPlace] = field(default_factory=dict)
    """The place of each given key."""
    found: list[tuple[ConfigPlace, str]] = field(default_factory=list)
    raised: list[tuple[ConfigPlace, str, LlmkitError]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is any fault."""
        return bool(self.found or self.raised)

    def add(self, place: ConfigPlace, name: str, *parts: str) -> None:
        """Adds a fault: what is wrong, and what to write instead."""
        self.found.append((place, f"{place.text}: {name}: {'; '.join(filter(None, parts))}"))

    def add_of_key(self, name: str, *parts: str) -> None:
        """Adds a fault of a key, wherever that was given."""
        self.add(_place_of(name, self.places), name, *parts)

    @contextmanager
    def collected(self, name: str) -> Iterator[None]:
        """Catches an LlmkitError from the block and adds it as a fault of a key."""
        try:
            yield
        except LlmkitError as fault:
            self.raised.append((_place_of(name, self.places), name, fault))

    def check(self) -> None:
        """Raises a single fault unchanged, or one ConfigError that lists all of them.

        Faults of one class, such as missing files, are raised as that class.
        """
        if not self:
            return
        if not self.found and len(self.raised) == 1:
            place, name, fault = self.raised[0]
            if not place.is_own:
                fault.where = f"{place.text}: {name}: {fault.where}".removesuffix(f": {name}")
            raise fault
        lines = self.lines()
        kinds = {ConfigError} if self.found else {type(fault) for _, _, fault in self.raised}
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        raise kind(
            f"invalid config: {len(lines)} faults" if len(lines) > 1 else "invalid config",
            where=listed(lines),
            next=f"`llmkit keys` explains all keys, `llmkit {self.command} --print-config` shows "
            "their values",
        )

    def lines(self) -> list[str]:
        """One line for each fault, in the order of their places."""
        raised = (self._line(*each) for each in self.raised)
        return [line for _, line in sorted([*self.found, *raised])]

    @staticmethod
    def _line(place: ConfigPlace, name: str, fault: LlmkitError) -> tuple[ConfigPlace, str]:
        what = fault.what.removeprefix(f"{name}: ")
        where = "" if fault.where in ("", name) or name in fault.where else f" ({fault.where})"
        next = f"; {fault.next}" if fault.next else ""
        return place, f"{place.text}: {name}: {what}{where}{next}"


def _place_of(name: str, places: Mapping[KeyPath, ConfigPlace]) -> ConfigPlace:
    """The place of a key, else of the nearest key above it or the first below it."""
    path = tuple(name.split("."))
    for depth in range(len(path), 0, -1):
        if path[:depth] in places:
            return places[path[:depth]]
    below = (place for given, place in places.items() if given[: len(path)] == path)
    return min(below, default=NO_PLACE)


_Conflict = tuple[str, str, str]
"""A key, what is wrong with it, and what to write instead."""


def conflicts(config: Config, jobs: Collection[str]) -> Iterator[_Conflict]:
    """The contradictions in a config, for the jobs that its command may do."""
    commands = {job.partition("/")[0] for job in jobs}
    if commands & {"pretrain", "finetune"}:
        yield from _of_size(config)
        yield from _of_validation(config, jobs)
    if "pretrain" in commands:
        yield from _of_pretraining(config)
    if "finetune" in commands:
        yield from _of_finetuning(config, jobs)
    if commands & {"generate", "chat"}:
        yield from of_generation(config.generation, is_chat="chat" in commands)
    if "serve" in commands:
        yield from _of_lengths(config.generation)
        if config.serve.max_new_tokens < config.generation.max_new_tokens:
            yield "serve.max_new_tokens", "is below generation.max_new_tokens", "raise it"
    if "evaluate/text" in jobs:
        yield from _of_windows(config)
    if commands & {"generate", "evaluate", "serve"}:
        yield from _of_division(config, jobs)
    if "export" in commands:
        yield from _of_export(config.export)


def _of_export(settings: ExportConfig) -> Iterator[_Conflict]:
    format = settings.written_format
    if settings.type not in ("auto", *EXPORT_TYPES.get(format, (settings.type,))):
        what = f"{format} has no {settings.type}"
        yield "export.type", what, f"write {', '.join(EXPORT_TYPES[format])}"
    if format == "peft" and settings.expert is not None:
        yield "export.expert", "has no LoRA updates", "use `--format safetensors`"


def of_generation(settings: GenerationConfig, is_chat: bool) -> Iterator[_Conflict]:
    """The contradictions among generation settings."""
    given = [name for name in ("choices", "regex", "json_schema") if getattr(settings, name)]
    if settings.system is not None and not (settings.chat or is_chat):
        yield "generation.system", "needs a chat", "add `--chat`"
    if len(given) > 1:
        yield f"generation.{given[1]}", f"cannot be combined with generation.{given[0]}", "keep one"
    yield from _of_lengths(settings)
    if settings.num_beams > 1:
        yield from _of_beams(settings, given)
    elif settings.num_return_sequences > 1 and not settings.do_sample:
        what = "gives equal texts without sampling"
        yield "generation.num_return_sequences", what, "set do_sample or num_beams"


def _of_lengths(settings: GenerationConfig) -> Iterator[_Conflict]:
    if settings.min_new_tokens > settings.max_new_tokens:
        yield "generation.min_new_tokens", "is above generation.max_new_tokens", "lower it"


def _of_beams(settings: GenerationConfig, given: list[str]) -> Iterator[_Conflict]:
    for name in [*given, *(["bad_words"] if settings.bad_words else [])]:
        yield f"generation.{name}", "does not work with beam search", "remove num_beams"
    if settings.num_return_sequences > settings.num_beams:
        yield "generation.num_return_sequences", "is above generation.num_beams", "raise num_beams"
    if settings.explain:
        yield "generation.explain", "does not work with beam search", "remove one of them"


def _of_division(config: Config, jobs: Collection[str]) -> Iterator[_Conflict]:
    if config.model.tp_plan is None:
        return
    asked = {
        "generation.weights=int8": config.generation.weights == "int8",
        "generation.experts": bool(config.generation.experts),
        "evaluation.experts": config.evaluation.experts and "evaluate/text" in jobs,
    }
    for name in (name for name, given in asked.items() if given):
        yield "model.tp_plan", f"cannot be combined with {name}", "remove one of them"


def _of_validation(config: Config, jobs: Collection[str]) -> Iterator[_Conflict]:
    train, data = config.train, config.data
    metric, _, domain = train.metric_for_best_model.partition("/")
    known = metrics(jobs, data.problem_type)
    if metric not in (*known, "auto"):
        yield "train.metric_for_best_model", f"{metric!r} is not a metric here", _one_of(known)
    elif domain and domain not in data.mixture:
        what = f"{domain!r} is not a domain of data.mixture"
        yield "train.metric_for_best_model", what, _one_of(data.mixture or known)
    given = data.validation_files or data.validation_rows or data.mixture
    nothing = data.validation_fraction == 0 and not given
    if train.early_stopping_patience is not None and nothing:
        yield (
            "train.early_stopping_patience",
            "needs validation data",
            "set data.validation_files, or remove data.validation_fraction=0",
        )


_SHAPES = {
    "hidden_size", "num_hidden_layers", "intermediate_size", "n_embd", "n_layer", "d_model",
    "num_layers", "n_layers", "dim",
}  # fmt: skip
"""Settings of model configs that fix the size of a model."""


def _of_size(config: Config) -> Iterator[_Conflict]:
    model = config.model
    if model.size is None:
        return
    if model.name_or_path is not None:
        yield "model.size", "is for a new model", "remove it, or model.name_or_path"
    elif shapes := sorted(_SHAPES & model.config.keys()):
        yield "model.size", f"cannot be combined with model.config.{shapes[0]}", "keep one"


def _of_pretraining(config: Config) -> Iterator[_Conflict]:
    data, freeze, model = config.data, config.train.freeze, config.model.name_or_path
    if data.expert is not None and not data.mixture:
        yield "data.expert", "needs the domains of a mixture", "add data.mixture, or remove it"
    if data.expert is not None and model is None:
        what = "needs the seed that all experts begin with"
        yield "data.expert", what, "train it with the same config without an expert; then `--model`"
    if freeze == "body":
        yield "train.freeze", "`body` is for classifiers", "write trunk or embeddings"
    elif freeze != "none" and model is None:
        what = "would leave random weights untrained"
        yield "train.freeze", what, "set model.name_or_path to a pretrained model, or remove it"


def _of_finetuning(config: Config, jobs: Collection[str]) -> Iterator[_Conflict]:
    lora, train, model = config.model.lora, config.train, config.model
    if lora.r is None and lora != LoraConfig():
        other = next(name for name in LoraConfig.model_fields if name in lora.model_fields_set)
        yield f"model.lora.{other}", "needs a rank", "write model.lora.r=8, or remove it"
    if "finetune/preference" in jobs:
        yield from _of_preferences(train)
    if not any(job in jobs for job in ("finetune/classification", "finetune/token_classification")):
        return
    if train.freeze == "trunk":
        yield "train.freeze", "`trunk` is for pretraining", "write body or embeddings"
    if lora.r is not None and train.freeze != "none":
        yield (
            "train.freeze",
            "cannot be combined with model.lora, which freezes the body",
            "keep one",
        )
    if lora.r is None and train.freeze == "body" and model.name_or_path is None:
        yield (
            "train.freeze",
            "would leave a body of random weights untrained",
            "set model.name_or_path to a pretrained model, or remove train.freeze",
        )


def _of_preferences(train: TrainConfig) -> Iterator[_Conflict]:
    smoothing = train.label_smoothing_factor
    if smoothing >= 0.5:
        what = "would prefer the rejected responses"
        yield "train.label_smoothing_factor", what, "write a number below 0.5"
    elif smoothing and train.preference_loss == "ipo":
        yield "train.label_smoothing_factor", "is for preference_loss=dpo", "remove one of them"


def _of_windows(config: Config) -> Iterator[_Conflict]:
    settings = config.evaluation
    if settings.window == "auto" or settings.stride == "auto":
        return
    fresh = settings.window - (settings.bos == "window")
    if settings.stride > fresh:
        what = f"of {settings.stride} tokens would skip text: a window holds {fresh} tokens of it"
        yield "evaluation.stride", what, f"write {fresh} or less"


def _one_of(names: Collection[str]) -> str:
    return f"write one of {', '.join(names)}"


def check_objective(command: str, config: Config) -> None:
    """Raises ConfigError for an objective of another command."""
    command, objective = command_of_keys(command), config.train.objective
    if command not in ("pretrain", "finetune") or objective in ("auto", *TASKS[command]):
        return
    other = next(name for name, tasks in TASKS.items() if objective in tasks)
    raise ConfigError(
        f"`{command}` has no objective {objective!r}",
        where="train.objective",
        next=f"write one of {', '.join(TASKS[command])}, or use `llmkit {other}`",
    )


def jobs(command: str, config: Config) -> frozenset[str]:
    """The jobs that a config selects for a command; several where the model decides."""
    if command == "evaluate":
        return frozenset(_of_evaluate(config))
    command, objective = command_of_keys(command), config.train.objective
    if command == "finetune" and objective == "auto":
        objective = "classification"
    chosen = f"{command}/{objective}"
    return frozenset([chosen] if chosen in jobs_of(command) else jobs_of(command))


def refuse_inapplicable(config: Config, job: str) -> None:
    """Raises ConfigError for keys that were given for this command and do not apply to the job
    that the model has decided."""
    faults = []
    for path, form in sorted(config._own.items()):
        key = keys.owner(path)
        if key is not None and job not in key.jobs:
            text = dump(keys.value_at(config, path))
            next = suggestions.for_misplaced(key, {job}, text, Writing(form))
            faults.append(f"{'.'.join(path)}: {suggestions.not_for(key, {job})}; {next}")
    if faults:
        raise ConfigError("keys that do not apply here", where=listed(faults))


def _of_evaluate(config: Config) -> list[str]:
    if config.evaluation.reference_column is not None:
        return ["evaluate/references"]
    if config.evaluation.reference_model is not None:
        return ["evaluate/preferences"]
    if config.evaluation.tasks:
        return ["evaluate/tasks"]
    return ["evaluate/text", "evaluate/labels", "evaluate/tags", "evaluate/answers"]
