"""The Transformer against GPT-2, Llama, torch's own encoder, and itself seen in other ways."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.packing import check_isolation
from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import TransformerForCausalLM
from llmkit.models.transformer.model import TransformerLayer, sinusoids
from tests.jobs import SHARED
from tests.models.weights import from_gpt2, from_llama

TINYSTORIES = SHARED / "models" / "tinystories-656k"
POSITIONS = ("rotary", "learned", "sinusoidal")
VOCABULARY, LENGTH = 97, 24


def config(**settings: Any) -> TransformerConfig:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return TransformerConfig(**{**sizes, **heads, **settings})


def causal(**settings: Any) -> TransformerForCausalLM:
    """A model whose weights are large enough for each part to show in the logits."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(initializer_range=0.2, **settings)).eval()


def tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def shaken(model: nn.Module) -> nn.Module:
    """The model with every weight moved, those that begin as 0 or 1 as well."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def python(script: str, directory: Path) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


# --- the same as others


def test_logits_with_the_weights_of_a_gpt2_are_those_of_gpt2() -> None:
    settings = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 48, "n_layer": 3}
    theirs = shaken(GPT2LMHeadModel(GPT2Config(**settings, n_head=3, bos_token_id=0)))
    assert far(from_gpt2(theirs)(tokens()).logits, theirs(tokens()).logits) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_logits_with_the_weights_of_a_llama_are_those_of_llama(tied: bool) -> None:
    theirs = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    llama = shaken(LlamaForCausalLM(theirs))
    assert far(from_llama(llama)(tokens()).logits, llama(tokens()).logits) < 1e-5


@pytest.mark.skipif(not TINYSTORIES.is_dir(), reason="the shared test data is not there")
def test_a_published_llama_tells_its_story_through_our_transformer() -> None:
    theirs = LlamaForCausalLM.from_pretrained(TINYSTORIES).eval()
    ours = from_llama(theirs)
    prompt = AutoTokenizer.from_pretrained(TINYSTORIES)("Once upon a time", return_tensors="pt")
    golden = [313, 598, 303, 1049, 1468, 267, 628, 333, 94, 1210, 263, 251, 604, 94, 1030, 94]
    written = ours.generate(prompt["input_ids"], max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert written[0, 6:].tolist() == golden
    assert far(ours(written).logits, theirs(written).logits) < 1e-5


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_layer_is_that_of_torch_with_its_weights(position: str, activation: str) -> None:
    theirs = nn.TransformerEncoderLayer(
        32, 4, 80, 0.0, activation, norm_first=position == "before", batch_first=True
    )
    shaken(theirs)
    settings = config(
        num_key_value_heads=4, intermediate_size=80, position_embedding="sinusoidal", bias=True,
        norm_type="layer_norm", norm_position=position, hidden_act=activation,
        gated_feed_forward=False,
    )  # fmt: skip
    ours, given = TransformerLayer(settings, 0), theirs.state_dict()
    weights = {}
    for kind in ("weight", "bias"):
        parts = given[f"self_attn.in_proj_{kind}"].chunk(3)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            weights[f"attention.{name}.{kind}"] = part
        pairs = {
            "attention.output": "self_attn.out_proj", "feed_forward.inner": "linear1",
            "feed_forward.output": "linear2", "attention_norm": "norm1",
            "feed_forward_norm": "norm2",
        }  # fmt: skip
        weights |= {f"{a}.{kind}": given[f"{b}.{kind}"] for a, b in pairs.items()}
    ours.load_state_dict(weights)
    x = torch.randn(2, LENGTH, 32)
    hidden = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    assert far(ours.eval()(x), theirs(x, src_mask=hidden, is_causal=True)) < 1e-5


def test_sinusoids_are_those_of_the_paper() -> None:
    size, positions = 10, [0, 1, 7, 300]
    expected = [
        [
            (math.cos if channel % 2 else math.sin)(pos / 10000 ** (channel // 2 * 2 / size))
            for channel in range(size)
        ]
        for pos in positions
    ]
    np.testing.assert_allclose(sinusoids(torch.tensor(positions), size), expected, atol=1e-5)


def test_rotary_logits_depend_on_distances_alone() -> None:
    model, ids = causal(), tokens()
    shifted = torch.arange(LENGTH)[None] + 30
    assert far(model(ids).logits, model(ids, position_ids=shifted).logits) < 1e-4


# --- the same, seen in other ways


@pytest.mark.parametrize("position", POSITIONS)
def test_packed_documents_give_what_each_gives_alone(position: str) -> None:
    model, ids = causal(position_embedding=position), tokens()
    check_isolation(model)
    starts = [0, 5, 6, 17, LENGTH]
    places = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(starts)])
    packed = model(ids, position_ids=places.expand(2, -1)).logits
    for begin, end in itertools.pairwise(starts):
        assert far(packed[:, begin:end], model(ids[:, begin:end]).logits) < 1e-5


@pytest.mark.parametrize("position", POSITIONS)
def test_dropout_keeps_packed_documents_apart(position: str) -> None:
    dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2}
    model = causal(position_embedding=position, **dropout).train()
    places = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)]).expand(2, -1)
    x = model.get_input_embeddings()(tokens()).detach().requires_grad_()
    logits = model(inputs_embeds=x, position_ids=places, use_cache=False).logits
    logits[:, 9:].square().sum().backward()
    assert x.grad is not None
    assert not x.grad[:, :9].any()
    assert x.grad[:, 9:].isfinite().all()
    assert x.grad[:, 9:].any()
    again = model(inputs_embeds=x, position_ids=places, use_cache=False).logits
    assert far(again, logits) > 1e-2


@pytest.mark.parametrize("position", POSITIONS)
def test_cached_steps_give_what_the_whole_text_gives(position: str) -> None:
    model, ids = causal(position_embedding=position), tokens()
    cache, logits = DynamicCache(), []
    for begin, end in ((0, 7), (7, 8), (8, 13), (13, LENGTH)):
        logits.append(model(ids[:, begin:end], past_key_values=cache, use_cache=True).logits)
    assert cache.get_seq_length() == LENGTH
    assert far(torch.cat(logits, dim=1), model(ids).logits) < 1e-5


@pytest.mark.parametrize("position", POSITIONS)
def test_padding_on_the_left_changes_nothing_that_is_written(position: str) -> None:
    model = causal(position_embedding=position, pad_token_id=0, eos_token_id=0)
    ids, options = tokens(1, 9), {"max_new_tokens": 8, "do_sample": False}
    alone = model.generate(ids, **options)[0, 9:]
    batch = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = torch.arange(13)[None] >= 4
    padded = model.generate(batch, attention_mask=mask.long(), **options)[0, 13:]
    assert padded.tolist() == alone.tolist()


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_every_kind_of_cache_writes_the_same(options: dict[str, Any]) -> None:
    model, ids = causal(pad_token_id=0), tokens(1, 9)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert model.generate(ids, max_new_tokens=8, do_sample=False, **options).equal(plain)


@pytest.mark.parametrize("options", [{}, {"norm_position": "after", "hidden_dropout": 0.1}])
def test_checkpointed_gradients_are_the_same(options: dict[str, Any]) -> None:
    plain = causal(**options).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        torch.manual_seed(3)
        model(tokens(), labels=tokens()).loss.backward()
    pairs = zip(plain.parameters(), saving.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


@pytest.mark.parametrize("packed", [False, True])
def test_it_compiles_without_a_break(packed: bool) -> None:
    model, ids = causal(), tokens()
    positions = {"position_ids": (torch.arange(LENGTH) % 10).expand(2, -1)} if packed else {}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    logits = compiled(ids, use_cache=False, **positions).logits
    assert far(logits, model(ids, use_cache=False, **positions).logits) < 1e-5


def test_a_row_of_one_document_needs_no_mask() -> None:
    model, seen = causal(), []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(tokens())
    model(tokens(), position_ids=torch.arange(LENGTH)[None], use_cache=False)
    model(tokens(), attention_mask=torch.ones(2, LENGTH))
    assert seen == [None, None, None]
    model(tokens(), position_ids=torch.arange(LENGTH)[None] % 10)
    assert seen[-1].shape == (2, 1, LENGTH, LENGTH)


def test_bf16_weights_stay_near() -> None:
    logits = causal()(tokens()).logits.detach()
    near = causal().to(torch.bfloat16)(tokens()).logits.detach()
    assert near.dtype == torch.bfloat16
    assert float((near - logits).std() / logits.std()) < 0.03


# --- one of transformers' own


def test_importing_llmkit_changes_no_other_package(tmp_path: Path) -> None:
    script = """
