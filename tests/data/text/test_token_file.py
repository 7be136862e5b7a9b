import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files
from llmkit.data.text import corpus, spooling, token_file
from llmkit.data.text.token_file import TokenFile
from llmkit.distributed.signals import StopSignal
from llmkit.errors import Stopped, WriteError
from llmkit.models import tokenizer as tokenizers
from llmkit.models.tokenizer import Framing
from llmkit.progress import Watch

TEXTS = ["Hello <|endoftext|> world\r\n\t你好 🙂", "x", "word " * 30_000, "e\u0301" * 5000]


@pytest.fixture
def make(tmp_path: Path, watch: Watch) -> Callable[..., TokenFile]:
    """Tokenizes texts, each a document."""

    def made(
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        framing: Framing | None = None,
        watch: Watch = watch,
    ) -> TokenFile:
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_bytes(text.encode())
        found = files.find([str(folder)], "data.train_files")
        read = spooling.spool(found, DataConfig(), tmp_path, lambda n_bytes: None)
        framing = framing or tokenizers.framing(tokenizer)
        documents = corpus.everything(read)
        return token_file.tokenize("name", lambda: documents, tokenizer, framing, watch, print)

    return made


def expected(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], framing: Framing
) -> tuple[list[int], list[int]]:
    """The stream and the starts as a plain loop over whole documents gives them."""
    stream: list[int] = []
    starts: list[int] = []
    tokenizer.backend_tokenizer.encode_special_tokens = True
    for text in texts:
        if framing.opening != framing.closing or not stream:
            stream.append(framing.opening)
        starts.append(len(stream) - 1)
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        stream += [*encoding.ids, framing.closing]
    return stream, starts


@pytest.mark.parametrize(
    ("name", "framing"),
    [
        ("tokenizers/gpt2", Framing(50256, 50256)),
        ("tokenizers/bert-base-uncased", Framing(101, 102)),
        ("tokenizers/bert-base-chinese", Framing(101, 102)),
        ("models/tinystories-656k", Framing(1, 2)),
    ],
)
def test_the_stream_is_each_document_in_its_frame(
    shared: Path, make: Callable[..., TokenFile], name: str, framing: Framing
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / name)
    text = (shared / "text" / "novels_val.txt").read_text(encoding="utf-8")
    texts = [*TEXTS, text[:100_000], text[-100_000:]]
    made = make(tokenizer, texts, framing)
    stream, starts = expected(tokenizer, texts, framing)
    assert made.ids.tolist() == stream
    assert made.starts.tolist() == starts
    assert made.document_bytes.tolist() == [len(text.encode()) for text in texts]
    assert made.n_bytes == made.document_bytes.sum()
    assert (made.opening, made.closing) == (framing.opening, framing.closing)
    assert made.max_id == max(stream)
    assert made.ids.dtype == np.uint16


def test_special_tokens_in_the_text_stay_text(make: Callable[..., TokenFile]) -> None:
    tokenizer = tokenizers.train_bpe(["some text"], 300)
    made = make(tokenizer, ["a <|endoftext|> b"])
    assert made.ids.tolist().count(made.closing) == 2
    assert tokenizer.decode(made.ids[1:-1]) == "a <|endoftext|> b"
    # The tokenizer itself is left as it was.
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id]


def test_a_large_vocabulary_is_kept_in_four_bytes(make: Callable[..., TokenFile]) -> None:
    words = {f"w{i}": i for i in range(70_000)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1")
    made = make(tokenizer, ["w69999 w2"])
    assert made.ids.tolist() == [1, 69_999, 2, 1]
    assert made.ids.dtype == np.uint32


def test_a_second_call_reuses_the_first(make: Callable[..., TokenFile]) -> None:
    tokenizer = tokenizers.train_bpe(TEXTS, 300)
    first, second = make(tokenizer, TEXTS), make(tokenizer, TEXTS)
    assert (first.reused, second.reused) == (False, True)
    assert first.fingerprint == second.fingerprint
    assert first.ids.tolist() == second.ids.tolist()


def test_letters_that_the_tokenizer_does_not_know_are_counted(
    shared: Path, make: Callable[..., TokenFile]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")
    assert make(tokenizer, ["Once upon a time 你好你好你好你"]).lost == pytest.approx(
        0.35, abs=0.01
    )


def test_a_stop_while_tokenizing_leaves_nothing_half_made(
    own_cache: Path, make: Callable[..., TokenFile], watch: Watch
) -> None:
    stop = StopSignal()
    stop.received = signal.SIGTERM
    tokenizer = tokenizers.train_bpe(TEXTS, 300)
    with pytest.raises(Stopped):
        make(tokenizer, TEXTS, watch=stop.watched(watch))
    assert [path.name for path in own_cache.iterdir()] == ["name.lock"]
    assert not make(tokenizer, TEXTS).reused


def test_a_cache_that_cannot_be_made_is_reported(
    tmp_path: Path, make: Callable[..., TokenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WriteError) as fault:
        make(tokenizers.train_bpe(TEXTS, 300), TEXTS)
    assert "LLMKIT_CACHE" in fault.value.next
