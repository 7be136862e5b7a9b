"""`llmkit finetune`: labelled rows -> sequence classifier."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data import fingerprints, lengths
from llmkit.data.examples import Table
from llmkit.data.labels import REGRESSION
from llmkit.data.sources import Sources
from llmkit.distributed.signals import stop_signal
from llmkit.evaluation import classifiers, label_metrics
from llmkit.inference import classify
from llmkit.models import build, classifier
from llmkit.models.pretrained import open_model
from llmkit.progress import Watch
from llmkit.reporting import plots, verdicts
from llmkit.reporting.console import Console
from llmkit.reporting.data_report import readable
from llmkit.storage import atomic
from llmkit.training import classifying
from llmkit.training import directory as run_directory
from llmkit.training import run as training
from llmkit.training.budget import Clock
from llmkit.training.checkpoint import Checkpoint
from llmkit.training.classifying import Inputs
from llmkit.training.session import Session
from llmkit.training.tasks import defaults
from llmkit.training.tasks.classification_loss import ClassificationLoss, balanced_weights

COMMAND = "finetune"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Trains the classifier, or goes on training it, measures it beside its baselines, and returns
    the figures of the run."""
    run_directory.check(config, COMMAND)
    with stop_signal() as stop, training.start(config, COMMAND) as processes:
        watch = stop.watched(console.watch)
        inputs = _settled(classifying.gather(config, sources, console, watch))
        with run_directory.opened(config, COMMAND) as directory:
            resumed = training.resume_point(directory, config, inputs.content, processes, console)
            model = classifying.begin(inputs, resumed, console)
            trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
            console.say(
                f"model: {type(model).__name__}, {model.num_parameters():,} parameters, "
                f"{trained:,} of them trained"
            )
            clock = Clock(resumed.state.seconds if resumed else 0.0)
            session = Session(processes, console, clock, stop)
            job = _job(config, inputs, model, resumed)
            figures = training.carry_out(job, session, dict)
            if processes.is_main:
                figures |= _measured(inputs, figures, processes.device, console, watch)
                _judge(job, figures, console)
            return {**figures, "seconds": round(clock.seconds(), 3)}


def _judge(job: training.Job, figures: dict[str, Any], console: Console) -> None:
    """Warns where the figures of a run show that little was learned."""
    validation = {**figures["validation"], "baseline": figures["baseline"]}
    advice = verdicts.PRETRAINED if job.from_scratch else verdicts.LONGER
    for name, found in (("validation", validation), ("test", figures.get("test", {}))):
        if found.get("examples"):
            for text in verdicts.of_classifier(name, found, advice):
                console.warn(text)


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks all that a run needs, without weights and without writing, and says what it found."""
    run_directory.check(config, COMMAND)
    inputs = _settled(classifying.gather(config, sources, console, console.watch))
    with torch.device("meta"):
        parameters = build.classifier(inputs.shape, seed=0).num_parameters()
    report = {
        "command": COMMAND,
        "run_dir": str(run_directory.locate(config, COMMAND)),
        "architecture": inputs.shape.model_type,
        "parameters": parameters,
        "max_length": inputs.config.data.max_length,
        **inputs.data.report,
    }
    return report if console.json else readable(report)


def _settled(inputs: Inputs) -> Inputs:
    """The same with what `auto` of training comes to for this data and this model."""
    config, kind = inputs.config, inputs.data.labels.kind
    model = config.model
    if model.name_or_path is None:
        trained = "new"
    elif model.lora.r is not None:
        trained = "lora"
    elif config.train.freeze == "body":
        trained = "head"
    else:
        kept = classifier.keeps_head(open_model(model.name_or_path, model.revision), inputs.shape)
        trained = "again" if kept else "all"
    metric = "loss" if kind == REGRESSION else "f1_macro"
    hidden = int(inputs.shape.get_text_config().hidden_size)
    train = defaults.finetuning(config.train, len(inputs.data.train), hidden, trained, metric)
    figures = ("loss", *label_metrics.names_of_figures(kind))
    defaults.check_best(train, figures, validated=inputs.data.validation is not None)
    return replace(inputs, config=config.model_copy(update={"train": train}))


def _job(
    requested: Config, inputs: Inputs, model: PreTrainedModel, resumed: Checkpoint | None
) -> training.Job:
    config, labels, train = inputs.config, inputs.data.labels, inputs.encoded["train"]
    assert train.targets is not None
    weights = None
    if config.train.class_weights == "balanced":
        weights = balanced_weights(labels.kind, train.targets, len(labels))
    loss = ClassificationLoss(
        labels.kind,
        len(labels),
        label_metrics.figures_from(labels.kind),
        weights,
        config.train.label_smoothing_factor,
        classifier.head_unit(model),
    )
    return training.Job(
        command=COMMAND,
        requested=requested,
        config=config,
        directory=run_directory.locate(requested, COMMAND),
        content=inputs.content,
        model=model,
        tokenizer=inputs.tokenizer,
        from_scratch=config.model.name_or_path is None,
        loss=loss,
        examples=train,
        tokens_per_example=int(np.median(train.lengths)),
        rows_of_step=partial(lengths.rows_of_step, lengths=train.lengths, seed=config.seed),
        validation=inputs.encoded.get("validation"),
        loss_of_validation=lambda validation: loss,
        resumed=resumed,
        seen=partial(fingerprints.of_rows, inputs.data.train.texts, inputs.tokenizer),
        unit="examples",
    )


def _measured(
    inputs: Inputs,
    figures: dict[str, Any],
    device: torch.device,
    console: Console,
    watch: Watch,
) -> dict[str, Any]:
    """The finished model, read back from `final/`, and the baselines on validation and test data;
    everything goes to `evaluation.json`."""
    data, seed = inputs.data, inputs.config.seed
    final = classify.open_classifier(open_model(figures["model_dir"]), device, "fp32")
    fitted = classifiers.fitted_baselines(data.train, console.say)
    tables: dict[str, Table | None] = {"validation": data.validation, "test": data.test}
    directory = Path(figures["run_dir"])
    measured, pictures = {}, {}
    for name, table in tables.items():
        if table is None:
            continue
        measured[name] = classifiers.measure_trained(final, table, fitted, seed, watch)
        if matrix := measured[name].get("confusion_matrix"):
            picture = directory / f"confusion_matrix_{name}.png"
            plots.confusion_matrix(matrix, data.labels.names, picture, f"{directory.name}, {name}")
            pictures[f"confusion_matrix_{name}"] = str(picture)
    text = json.dumps(measured, ensure_ascii=False, indent=1)
    atomic.replace_text(directory / "evaluation.json", text + "\n")
    shown = {name: classifiers.without_bulky(found) for name, found in measured.items()}
    validation = shown.pop("validation", {})
    baseline = validation.pop("baseline", {})
    return {"validation": validation, "baseline": baseline, **shown, "pictures": pictures}
