"""A trained model with a head, and the batches in which it reads texts or their windows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.inference.padding import batch_tokens, padded_batches, padded_to
from llmkit.models.build import Purpose
from llmkit.models.pretrained import Pretrained, load_model


class BatchedRows(Protocol):
    """Rows of token ids: texts, or windows of them."""

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    @property
    def pad_id(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class BatchedModel:
    """A trained model on its device."""

    model: PreTrainedModel
    encoder: Any
    """Encodes texts for it."""
    precision: str

    @property
    def batch_tokens(self) -> int:
        """Number of tokens of a batch that keeps the device busy."""
        return batch_tokens(self.model.device)

    def batches(
        self,
        rows: BatchedRows,
        processes: Processes | None = None,
        advance: Callable[[int], None] = lambda n_rows: None,
        fills: Mapping[str, int] = MappingProxyType({}),
        apart: Collection[str] = (),
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
        """The numbers of the rows of each batch, and the batch; several processes share them.

        `advance` is called with the number of rows when a batch is done. `fills` are the values
        that tensors besides ids are padded with; those named in `apart` are not padded.
        """
        found = list(padded_batches(rows.lengths, self.model.device, self.precision))
        rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
        for numbers, length in found[rank::count]:
            batch = rows.batch(numbers)
            kept = {name: batch.pop(name) for name in apart if name in batch}
            yield numbers, padded_to(batch, length, {"input_ids": rows.pad_id, **fills}) | kept
            advance(int((numbers >= 0).sum()))

    @torch.no_grad()
    def outputs_of(self, batch: Mapping[str, Tensor]) -> Any:
        """What the model returns for a padded batch."""
        device, low = self.model.device, self.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return self.model(**{name: value.to(device) for name, value in batch.items()})

    def logits_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits [rows, ...] of a padded batch."""
        logits: Tensor = self.outputs_of(batch).logits
        return logits

    def of_batch(self, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """The same as an array."""
        return np.asarray(self.logits_of(batch).float().cpu().numpy())


def load_head(pretrained: Pretrained, purpose: Purpose, device: torch.device) -> PreTrainedModel:
    """The weights of a model on a device, which pads with its own tokenizer's token."""
    model = load_model(pretrained, purpose).eval().to(device)
    model.config.get_text_config().pad_token_id = pretrained.own_tokenizer.pad_token_id
    return model


def summed(values: NDArray[Any], processes: Processes | None) -> NDArray[np.float64]:
    """The sum of what all processes have found, each 0 where others have worked."""
    if processes is None or processes.count == 1:
        return np.asarray(values, dtype=np.float64)
    whole = torch.from_numpy(values).double().to(processes.device)
    return np.asarray(processes.sum(whole).cpu().numpy())


def share_of(
    advance: Callable[[float], None], size: int, processes: Processes | None
) -> Callable[[int], None]:
    """Turns numbers of rows, of `size` that the processes share, into shares for `advance`."""
    count = 1 if processes is None else processes.count
    return lambda n_rows: advance(n_rows * count / size)


def refuse_head(pretrained: Pretrained, is_not: str, advice: str) -> DataError:
    """The error for a model without the needed head."""
    kind = (pretrained.config.architectures or ["model without a head"])[0]
    where = f"model.name_or_path={pretrained.name}"
    return DataError(f"the model is a {kind}, {is_not}", where=where, next=advice)
