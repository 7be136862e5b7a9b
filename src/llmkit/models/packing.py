"""Whether a model keeps packed documents apart, by positions or by masks made for it: checked on
the model itself."""

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

LENGTH = 160
"""Tokens of the row that is looked at: enough for layers that see blocks of 64 at a time."""

TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause, as a share of the largest logit."""

_BESIDE = 8  # tokens that the check has beyond a window of local attention


def check_isolation(model: PreTrainedModel) -> None:
    """Passes when documents packed into one row do not see each other.

    Raises ConfigError for an architecture that has no position ids, or does not heed them.
    """
    if not isolates(model):
        raise _cannot_isolate(model)


def isolates(model: PreTrainedModel) -> bool:
    """Whether two documents packed into one row give the logits that each gives alone.

    A packed row tells its documents apart by position ids that start again at 0.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
    ids = torch.arange(length, device=model.device)[None] % model.config.vocab_size
    documents = (torch.arange(length, device=model.device) >= length * 2 // 5).long()
    positions = torch.cat([torch.arange(n) for n in torch.bincount(documents).tolist()])
    packed = {"position_ids": positions[None].to(model.device), "use_cache": False}
    return are_apart(model, ids, documents, packed, {"use_cache": False})


def are_apart(
    model: PreTrainedModel,
    ids: Tensor,
    documents: Tensor,
    packed: dict[str, Any],
    alone: dict[str, Any],
) -> bool:
    """Whether the documents of the row `ids` [1, length] give the logits that each gives alone, and
    none of them depends on another's tokens.

    `documents` [length] numbers the document of each token from 0, `packed` holds the other inputs
    of the row, and `alone` those of each document. What depends on what is read from gradients,
    which are exactly zero where there is no path: unlike a difference of logits they do not vanish
    when weights are small, so a new model gives the same answer as the trained one.
    """
    training = model.training
    model.eval()
    try:
        with _no_weight_zero(model), torch.enable_grad(), _watched(model) as embedded:
            logits: Tensor = model(input_ids=ids, **packed).logits[0]
            for number in torch.unique(documents).tolist():
                own = documents == number
                if not _depends_on_itself_alone(logits[own], embedded, own):
                    return False
                by_itself = model(input_ids=ids[:, own], **alone).logits[0]
                largest = (logits[own] - by_itself).detach().abs().max()
                if not bool(largest <= TOLERANCE * by_itself.detach().abs().max()):
                    return False
        return True
    finally:
        model.train(training)


def _depends_on_itself_alone(logits: Tensor, embedded: list[Tensor], own: Tensor) -> bool:
    # Weights of different sizes: with equal ones, what passes through a softmax may cancel.
    weights = torch.linspace(1.0, 2.0, logits.numel(), device=logits.device).view_as(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), embedded[:1], retain_graph=True)
    by_token = gradients[0].abs().amax(dim=(0, 2))  # [length]
    return bool((by_token[~own] == 0).all() and (by_token[own] > 0).any())


@contextlib.contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The outputs of the token embeddings, whose gradients can be asked for."""
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
def _no_weight_zero(model: PreTrainedModel) -> Iterator[None]:
    """Weights that begin as zeros, as the last of a branch often do, would hide what passes through
    them once they are trained: within, they are small random numbers."""
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
        raise _cannot_isolate(model)
    return masks


def _cannot_isolate(model: PreTrainedModel) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} cannot keep packed documents apart",
        where="data.isolate_documents",
        next="write data.isolate_documents=false to train with documents that see each other",
    )


def _window(model: PreTrainedModel) -> int | None:
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()):
        return None
    return int(model.config.sliding_window)


def _apart(model: PreTrainedModel, masks: DocumentMasks) -> bool:
    """Whether two documents in one row give the logits that each gives alone."""
    vocabulary = model.config.vocab_size
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    window = LENGTH if masks.window is None else masks.window + 2 * _BESIDE
    length = min(positions - masks.first_position, window)
    places = torch.arange(length, device=model.device)
    # No id that an architecture may take for padding.
    ids = vocabulary - 1 - places[None] % (vocabulary // 2)
    documents = (places >= length // 3).long()
    try:
        packed = masks.inputs(documents[None] + 1)
        return are_apart(model, ids, documents, packed, {})
    # A model that does not take such masks fails in whatever way it likes.
    except Exception:
        return False
