"""Arbitrary bytes and values in every file that is read: only faults of ours come out, soon."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmkit.config.load import load_config as load_config
from llmkit.config.schema import Config
from llmkit.data.readers import roles
from llmkit.data.readers.files import Sources
from llmkit.data.records import labelled
from llmkit.data.text import prepare
from llmkit.errors import LlmkitError
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model
from llmkit.storage import jsonl
from llmkit.training import checkpoint

from .test_hostile import harmless  # noqa: F401

SECONDS = 10.0
"""Processor time that any small input may take."""

some = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def only_our_faults(work: Callable[[], object]) -> None:
    """Runs a piece of work that may fail by a fault of ours, and in no other way."""
    start = time.process_time()
    with suppress(LlmkitError):
        work()
    assert time.process_time() - start < SECONDS


def watch(label: str, total: int) -> Any:
    return nullcontext(lambda n_bytes: None)


TEXTS = st.text(st.sampled_from("ab1 ,;\t\"'\n\r\\{}[]:#é\x00\ufeff|&*!%@`~-"), max_size=60)
CONTENT = st.binary(max_size=80) | TEXTS.map(str.encode)


@some
@given(content=CONTENT)
@example(content=b"train: {max_steps: 1e400}")
@example(content=b"? &a\n: *a")
@example(content=b"<<: {seed: 1}")
def test_a_config_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    only_our_faults(lambda: load_config("pretrain", path, []))


KEYS = st.sampled_from(
    ["seed", "train", "train.max_steps", "data", "text_column", "model", "x", ""]
)


@some
@given(value=st.dictionaries(KEYS, json_values, max_size=4))
def test_a_config_of_any_values(value: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(value))
    only_our_faults(lambda: load_config("finetune", path, []))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv", "parquet"])
@some
@given(content=CONTENT, packed=st.sampled_from(sorted(PACKED)), torn=st.integers(0, 3))
def test_text_of_any_bytes(
    suffix: str, content: bytes, packed: str, torn: int, tmp_path: Path
) -> None:
    path = tmp_path / f"data.{suffix}{packed}"
    whole = PACKED[packed](content)
    path.write_bytes(whole[: len(whole) - torn])
    config = Config.model_validate({"data": {"train_files": str(path)}})
    only_our_faults(lambda: prepare.data_report(config, Sources(config), watch))


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv", "parquet"])
@some
@given(content=CONTENT)
@example(content=b'a,b\n"1,2\n')
@example(content=b"text,label\n" + b"x" * 200_000 + b",1\n")
def test_labelled_rows_of_any_bytes(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    config = Config.model_validate({"data": {"train_files": str(path)}})

    def read() -> None:
        found = Sources(config).of("data.train_files")
        data = roles.resolve_label_columns(found, config.data, lambda text: None)
        list(labelled.read_rows(found, data, labelled=True))

    only_our_faults(read)


@some
@given(flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4))
@example(flips=[])
@example(flips=[(1495, 128)])  # the name of a column
def test_a_parquet_file_with_flipped_bits(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    rows = {"text": [b"a b c", b"d \xff"], "label": [b"x", b"y"]}
    table = pa.table({name: pa.array(values).view(pa.utf8()) for name, values in rows.items()})
    pq.write_table(table, path)
    content = bytearray(path.read_bytes())
    for place, change in flips:
        content[place % len(content)] ^= change
    path.write_bytes(content)
    config = Config.model_validate({"data": {"train_files": str(path)}})
    only_our_faults(lambda: prepare.data_report(config, Sources(config), watch))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1 and 2."""
    from . import subjects

    root = tmp_path_factory.mktemp("saved") / "checkpoints"
    acknowledged = root.parent / "acknowledged"
    acknowledged.touch()
    subjects.save(str(root), str(acknowledged), [1, 2])
    return root


