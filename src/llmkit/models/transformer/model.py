"""The Transformer, written to be read and changed: one module that trains, generates and loads like
any architecture of transformers, where its name is `transformer`.

    h = embed(tokens) + positions               [batch, length, hidden]
    h = h + Attention(Norm(h))                  in each layer
    h = h + FeedForward(Norm(h))
    logits = W Norm(h)                          [batch, length, vocabulary]

The defaults are the improvements since "Attention Is All You Need" (Vaswani et al. 2017, arXiv
1706.03762): rotary positions, RMS norm before each sublayer, a gated feed-forward network, no
biases. Other settings give the paper's decoder, GPT-2, or a model like BERT; `seq2seq.py` adds the
paper's encoder-decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from llmkit.models.transformer.config import TransformerConfig

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angle of each pair of channels, [batch or 1, 1, length, head size / 2]."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,  # x Φ(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415)
    "gelu_new": partial(functional.gelu, approximate="tanh"),  # GPT-2's
    "silu": functional.silu,  # x · sigmoid(x)
}


def angles(positions: Tensor, size: int, theta: float) -> Tensor:
    """pos · θ^(-2i/size) for i < size/2: [.., size / 2] in fp32, wavelengths from 2π to 2πθ."""
    frequencies = theta ** -(torch.arange(0, size, 2, device=positions.device).float() / size)
    return positions[..., None].float() * frequencies


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/size)), PE(pos, 2i+1) = cos(the same): [.., size]
    (Vaswani et al. 2017, section 3.5)."""
    angle = angles(positions, size, 10000.0)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def rotate(states: Tensor, rotation: Rotation) -> Tensor:
    """Turns the pair of channels (x_i, x_(i+d/2)) at position m by the angle mθ_i, so that query ·
    key depends on the distance alone (Su et al. 2021, arXiv 2104.09864, eq. 34, with Llama's
    pairs): [batch, heads, length, head size]."""
    cos, sin = rotation
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(states.dtype)


def normalization(config: TransformerConfig) -> nn.Module:
    """g (x - mean) / √(variance + ε) + b over the channels (Ba et al. 2016, arXiv 1607.06450), or
    g x / √(mean of x² + ε) (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    if config.norm_type == "rms_norm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual; its weights are initialised smaller."""


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V in several heads of size d (Vaswani et al. 2017, eq. 1 and section
    3.2.2); query heads may share keys and values (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        shared_heads = config.num_key_value_heads or heads
        self.layer, self.head_size, self.groups = layer, hidden // heads, heads // shared_heads
        self.is_causal, self.dropout = config.is_causal, config.attention_dropout
        shared = shared_heads * self.head_size
        self.query = nn.Linear(hidden, hidden, bias=config.bias)
        self.key = nn.Linear(hidden, shared, bias=config.bias)
        self.value = nn.Linear(hidden, shared, bias=config.bias)
        self.output = ResidualLinear(hidden, hidden, bias=config.bias)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotation: Rotation | None, cache: Cache | None
    ) -> Tensor:
        """Attention output [batch, length, hidden] of each position over the positions it sees."""
        query = self._heads(self.query(x))  # [batch, heads, length, head size]
        key = self._heads(self.key(x))  # [batch, key-value heads, length, head size]
        value = self._heads(self.value(x))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)  # length grows by the past
        if mask is not None and self.groups > 1:
            # With a mask, the fast kernels of accelerators need keys for each head.
            key = key.repeat_interleave(self.groups, dim=1)
            value = value.repeat_interleave(self.groups, dim=1)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            # A single new token sees all that is cached.
            is_causal=self.is_causal and mask is None and x.shape[1] > 1,
            enable_gqa=key.shape[1] < query.shape[1],
        )  # [batch, heads, length, head size]
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], -1, self.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """W₂ f(W₁ x) at each position by itself (Vaswani et al. 2017, eq. 2), or gated,
    W₂ (f(W₃ x) ⊙ W₁ x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        assert width is not None
        self.activation = ACTIVATIONS[config.hidden_act]
        gated = config.gated_feed_forward
        self.gate = nn.Linear(hidden, width, bias=config.bias) if gated else None
        self.inner = nn.Linear(hidden, width, bias=config.bias)
        self.output = ResidualLinear(width, hidden, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] -> the same, through [batch, length, width]."""
        if self.gate is None:
            inner = self.activation(self.inner(x))
        else:
            inner = self.activation(self.gate(x)) * self.inner(x)
        output: Tensor = self.output(inner)
        return output


class TransformerLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention, then feed-forward, each added to its input: x + f(x) (residual, He et al. 2015,
    arXiv 1512.03385).

    Norm after is the original, Norm(x + f(x)); norm before, x + f(Norm(x)), leaves the residual
    untouched from embedding to head and trains without long warm-up (Xiong et al. 2020, arXiv
    2002.04745). Dropout is applied to f(x): 0 with probability p, else f(x) / (1 - p) (Srivastava
    et al. 2014; Vaswani et al. 2017, section 5.4).
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "before"
        self.attention_norm = normalization(config)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = normalization(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """[batch, length, hidden] -> the same; adds its keys and values to the cache."""
        seen = (mask, rotation, past_key_values)
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), *seen))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, *seen)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class TransformerPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The class attributes with which transformers builds, loads and saves these models."""

    config_class = TransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("TransformerLayer", "DecoderLayer")
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of `initializer_range`; those that write to the residual are smaller by
        √(2 layers), so that its variance does not grow with depth (Radford et al. 2019)."""
        super()._init_weights(module)
        if isinstance(module, ResidualLinear):
            scale = math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, std=self.config.initializer_range / scale)


class TransformerModel(TransformerPreTrainedModel):
    """Token ids to hidden states: embedding, positions, layers."""

    layer_class: type[TransformerLayer] = TransformerLayer

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            self.layer_class(config, layer) for layer in range(config.num_hidden_layers)
        )
        before = config.norm_position == "before"
        self.norm = normalization(config) if before else nn.Identity()
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0913 (transformers' own names)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """The hidden state [batch, length, hidden] of each token.

        `attention_mask` [batch, past + length] is 0 at padding. `position_ids` [batch, length] that
        restart separate packed documents, which then do not see each other. `token_type_ids`, which
        some tokenizers return, are ignored. Raises ValueError for `output_attentions`.
        """
        if output_attentions:
            raise ValueError("torch's attention kernel does not return the attention weights")
        # [batch, length, hidden]: row t of the embedding is the vector of token t.
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        # None if the mask is purely causal or full, for which torch's kernels are faster. Created
        # before the cache, since transformers ignores packed documents if there is one.
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and self.config.is_causal and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(x.shape[1], device=x.device)[None] + past
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x, rotation = self._add_positions(x, position_ids)
        states: tuple[Tensor, ...] = ()  # before each layer, and at the end
        for layer in self.layers:
            states += (x,) if output_hidden_states else ()
            x = layer(x, mask, rotation, past_key_values=past_key_values)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, x) if output_hidden_states else None,
        )

    def _add_positions(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Rotation | None]:
        """Adds positions to the embeddings, or returns the rotation that encodes them.

        Learned: x + P[pos] (Gehring et al. 2017, arXiv 1705.03122). Sinusoidal: √hidden x + PE(pos)
        (Vaswani et al. 2017, sections 3.4 and 3.5). Rotary: x; queries and keys are rotated.
        """
        config, rotation = self.config, None
        if config.position_embedding == "learned":
            x = x + self.embed_positions(position_ids)  # adds [batch or 1, length, hidden]
        elif config.position_embedding == "sinusoidal":
            # Scaled, because sinusoids are large compared with new embeddings.
            x = x * math.sqrt(x.shape[-1]) + sinusoids(position_ids, x.shape[-1]).to(x.dtype)
        else:
            head_size = config.hidden_size // config.num_attention_heads
            # [batch or 1, 1, length, head size / 2]
            angle = angles(position_ids, head_size, config.rope_theta)[:, None]
            rotation = (angle.cos(), angle.sin())
        return self.dropout(x), rotation
