"""A decoding step in one call of compiled code, for models of common families on a CPU.

Replaces the model's own forward pass over the newest tokens of each text, whose many small
operations take most of the time of small models, and whose products with bf16 and int8 weights are
slow for few rows. The logits are equal up to rounding; with bf16 weights they are closer to those
of fp32, because states are fp32. To delete it: remove `compiled_step` from
`inference/decoding/forward_pass.py`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llmkit.models.kernels import native
from llmkit.models.kernels.layer_parts import (
    DecoderParts,
    LayerParts,
    RotationTable,
    UnfitModel,
    Weight,
    decoder_parts,
)

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_RMS_NORM, _LAYER_NORM = 1, 2
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.silu,
    lambda x: functional.gelu(x, approximate="tanh"),
    functional.gelu,
    functional.relu,
)
"""In the order of vectors.h."""

_PER_THREAD = 1 << 20
"""Products for which another thread pays off."""
_MAX_PRODUCTS = 1 << 31
"""Products of a step up to which few rows of bf16 or int8 weights are faster here than in torch,
which has matrix instructions for many."""


def compiled_step(model: PreTrainedModel) -> CompiledStep | None:
    """A decoding step for a model, or None if its architecture or the machine does not allow it.

    Compare its logits with those of the model before using it.
    """
    library = native.decoder_library()
    if library is None:
        return None
    try:
        return CompiledStep(decoder_parts(model), library)
    except UnfitModel:
        return None


class CompiledStep:
    """Computes the logits after the newest tokens of each row, and appends their keys and values.

    A token's logits have the same bits alone and with others, in its row or in other rows.
    """

    def __init__(self, parts: DecoderParts, library: ctypes.CDLL) -> None:
        self._parts, self._library = parts, library
        self._held: list[Tensor] = []
        """All tensors that the structs point to."""
        self._layers = (native.LayerStruct * len(parts.layers))(*map(self._layer, parts.layers))
        hidden = parts.head.values.shape[1]
        self._model = native.ModelStruct(
            self._layers, self._norm(parts.last_norm), self._matrix(parts.head),
            len(parts.layers), hidden,
        )  # fmt: skip
        weights = [weight for each in parts.layers for weight in each.weights.values()]
        kept = [weight.values for weight in (*weights, parts.head) if weight is not None]
        self._n_weights = sum(map(Tensor.numel, kept))
        is_full = all(weight.dtype == torch.float32 for weight in kept)
        self.most_tokens = sys.maxsize if is_full else _MAX_PRODUCTS // self._n_weights
        """Tokens of a step, over all rows, up to which it is faster than torch."""
        self._positions = 0
        self._rotations: dict[RotationTable, Tensor] = {}
        self._workspace = torch.empty(0)

    def __call__(
        self, ids: Tensor, begins: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
        column: int,
    ) -> Tensor:  # fmt: skip
        """The fp32 logits [rows, tokens, vocabulary] after the ids [rows, tokens], which begin in
        `column` of the cache.

        `begins` [rows] is the first column that each row sees. Keys and values of each layer are
        contiguous [rows, key heads, columns, head size]; those of the new columns are written.
        """
        (rows, tokens), room = ids.shape, keys[0].shape[2]
        begins = begins.contiguous()
        self._extend_rotations(column + tokens)
        states = self._parts.embed(ids, torch.arange(column, column + tokens) - begins[:, None])
        # A copy: it is overwritten.
        states = states.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        logits = torch.empty(rows, tokens, self._parts.head.values.shape[0])
        useful = rows * tokens * self._n_weights // _PER_THREAD
        threads = max(1, min(torch.get_num_threads(), useful))
        size = self._library.workspace_size(self._model, rows * tokens, room, threads)
        if len(self._workspace) < size:
            self._workspace = torch.empty(size)
        step = native.StepStruct(
            states.data_ptr(), logits.data_ptr(), self._workspace.data_ptr(), begins.data_ptr(),
            _addresses(keys), _addresses(values),
            rows, tokens, column, room, _TYPES[keys[0].dtype], threads,
        )  # fmt: skip
        self._library.decode(self._model, step)
        return self._parts.finish(logits)

    def _layer(self, parts: LayerParts) -> native.LayerStruct:
        query, key = parts.weights["query"], parts.weights["key"]
        assert query is not None
        assert key is not None
        size, left = divmod(len(query.values), parts.heads)
        if left or len(key.values) != parts.key_heads * size or parts.heads % parts.key_heads:
            raise UnfitModel
        return native.LayerStruct(
            **{name: self._norm(module) for name, module in parts.norms.items()},
            **{name: self._matrix(weight) for name, weight in parts.weights.items()},
            heads=parts.heads, key_heads=parts.key_heads, head_size=size,
            window=parts.window, activation=_activation(parts.activation),
            scale=parts.scale, softcap=parts.softcap,
            residual_multiplier=parts.residual_multiplier,
        )  # fmt: skip

    def _matrix(self, weight: Weight | None) -> native.MatrixStruct:
        if weight is None:
            return native.MatrixStruct()
        kind = _TYPES.get(weight.values.dtype)
        if kind is None or type(weight.values) is not Tensor:  # such as the shard of a tensor
            raise UnfitModel
        self._held.append(weight.values)
        own = (weight.values.data_ptr(), self._floats(weight.scale), self._floats(weight.bias))
        return native.MatrixStruct(*own, len(weight.values), kind)

    def _norm(self, module: nn.Module | None) -> native.NormStruct:
        if module is None:
            return native.NormStruct()
        known: Any = module
        if known.weight is None:
            raise UnfitModel
        kind = _LAYER_NORM if isinstance(module, nn.LayerNorm) else _RMS_NORM
        epsilon = known.variance_epsilon if hasattr(module, "variance_epsilon") else known.eps
        weight = known.weight.data.float() + self._parts.norm_offset
        bias = self._floats(getattr(module, "bias", None))
        return native.NormStruct(self._floats(weight), bias, kind, len(weight), epsilon)

    def _floats(self, values: Tensor | None) -> int | None:
        """The address of a copy in fp32."""
        if values is None:
            return None
        self._held.append(values.detach().float().contiguous())
        return self._held[-1].data_ptr()

    def _extend_rotations(self, positions: int) -> None:
        """Makes tables of cosines and sines for at least so many positions."""
        if positions <= self._positions:
            return
        self._positions = max(1024, 2 * positions)
        self._rotations = {
            rotation: torch.stack(rotation(torch.arange(self._positions)), 1).float().contiguous()
            for rotation in {parts.rotation for parts in self._parts.layers}
            if rotation is not None
        }
        for layer, parts in zip(self._layers, self._parts.layers, strict=True):
            if parts.rotation is not None:
                table = self._rotations[parts.rotation]
                layer.rotation, layer.rotated = table.data_ptr(), table.shape[-1]


def _activation(function: Callable[[Tensor], Tensor]) -> int:
    """The index of an activation, found by its values: its modules have many names."""
    points = torch.linspace(-4, 4, 65)
    for index, known in enumerate(_ACTIVATIONS):
        if torch.allclose(function(points), known(points), rtol=0, atol=1e-5):
            return index
    raise UnfitModel


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))
