"""Samples of a masked model show what the model reads and what it makes of it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from llmkit.data.examples.blocks import UNSCORED
from llmkit.inference.blanks import BLANK, fill_blanks
from llmkit.models import build, pretrained
from llmkit.models.pretrained import Pretrained
from tests.inference.test_masks import WORDS, opened  # noqa: F401  a fixture


def batch_of(
    tokenizer: PreTrainedTokenizerFast, text: str, words: Mapping[str, str]
) -> dict[str, Tensor]:
    """The row of a text in which these words are predicted, and a token shown in their place."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, shown = encoded["input_ids"], list(encoded["input_ids"])
    places = []
    for place, (begin, end) in enumerate(encoded["offset_mapping"]):
        for word, token in words.items():
            first = text.index(word)
            if first - 1 <= begin < end <= first + len(word):
                places.append(place)
                shown[place] = tokenizer.convert_tokens_to_ids(token)
    targets = [ids[place] for place in places]
    return {
        "input_ids": torch.tensor([shown]),
        "places": torch.tensor([[*places, 0]]),
        "targets": torch.tensor([[*targets, UNSCORED]]),
    }


def logits_of(opened: Pretrained):  # noqa: F811
    model = pretrained.load_model(opened, build.MASKED_MODEL).eval()
    return lambda batch: model(input_ids=batch["input_ids"]).logits.take_along_dim(
        batch["places"][..., None], 1
    )


@torch.no_grad()
def test_the_model_fills_all_blanks_of_the_text_that_is_shown(opened: Pretrained) -> None:  # noqa: F811
    model = AutoModelForMaskedLM.from_pretrained(opened.location).eval()
    tokenizer, mask = opened.tokenizer, str(opened.tokenizer.mask_token)
    logits, chance = logits_of(opened), random.Random(0)
    for _ in range(8):
        words = chance.sample([word for word in WORDS if len(word) > 3], 5)
        text = " ".join(words)
        # One hidden word is shown as another token, as BERT does with a tenth of them.
        batch = batch_of(tokenizer, text, {words[1]: mask, words[3]: tokenizer.sep_token})
        [found] = fill_blanks(logits, tokenizer, batch)
        assert found["prompt"] == f"{words[0]} {BLANK} {words[2]} {BLANK} {words[4]}"
        assert found["hidden"] == f"{words[1]} / {words[3]}"
        ids = batch["input_ids"].masked_fill(
            batch["input_ids"] == tokenizer.sep_token_id, tokenizer.mask_token_id
        )
        ids[0, -1] = tokenizer.sep_token_id
        places = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        guesses = model(input_ids=ids).logits[0].argmax(-1).tolist()
        gap = next(n for n in range(1, len(places)) if places[n] != places[n - 1] + 1)
        parts = [tokenizer.decode([guesses[p] for p in part]).strip()
                 for part in (places[:gap], places[gap:])]  # fmt: skip
        assert found["prediction"] == " / ".join(parts)


def test_neighbours_are_one_blank_and_excerpts_end_with_their_document(opened: Pretrained) -> None:  # noqa: F811
    tokenizer = opened.tokenizer
    batch = batch_of(
        tokenizer,
        "the cat sat on a mat",
        dict.fromkeys(("cat", "sat", "mat"), tokenizer.mask_token),
    )
    [found] = fill_blanks(logits_of(opened), tokenizer, batch)
    assert found["prompt"] == f"the {BLANK} on a {BLANK}"
    assert found["hidden"] == "cat sat / mat"
    other = batch_of(tokenizer, "how far dogs ran", {"dogs": tokenizer.mask_token})
    length = batch["input_ids"].shape[1]
    joined = {
        "input_ids": torch.cat([batch["input_ids"], other["input_ids"]], 1),
        "places": torch.cat([batch["places"][:, :-1], other["places"][:, :-1] + length], 1),
        "targets": torch.cat([batch["targets"][:, :-1], other["targets"][:, :-1]], 1),
    }
    one, two = fill_blanks(logits_of(opened), tokenizer, joined)
    assert one["prompt"] == found["prompt"]
    assert (two["prompt"], two["hidden"]) == (f"how far {BLANK} ran", "dogs")


@pytest.mark.parametrize("text", ["", "the cat sat"])
def test_a_row_without_hidden_words_has_no_sample(opened: Pretrained, text: str) -> None:  # noqa: F811
    batch = batch_of(opened.tokenizer, text, {})
    assert fill_blanks(logits_of(opened), opened.tokenizer, batch) == []
