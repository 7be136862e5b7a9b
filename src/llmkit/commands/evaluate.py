"""`llmkit evaluate`: models + text, rows or tasks -> metrics with their protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.config import checks
from llmkit.config.schema import Config
from llmkit.data.examples.paired import PairedExamples, shift_of
from llmkit.data.readers.files import Sources
from llmkit.data.records import pairs
from llmkit.data.records.pairs import Pairs
from llmkit.data.text import fingerprints
from llmkit.data.text.documents import mark_hints
from llmkit.data.text.fingerprints import Fingerprints
from llmkit.data.text.prepare import data_report
from llmkit.data.text.token_file import TokenFile
from llmkit.distributed.processes import Processes, join_processes
from llmkit.errors import ConfigError
from llmkit.evaluation import harness, references, text
from llmkit.evaluation.experts import unused_experts
from llmkit.evaluation.labels import measuring
from llmkit.evaluation.labels.answers import AnswerEvaluation
from llmkit.evaluation.labels.classifiers import ClassifierEvaluation
from llmkit.evaluation.labels.label_errors import suspected_rows
from llmkit.evaluation.labels.measuring import RowEvaluation
from llmkit.evaluation.labels.taggers import TaggerEvaluation
from llmkit.evaluation.passages import target_passages
from llmkit.evaluation.preferences import preferences
from llmkit.evaluation.windows import check_models, protocol
from llmkit.inference import encoder_decoder, generate, prompts
from llmkit.inference.requests import PromptRequest
from llmkit.models import pretrained
from llmkit.models.classifier import remembered_columns
from llmkit.models.pretrained import Pretrained
from llmkit.reporting import plots, results, summary
from llmkit.reporting.console import Console
from llmkit.reporting.evaluation_summary import NOT_TRAINED_ON, confused_names, confused_unit
from llmkit.reporting.format import many

_Samples = Iterable[Mapping[str, Any]]

_ROW_MODELS: Mapping[str, RowEvaluation[Any]] = {
    "classifier": ClassifierEvaluation(),
    "tagger": TaggerEvaluation(),
    "answerer": AnswerEvaluation(),
}
"""How models that are measured on rows are measured, by their kind."""


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Evaluates as configured, writes the requested files and returns the metrics."""
    settings = config.evaluation
    results.check_output_files(
        (settings.output, settings.log_samples, settings.per_token, settings.label_errors)
    )
    models = pretrained.compared(config)
    config = _with_references(config, models)
    divided = any(model.is_divided for model in models)
    with join_processes(_precision(config, models), one_model=divided) as processes:
        figures, scored = _evaluate(config, sources, models, processes, console)
        result = {"command": "evaluate", **figures}
        if processes.is_main:
            if settings.label_errors is not None:
                scored = list(scored)
                suspected = suspected_rows(scored)
                results.write_lines(Path(settings.label_errors), suspected)
                result["suspected_labels"] = len(suspected)
            if settings.log_samples is not None:
                results.write_lines(Path(settings.log_samples), scored)
            if settings.output is not None:
                whole = {**result, "warnings": console.warnings}
                results.write_result(Path(settings.output), whole)
        return result


