"""Read a GGUF file with llama.cpp, and compare ids, logits and perplexity with the model.

llama.cpp reads the file in another process, since it ends its process where something in a file is
wrong. Questions and answers pass through files of JSON and safetensors.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.errors import LlmkitError
from llmkit.export.gguf.reading import comparable_texts, differs
from llmkit.export.gguf.writing import GgufPlan

PACKAGE, EXTRA = "llama_cpp", "gguf-verify"

WINDOW, WINDOWS = 128, 4
"""Tokens of a window whose logits are compared, and the number of windows."""

ROUGH = 0.1
"""Largest relative difference of the perplexity where the file rounds the weights."""

_QUESTIONS, _IDS, _LOGITS = "questions.json", "ids.json", "logits.safetensors"


def is_installed() -> bool:
    """Whether llama.cpp can be asked."""
    return importlib.util.find_spec(PACKAGE) is not None


def check_in_llama_cpp(
    path: Path,
    plan: GgufPlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
) -> dict[str, Any]:
    """Compares the file as llama.cpp reads it with the model; returns the figures.

    Raises LlmkitError for other ids, for logits of an fp32 file beyond the tolerance, and for a
    perplexity that rounding does not explain.
    """
    texts = comparable_texts(texts, plan.vocabulary.normalizes)
    windows = _windows(model, tokenizer, texts)
    with tempfile.TemporaryDirectory() as folder:
        found = _ask(Path(folder), path, texts, windows)
        ids = json.loads((Path(folder) / _IDS).read_text(encoding="utf-8"))
        theirs = load_file(Path(folder) / _LOGITS)["logits"]
    for text, *given in zip(texts, ids["text"], ids["tokens"], strict=True):
        for split, read in zip((True, False), given, strict=True):
            if tokenizer(text, split_special_tokens=split)["input_ids"] != read:
                raise differs(path, f"the tokens that llama.cpp reads in {text[:40]!r}")
    figures = _compared(_logits(model, windows), theirs, windows)
    tolerance = plan.architecture.tolerance
    is_exact = plan.type == "f32"
    change = abs(figures["perplexity_of_file"] / figures["perplexity"] - 1)
    if (is_exact and figures["largest_difference"] > tolerance) or not change <= ROUGH:
        raise differs(path, f"what llama.cpp computes: {json.dumps(figures)}")
    return {"version": found, "texts": len(texts), "tokens": windows.size, **figures}


def _windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> NDArray[np.int64]:
    """Ids [windows, tokens]: half of them of the texts, half of them samples of the model."""
    ids = [id for text in texts for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    width = min(WINDOW, int(model.config.max_position_embeddings), 2 * len(ids) // WINDOWS)
    half = WINDOWS // 2
    read = np.array(ids[: half * width], dtype=np.int64).reshape(half, width)
    return np.concatenate([read, _samples(model, int(tokenizer.eos_token_id), half, width)])


@torch.no_grad()
def _samples(model: PreTrainedModel, first: int, count: int, width: int) -> NDArray[np.int64]:
    """Texts that the model samples after its separator: on them, a perplexity means something."""
    chance = torch.Generator().manual_seed(0)
    ids = torch.full((count, 1), first)
    cache: Any = None
    while ids.shape[1] < width:
        new = ids[:, (0 if cache is None else -1) :]
        step = model(input_ids=new, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        chances = step.logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=chance)], dim=1)
    return ids.numpy()


@torch.no_grad()
def _logits(model: PreTrainedModel, windows: NDArray[np.int64]) -> Tensor:
    return torch.stack([model(input_ids=torch.from_numpy(row[None])).logits[0] for row in windows])


def _compared(ours: Tensor, theirs: NDArray[Any], windows: NDArray[np.int64]) -> dict[str, Any]:
    other, ids = torch.from_numpy(theirs), torch.from_numpy(windows)
    half = len(ids) // 2
    same = ours.argmax(-1) == other.argmax(-1)
    return {
        "largest_difference": float((ours - other).abs().max()),
        "same_most_likely_token": float(same.double().mean()),
        "perplexity": _perplexity(ours[half:], ids[half:]),
        "perplexity_of_file": _perplexity(other[half:], ids[half:]),
    }


def _perplexity(logits: Tensor, ids: Tensor) -> float:
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten()
    )
    return float(losses.exp())


def _ask(folder: Path, path: Path, texts: Sequence[str], windows: NDArray[np.int64]) -> str:
    """Lets another process write the answers into a folder; returns the version of the binding."""
    questions = {"path": str(path), "texts": list(texts), "windows": windows.tolist()}
    (folder / _QUESTIONS).write_text(json.dumps(questions), encoding="utf-8")
    command = [sys.executable, "-m", "llmkit.export.gguf.llama_cpp", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()[-60:])
        raise LlmkitError(
            f"llama.cpp cannot read the file (exit code {done.returncode}): {said}",
            where=path.name,
            kept="nothing: the file was removed",
            next="try a newer llama-cpp-python, or report it with the architecture of the model",
        )
    return done.stdout.strip()


def _answer(folder: Path) -> None:
    """Reads the file, and writes the ids of the texts and the logits of the windows."""
    import llama_cpp

    asked = json.loads((folder / _QUESTIONS).read_text(encoding="utf-8"))
    width = max(map(len, asked["windows"]))
    llama = llama_cpp.Llama(
        asked["path"],
        n_ctx=width,
        n_batch=width,
        n_ubatch=width,
        n_threads=torch.get_num_threads(),
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        logits_all=True,
        verbose=False,
    )
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ids = {
        name: [_ids(llama_cpp, vocabulary, text, special) for text in asked["texts"]]
        for name, special in (("text", False), ("tokens", True))
    }
    (folder / _IDS).write_text(json.dumps(ids), encoding="utf-8")
    logits = []
    for row in asked["windows"]:
        llama.reset()  # type: ignore[no-untyped-call, unused-ignore]
        llama.eval(row)
        logits.append(np.array(llama.scores[: len(row)], dtype=np.float32))
    save_file({"logits": np.stack(logits)}, folder / _LOGITS)
    print(llama_cpp.__version__)


def _ids(llama_cpp: Any, vocabulary: Any, text: str, special: bool) -> list[int]:
    """The ids of a text as llama.cpp reads it, with its frame."""
    raw = text.encode()
    room = (llama_cpp.llama_token * (len(raw) + 16))()
    count = llama_cpp.llama_tokenize(
        vocabulary, raw, ctypes.c_int32(len(raw)), room, len(raw) + 16, True, special
    )
    return list(room[:count])


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