def signed(directory: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checkpoint, and makes its manifest say so."""
    (directory / name).write_bytes(content)
    manifest = json.loads((directory / "manifest.json").read_text())["manifest"]
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"size": len(content), "sha256": digest}
    write_manifest(directory, manifest)


def write_manifest(directory: Path, manifest: Any) -> None:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    document = {"manifest": manifest, "sha256": digest}
    (directory / "manifest.json").write_text(json.dumps(document))


def resume(root: Path) -> None:
    """Reads a checkpoint as a run that goes on does."""
    found = checkpoint.newest(root, lambda text: None)
    assert found is not None
    found.optimizer_tensors()


def copied(saved: Path, tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "checkpoints"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(saved, root)
    return root, checkpoint.directory_of(root, 2)


NAMES = st.sampled_from(["state.json", "optimizer.safetensors", "config.json", "../x", ".", "a\0b"])


@some
@given(content=st.binary(max_size=60))
def test_a_manifest_of_any_bytes(content: bytes, saved: Path, tmp_path: Path) -> None:
    root, directory = copied(saved, tmp_path)
    (directory / "manifest.json").write_bytes(content)
    only_our_faults(lambda: resume(root))


@some
@given(
    manifest=json_values
    | st.fixed_dictionaries(
        {"format": st.just(1) | json_values, "step": st.just(2) | json_values},
        optional={"files": json_values | st.dictionaries(NAMES, json_values, max_size=2)},
    )
)
def test_a_manifest_of_any_values(manifest: Any, saved: Path, tmp_path: Path) -> None:
    root, directory = copied(saved, tmp_path)
    write_manifest(directory, manifest)
    only_our_faults(lambda: resume(root))


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
@some
@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_files_of_a_checkpoint_of_any_bytes(
    name: str, content: bytes, saved: Path, tmp_path: Path
) -> None:
    root, directory = copied(saved, tmp_path)
    signed(directory, name, content)
    only_our_faults(lambda: resume(root))


FIELDS = st.sampled_from(
    ["step", "plan", "seconds", "recent_losses", "best_metric", "metrics_size"]
)


@some
@given(changes=st.dictionaries(FIELDS, json_values, min_size=1, max_size=3))
def test_a_state_of_any_values(changes: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    root, directory = copied(saved, tmp_path)
    document = json.loads((directory / "state.json").read_text())
    document["state"] |= changes
    signed(directory, "state.json", json.dumps(document).encode())
    only_our_faults(lambda: resume(root))


@some
@given(content=CONTENT)
def test_metrics_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    only_our_faults(lambda: jsonl.last_figures(path, step=1))
    jsonl.JsonLines(path).truncate(len(content) + 1)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", MODEL_FILES)
@settings(some, max_examples=25)
@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_files_of_a_model_of_any_bytes(
    name: str,
    content: bytes,
    harmless: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(harmless, model)
    (model / name).write_bytes(content)
    only_our_faults(lambda: pretrained.load_model(open_model(str(model))))
    only_our_faults(lambda: tokenizers.load_tokenizer(str(model)))


CHANGED = st.sampled_from(
    ["model_type", "hidden_size", "vocab_size", "num_attention_heads", "architectures",
     "rope_parameters", "dtype", "pad_token_id", "quantization_config", "transformers_version"]
)  # fmt: skip


@settings(some, max_examples=40)
@given(changes=st.dictionaries(CHANGED, json_values, min_size=1, max_size=2))
def test_a_model_config_of_any_values(
    changes: dict[str, Any],
    harmless: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(harmless, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    only_our_faults(lambda: pretrained.load_model(open_model(str(model))))


PLACES = st.sampled_from(
    [("model", "continuing_subword_prefix"), ("model", "unk_token"), ("model", "merges"),
     ("pre_tokenizer", "type"), ("decoder",), ("truncation",), ("padding",), ("added_tokens",)]
)  # fmt: skip


@settings(some, max_examples=40)
@given(place=PLACES, value=json_values)
@example(place=("model", "continuing_subword_prefix"), value="x" * 50)
def test_a_tokenizer_of_any_values(
    place: tuple[str, ...],
    value: Any,
    harmless: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(harmless, model)
    document = json.loads((model / "tokenizer.json").read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (model / "tokenizer.json").write_text(json.dumps(document))
    only_our_faults(lambda: tokenizers.load_tokenizer(str(model)))
