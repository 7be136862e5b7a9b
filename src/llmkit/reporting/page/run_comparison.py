"""Several runs side by side: keys that differ, figures with intervals, and their differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.format import bounds_of, bounds_text, figure_text
from llmkit.reporting.held_out import Difference
from llmkit.reporting.page.comparability import common_figures, domains_differ, why_unpaired
from llmkit.reporting.run_record import LOWER_IS_BETTER, RunRecord

_SKIPPED = ("output_dir", "train.plan", "resume")
"""Keys that every run has its own value of."""


@dataclass(frozen=True)
class RunComparison:
    """Runs, ranked by the first figure that they have in common."""

    runs: Sequence[RunRecord]

    @cached_property
    def figures(self) -> list[str]:
        """The figures that the runs are compared by, the most important first."""
        return common_figures(self.runs)

    @cached_property
    def ranked(self) -> list[RunRecord]:
        """The runs by their main figure, best first; unfinished ones only if none is finished. Runs
        without the figure, or with one that is NaN or infinite, have no rank."""
        if not self.figures:
            return []
        key = self.figures[0]
        done = [run for run in self.runs if run.is_finished] or list(self.runs)
        usable = [run for run in done if finite(run.validation.get(key)) is not None]
        return sorted(
            usable, key=lambda run: run.validation[key], reverse=key not in LOWER_IS_BETTER
        )

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """By the name of a run, its figures minus those of the best one, where they are measured in
        pairs."""
        best = self.ranked[0] if self.ranked else None
        found = {}
        for run in self.runs:
            if best is None or run is best or why_unpaired(run, best):
                continue
            assert run.held_out is not None
            assert best.held_out is not None
            found[run.name] = run.held_out.differences(best.held_out)
        return found

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the resolved configs in which the runs differ."""
        every = [dict(dotted_values(run.config)) for run in self.runs]
        names = dict.fromkeys(key for values in every for key in values)
        return [
            key
            for key in names
            if key not in _SKIPPED and any(values.get(key) != every[0].get(key) for values in every)
        ]

    @property
    def given_keys(self) -> list[str]:
        """Those of the keys that were given for a run; all for runs that do not know."""
        origins = [run.facts.get("origins") for run in self.runs]
        if not all(origins):
            return self.keys
        return [key for key in self.keys if any((o or {}).get(key) == "given" for o in origins)]

    @property
    def sentences(self) -> list[str]:
        """Which run is best, by how much, and how far that can be trusted."""
        if not self.ranked:
            return [self._why_unranked()]
        key, ranked = self.figures[0], self.ranked
        name, values = METRIC_NAMES.get(key, key), [run.validation[key] for run in ranked]
        if len(ranked) > 1 and RunComparison(ranked).keys == ["seed"]:
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            low, high = map(figure_text, (min(values), max(values)))
            return [
                f"{len(ranked)} runs that differ only in their seed: mean {name} "
                f"{figure_text(mean)}, from {low} to {high} (standard deviation "
                f"{figure_text(spread)})."
            ]
        first = ranked[0]
        text = f"{first.name} has the best {name}: {figure_text(values[0])}"
        if len(ranked) == 1:
            return [f"{text}."]
        if (equal := values.count(values[0])) > 1:
            text = f"{equal} runs share the best {name}: {figure_text(values[0])}"
            text += f"; {first.name} is the first of them"
        else:
            text += f"; next is {ranked[1].name} with {figure_text(values[1])}"
            text += self._how_clear(ranked[1], key)
        return [f"{text}.", self._caution(first, key)]

    @property
    def warnings(self) -> list[str]:
        """Why differences are not computed from pairs, where they are not."""
        if not self.ranked:
            return []
        best = self.ranked[0]
        others = (run for run in self.ranked if run is not best)
        reasons = dict.fromkeys(filter(None, (why_unpaired(run, best) for run in others)))
        shown = list(reasons)[:_REASONS]
        if more := len(reasons) - len(shown):
            shown.append(f"and so on for {more} more")
        return [f"Not compared in pairs: {'; '.join(shown)}."] if shown else []

    def _why_unranked(self) -> str:
        if not any(run.validation for run in self.runs):
            return "None of these runs has validation figures."
        if domains_differ(self.runs):
            return (
                "These runs are judged by different domains, so that none is best overall: the "
                "table of domains compares them."
            )
        return "These runs have no figure by which they can be ranked."

    def _how_clear(self, second: RunRecord, key: str) -> str:
        """How certain it is that the second is worse than the best."""
        if found := self.differences.get(second.name, {}).get(key):
            what = f"{found.n_units:,} {second.held_out.unit}s" if second.held_out else "pairs"
            low_high = " to ".join(map(signed, (found.low, found.high)))
            clear = "is clear" if found.is_clear else "may be chance"
            shown = f"{signed(found.value)} (95% interval {low_high}, in pairs over {what})"
            return f". The difference {clear}: {shown}"
        one, two = (bounds_of(run.validation, key) for run in (self.ranked[0], second))
        if one and two and one[0] <= two[1] and two[0] <= one[1]:
            return ". Their intervals overlap: the difference may be chance"
        return ""

    def _caution(self, best: RunRecord, key: str) -> str:
        """Why the figure of the best run is optimistic, and its figure on the test data, which was
        not used to choose the run."""
        text = (
            f"The best of {len(self.ranked)} runs was chosen by its validation figure, which is "
            "therefore too optimistic"
        )
        measured = best.evaluation.get("test") or best.result.get("test") or {}
        if (value := measured.get(key)) is None:
            return f"{text}: evaluate it on other data with llmkit evaluate."
        bounds = bounds_text(measured, key)
        shown = f"{figure_text(value)}{f' ({bounds})' if bounds else ''}"
        return f"{text}. On the test data, it has {METRIC_NAMES.get(key, key)} {shown}."


_REASONS = 3
"""Maximum number of reasons that are listed."""


def finite(value: float | None) -> float | None:
    """A figure; None for one that is missing, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else value


def signed(value: float) -> str:
    """A difference with its sign, to three digits."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def dotted_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_values(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
