"""Figures by domain are those of each domain alone, and nothing that training sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.config.resolved import ResolvedTrain
from llmkit.distributed.processes import join_processes
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay
from llmkit.training.checkpoint import State
from llmkit.training.record import Recorder
from llmkit.training.schedule import Clock, Plan, Revision
from llmkit.training.tasks.by_domain import (
    ByDomain,
    domain_report,
    names_of_figures,
)
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.task import Batch
from tests.training.conftest import Rows, tiny_model

SIZES = {"a": 5, "b": 8}
BYTES = {"a": 70, "b": 30}


class Mixed(Rows):
    """Rows of two domains, which each batch tells."""

    def batch(self, rows) -> Batch:
        domain = np.searchsorted(np.cumsum(list(SIZES.values())), np.asarray(rows), side="right")
        return {**super().batch(rows), "domain": torch.from_numpy(domain)}


def by_domain(examples: Rows, together: tuple[str, ...] = ("a", "b")) -> ByDomain:
    parts = {"a": range(5), "b": range(5, 13)}
    return ByDomain(
        CausalLoss(sum(BYTES[name] for name in together)),
        {name: CausalLoss(n_bytes) for name, n_bytes in BYTES.items()},
        {name: examples.count(rows) for name, rows in parts.items()},
        together,
    )


@pytest.mark.parametrize("size", [1, 4, 13])
def test_each_domain_gets_the_figures_that_it_has_alone(size: int) -> None:
    examples, model = Mixed(13), tiny_model().eval()
    task = by_domain(examples)
    totals: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for first in range(0, 13, size):
            # The last micro-batch is filled up with rows of no prediction.
            rows = [row if row < 13 else -1 for row in range(first, first + size)]
            for key, value in task.sums(model, examples.batch(rows)).items():
                totals[key] = totals.get(key, 0) + value.double()
    sums = {key: value.numpy() for key, value in totals.items()}
    found = task.figures(sums, examples.count(range(13)))
    plain, n_all = Rows(13), 0
    for rows, (name, n_bytes) in zip((range(5), range(5, 13)), BYTES.items(), strict=True):
        alone = CausalLoss(n_bytes)
        with torch.no_grad():
            own = {k: v.numpy() for k, v in alone.sums(model, plain.batch(rows)).items()}
        expected = alone.figures(own, plain.count(rows))
        n_all += plain.count(rows)
        for figure, value in expected.items():
            assert found[f"{figure}/{name}"] == pytest.approx(value, rel=1e-5)
    counts = [examples.count(range(5)), examples.count(range(5, 13))]
    mean = np.average([found["loss/a"], found["loss/b"]], weights=counts)
    assert found["loss"] == pytest.approx(mean)
    assert list(found) == names_of_figures(["loss", "perplexity", "bits_per_byte"], ["a", "b"])


def test_the_overall_metrics_are_those_of_the_domains_trained_on() -> None:
    examples, model = Mixed(13), tiny_model().eval()
    task = by_domain(examples, together=("b",))
    with torch.no_grad():
        sums = {k: v.numpy() for k, v in task.sums(model, examples.batch(range(13))).items()}
    found = task.figures(sums, examples.count(range(13)))
    assert {name: found[f"{name}/b"] for name in ("loss", "perplexity", "bits_per_byte")} == {
        name: value for name, value in found.items() if "/" not in name
    }
    assert found["loss/a"] != found["loss"]


def test_training_is_as_it_is_without_domains() -> None:
    examples, model = Rows(13), tiny_model()
    task = by_domain(examples)
    batch = examples.batch(range(13))
    sums = task.sums(model, batch)
    assert torch.equal(sums["objective"], task.whole.sums(model, batch)["objective"])
    assert sums["loss"].ndim == 0
    assert task.weight(examples, range(13)) == examples.count(range(13))


def test_the_report_tells_change_only_where_the_run_began_with_a_measurement(
    tmp_path: Path,
) -> None:
    lines = [
        {"step": 0, "validation_loss": 3.0, "validation_loss/a": 2.0, "validation_loss/b": 4.0},
        {"step": 5, "train_loss": 3.0, "epochs/a": 0.5, "epochs/b": 0.0},
        {"step": 5, "validation_loss": 2.5, "validation_loss/a": 1.5, "validation_loss/b": 4.5},
    ]
    figures = {"step": 5, "validation": {"loss": 2.5, "loss/a": 1.5, "loss/b": 4.5}}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = domain_report({"a": 1.0, "b": 0.0}, figures, tmp_path)
    assert found["a"] == {"share": 1.0, "epochs": 0.5, "before": {"loss": 2.0},
                          "after": {"loss": 1.5}, "change": {"loss": -0.5}}  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    assert set(domain_report({"a": 1.0, "b": 0.0}, figures, tmp_path)["b"]) == {
        "share",
        "epochs",
        "after",
    }


def test_a_run_may_be_remembered_for_one_domain_and_never_for_what_it_began_with(
    tmp_path: Path,
) -> None:
    settings = ResolvedTrain(
        global_batch_size=1, micro_batch_size=1, learning_rate=1e-2,
        lr_scheduler_type="linear", warmup_steps=0.0, adam_beta2=0.95,
        weight_decay=0.0, max_grad_norm=1.0,
        max_nonfinite_steps=1, logging_steps=1, eval_steps=1, save_steps=1, save_total_limit=2,
        metric_for_best_model="loss/a",
    )  # fmt: skip
    record = Recorder(
        tmp_path, settings, join_processes("fp32"),
        TrainingDisplay(Console(quiet=True), 0, None), Clock(), lambda _: None, dict, {},
        progress=lambda step: {"epochs/a": step / 2},
    )  # fmt: skip
    state = State(step=0, plan=Plan((Revision(0, 9),)), seconds=0.0)
    best = []
    for step, (whole, own) in enumerate([(9.0, 1.0), (2.0, 3.0), (3.0, 2.0), (1.0, 2.5)]):
        state = record.validated(replace(state, step=step), {"loss": whole, "loss/a": own})
        best.append(state.best_step)
    assert best == [None, 1, 2, 2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epochs/a"] for line in lines] == [0, 0.5, 1, 1.5]
    assert lines[3]["validation_loss/a"] == 2.5
