"""Source and target texts that a tiny encoder-decoder model can learn, and such models."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    set_seed,
)

WORDS = dict(
    zip(
        "one two three four five six seven eight nine ten".split(),
        "eins zwei drei vier fünf sechs sieben acht neun zehn".split(),
        strict=True,
    )
)


def word_pairs(seed: int, n: int, words: int = 10) -> list[tuple[str, str]]:
    """Four or five English numbers and the German ones, of the first so many `words`."""
    chance = random.Random(seed)
    rows = [chance.choices(list(WORDS)[:words], k=chance.randint(4, 5)) for _ in range(n)]
    return [(" ".join(row), " ".join(WORDS[word] for word in row)) for row in rows]


TEXTS = [text for pair in word_pairs(0, 200) for text in pair]


def t5_tokenizer(texts: Sequence[str] = TEXTS) -> PreTrainedTokenizerBase:
    """A tokenizer of T5's kind: a unigram model of pieces that begin with ▁."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    scores = [tuple(each) for each in json.loads(backend.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=scores, extra_ids=4)


def bart_tokenizer(texts: Sequence[str] = TEXTS) -> PreTrainedTokenizerBase:
    """A tokenizer of BART's kind: byte-level BPE between <s> and </s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    return BartTokenizer(vocab=model["vocab"], merges=[tuple(each) for each in model["merges"]])


def t5(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """A T5 with random weights."""
    return T5ForConditionalGeneration(T5Config(**_t5_sizes(tokenizer), **settings))


def mt5(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """An mT5 with random weights: gated layers, and a head of its own."""
    return MT5ForConditionalGeneration(MT5Config(**_t5_sizes(tokenizer), **settings))


def _t5_sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    set_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = {"decoder_start_token_id": pad, "pad_token_id": pad, "eos_token_id": eos}
    return {"vocab_size": len(tokenizer), **sizes, **ids}


def bart(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """A BART with random weights."""
    set_seed(0)
    size = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in size.items()}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2}
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64,
        decoder_start_token_id=2, **special, **sizes, **settings,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Path:
    """A model directory as transformers writes it."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def mbart_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of mBART's kind, which puts the code of a language at the end of a text."""
    return MBartTokenizer(vocab=_pieces(), src_lang="en_XX", tgt_lang="de_DE")


def mbart50_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of mBART-50's kind, which puts the code of a language before a text."""
    return MBart50Tokenizer(vocab=_pieces(), src_lang="en_XX", tgt_lang="de_DE")


def nllb_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of NLLB's kind: BPE, and a code before each text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(each) for each in model["merges"]]
    return NllbTokenizer(model["vocab"], merges, src_lang="eng_Latn", tgt_lang="deu_Latn")


def _pieces() -> list[tuple[str, float]]:
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*special, *((f"▁{word}", -2.0) for pair in WORDS.items() for word in pair)]


def mbart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An mBART with random weights."""
    set_seed(0)
    size = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in size.items()}
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, max_position_embeddings=32, **sizes,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return MBartForConditionalGeneration(config)


def sentence_pieces(texts: Sequence[str], path: Path) -> list[str]:
    """Trains a SentencePiece model into a file; returns its pieces. Needs sentencepiece."""
    import sentencepiece

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=26, minloglevel=2
        )
    made = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [made.id_to_piece(number) for number in range(made.get_piece_size())]


def marian_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of Marian's kind: SentencePiece models of source and target, one vocabulary."""
    from transformers import MarianTokenizer

    rows = word_pairs(0, 200)
    pieces = [
        sentence_pieces([row[side] for row in rows], directory / f"{name}.spm")
        for side, name in enumerate(("source", "target"))
    ]
    special = ["</s>", "<unk>"]
    several = dict.fromkeys([*special, *pieces[0], *pieces[1], "<pad>"])
    vocabulary = {piece: number for number, piece in enumerate(several)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    files = [str(directory / name) for name in ("source.spm", "target.spm", "vocab.json")]
    return MarianTokenizer(*files)


def m2m_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of M2M100's kind: SentencePiece, and a code before each text."""
    from transformers import M2M100Tokenizer

    pieces = sentence_pieces(TEXTS, directory / "both.spm")
    several = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    vocabulary = {piece: number for number, piece in enumerate(several)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    files = [str(directory / name) for name in ("vocab.json", "both.spm")]
    return M2M100Tokenizer(*files, src_lang="en", tgt_lang="de")


def marian(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Marian with random weights."""
    return _translator(MarianConfig, MarianMTModel, tokenizer, tokenizer.pad_token_id)


def m2m(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An M2M100 with random weights."""
    config, model = M2M100Config, M2M100ForConditionalGeneration
    return _translator(config, model, tokenizer, tokenizer.eos_token_id)


def _translator(
    config: Any, model: Any, tokenizer: PreTrainedTokenizerBase, start: int
) -> PreTrainedModel:
    set_seed(0)
    size = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in size.items()}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    made: PreTrainedModel = model(
        config(
            vocab_size=len(tokenizer) + 128, d_model=16, max_position_embeddings=64, **sizes,
            **special, decoder_start_token_id=start, forced_eos_token_id=None,
        )
    )  # fmt: skip
    return made
