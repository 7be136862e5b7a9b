"""Target texts are those of transformers, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig as OwnSettings
from transformers import PreTrainedModel

from llmkit.config.schema import GenerationConfig
from llmkit.data.examples.pair_tokenizer import PairTokenizer
from llmkit.errors import ConfigError, DataError
from llmkit.inference.encoder_decoder import (
    TargetGenerator,
    encode_sources,
    generation_settings,
)
from llmkit.inference.generated import Sample
from llmkit.inference.requests import PromptRequest
from tests import pairs

SOURCES = [source for source, _ in pairs.word_pairs(3, 9)] + ["one", "ten ten"]
KINDS = ("t5", "bart")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, Any]:
    """A tiny model whose distributions are far from flat, and its tokenizer."""
    own = {"t5": pairs.t5_tokenizer, "bart": pairs.bart_tokenizer}[request.param]()
    made = getattr(pairs, request.param)(own).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(8.0 if request.param == "bart" else 0.5)
    return made, own


def ask(
    model: tuple[PreTrainedModel, Any], texts: Sequence[str] = SOURCES, seed: int = 0, **given: Any
) -> list[Sample]:
    settings = GenerationConfig(**{"max_new_tokens": 8, **given})
    generator = TargetGenerator(model[0], PairTokenizer(model[1]), settings)
    requests = [PromptRequest(text, "test") for text in texts]
    how = (generator.pairs, model[0].config, generator.settings, seed)
    return list(generator.write(encode_sources(requests, *how)))


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 2},
     {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, {"num_beams": 2, "min_new_tokens": 5}],
)  # fmt: skip
def test_texts_are_those_of_transformers_with_their_log_probabilities(model, settings) -> None:
    one, own = model
    samples, each = ask(model, do_sample=False, **settings), settings.get("num_return_sequences", 1)
    assert len(samples) == each * len(SOURCES)
    for place, text in enumerate(SOURCES):
        inputs = own(text, return_tensors="pt")
        rows = one.generate(**inputs, do_sample=False, max_new_tokens=8, **settings)
        for index in range(each):
            sample, row = samples[each * place + index], rows[index, 1:].tolist()
            end = row.index(own.eos_token_id) + 1 if own.eos_token_id in row else len(row)
            assert (list(sample.tokens), sample.index) == (row[:end], index)
            assert sample.text == own.decode(row[:end], skip_special_tokens=True)
            ids = torch.tensor([[one.config.decoder_start_token_id, *sample.tokens]])
            with torch.no_grad():
                logits = one(**inputs, decoder_input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
            wanted = logits.gather(1, ids[0, 1:, None]).sum()
            assert sample.logprob == pytest.approx(float(wanted), abs=1e-3)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True}])
def test_a_text_does_not_depend_on_its_batch(model, how) -> None:
    together = ask(model, **how)
    alone = [sample for text in SOURCES for sample in ask(model, [text], **how)]
    pairwise = ask(model, **how, micro_batch_size=2)
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.tokens for each in together] == [each.tokens for each in pairwise]


def test_sampled_texts_have_the_probabilities_of_the_model(model) -> None:
    one, own = model
    n = 400
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": 1}
    found = Counter(each.tokens[0] for each in ask(model, ["one two"] * n, **how))
    inputs, start = own("one two", return_tensors="pt"), one.config.decoder_start_token_id
    with torch.no_grad():
        chances = one(**inputs, decoder_input_ids=torch.tensor([[start]])).logits[0, 0].softmax(-1)
    if one.generation_config.forced_eos_token_id is None:
        for token, chance in enumerate(chances.tolist()):
            assert abs(found[token] / n - chance) < 4 * (chance * (1 - chance) / n) ** 0.5 + 0.005
    again = ask(model, ["one two"] * 3, do_sample=True, max_new_tokens=6)
    assert len({each.tokens for each in again}) > 1
    assert [each.tokens for each in again] == [
        each.tokens for each in ask(model, ["one two"] * 3, do_sample=True, max_new_tokens=6)
    ]


def test_settings_that_are_not_given_are_those_of_the_model() -> None:
    own = OwnSettings(num_beams=5, max_new_tokens=30, no_repeat_ngram_size=3)
    found = generation_settings(GenerationConfig(), own)
    assert (found.num_beams, found.max_new_tokens, found.no_repeat_ngram_size) == (5, 30, 3)
    assert not found.do_sample
    found = generation_settings(GenerationConfig(do_sample=True, max_new_tokens=7), own)
    assert (found.do_sample, found.num_beams, found.max_new_tokens) == (True, 1, 7)
    assert generation_settings(found, own).model_dump() == found.model_dump()
    found = generation_settings(GenerationConfig(num_beams=2), OwnSettings(do_sample=True))
    assert (found.do_sample, found.num_beams) == (False, 2)


def test_long_sources_are_refused_or_cut() -> None:
    own = pairs.bart_tokenizer()
    model = pairs.bart(own).eval()
    encoder, long = PairTokenizer(own), "one two " * 60
    with pytest.raises(DataError, match="reads at most 64"):
        encode_sources([PromptRequest(long, "x")], encoder, model.config, GenerationConfig(), 0)
    settings = GenerationConfig(truncate_prompt=True)
    [cut] = encode_sources([PromptRequest(long, "x")], encoder, model.config, settings, 0)
    assert len(cut.ids) == 64
    assert cut.cut > 0
    assert cut.ids[-1] == own.eos_token_id


@pytest.mark.parametrize("make", [pairs.mbart_tokenizer, pairs.mbart50_tokenizer])
def test_a_text_begins_with_the_code_of_its_language(make) -> None:
    own = make()
    model, code = pairs.mbart(own).eval(), own.convert_tokens_to_ids("de_DE")
    encoder = PairTokenizer(own, languages=("en_XX", "de_DE"))
    assert encoder.sources(["one two"], None).ids.tolist() == own("one two")["input_ids"]
    assert own.convert_tokens_to_ids("en_XX") in own("one two")["input_ids"]
    assert code in encoder.targets(["eins"], None).ids
    generator = TargetGenerator(model, encoder, GenerationConfig(do_sample=False, max_new_tokens=6))
    how = (encoder, model.config, generator.settings, 0)
    [sample] = generator.write(encode_sources([PromptRequest("one two", "x")], *how))
    forced = {"forced_bos_token_id": code}
    if make is pairs.mbart_tokenizer:
        forced = {"decoder_start_token_id": code}
    row = model.generate(**own("one two", return_tensors="pt"), max_new_tokens=6, **forced)[0]
    assert code in row[:2].tolist()
    assert list(sample.tokens) == row[1 : 1 + len(sample.tokens)].tolist()


def test_codes_that_are_missing_unknown_or_of_no_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="no language 'en'"):
        PairTokenizer(pairs.mbart_tokenizer(), languages=("en", "de_DE"))
    with pytest.raises(ConfigError, match="codes of both languages"):
        PairTokenizer(pairs.mbart_tokenizer(), languages=("en_XX", None))
    with pytest.raises(ConfigError, match="marks no languages"):
        PairTokenizer(pairs.t5_tokenizer(), languages=("en", None))
