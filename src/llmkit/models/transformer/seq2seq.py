"""The encoder-decoder Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv
1706.03762, figure 1), from the layers of `model.py`.

    m = Encoder(source)                         [batch, source length, hidden]
    h = embed(target) + positions               [batch, length, hidden]
    h = h + Attention(Norm(h))                  in each layer, causal
    h = h + CrossAttention(Norm(h), m)
    h = h + FeedForward(Norm(h))
    logits = W Norm(h)                          [batch, length, vocabulary]
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.model import (
    Attention,
    Rotation,
    TransformerLayer,
    TransformerModel,
    TransformerPreTrainedModel,
    normalization,
)

_IGNORED = -100


class CrossAttention(Attention):
    """Attention of each target position over all source positions (section 3.2.3); its queries and
    keys have no positions."""

    def attend(
        self, x: Tensor, memory: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None
    ) -> Tensor:
        """Attention output [batch, length, hidden] over `memory` [batch, source length, hidden],
        whose keys and values the cache keeps."""
        query = self._heads(self.query(x))  # [batch, heads, length, head size]
        if cache is not None and cache.is_updated.get(self.layer):
            kept = cache.cross_attention_cache.layers[self.layer]
            key, value = kept.keys, kept.values
        else:
            key, value = self._heads(self.key(memory)), self._heads(self.value(memory))
            if cache is not None:
                key, value = cache.cross_attention_cache.update(key, value, self.layer)
                cache.is_updated[self.layer] = True
        if self.groups > 1:
            key = key.repeat_interleave(self.groups, dim=1)
            value = value.repeat_interleave(self.groups, dim=1)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class DecoderLayer(TransformerLayer):
    """A layer that attends to the source between its own attention and its feed-forward network."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.cross_attention_norm = normalization(config)
        self.cross_attention = CrossAttention(config, layer)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """[batch, length, hidden] -> the same."""
        cache = None if past_key_values is None else past_key_values.self_attention_cache
        own, seen = (mask, rotation, cache), (memory, memory_mask, past_key_values)
        first, second, third = (
            self.attention_norm, self.cross_attention_norm, self.feed_forward_norm,
        )  # fmt: skip
        if self.norm_first:
            x = x + self.dropout(self.attention(first(x), *own))
            x = x + self.dropout(self.cross_attention.attend(second(x), *seen))
            x = x + self.dropout(self.feed_forward(third(x)))
        else:
            x = first(x + self.dropout(self.attention(x, *own)))
            x = second(x + self.dropout(self.cross_attention.attend(x, *seen)))
            x = third(x + self.dropout(self.feed_forward(x)))
        return x


class TransformerDecoder(TransformerModel):
    """Target ids and encoded sources to hidden states."""

    layer_class = DecoderLayer

    def decode(
        self,
        ids: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None,
    ) -> Tensor:
        """The hidden state [batch, length, hidden] of each target token; `attention_mask` [batch,
        source length] is 0 at padding."""
        x = self.embed_tokens(ids)
        cache = None if past_key_values is None else past_key_values.self_attention_cache
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(x.shape[1], device=x.device)[None] + past
        mask = create_causal_mask(self.config, x, None, cache, positions)
        # [batch, 1, 1, source length]
        memory_mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        x, rotation = self._add_positions(x, positions)
        for layer in self.layers:
            x = layer(x, memory, mask, memory_mask, rotation, past_key_values=past_key_values)
        done: Tensor = self.norm(x)
        return done


class TransformerForSeq2SeqLM(TransformerPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Predicts each target token from those before it and the source; encoder and decoder have
    `num_hidden_layers` each, and may share one embedding with the output."""

    _tied_weights_keys = {  # noqa: RUF012
        "encoder.embed_tokens.weight": "decoder.embed_tokens.weight",
        "lm_head.weight": "decoder.embed_tokens.weight",
    }

    def __init__(self, config: TransformerConfig) -> None:
        config.is_encoder_decoder = True
        super().__init__(config)
        encoding, decoding = copy.deepcopy(config), copy.deepcopy(config)
        encoding.is_causal, encoding.use_cache, encoding.is_encoder_decoder = False, False, False
        decoding.is_causal = True
        self.encoder = TransformerModel(encoding)
        self.decoder = TransformerDecoder(decoding)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *_: object) -> TransformerModel:
        """The part that reads sources."""
        return self.encoder

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of sources."""
        return self.encoder.embed_tokens

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict the labels [batch, length]: they move one place to the
        right, behind `decoder_start_token_id`."""
        ids = labels.roll(1, dims=1)
        ids[:, 0] = self.config.decoder_start_token_id
        return ids.masked_fill(ids == _IGNORED, self.config.pad_token_id)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits [batch, length, vocabulary]; `attention_mask` [batch, source length] is 0 at
        padding. `labels` are the targets, -100 at padding."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("the decoder needs decoder_input_ids, or labels to make them of")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        memory = encoder_outputs[0]
        hidden = self.decoder.decode(decoder_input_ids, memory, attention_mask, past_key_values)
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            encoder_last_hidden_state=memory,
        )
