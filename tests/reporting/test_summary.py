"""The end of a run as people read it, and the sentences that say what figures mean."""

from __future__ import annotations

from typing import Any

import pytest

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
        "  report   runs/a/report.html",
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
    assert [line.split()[0] for line in lines] == ["Done:", "model", "curve", "report", "next"]


def test_only_results_of_training_are_summed_up() -> None:
    assert summary.is_training(RUN)
    assert not summary.is_training({"command": "evaluate", "perplexity": 3.0})


MAJORITY, TFIDF = {"accuracy": 0.5, "f1_macro": 0.33}, {"accuracy": 0.74, "f1_macro": 0.73}


def classifier(accuracy: float, f1: float, **more: object) -> dict[str, object]:
    beside = {"majority": MAJORITY, "tfidf": TFIDF}
    return {"accuracy": accuracy, "f1_macro": f1, "baseline": beside, **more}


def test_new_weights_that_took_too_few_steps_are_called_so() -> None:
    [text] = summary.of_steps(1, from_scratch=True)
    assert text.startswith("only 1 optimizer step: the model is untrained")
    assert "train.max_minutes" in text
    assert not list(summary.of_steps(summary.FEWEST_STEPS, from_scratch=True))
    assert not list(summary.of_steps(1, from_scratch=False))


@pytest.mark.parametrize(
    ("loss", "train_loss", "says"),
    [
        (9.57, 4.8, "no better than that of a unigram model, 6.00"),
        (5.9, 4.8, "far above the training loss of 4.80"),
        (4.9, 4.8, None),
        (4.0, 4.8, None),
    ],
)
def test_a_held_out_loss_is_read_beside_unigram_and_training(loss, train_loss, says) -> None:
    found = list(summary.of_language_model({"loss": loss}, {"loss": 6.0}, train_loss))
    assert [says in text for text in found] == ([True] if says else [])


@pytest.mark.parametrize(
    ("accuracy", "f1", "says"),
    [
        (0.5, 0.33, "no better than always predicting the most frequent label (0.500)"),
        (0.65, 0.64, "worse than TF-IDF with logistic regression (0.740)"),
        (0.70, 0.75, None),  # F1 for accuracy: a trade, not a failure
        (0.80, 0.80, None),
    ],
)
def test_a_classifier_is_read_beside_its_baselines(accuracy, f1, says) -> None:
    found = list(summary.of_classifier("validation", classifier(accuracy, f1), summary.PRETRAINED))
    assert [says in text for text in found] == ([True] if says else [])
    assert all("--model" in text for text in found)


def test_the_interval_of_a_figure_is_given_with_it() -> None:
    figures = classifier(0.65, 0.64, intervals={"accuracy": (0.59, 0.71)})
    [text] = summary.of_classifier("test", figures, summary.LONGER)
    assert text.startswith("test: accuracy 0.65 (95% interval 0.59 to 0.71) is worse")


def test_a_regression_is_read_beside_the_constant() -> None:
    beside = {"majority": {"mse": 4.0}, "tfidf": {"mse": 2.0}}
    for mse, says in ((4.5, "always predicting the mean (4)"), (3.0, "ridge"), (1.0, None)):
        found = list(summary.of_classifier("test", {"mse": mse, "baseline": beside}, ""))
        assert [says in text for text in found] == ([True] if says else [])


def test_a_measured_text_is_read_beside_its_own_unigram_model() -> None:
    beside = {"baseline": {"perplexity": 84.1}}
    [text] = summary.of_measured_text("runs/a", {"perplexity": 575.8, **beside})
    assert "runs/a: a perplexity of 575.8 is no better than the 84.1 of a unigram model" in text
    assert not list(summary.of_measured_text("runs/a", {"perplexity": 20.0, **beside}))
    masked = {"pseudo_perplexity": 90.0, "baseline": {"pseudo_perplexity": 84.1}}
    assert len(list(summary.of_measured_text("runs/a", masked))) == 1


def test_the_next_command_after_a_masked_model_has_a_mask() -> None:
    run = {**RUN, "validation": {"loss": 2.0, "accuracy": 0.5}, "baseline": {}}
    lines = list(summary.of_training(run))
    assert lines[-1] == '  next     llmkit generate --model runs/a --prompt "a text with a [MASK]"'


