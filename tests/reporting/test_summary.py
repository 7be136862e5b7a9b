"""The end of a run as people read it."""

from __future__ import annotations

from typing import Any

from llmkit.reporting import summary

RUN: dict[str, Any] = {
    "command": "pretrain", "run_dir": "runs/a", "model_dir": "runs/a/final", "step": 30,
    "seconds": 63.2, "tokens_per_second": 6608.4, "train_loss": 5.0, "best_step": 20,
    "parameters": 5245696, "validation": {"loss": 5.19, "perplexity": 179.5, "bits_per_byte": 2.92},
    "baseline": {"unigram": {"loss": 6.06, "perplexity": 428.8, "bits_per_byte": 3.41}},
}  # fmt: skip


def test_a_language_model_is_summed_up_beside_the_unigram_model() -> None:
    assert list(summary.of_training(RUN)) == [
        "Done: 30 steps in 1:03 (5.25M parameters, 6,608 tokens/s).",
        "Held-out data: perplexity 179.5 [unigram model 428.8], 2.920 bits per byte "
        "(unigram model 3.410).",
        "The saved model is that of step 20, the best in validation.",
        "  model    runs/a/final",
        "  curve    runs/a/loss.png",
        '  next     llmkit generate --model runs/a --prompt "..."',
    ]


def test_a_classifier_is_summed_up_with_its_interval_and_baselines() -> None:
    beside = {
        "majority": {"accuracy": 0.508, "f1_macro": 0.3},
        "tfidf": {"accuracy": 0.736, "f1_macro": 0.73},
    }
    measured = {"accuracy": 0.652, "f1_macro": 0.64, "intervals": {"accuracy": (0.59, 0.71)}}
    run = {
        **RUN, "command": "finetune", "best_step": 30, "validation": measured, "baseline": beside,
        "pictures": {"confusion_matrix_validation": "runs/a/confusion_matrix_validation.png"},
    }  # fmt: skip
    lines = list(summary.of_training(run))
    assert lines[1] == (
        "Held-out data: accuracy 0.652 (95% interval 0.59 to 0.71) "
        "[TF-IDF 0.736, most frequent label 0.508], macro F1 0.640."
    )
    assert "  mistakes runs/a/confusion_matrix_validation.png" in lines
    assert lines[-1] == "  next     llmkit predict --model runs/a --csv new.csv"


def test_a_run_without_held_out_data_has_no_line_on_quality() -> None:
    lines = list(summary.of_training({**RUN, "validation": {}, "best_step": None}))
    assert [line.split()[0] for line in lines] == ["Done:", "model", "curve", "next"]


def test_only_results_of_training_are_summed_up() -> None:
    assert summary.is_training(RUN)
    assert not summary.is_training({"command": "evaluate", "perplexity": 3.0})
