"""The forward pass over the newest tokens of a running batch: the model's own, or compiled code
that gives the same logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.inference.decoding.kv_cache import KVCache
from llmkit.models import rope
from llmkit.models.kernels.decoding import CompiledStep, compiled_step

PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types whose only state is keys and values."""

CHECKED_ROWS = 2
"""Rows of the first step for which the compiled step is compared with the model."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest relative difference of logits between the compiled step and the model that rounding may
cause."""


class ForwardPass:
    """The forward pass over rows that begin in different columns."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.accepts = frozenset(inspect.signature(model.forward).parameters)
        self.border = rope.longrope_limit(model)
        """Maximum number of tokens with the frequencies of short texts (`longrope_limit`)."""
        kinds = set(getattr(model.config, "layer_types", None) or PLAIN_LAYERS)
        # A custom model may have no cache and recompute the whole text.
        caches = model.can_generate() and model._supports_default_dynamic_cache()
        self.has_plain_cache = kinds <= PLAIN_LAYERS and bool(caches)
        self._step = compiled_step(model) if self.has_plain_cache else None
        self._is_checked = False

    def __call__(self, ids: Tensor, begins: Tensor, cache: KVCache) -> Tensor:
        """The logits [rows, 1, vocabulary] after the last of the ids [rows, new columns] that
        follow the cache.

        The columns before a row's begin are padding. Without padding, no mask is passed: attention
        is fastest then.
        """
        device, columns = self.model.device, torch.arange(cache.length + ids.shape[1])
        options: dict[str, Any] = {}
        if "logits_to_keep" in self.accepts:
            options["logits_to_keep"] = 1
        if "position_ids" in self.accepts:
            positions = columns[cache.length :] - begins[:, None]
            options["position_ids"] = positions.clamp(min=0).to(device)
        if begins.any():
            options["attention_mask"] = (columns >= begins[:, None]).to(device)
        outputs = self.model(
            input_ids=ids.to(device), past_key_values=cache, use_cache=True, **options
        )
        logits: Tensor = outputs.logits[:, -1:]
        return logits

    @property
    def most_tokens(self) -> int:
        """Maximum number of new tokens in a row: several only in the compiled step, where each has
        the logits that it has alone, to the bit."""
        return self._step.most_tokens if self._step is not None and self._is_checked else 1

    def can_forget(self, cache: KVCache) -> bool:
        """Whether the newest columns of a cache can be dropped again."""
        return self.border is None and cache.memory is None

    def of_newest(self, ids: Tensor, cache: KVCache) -> Tensor:
        """The logits [rows, tokens, vocabulary] after new ids [rows, tokens] in each row of a cache
        that has room for them; at most `most_tokens` in a row."""
        if self._step is None or ids.numel() > self._step.most_tokens:
            return self(ids, cache.begins(), cache)
        if not self._is_checked:
            return self._checked(self._step, ids, cache)
        logits = self._step(ids, cache.begins(), *cache.buffers(), cache.length)
        cache.extend(ids.shape[1])
        return logits

    def _checked(self, step: CompiledStep, ids: Tensor, cache: KVCache) -> Tensor:
        """The model's own logits; the compiled step is used from now on if its logits of the first
        rows are the same, and never if they are not."""
        few = torch.arange(len(ids))[:CHECKED_ROWS]
        twin = cache.copy_of(few)
        own = self(ids, cache.begins(), cache)
        expected = own[few].float()
        if expected.isfinite().all():
            found = step(ids[few], twin.begins(), *twin.buffers(), twin.length)
            error, tolerance = (found - expected).norm(), ROUNDING.get(own.dtype, 0.0)
            self._is_checked = bool(error <= tolerance * expected.norm())
            self._step = step if self._is_checked else None
        return own

    def of_prompts(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, KVCache | None]:
        """The logits [prompts, vocabulary] after each prompt, and their cache; no cache for a model
        whose state is more than keys and values."""
        if not self.has_plain_cache:
            return self.recomputed(prompts), None
        cache, longest = KVCache(), max(map(len, prompts))
        begins = torch.tensor([longest - len(ids) for ids in prompts])
        rows = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts])
        logits = self(rows, begins, cache)[:, 0]
        cache.starts = begins
        return logits, cache

    def recomputed(self, texts: Iterable[tuple[int, ...]]) -> Tensor:
        """The logits [texts, vocabulary] after each text, computed whole and one at a time."""
        rows = [torch.tensor([ids], device=self.model.device) for ids in texts]
        return torch.cat([self.model(input_ids=r, use_cache=False).logits[:, -1] for r in rows])
