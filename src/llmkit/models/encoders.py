"""How a model that sees both sides keeps packed documents apart: by masks made for it, and checked
on the model itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.models import build, packing

_BESIDE = 8  # tokens that the check has beyond a window of local attention


@dataclass(frozen=True)
class DocumentMasks:
    """What tells an architecture which tokens of a row belong together."""

    takes: frozenset[str]
    """Inputs that its forward pass knows."""
    is_additive: bool
    """Whether masks are numbers to add to the scores, not which of them count."""
    window: int | None
    """Farthest token that its layers of local attention see; None where it has none."""
    first_position: int
    """RoBERTa and its kin count from after their padding id."""

    def inputs(self, documents: Tensor) -> dict[str, Any]:
        """Masks and positions that restart, for rows whose tokens have these numbers of documents
        (int64 [batch, length])."""
        same = documents[:, None, :, None] == documents[:, None, None, :]
        columns = torch.arange(documents.shape[1], device=documents.device)
        found: dict[str, Any] = {"attention_mask": self._mask(same)}
        if self.window is not None:
            near = (columns[:, None] - columns).abs() <= self.window
            masks = {"sliding_attention": self._mask(same & near)}
            found["attention_mask"] = {"full_attention": found["attention_mask"], **masks}
        if "position_ids" in self.takes:
            begins = torch.zeros_like(documents)
            begins[:, 1:] = columns[1:] * (documents[:, 1:] != documents[:, :-1])
            found["position_ids"] = columns - begins.cummax(1).values + self.first_position
        return found

    def _mask(self, seen: Tensor) -> Tensor:
        """[batch, 1, length, length]"""
        if not self.is_additive:
            return seen
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, lowest)


def document_masks(model: PreTrainedModel) -> DocumentMasks:
    """What keeps documents apart in this model.

    Raises ConfigError for a model in which packed documents give other logits than each alone.
    """
    masks = DocumentMasks(
        takes=frozenset(inspect.signature(model.forward).parameters),
        is_additive=model.config._attn_implementation == "eager",
        window=_window(model),
        first_position=build.unused_positions(model.config, build.MASKED_MODEL),
    )
    if not _apart(model, masks):
        raise ConfigError(
            f"{type(model).__name__} cannot keep packed documents apart",
            where="data.isolate_documents",
            next="write data.isolate_documents=false to train with documents that see each other",
        )
    return masks


def _window(model: PreTrainedModel) -> int | None:
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()):
        return None
    return int(model.config.sliding_window)


def _apart(model: PreTrainedModel, masks: DocumentMasks) -> bool:
    """Whether two documents in one row give the logits that each gives alone."""
    vocabulary = model.config.vocab_size
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    window = packing.LENGTH if masks.window is None else masks.window + 2 * _BESIDE
    length = min(positions - masks.first_position, window)
    places = torch.arange(length, device=model.device)
    # No id that an architecture may take for padding.
    ids = vocabulary - 1 - places[None] % (vocabulary // 2)
    documents = (places >= length // 3).long()
    try:
        packed = masks.inputs(documents[None] + 1)
        return packing.are_apart(model, ids, documents, packed, {})
    # A model that does not take such masks fails in whatever way it likes.
    except Exception:
        return False
