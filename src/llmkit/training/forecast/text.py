"""The amount of training text in tokens, before it is tokenized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.text import corpus, domains
from llmkit.data.text.sample import TextSample, trainer_of
from llmkit.models.experts import twins
from llmkit.training.forecast.expectation import Workload
from llmkit.training.tasks import defaults
from llmkit.training.tasks.sizing import Sizes


def workload_of_text(
    config: Config,
    report: Mapping[str, Any],
    sample: TextSample,
    tokenizer: PreTrainedTokenizerFast | None,
    model: PreTrainedModel,
    sizes: Sizes,
    framing: int,
) -> Workload:
    """What a run trains on text, by the `report` on the data and the `sample` of the training text.

    Of each block of tokens, `framing` hold no text. Without a tokenizer, one is trained on the
    sample.
    """
    n_bytes, n_held_out, n_documents = 0.0, 0.0, 0
    learned = domains.learned_keys(config)
    for key, held_out_key in dict.fromkeys(domains.keys_by_domain(config).values()):
        found, held_out = (report.get(each.removeprefix("data.")) for each in (key, held_out_key))
        assert found is not None
        share = 0.0
        if held_out is None:
            share = corpus.held_out_share(found["text_bytes"], config.data.validation_fraction)
        n_held_out += share * found["text_bytes"] if held_out is None else held_out["text_bytes"]
        if key in learned:
            n_bytes += (1 - share) * found["text_bytes"]
            n_documents += found["documents"]
    if tokenizer is None:
        train = config.tokenizer.vocab_size, config.model.architecture, config.train.objective
        tokenizer = _trained(tuple(sample.parts), *train)
    block, batch = sizes.block_size, sizes.global_batch_size
    text_tokens = block - framing
    twins.freeze_weights(model, config.train.freeze)
    per_block = text_tokens * bytes_per_token(sample, tokenizer)
    n_examples = math.ceil(n_bytes / per_block + n_documents / text_tokens)
    if config.model.name_or_path is None and config.train.objective == "causal":
        config = config.changed(train=defaults.bounded(config.train, n_examples, batch))
    return Workload(
        model=model,
        config=config,
        n_examples=n_examples,
        is_counted=False,
        n_validation=math.ceil(n_held_out / per_block),
        tokens=block,
        longest=block,
        lengths_differ=False,
        from_scratch=config.model.name_or_path is None,
    )


def bytes_per_token(sample: TextSample, tokenizer: PreTrainedTokenizerFast) -> float:
    """The UTF-8 bytes of the mean token of a sample."""
    ids = tokenizer.backend_tokenizer.encode_batch_fast(sample.parts, add_special_tokens=False)
    n_bytes = sum(len(part.encode()) for part in sample.parts)
    return max(1, n_bytes) / max(1, sum(len(each.ids) for each in ids))


@lru_cache(maxsize=4)
def _trained(
    parts: tuple[str, ...], size: int, architecture: str, objective: str
) -> PreTrainedTokenizerFast:
    """A tokenizer like that of the run; the configurations of a sweep often share it."""
    return trainer_of(objective)(parts, size, architecture)
