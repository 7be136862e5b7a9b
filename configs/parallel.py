"""Your own architecture: attention and feed-forward in parallel, as in GPT-J.

It is llmkit's Transformer with another layer, registered like the models of transformers. Any model
that transformers can build and save works: a config, a model, and the two lines at the end.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import TransformerForCausalLM
from llmkit.models.transformer.model import TransformerLayer


@strict
class ParallelConfig(TransformerConfig):
    """The settings of a Transformer with a new model type."""

    model_type = "parallel"


class ParallelLayer(TransformerLayer):
    """x + Attention(Norm(x)) + FeedForward(Norm(x)) (Wang and Komatsuzaki 2021, GPT-J-6B)."""

    def __init__(self, config: ParallelConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.feed_forward_norm  # one norm serves both

    def forward(self, x: Tensor, *seen: object, past_key_values: object = None) -> Tensor:
        """[batch, length, hidden] -> the same; adds its keys and values to the cache."""
        y = self.attention_norm(x)  # [batch, length, hidden]
        both = self.attention(y, *seen, past_key_values) + self.feed_forward(y)
        return x + self.dropout(both)


class ParallelForCausalLM(TransformerForCausalLM):
    """Predicts each token from those before it."""

    config_class = ParallelConfig

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__(config)
        layers = (ParallelLayer(config, number) for number in range(config.num_hidden_layers))
        self.model.layers = nn.ModuleList(layers)
        self.post_init()


AutoConfig.register("parallel", ParallelConfig)
AutoModelForCausalLM.register(ParallelConfig, ParallelForCausalLM)
