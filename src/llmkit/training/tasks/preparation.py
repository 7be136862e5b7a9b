"""Prepare the text of pretraining ahead: token files that the run finds, made by many processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.readers import ranges
from llmkit.data.readers.decode import CHUNK, Reading
from llmkit.data.readers.files import Source, Sources
from llmkit.data.text import domains
from llmkit.data.text.documents import Piece, pieces
from llmkit.data.text.prepare import Prepared
from llmkit.data.text.sample import TextSample, trainer_of
from llmkit.data.text.token_file import TokenEncoder, TokenFile
from llmkit.data.text.token_stream import ShardedIds, TokenStream
from llmkit.distributed.processes import join_processes
from llmkit.distributed.signals import stop_signal
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained
from llmkit.models.tokenizer import framing
from llmkit.reporting.console import Console
from llmkit.storage import cache, paths
from llmkit.storage.units import Workers
from llmkit.training.tasks.pretraining import Pretraining
from llmkit.training.tasks.task import Session

PretrainingOf = Callable[[Config, Pretrained | None], type[Pretraining]]
"""Chooses the task by its config and model."""

_PLACES, _SAMPLED = 8, 1 << 20
"""Maximum number of places that a dry run reads at, and of bytes of text at each."""


def prepare_text(
    task_of: PretrainingOf, config: Config, sources: Sources, console: Console, workers: Workers
) -> dict[str, Any]:
    """Makes the token files of a config, or what is missing of them, and returns what they hold."""
    begin = time.monotonic()
    with stop_signal() as stop, join_processes(config.train.precision) as processes:
        session = Session(sources, processes, console, stop)
        named = pretrained.to_train(config)
        task = task_of(config, named)
        _, _, _, data = task.read_text(config, named, session, workers)
    texts = dict(_described(data))
    return {
        "command": "prepare",
        "hash": cache.key({name: text["hash"] for name, text in texts.items()}),
        "cache": str(paths.cache_directory()),
        "seconds": round(time.monotonic() - begin, 3),
        "texts": [{"text": name, **text} for name, text in texts.items()],
    }


def check_preparation(
    task_of: PretrainingOf, config: Config, sources: Sources, console: Console, workers: Workers
) -> dict[str, Any]:
    """Checks what `prepare_text` needs, and estimates from a sample of the text what it will take;
    writes nothing."""
    named = pretrained.to_train(config)
    task = task_of(config, named)
    keys = dict.fromkeys(key for pair in domains.keys_by_domain(config).values() for key in pair)
    found = [source for key in keys for source in sources.of(key)]
    n_bytes = sum(source.n_bytes for source in found)
    groups = ranges.unit_sources(found, config.data, ranges.range_bytes(n_bytes))
    with console.watch("reading a sample", 0):
        sample, share = _sampled([group[0] for group in groups], config)
    tokenizer = named.tokenizer if named else tokenizers.configured_tokenizer(config)
    if tokenizer is None:
        size = config.tokenizer.vocab_size
        size = tokenizers.auto_vocab_size(n_bytes) if size == "auto" else size
        train = trainer_of(task.objective)
        tokenizer = train(sample.parts, size, config.model.architecture)
    tokens, seconds = _measured(sample, tokenizer)
    text_bytes = n_bytes * share
    per_token = 2 if len(tokenizer) < 1 << 16 else 4
    return {
        "command": "prepare",
        "files": len(found),
        "bytes": n_bytes,
        "text_bytes": round(text_bytes),
        "units": len(groups),
        "tokens": round(text_bytes * tokens),
        "disk_bytes": round(text_bytes * (1 + per_token * tokens)),
        "processes": workers.processes * workers.count,
        "seconds": round(text_bytes * seconds / (workers.processes * workers.count), 1),
    }


def _sampled(parts: Sequence[Source], config: Config) -> tuple[TextSample, float]:
    """A sample of the text at several places, and the bytes of text for each byte of a file."""
    sample, read, n_bytes = TextSample(), 0, 0

    def advance(amount: int) -> None:
        nonlocal read
        read += amount

    for part in parts[:: -(-len(parts) // _PLACES)]:
        left = _SAMPLED
        for piece in pieces(part, Reading(ranges.settings_of_range(part, config.data), advance)):
            sample.add(piece.text)
            size = len(piece.text.encode())
            left, n_bytes = left - size, n_bytes + size
            if left <= 0:
                read -= CHUNK // 2  # of the last chunk, about half has been used
                break
    return sample, n_bytes / max(1, read)


def _measured(sample: TextSample, tokenizer: PreTrainedTokenizerFast) -> tuple[float, float]:
    """The tokens of a byte of text, and the seconds that one process needs for it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = [Piece(text, True) for text in sample.parts]
    n_bytes = max(1, sum(len(text.text.encode()) for text in texts))
    encoder = TokenEncoder(tokenizer, sample.parts[:_PLACES])
    stream = TokenStream(framing(tokenizer), np.dtype(np.uint32), continues=False)
    begin = time.perf_counter()
    for batch in encoder.batches(texts):
        stream.add(batch)
    return stream.n_tokens / n_bytes, (time.perf_counter() - begin) / n_bytes


def _described(data: Mapping[str, Prepared]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the token files hold."""
    for name, prepared in data.items():
        for part, file in (("train", prepared.train), ("validation", prepared.validation)):
            if file is not None:
                yield f"{name} {part}".strip(), _facts(file)


def _facts(file: TokenFile) -> dict[str, Any]:
    return {
        "documents": len(file.starts),
        "tokens": len(file.ids),
        "bytes": file.n_bytes,
        "shards": len(file.ids.paths) if isinstance(file.ids, ShardedIds) else 1,
        "hash": file.fingerprint,
        "path": str(file.path),
    }
