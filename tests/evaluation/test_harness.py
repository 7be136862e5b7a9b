"""Standard tasks: from local files, without their code, and refused in words."""

from __future__ import annotations

import importlib.util
import json

import pytest

from llmkit.config.load import load_config
from llmkit.errors import ConfigError, InputNotFound, Unsafe
from llmkit.evaluation import harness
from llmkit.models.pretrained import compared

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason="needs lm-evaluation-harness")

TASK = """\
task: sky
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: a
metric_list:
  - metric: acc
"""


@pytest.fixture
def task(tmp_path):
    rows = [
        {"q": "the cat", "choices": ["sat", "flew"], "a": 0},
        {"q": "the dog", "choices": ["sang", "ran"], "a": 1},
    ]
    data = tmp_path / "sky.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sky.yaml").write_text(TASK.format(data=data))
    return tmp_path / "sky.yaml"


def config(model, task, *keys):
    named = [f"model.name_or_path={model}", f"evaluation.tasks={task}"]
    return load_config("evaluate", None, [*named, *keys]).config


@pytest.mark.skipif(INSTALLED, reason="lm-evaluation-harness is installed")
def test_a_missing_harness_is_reported_with_its_cure(one_id, task) -> None:
    asked = config(one_id, task)
    with pytest.raises(ConfigError) as fault:
        harness.check_tasks(asked, compared(asked))
    assert "-m pip install 'lm-eval>=" in fault.value.next


@pytest.mark.parametrize("line", ["doc_to_text: !function utils.run", "unsafe_code: true"])
def test_a_task_that_brings_code_is_refused(one_id, task, line, processes) -> None:
    task.write_text(task.read_text() + line + "\n")
    with pytest.raises(Unsafe, match="would run code"):
        harness.names_and_folders([str(task)])


def test_a_task_file_that_is_missing_is_reported(tmp_path) -> None:
    with pytest.raises(InputNotFound, match="no task file"):
        harness.names_and_folders([str(tmp_path / "none.yaml")])


def test_files_and_folders_and_names_of_tasks_can_be_given(task) -> None:
    names, folders = harness.names_and_folders(["hellaswag", str(task), str(task.parent)])
    assert names == ["hellaswag", "sky"]
    assert folders == [str(task.parent)]


@needs_it
@pytest.mark.parametrize("log", [False, True])
def test_a_local_task_runs_without_the_network(one_id, task, processes, tmp_path, log) -> None:
    keys = [f"evaluation.log_samples={tmp_path / 'log'}"] if log else []
    asked = config(one_id, task, *keys)
    models = compared(asked)
    harness.check_tasks(asked, models)
    found = harness.measure_tasks(asked, models, processes)
    (row,) = found["tasks"]
    assert (row["task"], row["metric"], row["examples"]) == ("sky", "acc", 2)
    assert row["value"] in (0.0, 0.5, 1.0)
    assert len(found["samples"]) == 2 * log


@needs_it
def test_tasks_are_for_causal_models(bert, task) -> None:
    asked = config(bert, task)
    with pytest.raises(ConfigError, match="masked model"):
        harness.check_tasks(asked, compared(asked))
