"""Check by running a model whether it isolates packed documents, by positions or by masks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.models import build

_ROW_LENGTH = 160
"""Tokens of the row that is checked: enough for layers that attend in blocks of 64."""

_TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause, relative to the largest logit."""

_BESIDE = 8  # tokens of the check beyond a window of local attention


def check_isolation(model: PreTrainedModel) -> None:
    """Raises ConfigError if documents packed into one row attend to each other: the architecture
    has no position ids, or ignores them."""
    if not isolates(model):
        raise _cannot_isolate(model)


def isolates(model: PreTrainedModel) -> bool:
    """Whether two documents packed into one row give the logits that each gives alone.

    Position ids that restart at 0 separate the documents of a packed row.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    length = min(_ROW_LENGTH, getattr(model.config, "max_position_embeddings", None) or _ROW_LENGTH)
    ids = torch.arange(length, device=model.device)[None] % model.config.vocab_size
    documents = (torch.arange(length, device=model.device) >= length * 2 // 5).long()
    positions = torch.cat([torch.arange(n) for n in torch.bincount(documents).tolist()])
    packed = {"position_ids": positions[None].to(model.device), "use_cache": False}
    return are_isolated(model, ids, documents, packed, {"use_cache": False})


def are_isolated(
    model: PreTrainedModel,
    ids: Tensor,
    documents: Tensor,
    packed: dict[str, Any],
    alone: dict[str, Any],
) -> bool:
    """Whether the documents of the row `ids` [1, length] give the logits that each gives alone, and
    none of them depends on another's tokens.

    `documents` [length] numbers the document of each token from 0, `packed` holds the other inputs
    of the row, and `alone` those of each document. Dependence is determined from gradients, which
    are exactly zero without a path: unlike differences of logits, they do not vanish when weights
    are small, so a new model gives the same answer as the trained one.
    """
    training = model.training
    model.eval()
    try:
        with _nonzero_weights(model), torch.enable_grad(), _recorded_embeddings(model) as embedded:
            logits: Tensor = model(input_ids=ids, **packed).logits[0]
            for number in torch.unique(documents).tolist():
                own = documents == number
                if not _depends_only_on_itself(logits[own], embedded, own):
                    return False
                by_itself = model(input_ids=ids[:, own], **alone).logits[0]
                largest = (logits[own] - by_itself).detach().abs().max()
                if not bool(largest <= _TOLERANCE * by_itself.detach().abs().max()):
                    return False
        return True
    finally:
        model.train(training)


def _depends_only_on_itself(logits: Tensor, embedded: list[Tensor], own: Tensor) -> bool:
    # Different weights per logit: with equal ones, gradients through a softmax may cancel out.
    weights = torch.linspace(1.0, 2.0, logits.numel(), device=logits.device).view_as(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), embedded[:1], retain_graph=True)
    by_token = gradients[0].abs().amax(dim=(0, 2))  # [length]
    return bool((by_token[~own] == 0).all() and (by_token[own] > 0).any())


@contextlib.contextmanager
def _recorded_embeddings(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Records the outputs of the token embeddings, with gradients enabled."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1].clone()  # some models change it in place

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def _nonzero_weights(model: PreTrainedModel) -> Iterator[None]:
    """Temporarily replaces all-zero weights by small random numbers.

    The last weights of a branch often start at zero, and would hide dependencies that appear once
    they are trained.
    """
    zero = [weight for weight in model.parameters() if not bool(weight.any())]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in zero:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zero:
                weight.zero_()


@dataclass(frozen=True)
class DocumentMasks:
    """The inputs with which an architecture isolates the documents of a row."""

    takes: frozenset[str]
    """Names of the inputs of its forward pass."""
    is_additive: bool
    """Whether masks are numbers to add to the attention scores, not booleans."""
    window: int | None
    """Largest distance that its local attention layers see; None without such layers."""
    first_position: int
    """Position of the first token: RoBERTa and similar models count from after the padding id."""

    def inputs(self, documents: Tensor) -> dict[str, Any]:
        """Attention masks, and positions that restart with each document, from the document number
        of each token (int64 [batch, length])."""
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
    """The masks that isolate packed documents in this model.

    Raises ConfigError for a model in which packed documents still give other logits than each
    alone.
    """
    masks = DocumentMasks(
        takes=frozenset(inspect.signature(model.forward).parameters),
        is_additive=model.config._attn_implementation == "eager",
        window=_window(model),
        first_position=build.unused_positions(model.config, build.MASKED_MODEL),
    )
    if not _masks_isolate(model, masks):
        raise _cannot_isolate(model)
    return masks


def _cannot_isolate(model: PreTrainedModel) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} cannot isolate packed documents",
        where="data.isolate_documents",
        next="write data.isolate_documents=false to let packed documents attend to each other",
    )


def _window(model: PreTrainedModel) -> int | None:
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()):
        return None
    return int(model.config.sliding_window)


def _masks_isolate(model: PreTrainedModel, masks: DocumentMasks) -> bool:
    """Whether two documents in one row give the logits that each gives alone."""
    vocabulary = model.config.vocab_size
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    window = _ROW_LENGTH if masks.window is None else masks.window + 2 * _BESIDE
    length = min(positions - masks.first_position, window)
    places = torch.arange(length, device=model.device)
    # Avoids ids that an architecture may treat as padding.
    ids = vocabulary - 1 - places[None] % (vocabulary // 2)
    documents = (places >= length // 3).long()
    try:
        packed = masks.inputs(documents[None] + 1)
        return are_isolated(model, ids, documents, packed, {})
    # A model that does not support such masks may raise anything.
    except Exception:
        return False
