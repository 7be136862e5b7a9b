"""Keys whose values do not go together, known before any data is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llmkit.config import figures
from llmkit.config.schema import Config, GenerationConfig, LoraConfig

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
    known = figures.names(jobs, data.problem_type)
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
