"""Generate the samples of a fixed list of prompts in order, with the engine or beam search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Series
from itertools import chain, islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config.schema import Config, GenerationConfig
from llmkit.errors import ConfigError, UsageError
from llmkit.inference import beams, constraints
from llmkit.inference import prompts as prompting
from llmkit.inference.batching import Engine
from llmkit.inference.constraints import Constrain
from llmkit.inference.generated import Sample
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.inference.sampler import Sampler, end_ids
from llmkit.inference.sequence import Sequence
from llmkit.models import pretrained
from llmkit.models.experts import routing
from llmkit.models.kernels import huge_pages, int8, layer_parts
from llmkit.models.pretrained import Pretrained


def open_language_model(config: Config) -> Pretrained:
    """The configured model without its weights, checked as `checked` does."""
    return checked(pretrained.of_config(config))


def checked(model: Pretrained | None) -> Pretrained:
    """A model that can generate text.

    Raises UsageError if no model is named, and DataError if it is not a causal language model.
    """
    if model is None:
        raise UsageError("no model is named", next="name one with --model")
    model.check_causal()
    return model


def constraint(config: Config, model: Pretrained) -> Constrain | None:
    """The constraint on the texts, checked as far as possible without the model."""
    ends = end_ids(getattr(model.config, "eos_token_id", None), model.tokenizer.eos_token_id)
    return constraints.constrain(config.generation, model.tokenizer, ends)


def usual_device() -> torch.device:
    """The device to generate on: an accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolved(config: Config, device: torch.device) -> Config:
    """The config with its precision for generation resolved for a device.

    Raises ConfigError for int8 weights on any device but a CPU.
    """
    settings, on_cpu = config.generation, device.type == "cpu"
    if settings.weights == "int8" and not on_cpu:
        raise ConfigError(
            "int8 weights need a CPU", where="generation.weights", next="remove this key"
        )
    precision = settings.precision
    if settings.weights == "int8":
        precision = "bf16"
    elif precision == "auto":
        precision = "fp32" if on_cpu else "bf16"
    chosen = settings.changed(precision=precision)
    return config.changed(generation=chosen)


def warning_of_precision(settings: GenerationConfig, n_texts: int) -> str | None:
    """A warning if texts that are generated together may affect each other."""
    if settings.precision == "fp32" or n_texts < 2:
        return None
    exact = "generation.precision=fp32"
    if settings.weights == "int8":
        exact += " generation.weights=full"
    return (
        "the texts are generated in bf16, where a text may depend on the others of its batch; "
        f"{exact} makes texts independent of the batch"
    )


def engine(config: Config, opened: Pretrained, device: torch.device | None = None) -> Engine:
    """Loads the model on its device in the configured precision, ready to generate."""
    device = device or usual_device()
    settings = resolved(config, device).generation
    model = routing.load_experts(opened, settings.experts).eval()
    if settings.weights == "int8":
        model = int8.quantize(model)
    elif settings.precision == "bf16":
        model = int8.to_bf16(model)
    model = layer_parts.store_by_output(model.to(device))
    return Engine(huge_pages.in_huge_pages(model), opened.tokenizer, settings.micro_batch_size)


_Messages = Series[Mapping[str, str]]


def generate_samples(
    engine: Engine,
    prompts: Collection[Prompt],
    sampler: Sampler,
    tick: Callable[[], None] = lambda: None,
    on_text: Callable[[Sequence, str], None] | None = None,
) -> Iterator[Sample]:
    """The samples of each prompt, prompt by prompt and index by index, each as soon as those before
    it are finished, from an engine that has no other sequences.

    `tick` is called at every step and may raise to stop; `on_text` receives the new text of each
    sequence as it is generated, in whole characters.
    """
    if sampler.settings.num_beams > 1:
        for prompt in prompts:
            tick()
            yield from beams.search(engine, prompt, sampler)
        return
    longest_first = sorted(enumerate(prompts), key=lambda item: -len(item[1].ids))
    is_streamed = on_text is not None
    added: dict[int, list[Sequence]] = {}
    left: deque[Sequence] = deque()
    try:
        for place, prompt in longest_first:
            added[place] = engine.add(prompt, sampler, is_streamed)
        for place in range(len(prompts)):
            left += added.pop(place)
        while left:
            tick()
            for sequence in engine.step():
                if on_text is not None and (new := sequence.new_text()):
                    on_text(sequence, new)
            while left and left[0].ended is not None:
                yield left.popleft().sample()
    finally:
        engine.abort(chain(left, *added.values()))


def generate_responses(
    engine: Engine,
    conversations: Collection[_Messages],
    sampler: Sampler,
    seed: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """Generates the last message of each conversation.

    `advance` is called with 1 after each response and with 0 at every step, and may raise to stop.
    Raises DataError for a conversation that leaves no room in the context.
    """
    asked: list[Prompt] = []
    for number, messages in enumerate(conversations, 1):
        ids = prompting.chat_ids(messages[:-1], engine.tokenizer)
        request = PromptRequest(messages[-2]["content"], f"conversation {number}")
        config = engine.model.config
        asked.append(prompting.fitted(request, ids, config, sampler.settings, seed))
    texts = []
    for sample in generate_samples(engine, asked, sampler, tick=lambda: advance(0)):
        if sample.index == 0:
            texts.append(sample.text)
            advance(1)
    return texts


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Series[Series[int]],
    settings: GenerationConfig,
    seed: int,
) -> list[list[str]]:
    """`settings.num_return_sequences` continuations of each prompt's token ids, without the prompt.

    A prompt is cut from the left to fit the context. The global random state and the model's
    training mode do not change.
    """
    limit = prompting.context(model.config)
    kept = [tuple(ids if limit is None else ids[-(limit - 1) :]) for ids in prompts]
    given = [Prompt("", ids, seed, settings.max_new_tokens, limit=limit) for ids in kept]
    training = model.training
    model.eval()
    try:
        engine = Engine(model, tokenizer, settings.micro_batch_size)
        made = generate_samples(engine, given, engine.sampler(settings))
        each = settings.num_return_sequences
        return [[sample.text for sample in islice(made, each)] for _ in given]
    finally:
        model.train(training)
