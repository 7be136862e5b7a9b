"""What a merge of domain experts gains and loses: its figures on the held-out text of each domain,
beside those of the seed and of each expert's own run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data.examples.blocks import Blocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.readers.files import Sources
from llmkit.data.text import domains
from llmkit.data.text.found_domains import FoundDomains, known_clusters
from llmkit.data.text.prepare import held_out_domains
from llmkit.data.text.token_file import TokenFile, joined
from llmkit.distributed.processes import Processes
from llmkit.errors import InputNotFound
from llmkit.evaluation.experts import ScoredText, share_rows
from llmkit.evaluation.passages import text_passages
from llmkit.evaluation.scored_rows import CausalRows
from llmkit.evaluation.segments import byte_lengths, segments_of, survey_mixture
from llmkit.evaluation.windows import ScoringProtocol, Windows
from llmkit.models import pretrained
from llmkit.models.experts.record import ExpertsRecord
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting.held_out import HeldOut

WORSE = 0.01
"""A merge is reported as worse than the seed on a domain if it needs this much more bits."""
BITS = "bits_per_byte"


@dataclass(frozen=True)
class DomainTexts:
    """The held-out text of each domain, as training measures it."""

    config: Config
    """Its mixture has the domains whose text is here."""
    files: Mapping[str, TokenFile]
    block_size: int
    missing: Sequence[str] = ()
    """The domains of the config whose text is not on this machine."""

    @property
    def content(self) -> dict[str, str]:
        """The hash of each text, by description."""
        return {f"validation data of {name}": each.fingerprint for name, each in self.files.items()}

    def blocks(self, names: Sequence[str]) -> Mixture:
        """The blocks of some domains, or of all."""
        isolated = self.config.data.isolate_documents
        chosen = {name: self.files[name] for name in names or self.files}
        return Mixture({n: Blocks(file, self.block_size, isolated) for n, file in chosen.items()})

    def scored(self, model: Pretrained, processes: Processes, watch: Watch) -> ScoredText:
        """All texts as the rows of one, in the same blocks."""
        tokens, origins = joined(list(self.files.values()))
        how = ScoringProtocol(self.block_size, self.block_size, "packed", "document", True)
        rows = CausalRows(Windows(tokens, how, origins))
        segments = segments_of(tokens, byte_lengths(model.tokenizer))
        survey = survey_mixture(self.config, self.files)
        return ScoredText(rows, segments, survey, processes, None, watch)


def open_texts(
    config: Config, sources: Sources, model: Pretrained, block_size: int, watch: Watch, say: Say
) -> DomainTexts | None:
    """The held-out text of the domains of `data.mixture` that are on this machine; None if there is
    none."""
    here, missing = {}, []
    for name, (learned, held_out) in domains.keys_by_domain(config).items():
        if not name:
            return None
        try:
            found = sources.of(held_out)
            if found or (config.data.validation_fraction != 0 and sources.of(learned)):
                here[name] = config.data.mixture[name]
        except InputNotFound:
            missing.append(name)
    if not here:
        return None
    some, known = config.changed(data={"mixture": here}), None
    if config.data.domains is not None:
        clusters = known_clusters(config, [Path(model.location)])
        known = FoundDomains(config, sources, clusters, watch, say)
    files = held_out_domains(some, sources, model.tokenizer, watch, say, known)
    return DomainTexts(some, files, block_size, missing)


@dataclass(frozen=True)
class MergeFigures:
    """The figures of a merged model on the held-out text of each domain."""

    held_out: HeldOut
    seed: HeldOut | None
    branches: Mapping[str, HeldOut]
    """By domain, the run of its expert."""
    shares: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """The share of each expert in each domain; empty for a dense model."""

    def described(self) -> dict[str, Any]:
        """The figures as `--json` has them: overall, and of each domain, with those of the seed as
        `before`."""
        names = list(self.held_out.domains)
        each = {name: self.held_out.of_domain(name).figures() for name in names}
        overall = {**self.held_out.figures(), "intervals": self.held_out.intervals()}
        for name, figures in each.items():
            overall |= {f"{key}/{name}": value for key, value in figures.items()}
        found: dict[str, Any] = {"validation": overall}
        found["domains"] = {name: self._domain(name, each[name]) for name in names}
        return found | ({"shares": list(self.shares)} if self.shares else {})

    def _domain(self, name: str, after: Mapping[str, float]) -> dict[str, Any]:
        found: dict[str, Any] = {"after": after}
        if self.seed is not None:
            before = self.seed.of_domain(name)
            found["before"] = before.figures()
            changes = self.held_out.of_domain(name).differences(before)
            found["change"] = {key: after[key] - value for key, value in found["before"].items()}
            found["change_intervals"] = {key: [d.low, d.high] for key, d in changes.items()}
        if name in self.branches:
            found["expert"] = self.branches[name].of_domain(name).figures()
        return found


def measure_merge(
    merged: Pretrained,
    record: ExpertsRecord | None,
    seed: Pretrained | None,
    branches: Mapping[str, Pretrained],
    texts: DomainTexts,
    processes: Processes,
    watch: Watch,
) -> MergeFigures:
    """Measures a merged model and its seed on all texts, and the run of each expert on its own."""

    def loaded(opened: Pretrained) -> PreTrainedModel:
        with watch("loading the model", 0):
            return pretrained.load_model(opened).eval().to(processes.device)

    def measured(model: PreTrainedModel, *names: str) -> HeldOut:
        return text_passages(model, texts.blocks(names), merged.tokenizer, watch)

    model, shares = loaded(merged), list[dict[str, Any]]()
    held_out = measured(model)
    if record is not None:
        found = texts.scored(merged, processes, watch)
        shares = share_rows(found.shares(model), found.survey, record.names)
    del model
    own = {name: branches[name] for name in texts.files if name in branches}
    return MergeFigures(
        held_out,
        None if seed is None else measured(loaded(seed)),
        {name: measured(loaded(branch), name) for name, branch in own.items()},
        shares,
    )


def worse_domains(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A warning for each domain, in the figures of `MergeFigures.described`, on which the merge is
    worse than the seed."""
    for name, figures in found.items():
        before, after = figures.get("before", {}).get(BITS), figures["after"][BITS]
        if before is not None and after > (1 + WORSE) * before:
            yield (
                f"the merge is worse than the seed on {name}: {after:.4g} bits per byte, the seed "
                f"{before:.4g} ({after / before - 1:+.1%})"
            )