def _precision(config: Config, models: Sequence[Pretrained]) -> str:
    """The precision to evaluate in: fp32 by default, unless all weights are stored in bf16."""
    precision = config.evaluation.precision
    if precision != "auto" or all(model.is_stored_in_bf16 for model in models):
        return precision
    return "fp32"


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks everything that a run needs, without loading weights or writing; returns the facts."""
    settings = config.evaluation
    found: dict[str, Any] = {"command": "evaluate"}
    models = pretrained.compared(config)
    config = _with_references(config, models)
    settings = config.evaluation
    if settings.reference_column is not None:
        asked = pairs.read_pairs(sources.of("data.test_files"), config)
        return {**found, "examples": len(asked.references)}
    _check(config, models)
    if settings.tasks:
        return {**found, "models": [model.name for model in models], "tasks": settings.tasks}
    if settings.reference_model is not None:
        rows = preferences.load_pairs(config, sources, console.watch, console.say, console.warn)
        return {**found, "pairs": len(rows), "reference_model": settings.reference_model}
    if kind := _ROW_MODELS.get(models[0].kind):
        tables = [kind.tables(config, sources, model, console) for model in models]
        return {**found, **kind.facts(tables[0].test)}
    found["models"] = [
        {"model": model.name, "kind": model.kind, **protocol(model, settings).described()}
        for model in models
    ]
    return {**found, "data": data_report(config, sources, console.watch)}


def _with_references(config: Config, models: Sequence[Pretrained]) -> Config:
    """The config with the columns that an encoder-decoder model was trained on, unless others are
    given: it is always evaluated on references."""
    if not models or models[0].kind != "encoder-decoder":
        return config
    checks.refuse_inapplicable(config, "evaluate/references")
    settings = config.evaluation
    found = {
        "prompt_column": next(iter(remembered_columns(models[0].config)), None),
        "reference_column": next(iter(remembered_columns(models[0].config, "label_column")), None),
    }
    given = {name: getattr(settings, name) or column for name, column in found.items()}
    if given["reference_column"] is None:
        raise ConfigError(
            f"{models[0].name} is an encoder-decoder model, which is evaluated on references",
            where="evaluation.reference_column",
            next="set evaluation.prompt_column and evaluation.reference_column",
        )
    return config.changed(evaluation=given)


def _check(config: Config, models: Sequence[Pretrained]) -> None:
    """Refuses models that cannot be evaluated as configured, or not compared."""
    check_models(models, config.evaluation)
    if config.evaluation.tasks:
        harness.check_tasks(config, models)
    elif config.evaluation.reference_model is None:
        tasks = {"classifier": "labels", "tagger": "tags", "answerer": "answers"}
        checks.refuse_inapplicable(config, f"evaluate/{tasks.get(models[0].kind, 'text')}")


def _evaluate(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> tuple[dict[str, Any], _Samples]:
    """The metrics, and every scored sample."""
    settings = config.evaluation
    if settings.reference_column is not None:
        return _evaluate_references(config, sources, models, processes, console)
    _check(config, models)
    if settings.tasks:
        found = harness.measure_tasks(config, models, processes)
        return found, found.pop("samples")
    if settings.reference_model is not None:
        return _evaluate_preferences(config, sources, models, processes, console)
    evaluate = _evaluate_rows if models[0].kind in _ROW_MODELS else _evaluate_text
    return evaluate(config, sources, models, processes, console)


def _evaluate_text(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> tuple[dict[str, Any], _Samples]:
    """Evaluates language models on text."""
    settings = config.evaluation
    measured = text.measure_text(config, sources, models, processes, console.watch, console.say)
    if settings.per_token is not None and processes.is_main:
        results.write_text(Path(settings.per_token), text.token_page(measured[0]))
    for each in measured:
        for hint in mark_hints(each.text.tokens.marks, len(each.text.tokens.starts)):
            console.warn(hint)
        if overlap := _overlap_with_training(each.text.model, each.text.tokens, console):
            rest = _not_trained_on(overlap, partial(text.measure_documents, each))
            _report_overlap(each.text.model, overlap, "document", rest, each.figures, console)
        for sentence in unused_experts(each.text.model.name, each.experts.get("experts", [])):
            console.warn(sentence)
        for sentence in summary.of_measured_text(each.text.model.name, each.figures):
            console.warn(sentence)
    return text.text_result(config, measured), text.text_samples(measured)


def _evaluate_rows(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> tuple[dict[str, Any], _Samples]:
    """Evaluates models of labels on rows, and warns if they were trained on some of them."""
    kind = _ROW_MODELS[models[0].kind]
    measured = measuring.measure_models(kind, config, sources, models, processes, console)
    for each, model in zip(measured, models, strict=True):
        if overlap := _overlap_with_training(model, each.table.texts, console):
            rest = _not_trained_on(overlap, partial(each.figures_of, seed=config.seed))
            _report_overlap(model, overlap, "row", rest, each.figures, console)
        for sentence in kind.judge(each.name, each.figures, ""):
            console.warn(sentence)
    if processes.is_main:
        _draw_confusion(config, measured[0].figures, console)
    return measuring.result_of_rows(config, measured), measuring.samples_of_rows(measured)


def _evaluate_preferences(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> tuple[dict[str, Any], _Samples]:
    """Evaluates language models on pairs of responses."""
    rows = preferences.load_pairs(config, sources, console.watch, console.say, console.warn)
    measured = preferences.measure_preferences(
        config, rows, models, processes, console.watch, console.warn
    )
    for each in measured:
        texts = [row.opening for row in each.rows]
        if overlap := _overlap_with_training(each.model, texts, console):
            rest = _not_trained_on(overlap, partial(preferences.measure_part, each))
            _report_overlap(each.model, overlap, "row", rest, each.figures, console)
        for sentence in summary.of_preferences(each.model.name, each.figures, preferences.CHANCE):
            console.warn(sentence)
    return preferences.preference_result(config, measured), preferences.preference_samples(measured)


def _draw_confusion(config: Config, figures: Mapping[str, Any], console: Console) -> None:
    """Draws the confusion matrix of the first model beside the output file, if there is one."""
    output, matrix = config.evaluation.output, figures.get("confusion_matrix")
    if output is not None and matrix:
        picture = results.picture_beside(Path(output))
        names, title = confused_names(figures), str(figures.get("model", ""))
        plots.draw_confusion_matrix(matrix, names, picture, title, confused_unit(figures))
        console.say(f"confusion matrix: {picture}")


def _evaluate_references(
    config: Config,
    sources: Sources,
    models: Sequence[Pretrained],
    processes: Processes,
    console: Console,
) -> tuple[dict[str, Any], _Samples]:
    """Scores texts against references; without predictions, the model generates them."""
    asked = pairs.read_pairs(sources.of("data.test_files"), config)
    config = generate.resolved(config, processes.device)
    is_pair = bool(models) and models[0].kind == "encoder-decoder" and not asked.predictions
    if is_pair:
        return _evaluate_pairs(config, models[0], asked, processes, console)
    made = {} if asked.predictions else {"generation": config.generation.model_dump(mode="json")}
    predictions = asked.predictions or _generate_texts(config, models, asked, processes, console)
    figures = references.score_texts(predictions, asked.references, config.seed)
    figures["protocol"] = {"words": references.WORDS, **made}
    return figures, references.reference_samples(asked, predictions)


def _evaluate_pairs(
    config: Config, model: Pretrained, asked: Pairs, processes: Processes, console: Console
) -> tuple[dict[str, Any], _Samples]:
    """The loss of an encoder-decoder model on references, and the metrics of what it writes."""
    if overlap := _overlap_with_training(model, [(prompt,) for prompt in asked.prompts], console):
        console.warn(summary.of_overlap(model.name, overlap.shared, "row", None))
    with console.loading_model():
        generator = encoder_decoder.target_generator(config, model, processes.device)
    items = [
        PromptRequest(prompt, f"{path} row {number}")
        for prompt, (path, number) in zip(asked.prompts, asked.places, strict=True)
    ]
    with console.watch("generating", len(items)) as advance:
        how = (generator, items, config.sampling_seed, advance, processes)
        texts, cut = encoder_decoder.first_texts(*how)
    if cut:
        console.warn(f"{many(cut, 'source')} truncated to the model's length")
    limit = encoder_decoder.source_limit(model.config)
    sides = (
        generator.pairs.sources(asked.prompts, limit),
        generator.pairs.targets(asked.references, limit),
    )
    examples = PairedExamples(*sides, shift_of(generator.model))
    likelihood = target_passages(generator.model, examples, console.watch).figures()
    figures = references.score_texts(texts, asked.references, config.seed)
    made = {"generation": generator.settings.model_dump(mode="json")}
    return {
        **likelihood,
        "tokens": examples.n_predictions,
        **figures,
        "protocol": {"words": references.WORDS, **made},
    }, references.reference_samples(asked, texts)


def _generate_texts(
    config: Config,
    models: Sequence[Pretrained],
    asked: Pairs,
    processes: Processes,
    console: Console,
) -> list[str]:
    """Generates one text for each prompt, with the settings of `generation`."""
    config = config.changed(generation={"num_return_sequences": 1})
    model = generate.checked(next(iter(models), None))
    if overlap := _overlap_with_training(model, [(prompt,) for prompt in asked.prompts], console):
        console.warn(summary.of_overlap(model.name, overlap.shared, "row", None))
    items = [
        PromptRequest(prompt, f"{path} row {number}")
        for prompt, (path, number) in zip(asked.prompts, asked.places, strict=True)
    ]
    encoded = prompts.encode_prompts(
        items, model.tokenizer, model.config, config.generation, config.sampling_seed
    )
    with console.loading_model():
        engine = generate.engine(config, model, processes.device)
    sampler = engine.sampler(config.generation)
    texts = []
    with console.watch("generating", len(encoded)) as advance:
        for sample in generate.generate_samples(engine, processes.share(encoded), sampler):
            texts.append(sample.text)
            advance(processes.count)
    return processes.joined(texts)


class _Overlap(NamedTuple):
    """What of a text, or of rows, a model was trained on."""

    shared: str
    """In words."""
    seen: NDArray[np.bool_] | None
    """[documents or rows]; None if it is known of a sample only."""


def _overlap_with_training(
    model: Pretrained, measured: TokenFile | Sequence[tuple[str, ...]], console: Console
) -> _Overlap | None:
    """The part of a text, or of rows, that is in the fingerprints of the model's training data;
    None if it is not notable."""
    with console.waiting("comparing with the training data…"):
        known = fingerprints.read_fingerprints(model.name)
        kind = "text" if isinstance(measured, TokenFile) else "rows"
        return _overlap(model, measured, known) if known and known.kind == kind else None


def _overlap(
    model: Pretrained, measured: TokenFile | Sequence[tuple[str, ...]], known: Fingerprints
) -> _Overlap | None:
    if isinstance(measured, TokenFile):
        part = fingerprints.of_tokens([measured])
    else:
        part = fingerprints.of_rows(measured, model.tokenizer)
    found = fingerprints.overlap(part, known)
    if not found.is_notable:
        return None
    if isinstance(measured, TokenFile):
        seen = fingerprints.seen_documents(measured, known)
    else:
        seen = fingerprints.seen_rows(part, known)
    return _Overlap(found.sentence("document" if known.kind == "text" else "row"), seen)


def _not_trained_on(
    overlap: _Overlap, measure: Callable[[NDArray[np.bool_]], dict[str, Any]]
) -> dict[str, Any] | None:
    """The figures of the documents or rows that a model was not trained on: empty if there are
    none, None if it is not known which they are."""
    if overlap.seen is None:
        return None
    return {} if overlap.seen.all() else measure(~overlap.seen)


def _report_overlap(
    model: Pretrained,
    overlap: _Overlap,
    noun: str,
    rest: dict[str, Any] | None,
    figures: dict[str, Any],
    console: Console,
) -> None:
    """Warns of an overlap, and adds to the figures those of the rest."""
    if rest:
        figures[NOT_TRAINED_ON] = rest
    console.warn(summary.of_overlap(model.name, overlap.shared, noun, rest))
