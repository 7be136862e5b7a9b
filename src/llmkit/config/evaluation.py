"""The keys of `evaluation` and `predict`: what is measured, and what is written of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.types import Auto, Count, Files, Section, Whole


class PredictConfig(Section):
    """How `predict` reads and writes."""

    output: str | None = None
    """File for the predictions, `.jsonl` or `.csv`; without it they go to stdout."""
    format: Literal["auto", "jsonl", "csv"] = "auto"
    """`auto` goes by the name of the output, and is `jsonl` for stdout."""
    columns: Files = ("*",)
    """Columns of the input to repeat in the output beside the text; `*` is all, `[]` none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is bf16 where the hardware has it, for speed: probabilities differ from
    those of `evaluate` by about 0.01, so a label near the border may too. fp32 gives the
    probabilities of `evaluate` and of plain transformers."""


class EvaluationConfig(Section):
    """What `evaluate` measures, and how."""

    window: Annotated[int, Field(strict=True, ge=2)] | Auto = "auto"
    """Tokens that the model sees at once; `auto` is its whole context, at most 4096."""
    stride: Count | Auto = "auto"
    """Tokens by which the window moves on; `auto` is the window, so that no two overlap."""
    documents: Literal["packed", "separate", "joined"] = "packed"
    """`packed`: windows are cut from all documents in a row, as in pretraining, and none sees
    another; `separate`: each begins a window; `joined`: all are one text."""
    bos: Literal["document", "window"] = "document"
    """Where the opening token stands: before each document, or before each window."""
    score_end: bool = True
    """Score the end of each document too, as in pretraining."""
    batch_tokens: Count | Auto = "auto"
    """Tokens that one device reads at once; changes no result."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is fp32, which gives the figures of training and of plain transformers,
    and bf16 for weights that are stored in bf16, where the hardware has it."""
    compare_with: Files = ()
    """More models, measured on the same bytes and compared in pairs."""
    by_document: bool = False
    """A table with a row for each document."""
    by_domain: bool = False
    """A table with a row for each domain: each file, or each value of `domain_column`; those of
    `data.mixture`, measured on what they hold out where there are no test files, always have it."""
    domain_column: str | Whole | None = None
    """Column of the domain, by name or by number from 0."""
    per_token: str | None = None
    """File for a web page that shades each token by its surprise."""
    log_samples: str | None = None
    """File for everything that was scored, as JSON lines."""
    output: str | None = None
    """File for the result: `.json` for machines, any other name for people."""
    prompt_column: str | Whole | None = None
    """Column of prompts, to which the model writes what `reference_column` is compared with."""
    prediction_column: str | Whole | None = None
    """Column of texts that were written already."""
    reference_column: str | Whole | None = None
    """Column of the text that should have been written; with it, texts are compared."""
    responses: Whole = 0
    """Held-out prompts that a model answers once it is finetuned to complete them; the answers are
    compared with the responses."""
    worst: Whole = 10
    """Worst mistakes of a classifier that are shown with their text."""
    tasks: Files = ()
    """Tasks of lm-evaluation-harness: names, or files and directories of task definitions."""
    task_limit: Count | None = None
    """Examples of each task that are run; all if not given."""
