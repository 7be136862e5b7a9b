"""The operations and the memory of training a model, from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from llmkit.config.schema import LoraConfig
from llmkit.models import build
from llmkit.models.kernels import cross_entropy
from llmkit.training import muon

ACTIVATION_BYTES = {"bf16": 4.7, "fp32": 5.5}
"""Bytes that a step keeps for each token and each input and output of a matrix: 4.4 to 6.7 in the
layers of Llama, Qwen3, BERT, ModernBERT and Mixtral, 10 in those of GPT-2."""

SPARE = 1.25
"""Memory of a step relative to what it keeps: gradients on their way, and what is not reused."""

LOGITS_HELD = 4
"""Copies of a chunk of logits that a loss holds at once, in fp32."""


class Matrix(NamedTuple):
    """A matrix that tokens are multiplied with, or a stack of experts."""

    rows: int
    columns: int
    number: int
    """Matrices in the stack; 1 for a single matrix."""
    used: int
    """How many of them a token is multiplied with."""
    is_trained: bool

    @property
    def operations(self) -> int:
        """Operations of training per token: two for each weight in the forward pass, two for the
        gradient of the input, and two for that of the weight."""
        return (6 if self.is_trained else 4) * self.rows * self.columns * self.used


def matrices_of(model: PreTrainedModel) -> Iterator[Matrix]:
    """The matrices of a model, which may be on the meta device; embeddings are looked up instead,
    unless they are the output layer too."""
    routed = getattr(model.config.get_text_config(), build.TOP_K, None) or 1
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim in (2, 3) and min(weight.shape) > 1:
                *stack, rows, columns = weight.shape
                number = stack[0] if stack else 1
                yield Matrix(rows, columns, number, min(routed, number), weight.requires_grad)


def operations_per_token(model: PreTrainedModel, context: float) -> float:
    """Operations of a training step for each token: products with the weights, as in Kaplan et al.
    2020 (arXiv 2001.08361), and attention to a `context` of this many tokens."""
    shape = model.config.get_text_config()
    attention = 12 * int(shape.num_hidden_layers) * int(shape.hidden_size) * context
    return attention + sum(matrix.operations for matrix in matrices_of(model))


def operations_of_muon(model: PreTrainedModel) -> float:
    """Operations of orthogonalising the hidden matrices, once in each step."""
    total = 0
    named = dict(model.named_parameters())
    for name in muon.hidden(model):
        *stack, rows, columns = named[name].shape
        short, long = sorted((rows, columns))
        each = muon.ITERATIONS * (4 * short * short * long + 2 * short**3)
        total += each * (stack[0] if stack else 1)
    return float(total)


def fixed_memory(model: PreTrainedModel, optimizer: str, lora: LoraConfig) -> float:
    """Bytes of weights, gradients and moments, all in fp32: AdamW keeps two moments of each trained
    weight, Muon one."""
    named, hidden = dict(model.named_parameters()), muon.hidden(model)
    n_trained = sum(weight.numel() for weight in named.values() if weight.requires_grad)
    n_weights = int(model.num_parameters())
    if lora.r is not None:
        updates = sum(lora.r * (m.rows + m.columns) * m.number for m in matrices_of(model))
        n_trained, n_weights = n_trained + updates, n_weights + updates
    one_moment = sum(named[name].numel() for name in hidden) if optimizer == "muon" else 0
    return float(4 * (n_weights + 3 * n_trained - one_moment))


def memory_per_token(model: PreTrainedModel, precision: str) -> float:
    """Bytes that a step keeps for each token of its micro-batch."""
    ends = sum((m.rows + m.columns) * m.used for m in matrices_of(model) if not _is_head(m, model))
    return SPARE * ACTIVATION_BYTES[precision] * ends


def _is_head(matrix: Matrix, model: PreTrainedModel) -> bool:
    """Whether a matrix is the output layer, whose loss is computed in chunks."""
    return matrix.rows == int(model.config.get_text_config().vocab_size)


def memory_of_logits(model: PreTrainedModel, tokens: int, device: str) -> float:
    """Bytes of the logits that a loss holds at once, of a language model."""
    if not any(_is_head(matrix, model) for matrix in matrices_of(model)):
        return 0.0
    vocabulary = int(model.config.get_text_config().vocab_size)
    held = cross_entropy.CHUNK_LOGITS.get(device, cross_entropy.MAX_LOGITS)
    return 4.0 * LOGITS_HELD * min(tokens * vocabulary, held)
