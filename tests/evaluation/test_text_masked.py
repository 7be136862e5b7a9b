"""Pseudo-log-likelihood against masking one token after another by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from llmkit.config.load import load_config
from llmkit.data.readers.files import Sources
from llmkit.errors import ConfigError
from llmkit.evaluation import text
from llmkit.evaluation.windows import protocol
from llmkit.models.pretrained import compared

DOCUMENTS = ["the cat sat on a mat", "and saw how far the little dog had run away from 家 until"]


def by_hand(model, documents: list[str], room: int) -> tuple[float, int]:
    """Every token masked alone; documents longer than `room` in pieces of like length."""
    network = AutoModelForMaskedLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    nll, count = 0.0, 0
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        pieces = -(-len(ids) // room)
        bounds = [-(-n * len(ids) // pieces) for n in range(pieces + 1)]
        for begin, end in itertools.pairwise(bounds):
            for place in range(begin, end):
                seen = torch.tensor([[first, *ids[begin:end], last]])
                seen[0, place - begin + 1] = tokenizer.mask_token_id
                with torch.no_grad():
                    logits = network(seen).logits[0, place - begin + 1].double()
                nll -= logits.log_softmax(-1)[ids[place]].item()
                count += 1
    return nll, count


@pytest.fixture
def config(bert, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    return load_config("evaluate", None, [
        f"model.name_or_path={bert}", f"data.test_files={path}", "data.document=line",
    ]).config  # fmt: skip


@pytest.mark.parametrize("window", [24, 9, 3])
def test_each_token_is_masked_alone_in_its_piece(config, bert, processes, watch, window) -> None:
    changed = config.evaluation.model_copy(update={"window": window})
    config = config.model_copy(update={"evaluation": changed})
    found = text.measure_text(
        config, Sources(config), compared(config), processes, watch, lambda _: None
    )
    result = text.text_result(config, found)
    nll, count = by_hand(bert, DOCUMENTS, window - 2)
    assert result["tokens"] == count
    assert result["pseudo_nll"] == pytest.approx(nll, rel=1e-5)


def test_it_is_never_called_a_perplexity(config, processes, watch) -> None:
    found = text.measure_text(
        config, Sources(config), compared(config), processes, watch, lambda _: None
    )
    result = text.text_result(config, found)
    assert not {"nll", "perplexity", "bits_per_byte"} & {*result, *(result["interval"] or ())}
    assert "not comparable to a perplexity" in result["protocol"]["scored"]


def test_a_window_without_room_for_text_is_refused(config) -> None:
    (model,) = compared(config)
    settings = config.evaluation.model_copy(update={"window": 2})
    with pytest.raises(ConfigError, match="no room"):
        protocol(model, settings)
