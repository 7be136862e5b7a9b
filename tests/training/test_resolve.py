"""What was measured when a run began is recorded whole, and read again from older checkpoints."""

from __future__ import annotations

import json

from llmkit.training.resolve import Choices

RECORDED = {
    "max_eval_samples": 5, "logging_steps": 1, "save_steps": 2, "eval_steps": 4,
    "micro_batch_size": 3, "precision": "fp32", "compile": False, "attention": "sdpa",
    "epochs": 1.5, "plan": [[0, 10], [4, 12]], "step_seconds": 0.25, "validation_seconds": 1.0,
    "processes": 2, "full_rate": None, "llmkit": "0", "python": "3", "torch": "2",
    "transformers": "5", "accelerate": "1", "threads": 1, "weight_decay": 0.1,
}  # fmt: skip


def test_choices_are_read_and_written_as_the_same_json() -> None:
    lengthened = {**RECORDED, "lengthened": [{"step": 4, "changed": {"train.max_steps": [10, 12]}}]}
    for recorded in (RECORDED, lengthened):
        written = json.dumps(recorded)
        assert json.dumps(Choices.from_json(json.loads(written)).to_json()) == written


def test_choices_of_a_checkpoint_with_an_unknown_key_are_read_without_it() -> None:
    assert Choices.from_json({**RECORDED, "unknown": 1}) == Choices.from_json(RECORDED)
