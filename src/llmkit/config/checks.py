"""What is wrong with a config: faults, reported together with their places, and the keys that
contradict one another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmkit.config.jobs import metrics
from llmkit.config.schema import Config, GenerationConfig, LoraConfig
from llmkit.config.yaml12 import KeyPath
from llmkit.errors import ConfigError, LlmkitError

MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, order=True)
class Place:
    """Where something was given; the file comes before the command line."""

    on_command_line: bool
    number: int
    text: str

    @property
    def source(self) -> str:
        """The place as the origin of a value."""
        return "command line" if self.on_command_line else self.text


NOWHERE = Place(True, 0, "config")
"""The place of what was not given."""


@dataclass
class Faults:
    """What is wrong, in the order of the input."""

    command: str
    places: dict[KeyPath, Place] = field(default_factory=dict)
    """Where each key was given."""
    found: list[tuple[Place, str]] = field(default_factory=list)
    raised: list[tuple[Place, str, LlmkitError]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.found or self.raised)

    def add(self, place: Place, name: str, *said: str) -> None:
        """Adds a fault of the config."""
        self.found.append((place, f"{place.text}: {name}: {'; '.join(filter(None, said))}"))

    def add_of_key(self, name: str, *said: str) -> None:
        """The same where only the key is known."""
        self.add(place_of(name, self.places), name, *said)

    @contextmanager
    def collected(self, name: str) -> Iterator[None]:
        """Adds what is raised inside as a fault of a key, and goes on after it."""
        try:
            yield
        except LlmkitError as fault:
            self.raised.append((place_of(name, self.places), name, fault))

    def check(self) -> None:
        """Raises the only fault as it is, or a ConfigError that lists all of them.

        Several that are of one kind, such as missing files, are raised as that kind.
        """
        if not self:
            return
        if not self.found and len(self.raised) == 1:
            place, name, fault = self.raised[0]
            if not place.on_command_line:
                fault.where = f"{place.text}: {name}: {fault.where}".removesuffix(f": {name}")
            raise fault
        lines = sorted([*self.found, *(self._line(*each) for each in self.raised)])
        kinds = {ConfigError} if self.found else {type(fault) for _, _, fault in self.raised}
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        shown = [line for _, line in lines[:MAX_FAULTS_SHOWN]]
        if len(lines) > MAX_FAULTS_SHOWN:
            shown.append(f"and {len(lines) - MAX_FAULTS_SHOWN} more")
        raise kind(
            f"the config has {len(lines)} faults" if len(lines) > 1 else "the config has a fault",
            where="\n       ".join(shown),
            next=f"correct this; `llmkit keys` explains every key, and `llmkit {self.command} "
            "--print-config` shows their values",
        )

    @staticmethod
    def _line(place: Place, name: str, fault: LlmkitError) -> tuple[Place, str]:
        what = fault.what.removeprefix(f"{name}: ")
        where = "" if fault.where in ("", name) or name in fault.where else f" ({fault.where})"
        next = f"; {fault.next}" if fault.next else ""
        return place, f"{place.text}: {name}: {what}{where}{next}"


def place_of(name: str, places: Mapping[KeyPath, Place]) -> Place:
    """Where a key was given: itself, the nearest key above it, or the first below it."""
    path = tuple(name.split("."))
    for depth in range(len(path), 0, -1):
        if path[:depth] in places:
            return places[path[:depth]]
    below = (place for given, place in places.items() if given[: len(path)] == path)
    return min(below, default=NOWHERE)


Conflict = tuple[str, str, str]
"""A key, what is wrong with it, and what to write instead."""


def conflicts(config: Config, jobs: Collection[str]) -> Iterator[Conflict]:
    """Everything that does not go together in a config, for what its command may do."""
    commands = {job.partition("/")[0] for job in jobs}
    if commands & {"pretrain", "finetune"}:
        yield from _of_validation(config, jobs)
    if "finetune" in commands:
        yield from _of_finetuning(config, jobs)
    if commands & {"generate", "chat"}:
        yield from of_generation(config.generation, is_chat="chat" in commands)
    if "evaluate/text" in jobs:
        yield from _of_windows(config)


def of_generation(settings: GenerationConfig, is_chat: bool) -> Iterator[Conflict]:
    """Generation settings that contradict one another."""
    given = [name for name in ("choices", "regex", "json_schema") if getattr(settings, name)]
    if settings.system is not None and not (settings.chat or is_chat):
        yield "generation.system", "needs a chat", "add `--chat`"
    if len(given) > 1:
        yield f"generation.{given[1]}", f"does not go with generation.{given[0]}", "keep one"
    if settings.min_new_tokens > settings.max_new_tokens:
        yield "generation.min_new_tokens", "is above generation.max_new_tokens", "lower it"
    if settings.num_beams > 1:
        yield from _of_beams(settings, given)
    elif settings.num_return_sequences > 1 and not settings.do_sample:
        what = "are all the same without sampling"
        yield "generation.num_return_sequences", what, "set do_sample or num_beams"


def _of_beams(settings: GenerationConfig, given: list[str]) -> Iterator[Conflict]:
    for name in [*given, *(["bad_words"] if settings.bad_words else [])]:
        yield f"generation.{name}", "cannot be searched with beams", "leave num_beams out"
    if settings.num_return_sequences > settings.num_beams:
        yield "generation.num_return_sequences", "is above generation.num_beams", "raise num_beams"
    if settings.explain:
        yield "generation.explain", "shows single steps, which beams do not have", "leave one out"


def _of_validation(config: Config, jobs: Collection[str]) -> Iterator[Conflict]:
    train, data = config.train, config.data
    metric, _, domain = train.metric_for_best_model.partition("/")
    known = metrics(jobs, data.problem_type)
    if metric not in (*known, "auto"):
        yield "train.metric_for_best_model", f"{metric!r} is no metric", _one_of(known)
    elif domain and domain not in data.mixture:
        what = f"{domain!r} is no domain of data.mixture"
        yield "train.metric_for_best_model", what, _one_of(data.mixture or known)
    nothing = data.validation_fraction == 0 and not (data.validation_files or data.mixture)
    if train.early_stopping_patience is not None and nothing:
        yield (
            "train.early_stopping_patience",
            "needs validation data",
            "give data.validation_files, or leave out data.validation_fraction=0",
        )


def _of_finetuning(config: Config, jobs: Collection[str]) -> Iterator[Conflict]:
    lora, train, model = config.model.lora, config.train, config.model
    if lora.r is None and lora != LoraConfig():
        other = next(name for name in LoraConfig.model_fields if name in lora.model_fields_set)
        yield f"model.lora.{other}", "needs a rank", "write model.lora.r=8, or leave it out"
    if "finetune/completion" in jobs:
        return
    if lora.r is not None and train.freeze != "none":
        yield "train.freeze", "does not go with model.lora, which freezes the body", "keep one"
    if lora.r is None and train.freeze == "body" and model.name_or_path is None:
        yield (
            "train.freeze",
            "would never train a body of random weights",
            "name a pretrained model in model.name_or_path, or leave train.freeze out",
        )


def _of_windows(config: Config) -> Iterator[Conflict]:
    settings = config.evaluation
    if settings.window == "auto" or settings.stride == "auto":
        return
    fresh = settings.window - (settings.bos == "window")
    if settings.stride > fresh:
        what = f"of {settings.stride} tokens skips tokens: a window holds {fresh} of the text"
        yield "evaluation.stride", what, f"write {fresh} or less"


def _one_of(names: Collection[str]) -> str:
    return f"write one of {', '.join(names)}"
