import json
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.errors import DataError, HubUnreachable, InputNotFound, Unsafe
from llmkit.models import tokenizer as tokenizers
from llmkit.models.tokenizer import Framing

TEXTS = ["The cat sat on the mat.\n\tIt's 2024!", "春眠不覺曉 處處聞啼鳥", "🙂🙃 the cat"] * 3
TRAINED = tokenizers.train_bpe(TEXTS, 320)


@given(st.text())
def test_every_text_comes_back_exactly(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text, split_special_tokens=True)) == text


def test_training_twice_gives_the_same_tokenizer() -> None:
    again = tokenizers.train_bpe(iter(TEXTS), 320)
    assert tokenizers.tokenizer_fingerprint(again) == tokenizers.tokenizer_fingerprint(TRAINED)
    other = tokenizers.train_bpe(TEXTS, 300)
    assert tokenizers.tokenizer_fingerprint(other) != tokenizers.tokenizer_fingerprint(TRAINED)


def test_the_vocabulary_is_no_larger_than_the_text_supports() -> None:
    assert len(TRAINED) <= 320
    assert len(tokenizers.train_bpe(["ab"], 320)) == 257
    assert tokenizers.max_id(TRAINED) == len(TRAINED) - 1


def test_merges_are_those_of_the_published_reference(shared: Path) -> None:
    """Ties fall otherwise in other trainers, so the sets are compared, and nearly all agree."""
    folder = shared / "golden" / "cs336_bpe"
    text = (folder / "corpus.en").read_text(encoding="utf-8")
    reference = set((folder / "train-bpe-reference-merges.txt").read_text("utf-8").split("\n"))
    backend = json.loads(tokenizers.train_bpe([text], 500).backend_tokenizer.to_str())
    merges = {" ".join(merge) for merge in backend["model"]["merges"]}
    assert len(merges) == 243
    assert len(merges & reference) >= 235


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path)
    for loaded in (
        tokenizers.load_tokenizer(str(tmp_path)),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert tokenizers.tokenizer_fingerprint(loaded) == tokenizers.tokenizer_fingerprint(TRAINED)
        assert loaded(TEXTS[0])["input_ids"] == TRAINED(TEXTS[0])["input_ids"]


def test_a_run_stands_for_the_tokenizer_of_its_model(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path / "final")
    (tmp_path / "run.json").write_text("{}")
    assert tokenizers.load_tokenizer(str(tmp_path)).get_vocab() == TRAINED.get_vocab()


def test_a_classifier_s_tokenizer_needs_no_end_for_a_fingerprint(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers/bert-base-uncased")
    assert tokenizer.eos_token is None
    before = tokenizers.tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "[SEP]"
    assert tokenizers.tokenizer_fingerprint(tokenizer) != before


def test_the_fingerprint_does_not_depend_on_padding_or_truncation() -> None:
    before = tokenizers.tokenizer_fingerprint(TRAINED)
    TRAINED(TEXTS, padding=True, truncation=True, max_length=3)
    assert tokenizers.tokenizer_fingerprint(TRAINED) == before


@pytest.mark.parametrize(
    ("name", "framing"),
    [("tokenizers/gpt2", Framing(50256, 50256)), ("models/tinystories-656k", Framing(1, 2))],
)
def test_the_frame_is_what_the_tokenizer_itself_puts_around_text(
    shared: Path, name: str, framing: Framing
) -> None:
    assert tokenizers.framing(tokenizers.load_tokenizer(str(shared / name))) == framing


def test_a_tokenizer_without_an_end_is_reported(shared: Path) -> None:
    bert = tokenizers.load_tokenizer(str(shared / "tokenizers" / "bert-base-uncased"))
    with pytest.raises(DataError, match="end-of-text"):
        tokenizers.framing(bert)
    bert.eos_token = "[SEP]"
    assert tokenizers.framing(bert) == Framing(101, 102)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "~/nowhere", "a/b/c"])
def test_a_directory_that_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(InputNotFound):
        tokenizers.load_tokenizer(name)


def test_a_hub_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable) as fault:
        tokenizers.load_tokenizer("nobody/no-such-tokenizer")
    assert "local directory" in fault.value.next


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}'])
def test_a_directory_without_a_tokenizer_is_bad_data(tmp_path: Path, content: str) -> None:
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError) as fault:
        tokenizers.load_tokenizer(str(tmp_path))
    assert "tokenizer.json" in fault.value.next


def test_a_tokenizer_that_brings_code_is_refused_and_not_run(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Unsafe):
        tokenizers.load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("n_bytes", "size"),
    [
        (100, 512),
        (100_000, 1562),
        (1_115_394, 2048),
        (8_000_000, 4096),
        (50_000_000, 8192),
        (10**10, 32768),
    ],
)
def test_a_larger_text_gets_a_larger_vocabulary(n_bytes: int, size: int) -> None:
    assert tokenizers.auto_vocab_size(n_bytes) == size
