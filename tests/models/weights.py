"""Transformers with the weights of transformers' GPT-2 and Llama, copied by name."""

from __future__ import annotations

from transformers import GPT2LMHeadModel, LlamaForCausalLM

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import TransformerForCausalLM

GPT2_LAYER = {
    "attention_norm": "ln_1",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.inner": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}
LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.inner": "mlp.up_proj",
    "feed_forward.output": "mlp.down_proj",
}


def from_gpt2(theirs: GPT2LMHeadModel) -> TransformerForCausalLM:
    """GPT-2 as a Transformer: learned positions, layer norm before, tanh GELU, biases."""
    other = theirs.config
    config = TransformerConfig(
        vocab_size=other.vocab_size, hidden_size=other.n_embd, num_hidden_layers=other.n_layer,
        num_attention_heads=other.n_head, max_position_embeddings=other.n_positions,
        position_embedding="learned", norm_type="layer_norm", norm_eps=other.layer_norm_epsilon,
        hidden_act=other.activation_function, gated_feed_forward=False, bias=True,
        hidden_dropout=other.resid_pdrop, attention_dropout=other.attn_pdrop,
    )  # fmt: skip
    given, weights = theirs.state_dict(), {}
    weights["model.embed_tokens.weight"] = given["transformer.wte.weight"]
    weights["model.embed_positions.weight"] = given["transformer.wpe.weight"]
    weights["lm_head.weight"] = given["lm_head.weight"]
    for kind in ("weight", "bias"):
        weights[f"model.norm.{kind}"] = given[f"transformer.ln_f.{kind}"]
        for layer in range(other.n_layer):
            mine, their = f"model.layers.{layer}", f"transformer.h.{layer}"
            for name, source in GPT2_LAYER.items():
                # GPT-2's linear weights are [inputs, outputs]; those of its norms are vectors.
                weights[f"{mine}.{name}.{kind}"] = given[f"{their}.{source}.{kind}"].t()
            parts = given[f"{their}.attn.c_attn.{kind}"].t().chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"{mine}.attention.{name}.{kind}"] = part
    return _holding(config, weights)


def from_llama(theirs: LlamaForCausalLM) -> TransformerForCausalLM:
    """A Llama as a Transformer: rotary positions, RMS norm before, gated SiLU, no biases."""
    other = theirs.config
    config = TransformerConfig(
        vocab_size=other.vocab_size, hidden_size=other.hidden_size,
        num_hidden_layers=other.num_hidden_layers, intermediate_size=other.intermediate_size,
        num_attention_heads=other.num_attention_heads, bos_token_id=other.bos_token_id,
        num_key_value_heads=other.num_key_value_heads, eos_token_id=other.eos_token_id,
        max_position_embeddings=other.max_position_embeddings, norm_eps=other.rms_norm_eps,
        rope_theta=other.rope_parameters["rope_theta"],
        tie_word_embeddings=other.tie_word_embeddings,
    )  # fmt: skip
    given = theirs.state_dict()
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    weights = {name: given[name] for name in names}
    for layer in range(other.num_hidden_layers):
        for name, source in LLAMA_LAYER.items():
            stem = f"model.layers.{layer}"
            weights[f"{stem}.{name}.weight"] = given[f"{stem}.{source}.weight"]
    return _holding(config, weights)


def _holding(config: TransformerConfig, weights: dict[str, object]) -> TransformerForCausalLM:
    model = TransformerForCausalLM(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()
