"""The keys of `evaluation` and `predict`: what is measured, and which files are written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.applies import For
from llmkit.config.types import Auto, Count, FilePath, Files, Names, Section, Whole

_TEXT = For("evaluate/text")
_REFERENCES = For("evaluate/references")
_MODELS = For("evaluate/text", "evaluate/labels", "evaluate/tasks")


class PredictConfig(Section):
    """How `predict` reads and writes."""

    output: FilePath | None = None
    """File for the predictions, `.jsonl` or `.csv`; stdout by default."""
    format: Literal["auto", "jsonl", "csv"] = "auto"
    """Format of the predictions; `auto` follows the file name, and is `jsonl` on stdout."""
    columns: Names = ("*",)
    """Input columns to repeat in the output beside the text; `*` is all, `[]` none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is bf16 where the hardware supports it, for speed: probabilities differ
    from those of `evaluate` by about 0.01, so a label near the border may too. fp32 gives the
    probabilities of `evaluate` and of plain transformers."""


class EvaluationConfig(Section):
    """What `evaluate` measures, and how."""

    window: Annotated[Annotated[int, Field(strict=True, ge=2)] | Auto, _TEXT] = "auto"
    """Context in tokens; `auto` is the model's own, at most 4096."""
    stride: Annotated[Count | Auto, _TEXT] = "auto"
    """Tokens between the starts of two windows; `auto` is the window: no overlap. Less gives each
    token more context."""
    documents: Annotated[Literal["packed", "separate", "joined"], _TEXT] = "packed"
    """`packed`: windows hold several documents, as in pretraining, which do not see one another;
    `separate`: each document starts a window; `joined`: all documents are one text."""
    bos: Annotated[Literal["document", "window"], _TEXT] = "document"
    """Place the opening token before each document or before each window."""
    score_end: Annotated[bool, _TEXT] = True
    """Score the end-of-document token too, as in pretraining."""
    batch_tokens: Annotated[Count | Auto, _TEXT] = "auto"
    """Tokens that one device reads at once; changes no result."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], _MODELS] = "auto"
    """Arithmetic; `auto` is fp32, which gives the figures of training and of plain transformers,
    and bf16 for weights that are stored in bf16, where the hardware supports it."""
    compare_with: Annotated[Files, _MODELS] = ()
    """More models, measured on the same data and compared in pairs."""
    by_document: Annotated[bool, _TEXT] = False
    """Report each document in a row of a table."""
    by_domain: Annotated[bool, _TEXT] = False
    """Report each domain in a row of a table: each file, or each value of `domain_column`. The
    domains of `data.mixture`, measured on their held-out text without test files, always are."""
    domain_column: Annotated[str | Whole | None, _TEXT] = None
    """Column of the domain, by name or by number from 0."""
    per_token: Annotated[FilePath | None, _TEXT] = None
    """File for a web page that shades each token by its surprise."""
    log_samples: FilePath | None = None
    """File for every scored sample, as JSON lines."""
    output: FilePath | None = None
    """File for the results: JSON if it ends in `.json`, otherwise plain text."""
    prompt_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of prompts; the model's continuations are compared with `reference_column`."""
    prediction_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of texts that were generated before."""
    reference_column: Annotated[str | Whole | None, _REFERENCES] = None
    """Column of reference texts; with it, `evaluate` compares texts."""
    responses: Annotated[Whole, For("finetune/completion")] = 0
    """Held-out prompts that the finished model answers; the answers are compared with the
    responses."""
    worst: Annotated[Whole, For("evaluate/labels")] = 10
    """Number of worst mistakes to show with their text."""
    tasks: Annotated[Files, For("evaluate/tasks")] = ()
    """Tasks of lm-evaluation-harness: names, or files and directories of task definitions."""
    task_limit: Annotated[Count | None, For("evaluate/tasks")] = None
    """Number of examples of each task; all by default."""
