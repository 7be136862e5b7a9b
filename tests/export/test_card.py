"""The model card: figures as metadata that the hub reads, and nothing of the machine."""

from __future__ import annotations

import ast
import json
import math
import re

import pytest
from huggingface_hub import ModelCard

from llmkit.errors import DataError, Diverged
from llmkit.export.card import check_card, model_card, write_card
from llmkit.reporting.run_record import read_run
from tests.conftest import MakeRun


def test_the_metadata_holds_the_figures_of_the_run(make_run: MakeRun) -> None:
    card = ModelCard(model_card(read_run(make_run(accuracy=0.8))))
    found = {
        (each.dataset_split, each.metric_type): each.metric_value for each in card.data.eval_results
    }
    assert found == {("validation", "loss"): 0.5, ("validation", "accuracy"): 0.8}
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "transformers"


def test_the_card_shows_intervals_and_baselines(make_run: MakeRun) -> None:
    [row] = [
        line for line in model_card(read_run(make_run())).split("\n") if "| accuracy |" in line
    ]
    assert "0.7 to 0.9" in row
    assert "tfidf 0.7" in row
    assert "majority 0.6" in row


def test_no_path_of_the_machine_is_in_the_card(make_run: MakeRun) -> None:
    facts = {
        "command": "finetune",
        "limits": ["9 rows repeat: /home/me/secret/reviews.csv rows 3, 4; and/or others"],
        "arguments": ["finetune", "--csv", "/home/me/secret/reviews.csv", "-o", "/data/runs/x",
                      "data.test_files=/home/me/secret/test.csv"],
    }  # fmt: skip
    config = (
        "data: {train_files: [/home/me/secret/reviews.csv]}\n"
        "model: {name_or_path: /home/me/secret/base}\n"
    )
    card = model_card(read_run(make_run(run_json=json.dumps(facts), config_yaml=config)))
    assert "secret" not in card
    assert "/data" not in card
    assert "llmkit finetune --csv reviews.csv -o x data.test_files=test.csv" in card
    assert "fine-tuned from base" in card
    assert "9 rows repeat: reviews.csv rows 3, 4; and/or others" in card


def test_a_hub_model_is_named_as_the_base(make_run: MakeRun) -> None:
    run = read_run(make_run(config_yaml="model: {name_or_path: some/model}\n"))
    assert ModelCard(model_card(run)).data.base_model == "some/model"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_refused(make_run: MakeRun, value: float) -> None:
    figures = {"validation": {"loss": value, "accuracy": 0.5}}
    with pytest.raises(Diverged, match="validation loss"):
        model_card(read_run(make_run(evaluation_json=json.dumps(figures))))


def test_a_card_is_written_beside_the_model(make_run: MakeRun) -> None:
    run = read_run(make_run())
    write_card(run, run.directory)
    assert ModelCard.load(run.directory / "README.md").data.tags == ["llmkit"]


def test_the_card_of_a_merge_names_its_experts_and_no_classifier(make_run: MakeRun) -> None:
    facts = {"command": "merge", "result": {"experts": ["code", "poems"], "into": "moe"}}
    card = model_card(read_run(make_run(run_json=json.dumps(facts), evaluation_json="{}",
                                        metrics_jsonl="", config_yaml="seed: 1\n")))  # fmt: skip
    assert ModelCard(card).data.pipeline_tag == "text-generation"
    assert "domain experts code, poems (moe)" in card
    assert "classifier" not in card


def test_the_code_of_a_card_loads_the_model_by_its_name_on_the_hub(make_run: MakeRun) -> None:
    assert 'model="me/mine"' in model_card(read_run(make_run()), "me/mine")


@pytest.mark.parametrize(
    "text",
    ["see /home/me/x", "`~/data`", "(/mnt/disk/a.csv)", "x=C:\\Users\\me", "file:///a", '"/a/b"'],
)
def test_a_path_of_a_machine_is_found_in_a_card(text: str) -> None:
    with pytest.raises(DataError, match="path of a machine") as raised:
        check_card(f"# Mine\n\n{text}\n", "README.md")
    assert raised.value.where == "README.md:3"


@pytest.mark.parametrize(
    "text",
    ["https://a.org/b/c", "and/or/not", "me/mine", "[x](/me/mine)", "<br/> </td>", "1/2", "/"],
)
def test_what_only_resembles_a_path_stays_in_a_card(text: str) -> None:
    check_card(f"# Mine\n\n{text}\n", "README.md")


def test_the_card_of_every_run_passes_the_check(make_run: MakeRun) -> None:
    check_card(model_card(read_run(make_run()), "me/mine"), "README.md")


def test_names_with_marks_of_markdown_are_shown_as_they_are(make_run: MakeRun) -> None:
    config = "data: {train_files: ['a|b_*c*.csv']}\nmodel: {architecture: bert}\n"
    run = read_run(make_run('__my_"model"__', config_yaml=config))
    card = model_card(run)
    assert '# \\_\\_my\\_"model"\\_\\_\n' in card
    assert r"trained with llmkit on a\|b\_\*c\*.csv." in card
    [code] = re.findall(r"model=(.*)\)\n", card)
    assert ast.literal_eval(code) == run.name
