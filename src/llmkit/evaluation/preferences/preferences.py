"""Evaluate language models on pairs of responses: which of the two each prefers, compared with the
model that training began with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.config.schema import Config
from llmkit.data.examples.preferences import EncodedPairs, encode_preferences
from llmkit.data.readers.files import Sources
from llmkit.data.records.conversation_sets import load_test
from llmkit.data.records.parts import format_places
from llmkit.data.records.preferences import PREFERENCES, Preference
from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.labels.measuring import figures_beside
from llmkit.evaluation.preferences.margins import (
    held_out_pairs,
    log_probabilities,
    pair_figures,
)
from llmkit.models import chat_template, tokenizer_saving
from llmkit.models.pretrained import Pretrained, load_model, open_model
from llmkit.progress import Say, Watch
from llmkit.reporting.format import many
from llmkit.reporting.held_out import HeldOut

CHANCE = {"accuracy": 0.5, "margin": 0.0}
"""The figures of the reference: which response is likelier than under itself is chance."""

_LENGTH, _SHOWN = 2048, 100


@dataclass(frozen=True)
class MeasuredPairs:
    """The results of one model."""

    model: Pretrained
    rows: Sequence[Preference]
    """[pairs]"""
    pairs: HeldOut
    values: NDArray[np.float64]
    """[pairs, 2], the log-probabilities of both responses."""
    reference: NDArray[np.float64]
    """The same of the reference."""
    figures: dict[str, Any]


def load_pairs(
    config: Config, sources: Sources, watch: Watch, say: Say, warn: Say
) -> Sequence[Preference]:
    """The rows of `data.test_files`. Raises the errors of reading."""
    found = sources.of("data.test_files")
    return load_test(PREFERENCES, found, config.data, watch, say, warn)


def measure_preferences(
    config: Config,
    rows: Sequence[Preference],
    models: Sequence[Pretrained],
    processes: Processes,
    watch: Watch,
    warn: Say,
) -> list[MeasuredPairs]:
    """Evaluates models beside `evaluation.reference_model`; each reads texts with its own tokenizer
    and chat template, and the reference with those of the model.

    Raises ConfigError for a reference with another vocabulary, DataError if nothing is left.
    """
    named = config.evaluation.reference_model
    assert named is not None
    base = open_model(named)
    base.check_causal()
    for model in models:
        _check_vocabulary(model, base)
    encoded = [_encoded(config, rows, model, watch, warn) for model in models]
    measured = {}
    for each in (*models, base):
        loaded = load_model(each).to(processes.device).eval()
        for number, model in enumerate(models):
            if each is model or each is base:
                part = "measuring the reference" if each is base else "measuring pairs"
                measured[number, each is base] = log_probabilities(
                    loaded, encoded[number], processes, part, watch
                )
        del loaded
    return [
        _figures(config, rows, model, encoded[n], measured[n, False], measured[n, True])
        for n, model in enumerate(models)
    ]


def _check_vocabulary(model: Pretrained, base: Pretrained) -> None:
    model.check_causal()
    if model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ConfigError(
            f"{base.name} has another vocabulary than {model.name}",
            where="evaluation.reference_model",
            next="name the model that its training began with",
        )


def _encoded(
    config: Config, rows: Sequence[Preference], model: Pretrained, watch: Watch, warn: Say
) -> EncodedPairs:
    tokenizer = model.tokenizer
    template, _ = chat_template.set_template(tokenizer, config.tokenizer.chat_template)
    template = replace(
        template, tokenizer=tokenizer_saving.savable_tokenizer(tokenizer, model.config)
    )
    length = model.context or _LENGTH
    found = encode_preferences(rows, template, length, watch)
    if found.left_out:
        places = [(rows[row].path, rows[row].number) for row in found.left_out]
        what = f"{many(len(places), 'row')} with {found.lacking}, after {length} tokens"
        if not len(found):
            raise DataError(f"{what}: nothing is left", where=format_places(places))
        warn(f"{model.name}: {what}, skipped: {format_places(places)}")
    return found


def _figures(
    config: Config,
    rows: Sequence[Preference],
    model: Pretrained,
    encoded: EncodedPairs,
    own: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> MeasuredPairs:
    known = replace(encoded, reference=reference)
    pairs = held_out_pairs(known, own, lambda *each: pair_figures(*each[:2]))
    figures = {
        "model": model.name,
        "pairs": len(encoded),
        **pairs.figures(),
        "intervals": pairs.intervals(config.seed),
        "baseline": {"chance": CHANCE},
        "protocol": {
            "reference_model": config.evaluation.reference_model,
            "figures": "in nats, summed over the tokens of a response",
            "precision": "fp32",
        },
    }
    kept = [rows[number] for number in encoded.numbers.tolist()]
    return MeasuredPairs(model, kept, pairs, own, reference, figures)


def preference_result(config: Config, measured: Sequence[MeasuredPairs]) -> dict[str, Any]:
    """The figures of one model, or of several with comparisons, and the pairs whose rejected
    response a model prefers most."""
    found = figures_beside(measured, lambda: _comparisons(measured, config.seed))
    if most := config.evaluation.worst:
        found["worst"] = [row for each in measured for row in _worst(each, most)]
    return found


def preference_samples(measured: Sequence[MeasuredPairs]) -> Iterator[dict[str, Any]]:
    """Every pair with its gains."""
    for each in measured:
        for row, (chosen, rejected) in zip(
            each.rows, (each.values - each.reference).tolist(), strict=True
        ):
            yield {
                "model": each.model.name,
                "file": row.path,
                "row": row.number,
                "prompt": row.messages[-2].content,
                "chosen": row.messages[-1].content,
                "rejected": row.rejected[-1].content,
                "chosen_gain": chosen,
                "rejected_gain": rejected,
                "margin": chosen - rejected,
            }


def _worst(measured: MeasuredPairs, most: int) -> Iterator[dict[str, Any]]:
    samples = list(preference_samples([measured]))
    samples.sort(key=lambda sample: sample["margin"])
    for sample in samples[:most]:
        if sample["margin"] > 0:
            return
        yield {
            **{key: sample[key] for key in ("file", "row", "margin")},
            **{key: sample[key][:_SHOWN] for key in ("prompt", "chosen", "rejected")},
        }


def _comparisons(measured: Sequence[MeasuredPairs], seed: int) -> Iterator[dict[str, Any]]:
    """Pairwise differences of the accuracy on the same rows, with 95% intervals."""
    for one, other in combinations(measured, 2):
        names = {"model": one.model.name, "other": other.model.name}
        found = one.pairs.differences(other.pairs, seed).get("accuracy")
        value = one.figures["accuracy"] - other.figures["accuracy"]
        if found is None or len(one.rows) != len(other.rows):
            yield {**names, "accuracy_difference": value, "low": None, "high": None, "better": None}
            continue
        better = names["model" if found.low > 0 else "other"] if found.is_clear else None
        yield {
            **names,
            "accuracy_difference": found.value,
            "low": found.low,
            "high": found.high,
            "better": better,
        }


def measure_part(measured: MeasuredPairs, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures on some of the pairs."""
    both = (torch.from_numpy(each[chosen]) for each in (measured.values, measured.reference))
    means = {name: float(values.mean()) for name, values in pair_figures(*both).items()}
    return {"pairs": int(chosen.sum()), **means}
