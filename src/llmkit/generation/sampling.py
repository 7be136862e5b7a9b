"""Text from a causal language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config.schema import GenerationConfig


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    settings: GenerationConfig,
    seed: int,
) -> list[str]:
    """`settings.num_return_sequences` continuations of the prompt's token ids, without the prompt.

    The prompt and what follows stay within the model's positions. Random state and training mode
    of the model are as before afterwards.
    """
    training = model.training
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    ids = torch.tensor([list(prompt)[-(limit - 1) :]], device=model.device)  # [1, prompt]
    sampling = (
        {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        if settings.do_sample
        else {}
    )
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=settings.do_sample,
                num_return_sequences=settings.num_return_sequences if settings.do_sample else 1,
                max_new_tokens=min(settings.max_new_tokens, limit - ids.shape[1]),
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                **sampling,
            )
    finally:
        model.train(training)
    return list(tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True))
