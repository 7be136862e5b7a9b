"""Evaluate language models on text: all on the same bytes, then compared in pairs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text.found_domains import FoundDomains, known_clusters
from llmkit.data.text.prepare import held_out_domains, tokens_of
from llmkit.data.text.token_file import Places, TokenFile, joined
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.evaluation import perplexity
from llmkit.evaluation.experts import ScoredText, measure_experts
from llmkit.evaluation.likelihood import RowsToScore, Scores
from llmkit.evaluation.next_sentence import (
    NEXT_SENTENCE_PROTOCOL,
    has_next_sentence_head,
    measure_next_sentence,
)
from llmkit.evaluation.page import n_page_tokens, page
from llmkit.evaluation.scored_rows import MASKED_AVERAGE, MASKED_SCORED, CausalRows, MaskedRows
from llmkit.evaluation.segments import (
    Segments,
    Survey,
    byte_lengths,
    segments_of,
    survey_files,
    survey_mixture,
)
from llmkit.evaluation.windows import ScoringProtocol, Windows, check_tokens, protocol
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.experts.record import merged_record
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch
from llmkit.reporting.format import without_folders

MAX_LOST = 0.01
"""Share of letters and digits that a tokenizer may lose before bits per byte are meaningless."""


@dataclass(frozen=True)
class Text:
    """A text, tokenized for one model."""

    model: Pretrained
    protocol: ScoringProtocol
    tokens: TokenFile
    segments: Segments
    origins: Places | None = None
    """The first place of each domain of a mixture."""
    domains: Mapping[str, TokenFile] = field(default_factory=dict)
    """The text of each domain of a mixture."""


@dataclass(frozen=True)
class Measured:
    """The results of one model."""

    text: Text
    survey: Survey
    scores: Scores
    figures: dict[str, Any]
    experts: Mapping[str, list[dict[str, Any]]]
    """Tables on the experts of a merged model (`evaluation.experts`), as `measure_experts` gives
    them."""


def measure_text(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    watch: Watch,
    say: Say,
) -> list[Measured]:
    """Evaluates models on `data.test_files`; checks everything before loading weights."""
    protocols = [protocol(model, config.evaluation) for model in models]
    known = _known_domains(config, sources, models, watch, say)
    texts = [
        _text(config, sources, model, how, watch, say, known)
        for model, how in zip(models, protocols, strict=True)
    ]
    _check_lost(texts, say)
    if is_mixture(config):
        found = survey_mixture(config, texts[0].domains)
    else:
        column = config.evaluation.domain_column
        found = survey_files(texts[0].tokens, sources.of("data.test_files"), config.data, column)
    return [_measured(config, text, found, processes, watch, say) for text in texts]


def text_result(config: Config, measured: Sequence[Measured]) -> dict[str, Any]:
    """The metrics of one model, or of several with comparisons, and the requested tables."""
    settings, several = config.evaluation, len(measured) > 1
    found: dict[str, Any] = {}
    if several:
        found["models"] = [each.figures for each in measured]
        found["comparisons"] = [
            perplexity.comparison(
                [one.text.model.name, other.text.model.name],
                [one.scores, other.scores],
                one.text.segments,
                config.seed,
            )
            for one, other in combinations(measured, 2)
        ]
    else:
        found |= measured[0].figures
    for each in measured:
        name = {"model": each.text.model.name} if several else {}
        for table, rows in each.experts.items():
            found[table] = [*found.get(table, []), *({**name, **row} for row in rows)]
    if settings.by_domain or settings.domain_column is not None or is_mixture(config):
        found["by_domain"] = list(_rows(perplexity.by_domain, measured))
    if settings.by_document:
        found["by_document"] = list(_rows(perplexity.by_document, measured))
    return found


def measure_documents(measured: Measured, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The metrics of the chosen documents alone."""
    rows = perplexity.by_document(measured.scores, measured.text.segments, measured.survey)
    found = perplexity.of_documents([rows[number] for number in np.flatnonzero(chosen).tolist()])
    return dict(_named(measured.text, found))


