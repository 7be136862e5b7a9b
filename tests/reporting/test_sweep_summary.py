"""The table of a sweep shows each run, its keys and its figures."""

from __future__ import annotations

from typing import Any

from llmkit.reporting.sweep_summary import describes_sweep, of_sweep, sweep_rows


def run(name: str, accuracy: float | None, **more: Any) -> dict[str, Any]:
    validation = {
        "accuracy": accuracy,
        "f1_macro": 0.5,
        "loss": 1.0,
        "intervals": {"accuracy": [0.25, 0.75]},
    }
    result = {} if accuracy is None else {"result": {"validation": validation}}
    found = {"name": name, "run_dir": f"d/{name}", "status": "finished", **result, **more}
    return {"keys": {"train.learning_rate": 1e-5, "model.lora.dropout": None}, **found}


FIGURES = {
    "command": "finetune",
    "sweep_dir": "d",
    "keys": ["train.learning_rate", "model.lora.dropout"],
    "runs": [run("a", 0.5), run("b", 0.625)],
    "best": "b",
    "page": "d/report.html",
    "sentences": ["b has the best accuracy."],
}


def test_the_best_is_marked_beside_values_and_figures_with_intervals() -> None:
    assert sweep_rows(FIGURES, 80)[1] == {
        "best": "*",
        "learning_rate": "1e-05",
        "dropout": "null",
        "accuracy": "0.625 (0.25 to 0.75)",
        "f1_macro": "0.5",
    }
    assert "f1_macro" not in sweep_rows(FIGURES, 40)[1]
    assert describes_sweep(FIGURES)
    assert list(of_sweep(FIGURES)) == [
        "2 runs in d: 2 finished.", "b has the best accuracy.", "  report   d/report.html",
        "  best     d/b",
    ]  # fmt: skip


def test_what_became_of_runs_is_shown_where_not_all_are_finished() -> None:
    error = {"kind": "diverged", "code": 79}
    runs = [run("a", 0.5), run("c", None, status="failed", error=error)]
    rows = sweep_rows({**FIGURES, "runs": runs, "best": "a"}, 80)
    assert [row["state"] for row in rows] == ["finished", "failed: diverged"]
    assert rows[1]["accuracy"] == ""


def test_a_dry_run_lists_states_without_figures() -> None:
    planned = {
        "command": "finetune",
        "sweep_dir": "d",
        "keys": ["model.lora.dropout", "model.config.dropout"],
        "dry_run": True,
        "runs": [
            {
                "name": "x",
                "run_dir": "d/x",
                "status": "not started",
                "keys": {"model.lora.dropout": 0, "model.config.dropout": True},
            }
        ],
    }
    assert sweep_rows(planned, 80) == [
        {"model.lora.dropout": "0", "model.config.dropout": "true", "state": "not started"}
    ]
