"""The Transformer with a head: to predict the next token, masked tokens, or labels."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.model import TransformerModel, TransformerPreTrainedModel


class _LanguageModel(TransformerPreTrainedModel):
    """A Transformer with logits = W h over the vocabulary, where W may be the embedding (Press &
    Wolf 2016, arXiv 1608.05859)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.model = TransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """The mean cross entropy of the labels that are not -100, shifted for a causal model."""
        if labels is None:
            return None
        loss: Tensor = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return loss


class TransformerForCausalLM(_LanguageModel, GenerationMixin):  # type: ignore[misc]
    """Predicts each token from the tokens before it."""

    def __init__(self, config: TransformerConfig) -> None:
        if not config.is_causal:
            raise ValueError("a bidirectional model (is_causal: false) cannot generate text")
        super().__init__(config)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0913 (transformers' own names)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, length, vocabulary], or only the last `logits_to_keep` of the length."""
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.lm_head(slice_logits_to_keep(body.last_hidden_state, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=self._loss(logits, labels),
            logits=logits,
            past_key_values=body.past_key_values,
            hidden_states=body.hidden_states,
        )


class TransformerForMaskedLM(_LanguageModel):
    """Predicts masked tokens from both sides (Devlin et al. 2018, arXiv 1810.04805)."""

    def __init__(self, config: TransformerConfig) -> None:
        config.is_causal = False
        super().__init__(config)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0913 (transformers' own names)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits [batch, length, vocabulary]."""
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            token_type_ids=token_type_ids,
        )
        logits = self.lm_head(body.last_hidden_state)
        return MaskedLMOutput(
            loss=self._loss(logits, labels), logits=logits, hidden_states=body.hidden_states
        )


class TransformerForSequenceClassification(
    GenericForSequenceClassification,  # type: ignore[misc]
    TransformerPreTrainedModel,
):
    """Predicts a text's label from its last token, which sees all of the text, causal or not."""


class TransformerForTokenClassification(
    GenericForTokenClassification,  # type: ignore[misc]
    TransformerPreTrainedModel,
):
    """Predicts a label of each token."""
