"""The model card: figures as metadata that the hub reads, and nothing of the machine."""

from __future__ import annotations

import json
import math

import pytest
from huggingface_hub import ModelCard

from llmkit.errors import Diverged
from llmkit.export.card import model_card, write_card
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
