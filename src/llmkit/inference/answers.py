"""What a model says where the last message of a conversation stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmkit.inference import prompts, sampling
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import Request
from llmkit.inference.writer import Desk

Messages = Sequence[Mapping[str, str]]


def write(
    desk: Desk,
    conversations: Sequence[Messages],
    seed: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """One answer for each conversation, whose last message the model does not get to read.

    `advance` is called with 1 after each answer and with 0 at every token, and may raise to stop.
    Raises DataError for a conversation that leaves no room in the context.
    """
    asked: list[Prompt] = []
    for number, messages in enumerate(conversations, 1):
        ids = prompts.chat_ids(messages[:-1], desk.tokenizer)
        request = Request(messages[-2]["content"], f"conversation {number}")
        asked.append(prompts.fitted(request, ids, desk.model.config, desk.settings, seed))
    texts = []
    for sample in sampling.samples(desk, asked, tick=lambda: advance(0)):
        if sample.index == 0:
            texts.append(sample.text)
            advance(1)
    return texts