def test_an_overlap_with_training_is_reported_with_the_figures_of_the_rest() -> None:
    overlap = "9 of these 10 rows (90%)"
    start = f"runs/a was trained on {overlap}: these are not held-out figures"
    assert summary.of_overlap("runs/a", overlap, "row", None) == start
    assert summary.of_overlap("runs/a", overlap, "row", {}) == (
        f"{start}, and there is no row that it was not trained on"
    )
    rest = {"examples": 1, "mae": 0.5, "mse": 0.3, "pearson": 0.0}
    assert summary.of_overlap("runs/a", overlap, "row", rest).startswith(
        f"{start}; on the 1 row that it was not trained on: mean absolute error 0.5"
    )
    masked = {"documents": 3, "pseudo_perplexity": 12.345}
    assert summary.of_overlap("runs/a", overlap, "document", masked).endswith(
        "on the 3 documents that it was not trained on: pseudo-perplexity 12.35"
    )


def test_a_domain_shows_what_it_gained_or_lost() -> None:
    found = {
        "a": {"share": 1.0, "epochs": 0.5, "before": {"loss": 2.0}, "after": {"loss": 1.5},
              "change": {"loss": -0.5}},
        "b": {"share": 0.0, "epochs": 0.0, "before": {"loss": 4.0}, "after": {"loss": 4.5},
              "change": {"loss": 0.5}},
        "c": {"share": 0.0, "epochs": 0.0, "after": {"loss": 4.5}},
    }  # fmt: skip
    rows = summary.domain_rows(found)
    assert [row.get("result") for row in rows] == ["gained", "lost", None]
    assert [row["loss"] for row in rows] == ["2 -> 1.5 (-25.0%)", "4 -> 4.5 (+12.5%)", "4.5"]


def test_the_rows_of_an_older_run_are_shown_as_it_recorded_them() -> None:
    rows = [{"domain": "a", "share": "50.0%", "loss": "2"}, {"domain": "b", "loss": "4"}]
    assert summary.domain_rows(rows) == rows


def test_rows_of_one_label_or_number_do_not_judge_a_model() -> None:
    perfect = {"accuracy": 1.0, "f1_macro": 1.0}
    for accuracy in (0.0, 0.5, 1.0):
        figures = {"accuracy": accuracy, "f1_macro": accuracy, "baseline": {"majority": perfect}}
        (warning,) = summary.of_classifier("test", figures, "")
        assert "all rows have the same label" in warning
    figures = {"mse": 2.0, "baseline": {"majority_of_these_rows": {"mse": 0.0}}}
    (warning,) = summary.of_classifier("test", figures, "")
    assert "all rows have the same number" in warning


PAIRS: dict[str, Any] = {
    "pairs": 200, "loss": 0.62, "accuracy": 0.71, "margin": 1.5, "chosen_gain": 0.4,
    "rejected_gain": -1.1, "intervals": {"accuracy": [0.65, 0.77], "chosen_gain": [0.1, 0.7]},
}  # fmt: skip
UNCHANGED = {"loss": 0.6931, "accuracy": 0.5, "margin": 0.0}


def test_preferences_are_summed_up_beside_chance_and_the_reference() -> None:
    run = {**RUN, "command": "finetune", "validation": PAIRS, "baseline": {"reference": UNCHANGED}}
    lines = list(summary.of_training(run))
    assert lines[1] == (
        "Held-out data: the chosen response preferred in 71.0% of the pairs (95% interval 0.65 to "
        "0.77) [chance 50%], loss 0.62 [reference model 0.6931], margin 1.5."
    )
    assert lines[-1] == '  next     llmkit generate --model runs/a --prompt "..."'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"accuracy": 0.52, "intervals": {"accuracy": [0.45, 0.59]}}, ["has not learned"]),
        ({"loss": 0.75}, ["no better than that of the reference model"]),
        ({"chosen_gain": -3.2, "intervals": {"accuracy": [0.6, 0.8], "chosen_gain": [-4, -2]}},
         ["become less likely"]),
        ({"chosen_gain": -0.1, "intervals": {"accuracy": [0.6, 0.8], "chosen_gain": [-1, 1]}}, []),
        ({"chosen_gain": -3.2, "intervals": {}}, ["become less likely"]),
        ({"accuracy": 0.4, "chosen_gain": -3.2, "intervals": {}},
         ["has not learned", "become less likely"]),
    ],
)  # fmt: skip
def test_preferences_are_read_beside_the_reference(changes, says) -> None:
    found = list(summary.of_preferences("validation", {**PAIRS, **changes}, UNCHANGED))
    assert len(found) == len(says)
    for text, words in zip(found, says, strict=True):
        assert words in text
    without = {key: value for key, value in PAIRS.items() if key != "loss"}
    assert not list(summary.of_preferences("pairs", without, UNCHANGED))
