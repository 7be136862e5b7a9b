"""The settings of the Transformer of `model.py`."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TransformerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers comes without types
    """The settings of a Transformer, under the names that transformers' architectures share."""

    model_type = "transformer"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 32000
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    """Number of key-value heads; fewer than attention heads give grouped-query attention."""
    intermediate_size: int | None = None
    """Width of the feed-forward network: by default 4 hidden sizes, or 8/3 if it is gated."""
    max_position_embeddings: int = 1024
    position_embedding: Literal["rotary", "learned", "sinusoidal"] = "rotary"
    rope_theta: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    norm_position: Literal["before", "after"] = "before"
    norm_eps: float = 1e-5
    hidden_act: Literal["relu", "gelu", "gelu_new", "silu"] = "silu"
    gated_feed_forward: bool = True
    bias: bool = False
    """Whether linear layers and layer norms add a bias."""
    hidden_dropout: float = 0.0
    """Dropout of the embeddings, and of the output of each attention and feed-forward network."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights."""
    is_causal: bool = True
    """Whether a token sees only those before it; a masked language model sets this to false."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    """The id that begins what the decoder of an encoder-decoder model reads."""
    is_encoder_decoder: bool = False
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            width = self.hidden_size * (8 / 3 if self.gated_feed_forward else 4)
            self.intermediate_size = max(32, round(width / 32) * 32)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises ValueError for sizes that do not fit together."""
        heads = self.num_attention_heads
        shared = self.num_key_value_heads or heads
        sizes = ("hidden_size", "num_hidden_layers", "intermediate_size")
        for name in ("vocab_size", "num_attention_heads", "num_key_value_heads", *sizes):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, should be at least 1")
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {heads} heads")
        if heads % shared:
            raise ValueError(f"{heads} heads cannot share {shared} key-value heads evenly")
        turned = {"rotary": self.hidden_size // heads, "sinusoidal": self.hidden_size}
        if turned.get(self.position_embedding, 0) % 2:
            raise ValueError(f"{self.position_embedding} positions need an even number of channels")
