"""The answers of a finished model to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.records.conversations import Conversation
from llmkit.data.records.pairs import Pairs
from llmkit.evaluation import references
from llmkit.inference import generate, prompts
from llmkit.inference.batching import Engine
from llmkit.inference.encoder_decoder import TargetGenerator, first_texts
from llmkit.inference.requests import PromptRequest
from llmkit.reporting import results
from llmkit.training.tasks.task import Session


def answer(
    final: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Conversation],
    config: Config,
    session: Session,
    directory: Path,
) -> dict[str, Any]:
    """Metrics of the model's own responses to the last prompts of conversations; the responses go
    to `samples.jsonl` in the run directory."""
    settings = config.generation
    engine = Engine(final, tokenizer, settings.micro_batch_size)
    sampler, seed = engine.sampler(settings), config.sampling_seed
    with session.watch("responding", len(asked)) as advance:
        texts = generate.generate_responses(engine, as_messages(asked), sampler, seed, advance)
    return _scored(asked, texts, config, directory)


def answer_sources(
    generator: TargetGenerator,
    asked: Sequence[Conversation],
    config: Config,
    session: Session,
    directory: Path,
) -> dict[str, Any]:
    """Metrics of the targets that an encoder-decoder model writes for sources; they go to
    `samples.jsonl` in the run directory."""
    texts = targets_of(generator, asked, config, session)
    return _scored(asked, texts, config, directory)


def targets_of(
    generator: TargetGenerator, asked: Sequence[Conversation], config: Config, session: Session
) -> list[str]:
    """The first text that an encoder-decoder model writes for each source, which is cut if it is
    too long."""
    items = [PromptRequest(each.opening[0], f"{each.path} row {each.number}") for each in asked]
    with session.watch("generating", len(items)) as advance:
        return first_texts(generator, items, config.sampling_seed, advance)[0]


def _scored(
    asked: Sequence[Conversation], texts: Sequence[str], config: Config, directory: Path
) -> dict[str, Any]:
    """The metrics of texts against the last messages of conversations; writes the texts."""
    pairs = Pairs(
        references=[each.contents[-1] for each in asked],
        prompts=[each.contents[-2] for each in asked],
        places=[(each.path, each.number) for each in asked],
    )
    results.write_lines(directory / "samples.jsonl", references.reference_samples(pairs, texts))
    made_by = {**config.generation.model_dump(mode="json"), "precision": "fp32"}
    protocol = {"words": references.WORDS, "generation": made_by}
    scores = references.score_texts(texts, pairs.references, config.seed)
    return {**scores, "protocol": protocol}


def answerable(
    held_out: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    config: Config,
    session: Session,
) -> list[Conversation]:
    """The first `evaluation.responses` held-out conversations whose last prompt is shorter than
    `data.max_length`; warns of longer ones."""
    asked: list[Conversation] = []
    too_long = 0
    for each, messages in zip(held_out, as_messages(held_out), strict=True):
        if len(asked) == (config.evaluation.responses or 0):
            break
        if len(prompts.chat_ids(messages[:-1], tokenizer)) < int(config.data.max_length):
            asked.append(each)
        else:
            too_long += 1
    if too_long:
        session.console.warn(f"{too_long:,} held-out prompts are too long to be answered: skipped")
    return asked


def as_messages(some: Sequence[Conversation]) -> list[list[dict[str, str]]]:
    """Conversations in the format of chat templates."""
    return [[message._asdict() for message in each.messages] for each in some]
