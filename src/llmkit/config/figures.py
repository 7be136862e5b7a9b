"""The figures that validation gives, by what is learned."""

from __future__ import annotations

from collections.abc import Collection, Iterator

CAUSAL = ("loss", "perplexity", "bits_per_byte")
MASKED = ("loss", "accuracy")
RESPONSES = ("loss", "perplexity")
LABELS = {
    "regression": ("mse", "mae", "pearson"),
    "multi_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_weighted"),
    "single_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews"),
}
"""Of labelled rows, by `data.problem_type`, beside the loss."""

_OF_JOB = {"pretrain/causal": CAUSAL, "pretrain/masked": MASKED, "finetune/completion": RESPONSES}


def names(jobs: Collection[str], problem_type: str) -> list[str]:
    """The figures that any of the jobs may give."""
    return list(dict.fromkeys(_names(jobs, problem_type)))


def _names(jobs: Collection[str], problem_type: str) -> Iterator[str]:
    for job in sorted(jobs):
        yield from _OF_JOB.get(job, ("loss",))
        if job == "finetune/classification":
            for kind, figures in reversed(LABELS.items()):
                yield from figures if problem_type in ("auto", kind) else ()
