"""All samples of some prompts in their order, by the loop or by beams: the one way to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config.schema import GenerationConfig
from llmkit.inference import beams, decoding, prompts
from llmkit.inference.decoding import OnText
from llmkit.inference.prompts import Prompt
from llmkit.inference.sample import Sample
from llmkit.inference.writer import Desk

AUTO_BATCH = 64
"""Texts written at once where `micro_batch_size` is `auto`: nothing is measured, so that the same
job has the same batches whenever it goes on."""


def samples(
    desk: Desk,
    asked: Sequence[Prompt],
    tick: Callable[[], None] = lambda: None,
    on_text: OnText | None = None,
) -> Iterator[Sample]:
    """The samples of each prompt, prompt by prompt and index by index, each as soon as those before
    it are finished."""
    settings = desk.settings
    if settings.num_beams > 1:
        yield from _in_beams(desk, asked, tick)
        return
    per_prompt = settings.num_return_sequences if settings.do_sample else 1
    size = batch_size(settings)
    places = {id(prompt): place for place, prompt in enumerate(asked)}
    early: dict[int, Sample] = {}
    following = 0
    for sample in decoding.write(desk, asked, size, tick, on_text):
        early[places[id(sample.prompt)] * per_prompt + sample.index] = sample
        while following in early:
            yield early.pop(following)
            following += 1


def batch_size(settings: GenerationConfig) -> int:
    """The most texts that are written at once."""
    if settings.micro_batch_size != "auto":
        return settings.micro_batch_size
    return AUTO_BATCH


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    settings: GenerationConfig,
    seed: int,
) -> list[str]:
    """`settings.num_return_sequences` continuations of a prompt's token ids, without the prompt.

    The prompt and what follows stay within the model's positions. Random state and training mode
    of the model are as before afterwards.
    """
    limit = prompts.context(model.config)
    kept = tuple(ids if limit is None else ids[-(limit - 1) :])
    prompt = Prompt("", kept, seed, settings.max_new_tokens, limit=limit)
    training = model.training
    model.eval()
    try:
        return [sample.text for sample in samples(Desk(model, tokenizer, settings), [prompt])]
    finally:
        model.train(training)


def _in_beams(desk: Desk, asked: Sequence[Prompt], tick: Callable[[], None]) -> Iterator[Sample]:
    for prompt in asked:
        tick()
        yield from beams.search(desk, prompt)