import sys
modules, finders = set(sys.modules), list(sys.meta_path)
import llmkit
print({name.split(".")[0] for name in set(sys.modules) - modules}, sys.meta_path == finders)
"""
    assert python(script, tmp_path) == "{'llmkit'} True\n"


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForCausalLM\n",
        pytest.param("", marks=pytest.mark.slow),
    ],
)
def test_one_import_is_all_that_plain_transformers_needs(first: str, tmp_path: Path) -> None:
    model = causal(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "logits.npy", model(tokens()).logits.detach())
    np.save(tmp_path / "ids.npy", tokens())
    script = """
import llmkit.models.transformer
import numpy, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("model").eval()
logits = model(torch.from_numpy(numpy.load("ids.npy"))).logits.detach().numpy()
print((logits == numpy.load("logits.npy")).all(), type(model).__name__)
"""
    assert python(first + script, tmp_path) == "True TransformerForCausalLM\n"


def test_hidden_states_are_the_embeddings_each_layer_and_the_end() -> None:
    model, ids = causal(num_hidden_layers=3), tokens()
    states = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, LENGTH, 32)] * 4
    assert torch.equal(states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(states[-1]), model(ids).logits)
    assert model(ids).hidden_states is None


def test_an_input_that_it_cannot_heed_is_refused() -> None:
    with pytest.raises(TypeError, match="attention_maks"):
        causal()(tokens(), attention_maks=None)
    with pytest.raises(ValueError, match="attention weights"):
        causal()(tokens(), output_attentions=True)


def test_low_rank_updates_and_new_tokens_find_their_place() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model, logits = causal(), causal()(tokens()).logits
    assert far(peft.get_peft_model(model, settings)(tokens()).logits, logits) == 0
    larger = causal()
    larger.resize_token_embeddings(VOCABULARY + 3)
    assert far(larger(tokens()).logits[..., :VOCABULARY], logits) < 1e-6


def test_tied_weights_are_one_and_saved_once(tmp_path: Path) -> None:
    model = causal(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = causal(tie_word_embeddings=False)
    assert untied.num_parameters() - model.num_parameters() == VOCABULARY * 32
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    read = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {**read, "_name_or_path": ""} == model.config.to_dict()


def test_a_masked_model_sees_both_sides_and_writes_no_text(tmp_path: Path) -> None:
    masked = AutoModelForMaskedLM.from_config(config(initializer_range=0.2)).eval()
    other = tokens()
    other[:, -1] = (other[:, -1] + 1) % VOCABULARY
    assert far(masked(tokens()).logits[:, 0], masked(other).logits[:, 0]) > 1e-3
    assert far(causal()(tokens()).logits[:, :-1], causal()(other).logits[:, :-1]) == 0
    masked.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens()).logits, masked(tokens()).logits)
    assert not AutoModel.from_pretrained(tmp_path).config.is_causal
    with pytest.raises(ValueError, match="bidirectional"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_classifier_keeps_the_body_and_leaves_padding_out(
    tmp_path: Path, is_causal: bool
) -> None:
    auto = AutoModelForCausalLM if is_causal else AutoModelForMaskedLM
    body = auto.from_config(config(initializer_range=0.2, pad_token_id=0))
    body.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    pairs = zip(model.model.parameters(), body.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    ids = tokens(1, 9).clamp(min=1)
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    mask = (torch.arange(14)[None] < 9).long()
    assert model(ids).logits.shape == (1, 3)
    assert far(model(padded, attention_mask=mask).logits, model(ids).logits) < 1e-5


# --- built and trained


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm_position", ["before", "after"])
def test_every_kind_learns_a_text_by_heart(position: str, norm_position: str) -> None:
    torch.manual_seed(0)
    settings = config(position_embedding=position, norm_position=norm_position)
    model, ids = AutoModelForCausalLM.from_config(settings).train(), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.7)
    assert losses[-1] < 0.5


@torch.no_grad()
def test_what_is_added_to_the_residual_begins_small() -> None:
    torch.manual_seed(0)
    model = TransformerForCausalLM(config(hidden_size=128, num_hidden_layers=8))
    layer = model.model.layers[0]
    assert float(layer.attention.query.weight.std()) == pytest.approx(0.02, rel=0.05)
    for part in (layer.attention, layer.feed_forward):
        assert float(part.output.weight.std()) == pytest.approx(0.02 / 4, rel=0.05)


def test_dropout_is_drawn_in_training_alone() -> None:
    model = causal(hidden_dropout=0.2, attention_dropout=0.2)
    assert torch.equal(model(tokens()).logits, model(tokens()).logits)
    model.train()
    assert far(model(tokens()).logits, model(tokens()).logits) > 1e-3


def test_it_is_built_like_any_architecture() -> None:
    made = build.model_config("transformer", {"hidden_size": 192}, 500, 128, {"eos_token_id": 3})
    assert (made.vocab_size, made.max_position_embeddings, made.eos_token_id) == (500, 128, 3)
    assert (made.num_attention_heads, made.num_key_value_heads, made.num_hidden_layers) == (3, 3, 4)
    assert made.intermediate_size == 512
    plain = build.model_config("transformer", {"gated_feed_forward": False}, 500, 128, {})
    assert plain.intermediate_size == 1024
    model = build.causal_model(made, seed=5)
    assert far(model(tokens()).logits, build.causal_model(made, seed=5)(tokens()).logits) == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "not a multiple of the 4 attention heads"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "the 4 attention heads are not a multiple of 3",
        ),
        ({"hidden_size": 36, "num_attention_heads": 4}, "even number of channels"),
        ({"num_attention_heads": 0}, "num_attention_heads: should be int >= 1"),
        ({"norm_position": "between"}, "between"),
        ({"position_embedding": "alibi"}, "alibi"),
        ({"hidden_act": "tanh"}, "tanh"),
        ({"n_layers": 3}, "n_layers"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build.model_config("transformer", settings, 500, 128, {})
