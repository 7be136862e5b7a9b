"""Runs that cannot be compared are refused with the reason; others lose what is not comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llmkit.errors import UsageError
from llmkit.reporting import held_out
from llmkit.reporting.held_out import HeldOut, write_held_out
from llmkit.reporting.page.comparability import check_comparable, common_figures, why_unpaired
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun

TEXT = {"loss": 1.0, "perplexity": 2.7, "bits_per_byte": 1.5}
RESPONSES = {"loss": 1.0, "perplexity": 2.7}
MASKED = {"loss": 1.0, "accuracy": 0.5}
NAMES = {"per_class": {"a": {}, "b": {}}}
ROWS = {"loss": 1.0, "accuracy": 0.5, "f1_macro": 0.5, **NAMES}


def made(
    make_run: MakeRun,
    name: str,
    figures: dict[str, Any],
    config: dict[str, Any] | None = None,
    kept: HeldOut | None = None,
    **facts: Any,
) -> RunRecord:
    """A finished run with these figures, which may have kept its held-out units."""
    settings = {"train": {"objective": "causal"}, "data": {"train_files": ["a.txt"]}}
    record = {"command": "pretrain", "result": {"validation": figures}, **facts}
    directory: Path = make_run(
        name, run_json=json.dumps(record), evaluation_json=None,
        config_yaml=yaml.safe_dump({**settings, **(config or {})}),
    )  # fmt: skip
    if kept is not None:
        write_held_out(directory, kept)
    return read_run(directory)


def passages(content: str, domains: dict[str, str] | None = None, overall: str = "") -> HeldOut:
    """Passages of a text, or of domains."""
    columns = {"unit": np.arange(6), "nll": np.ones(6), "predictions": np.ones(6, int),
               "bytes": np.ones(6)}  # fmt: skip
    if domains:
        columns["domain"] = np.arange(6) % len(domains)
    return HeldOut(held_out.OF_TEXT, content, columns, (), domains or {}, tuple(overall))


MASKS = {"train": {"objective": "masked", "mask_probability": 0.3}}
LABELS = {"train": {}, "data": {"problem_type": "single_label_classification"}}
OTHER_LABELS = {**ROWS, "per_class": {"a": {}, "c": {}}}


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ((TEXT, {}), (RESPONSES, {"train": {"objective": "completion"}}),
         "one is a causal language model, the other a model that responds"),
        ((ROWS, LABELS), (OTHER_LABELS, LABELS),
         "they predict different labels, such as 'b', 'c'"),
        ((MASKED, MASKS), (MASKED, {"train": {"objective": "masked", "mask_probability": 0.15}}),
         "they were measured with 30% and 15% of the tokens hidden"),
        ((TEXT, {}), (TEXT, {"data": {"train_files": ["b.txt"]}}),
         "held-out parts of different data"),
    ],
    ids=["tasks", "labels", "masks", "data"],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused_with_the_reason(
    make_run: MakeRun, one: Any, other: Any, reason: str
) -> None:
    runs = [
        made(make_run, name, *what, content={"validation data": name})
        for name, what in (("one", one), ("other", other))
    ]
    with pytest.raises(UsageError, match="one and other cannot be compared") as refused:
        check_comparable(runs)
    assert reason in refused.value.what
    assert refused.value.next


@pytest.mark.parametrize("objective", ["masked", "completion"])
def test_figures_per_token_of_different_tokenizers_are_refused(
    make_run: MakeRun, objective: str
) -> None:
    config = {"train": {"objective": objective}}
    figures = MASKED if objective == "masked" else RESPONSES
    runs = [made(make_run, name, figures, config, tokenizer=name) for name in "ab"]
    with pytest.raises(UsageError, match="per token of different tokenizers"):
        check_comparable(runs)
    runs = [made(make_run, name, figures, config, tokenizer="t") for name in "cd"]
    check_comparable(runs)


def test_texts_are_compared_per_byte_where_tokenizers_differ(make_run: MakeRun) -> None:
    same = [made(make_run, name, TEXT, tokenizer="t") for name in "ab"]
    assert common_figures(same) == ["bits_per_byte", "perplexity", "loss"]
    other = [same[0], made(make_run, "c", TEXT, tokenizer="u")]
    check_comparable(other)
    assert common_figures(other) == ["bits_per_byte"]


def test_other_training_data_are_compared_on_the_same_held_out_text(make_run: MakeRun) -> None:
    runs = [
        made(make_run, name, TEXT, {"data": {"train_files": [name]}}, passages("text"))
        for name in "ab"
    ]
    check_comparable(runs)
    assert why_unpaired(*runs) is None


def test_experts_are_not_ranked_but_share_their_domains(make_run: MakeRun) -> None:
    hashes = {"x": "1", "y": "2"}
    runs = [made(make_run, name, TEXT, {}, passages(name, hashes, name)) for name in "xy"]
    check_comparable(runs)
    assert common_figures(runs) == []


def test_why_two_runs_are_not_paired(make_run: MakeRun) -> None:
    kept = made(make_run, "kept", TEXT, {"seed": 1}, passages("drawn by 1"), tokenizer="t")
    seeded = made(make_run, "seeded", TEXT, {"seed": 2}, passages("drawn by 2"), tokenizer="t")
    other = made(make_run, "other", TEXT, {"seed": 1}, passages("another"), tokenizer="u")
    older = made(make_run, "older", TEXT)
    assert "drawn by different seeds" in str(why_unpaired(kept, seeded))
    assert why_unpaired(kept, other) == "the tokenizers of kept and other differ"
    assert "older was made by an earlier version" in str(why_unpaired(kept, older))
