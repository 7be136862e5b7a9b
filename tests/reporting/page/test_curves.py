"""Curves over each other are comparable: by steps of one size, or by what was seen."""

from __future__ import annotations

import json
from typing import Any

import yaml

from llmkit.reporting.page.curves import overlaid_curves, run_curve
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun


def curve(make_run: MakeRun, name: str, batch: int = 8, **more: Any) -> RunRecord:
    lines = [
        {"step": step, "train_loss": 4.0 - step, "tokens": 10 * batch * step} for step in (1, 2)
    ] + [{"step": 2, "validation_loss": 2.5, "validation_bits_per_byte": 1.5}]
    config = {"train": {"global_batch_size": batch}, **more}
    return read_run(
        make_run(
            name, metrics_jsonl="".join(json.dumps(line) + "\n" for line in lines),
            config_yaml=yaml.safe_dump(config),
        )
    )  # fmt: skip


def test_steps_of_one_size_are_compared_by_step(make_run: MakeRun) -> None:
    found = overlaid_curves([curve(make_run, "a"), curve(make_run, "b")], ["perplexity", "loss"])
    assert found is not None
    assert found["text"].startswith("Validation loss of each run by optimizer step: a ends at 2.5;")


def test_steps_of_different_sizes_are_compared_by_what_was_seen(make_run: MakeRun) -> None:
    runs = [curve(make_run, "a"), curve(make_run, "b", 16)]
    found = overlaid_curves(runs, ["loss"])
    assert found is not None
    assert "by tokens trained on" in found["text"]


def test_a_single_validation_per_byte_is_not_a_curve(make_run: MakeRun) -> None:
    runs = [curve(make_run, "a"), curve(make_run, "b")]
    assert overlaid_curves(runs, ["bits_per_byte"]) is None


def test_the_text_names_the_best_step_by_the_metric_of_the_run(make_run: MakeRun) -> None:
    found = run_curve(read_run(make_run()))
    assert found is not None
    assert found["text"] == (
        "Training loss from 0.9 at step 1 to 0.6 at step 2. Best validation loss: 0.5 at step 2."
    )
    config = yaml.safe_dump({"train": {"metric_for_best_model": "accuracy"}})
    found = run_curve(read_run(make_run("by-accuracy", config_yaml=config)))
    assert found is not None
    assert "Best validation accuracy: 0.8 at step 2." in found["text"]
    assert run_curve(read_run(make_run("nothing", metrics_jsonl=""))) is None