def text_samples(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """A row for each model and document."""
    for each in measured:
        for row in perplexity.by_document(each.scores, each.text.segments, each.survey):
            yield {"model": each.text.model.name, **_named(each.text, row)}


def token_page(measured: Measured) -> str:
    """The web page that shades each token by its surprise; needs `evaluation.per_token`."""
    text, figures, tokens = measured.text, measured.figures, measured.text.tokens
    names = [n for n in figures if "perplexity" in n or "bits_per" in n]
    known = [n for n in names if figures[n] is not None]
    facts = [
        "  \N{MIDDLE DOT}  ".join(f"{n.replace('_', ' ')} {figures[n]:.4g}" for n in known),
        f"{figures['tokens']:,} tokens, {figures['bytes']:,} bytes, "
        f"{figures['documents']:,} documents, windows of {text.protocol.window} tokens, "
        f"stride {text.protocol.stride}, documents {text.protocol.documents}",
    ]
    warnings = []
    if tokens.lost > 0:
        what = f"{tokens.lost:.1%} of the letters and digits are unknown to this tokenizer"
        without = " Bits per byte would be meaningless." if len(known) < len(names) else ""
        warnings.append(f"{what}, and missing from the text below.{without}")
    title = f"Surprise of {without_folders(text.model.name)}"
    described = (facts, warnings, _document_names(measured.survey))
    return page(title, *described, tokens, measured.scores, text.model.tokenizer)


def _document_names(survey: Survey) -> list[str]:
    """The name of each document: its domain, or its file without folders, and its number there."""
    numbers, found = Counter[int](), []
    several = Counter(survey.domain_of_document.tolist())
    for domain in survey.domain_of_document.tolist():
        numbers[domain] += 1
        name = without_folders(survey.domains[domain])
        found.append(f"{name}, document {numbers[domain]}" if several[domain] > 1 else name)
    return found


def is_mixture(config: Config) -> bool:
    """Whether the text is the held-out part of the domains of `data.mixture`."""
    return bool(config.data.mixture) and not config.data.test_files


def _known_domains(
    config: Config, sources: Sources, models: Sequence[Pretrained], watch: Watch, say: Say
) -> FoundDomains | None:
    """The domains of `data.domains: auto`: those that the models were trained with, else found in
    the same text."""
    if not is_mixture(config) or config.data.domains is None:
        return None
    known = known_clusters(config, [Path(model.location) for model in models])
    return FoundDomains(config, sources, known, watch, say)


def _text(
    config: Config,
    sources: Sources,
    model: Pretrained,
    how: ScoringProtocol,
    watch: Watch,
    say: Say,
    known: FoundDomains | None,
) -> Text:
    origins, files = None, dict[str, TokenFile]()
    if model.kind == "masked":
        tokenizers.set_frame(model.tokenizer)
    if is_mixture(config):
        files = held_out_domains(config, sources, model.tokenizer, watch, say, known)
        tokens, origins = joined(list(files.values()))
    else:
        key = "data.test_files"
        tokens = tokens_of(sources.of(key), key, config, model.tokenizer, watch, say)
    check_tokens(model, tokens)
    return Text(
        model, how, tokens, segments_of(tokens, byte_lengths(model.tokenizer)), origins, files
    )


def _measured(
    config: Config, text: Text, found: Survey, processes: Processes, watch: Watch, say: Say
) -> Measured:
    settings, opened = config.evaluation, text.model
    with watch("loading the model", 0):
        model = pretrained.load_model(opened, say=say).eval().to(processes.device)
    say(f"model: {type(model).__name__}, {model.num_parameters():,} parameters")
    batch = None if settings.batch_tokens == "auto" else settings.batch_tokens
    scored = ScoredText(_rows_of(text), text.segments, found, processes, batch, watch)
    started = time.monotonic()
    scores = scored.score(model, n_page_tokens(text.tokens) if settings.per_token else 0)
    seconds = time.monotonic() - started
    figures = perplexity.figures(scores, text.segments, found, config.seed)
    described = {**_described(text), "precision": processes.precision}
    related = dict[str, float]()
    if has_next_sentence_head(opened.config):
        how = (text.tokens, text.protocol.window, processes, watch)
        related = measure_next_sentence(opened, *how)
        described["next_sentence"] = NEXT_SENTENCE_PROTOCOL
    timing = {"seconds": seconds, "tokens_per_second": figures["tokens"] / seconds}
    used: dict[str, list[dict[str, Any]]] = {}
    if settings.experts and (record := merged_record(opened)) is not None:
        used = measure_experts(model, record, scores, scored)
    tokens = text.tokens
    kept = {"blank": tokens.blank, "undecodable": tokens.undecodable, "lost": tokens.lost}
    named = {"model": opened.name, **_named(text, figures)}
    whole = {**named, **related, "left_out": kept, "protocol": described, **timing}
    return Measured(text, found, scores, whole, used)


def _named(text: Text, figures: Any) -> Any:
    """Metrics renamed for a masked model, and without bits for a lossy tokenizer."""
    if text.tokens.lost >= MAX_LOST:
        figures = perplexity.without_bits(figures)
    return perplexity.pseudo(figures) if text.model.kind == "masked" else figures


def _check_lost(texts: Sequence[Text], say: Say) -> None:
    """Reports a tokenizer that loses text; raises DataError when comparing models."""
    for text in texts:
        if text.tokens.lost < MAX_LOST:
            continue
        what = f"the tokenizer of {text.model.name} loses {text.tokens.lost:.0%} of the letters"
        if len(texts) > 1:
            raise DataError(
                f"{what}, so its bits per byte cannot be compared with another model's",
                where="data.test_files",
                next="compare models that know the script of the text",
            )
        say(f"{what}: bits per byte would be meaningless and are omitted")


def _rows_of(text: Text) -> RowsToScore:
    if text.model.kind == "masked":
        mask = text.model.tokenizer.mask_token_id
        assert mask is not None
        return MaskedRows(text.tokens, text.protocol.window, mask)
    return CausalRows(Windows(text.tokens, text.protocol, text.origins))


def _described(text: Text) -> dict[str, Any]:
    if text.model.kind == "masked":
        return {"window": text.protocol.window, "scored": MASKED_SCORED, "average": MASKED_AVERAGE}
    return text.protocol.described()


def _rows(
    table: Callable[[Scores, Segments, Survey], list[dict[str, Any]]], measured: Sequence[Measured]
) -> Iterator[dict[str, Any]]:
    """The rows of each model's table, with the model's name if there are several."""
    for each in measured:
        name = {"model": each.text.model.name} if len(measured) > 1 else {}
        for row in table(each.scores, each.text.segments, each.survey):
            yield {**name, **_named(each.text, row)}
