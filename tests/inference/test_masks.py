"""Masks are filled as transformers' pipeline fills them, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    pipeline,
)

from llmkit.config.schema import GenerationConfig
from llmkit.errors import DataError
from llmkit.inference import masks
from llmkit.inference.masks import FilledPrompt, MaskFiller
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.models import build, pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained

WORDS = "the cat sat on a mat and saw how far little dogs ran away from home".split()
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 66}  # fmt: skip


def wordpiece() -> PreTrainedTokenizerFast:
    """Uncased, as BERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, "##s", "##ing", ".", ",", "!", "[", "]", "sep"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def roberta() -> PreTrainedTokenizerFast:
    """With a mask token that takes the space before it."""
    trained = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 290)
    backend = trained.backend_tokenizer
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token=AddedToken("<mask>", lstrip=True, special=True), model_max_length=60,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def bpe() -> PreTrainedTokenizerFast:
    return tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 290)


MAKERS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[..., Any]]] = {
    "bert": (wordpiece, lambda n: BertForMaskedLM(BertConfig(vocab_size=n, **SMALL))),
    "roberta": (
        roberta,
        lambda n: RobertaForMaskedLM(RobertaConfig(vocab_size=n, pad_token_id=0, **SMALL)),
    ),
    "modernbert": (
        bpe,
        lambda n: ModernBertForMaskedLM(
            ModernBertConfig(vocab_size=n, pad_token_id=0, cls_token_id=1, sep_token_id=2,
                             bos_token_id=1, eos_token_id=2, **SMALL)
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """A tiny masked model with random weights, far from uniform."""
    make_tokenizer, make_model = MAKERS[request.param]
    directory, tokenizer = tmp_path_factory.mktemp(request.param), make_tokenizer()
    torch.manual_seed(0)
    model = make_model(len(tokenizer))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return pretrained.open_model(str(directory))


def filled(opened: Pretrained, prompts: Sequence[str], **settings: Any) -> list[FilledPrompt]:
    filler, encoded = prepared(opened, prompts, **settings)
    return list(filler.write(encoded))


def prepared(
    opened: Pretrained, prompts: Sequence[str], **settings: Any
) -> tuple[MaskFiller, list[Prompt]]:
    chosen = GenerationConfig(**{"precision": "fp32", **settings})
    requests = [PromptRequest(text, f"test:{n}") for n, text in enumerate(prompts)]
    model = pretrained.load_model(opened, build.MASKED_MODEL).eval()
    filler = MaskFiller(model, opened.tokenizer, chosen, opened.context)
    return filler, masks.encode_masked(requests, opened, chosen, 0)


def prompts_of(mask: str, several: int = 1) -> list[str]:
    chance = random.Random(several)
    found = []
    for length in (2, 3, 5, 9, 14, 18):
        words = chance.choices(WORDS, k=length)
        for place in chance.sample(range(length), min(several, length)):
            words[place] = mask
        found.append(" ".join(words) + ".")
    return [*found, f"{mask}", f"the cat{mask} sat", f"The Cat, {mask}!"]


def test_fillings_are_those_of_the_pipeline(opened: Pretrained) -> None:
    fill = pipeline("fill-mask", model=opened.location, device="cpu")
    mask = fill.tokenizer.mask_token
    prompts = prompts_of(mask)
    for prompt, found in zip(prompts, filled(opened, prompts, explain=4), strict=True):
        expected = fill(prompt, top_k=4)
        [fillings] = found.masks
        assert [each.id for each in fillings] == [each["token"] for each in expected]
        assert [each.token for each in fillings] == [each["token_str"] for each in expected]
        chances = [each["score"] for each in expected]
        assert [each.probability for each in fillings] == pytest.approx(chances, abs=1e-6)
        assert found.text == expected[0]["sequence"]


def test_each_of_several_masks_is_filled_as_the_pipeline_fills_it(opened: Pretrained) -> None:
    fill = pipeline("fill-mask", model=opened.location, device="cpu")
    mask = fill.tokenizer.mask_token
    several = [text for n in (2, 3) for text in prompts_of(mask, n) if text.count(mask) > 1]
    for prompt, found in zip(several, filled(opened, several, explain=3), strict=True):
        expected = fill(prompt, top_k=3)
        assert len(found.masks) == len(expected) == prompt.count(mask)
        for fillings, wanted in zip(found.masks, expected, strict=True):
            assert [each.id for each in fillings] == [each["token"] for each in wanted]
            chances = [each["score"] for each in wanted]
            assert [each.probability for each in fillings] == pytest.approx(chances, abs=1e-6)


def test_a_prompt_alone_has_the_result_that_it_has_among_others(opened: Pretrained) -> None:
    prompts = prompts_of(str(opened.tokenizer.mask_token), 2) * 2
    together = [each.record() for each in filled(opened, prompts, explain=5)]
    random.Random(1).shuffle(order := list(range(len(prompts))))
    shuffled = filled(opened, [prompts[n] for n in order], explain=5)
    assert [together[n] for n in order] == [each.record() for each in shuffled]
    alone = [filled(opened, [prompt], explain=5)[0].record() for prompt in prompts]
    assert alone == together


def test_only_fp32_pays_for_batches_of_one_shape(opened: Pretrained) -> None:
    shapes: dict[str, list[int]] = {"fp32": [], "bf16": []}
    for precision, found in shapes.items():
        filler, encoded = prepared(opened, ["the [MASK] sat"] * 11, precision=precision)
        filler.model.get_input_embeddings().register_forward_pre_hook(
            lambda _, inputs, found=found: found.append(len(inputs[0]))
        )
        assert len(list(filler.write(encoded))) == 11
    assert shapes == {"fp32": [8, 8], "bf16": [8, 3]}


def test_bf16_gives_nearly_the_same_probabilities(opened: Pretrained) -> None:
    prompts = prompts_of(str(opened.tokenizer.mask_token))
    for exact, low in zip(
        filled(opened, prompts), filled(opened, prompts, precision="bf16"), strict=True
    ):
        [[best]], [[other]] = exact.masks, low.masks
        assert other.probability == pytest.approx(best.probability, abs=0.05)


def test_a_prompt_with_broken_logits_ends_the_job_after_those_before_it(opened: Pretrained) -> None:
    filler, encoded = prepared(opened, ["the [MASK]", "a [MASK]", "the far [MASK]"])
    [*_, broken] = opened.tokenizer(" far", add_special_tokens=False)["input_ids"]
    filler.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, found: found.masked_fill((inputs[0] == broken)[..., None], torch.nan)
    )
    results = filler.write(encoded)
    assert [next(results).prompt.text for _ in range(2)] == ["the [MASK]", "a [MASK]"]
    with pytest.raises(DataError, match="logits are NaN or infinite"):
        next(results)


def test_the_generic_mask_stands_for_the_models_own(opened: Pretrained) -> None:
    own = str(opened.tokenizer.mask_token)
    one, other = filled(opened, [f"the {own} sat", "the [MASK] sat"])
    assert one.masks == other.masks
    assert one.text == other.text


def test_names_of_other_control_tokens_are_text_unless_asked(opened: Pretrained) -> None:
    prompt = "the [SEP] [MASK]"
    encoded = {
        split: masks.encode_masked(
            [PromptRequest(prompt, "here")],
            opened,
            GenerationConfig(split_special_tokens=split),
            0,
        )[0].ids
        for split in (True, False)
    }
    separator = opened.tokenizer.sep_token_id
    assert encoded[True].count(separator) == 1  # the one that closes the text
    assert encoded[False].count(separator) == 2
    assert encoded[True].count(opened.tokenizer.mask_token_id) == 1


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (PromptRequest("the cat", "p.txt:3"), "has no mask"),
        (PromptRequest("[MASK] " + "the " * 90, "p.txt:3"), "reads at most"),
        (PromptRequest("[MASK]", "p.txt:3", system="Be brief."), "no system message"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused_with_its_line(
    opened: Pretrained, request_: PromptRequest, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        masks.encode_masked([request_], opened, GenerationConfig(), 0)
    assert caught.value.where == "p.txt:3"
    if what == "has no mask":
        assert str(opened.tokenizer.mask_token) in caught.value.next


def test_a_prompt_as_long_as_the_context_is_filled(opened: Pretrained) -> None:
    limit = opened.context
    assert limit is not None
    fixed = len(filled(opened, ["[MASK]"])[0].prompt.ids)
    each = len(filled(opened, ["[MASK] the"])[0].prompt.ids) - fixed
    [found] = filled(opened, ["[MASK]" + " the" * ((limit - fixed) // each)])
    assert limit - each < len(found.prompt.ids) <= limit


def test_a_record_has_the_fillings_that_were_asked_for(opened: Pretrained) -> None:
    brief = filled(opened, ["the [MASK]"])[0].record()
    assert list(brief) == ["prompt", "text", "index", "masks"]
    assert list(brief["masks"][0]) == ["id", "token", "probability"]
    longer = filled(opened, ["the [MASK]"], explain=10**6)[0].record()
    [mask] = longer["masks"]
    assert mask["likeliest"][0] == {key: mask[key] for key in ("id", "token", "probability")}
    assert len(mask["likeliest"]) == opened.vocab_size
    assert sum(each["probability"] for each in mask["likeliest"]) == pytest.approx(1, abs=1e-3)
