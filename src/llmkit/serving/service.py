"""The loaded models with all that their requests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from llmkit.config.schema import Config
from llmkit.distributed.device import resolve_precision
from llmkit.inference import generate
from llmkit.inference.labels import classify
from llmkit.models import directory
from llmkit.progress import Say
from llmkit.serving import refusals
from llmkit.serving.admission import Admission
from llmkit.serving.engines.label_engine import LabelEngine
from llmkit.serving.engines.text_engine import TextEngine
from llmkit.serving.engines.worker import Worker
from llmkit.serving.label_model import LabelModel
from llmkit.serving.metrics import Metrics
from llmkit.serving.refusals import Refusal
from llmkit.serving.served import ServedModel
from llmkit.serving.text_model import TextModel

LoadedModel = TextModel | LabelModel
_Kind = TypeVar("_Kind", TextModel, LabelModel)

_PATHS = {LabelModel: "/v1/classify", TextModel: "/v1/completions or /v1/chat/completions"}


@dataclass(frozen=True)
class Service:
    """What the handlers of requests use."""

    config: Config
    models: Mapping[str, LoadedModel]
    tasks: Mapping[str, str]
    warn: Say

    @cached_property
    def metrics(self) -> Metrics:
        """Its figures."""
        return Metrics()

    @cached_property
    def worker(self) -> Worker:
        """The thread of the engines."""
        engines = {name: _engine(model) for name, model in self.models.items()}
        return Worker(engines, self.config.serve.max_seconds)

    @cached_property
    def admission(self) -> Admission:
        """The requests that wait or run."""
        return Admission(self.config.serve, self.worker, self.metrics, self.warn)

    def model(self, name: str | None, kind: type[_Kind]) -> _Kind:
        """The model of a request, by default the first of its kind; raises Refusal for one that is
        not served or does something else."""
        fitting = [model for model in self.models.values() if isinstance(model, kind)]
        if name is None and fitting:
            return fitting[0]
        if name is not None and name not in self.models:
            raise refusals.no_such_model(name, list(self.models))
        found = self.models[name] if name is not None else next(iter(self.models.values()))
        if isinstance(found, kind):
            return found
        raise Refusal(
            f"the model {found.name!r} is for {_PATHS[type(found)]}",
            param="model",
            code="wrong_task",
        )


def load_service(served: Sequence[ServedModel], config: Config, warn: Say) -> Service:
    """Loads all models on the usual device."""
    device = generate.usual_device()
    config = generate.resolved(config, device)
    models = {each.name: _loaded(each, config, device) for each in served}
    return Service(config, models, {each.name: each.task for each in served}, warn)


def _loaded(served: ServedModel, config: Config, device: torch.device) -> LoadedModel:
    opened = served.opened
    identity = directory.content_identity(opened.location, opened.revision)[:12]
    if served.classifies:
        precision = resolve_precision(config.predict.precision, device)
        classifier = classify.open_classifier(opened, device, precision)
        return LabelModel(served.name, classifier, identity)
    engine = generate.engine(config, opened, device)
    settings, most = config.generation, config.serve.max_new_tokens
    warning = generate.warning_of_precision(settings, n_texts=2)
    return TextModel(served.name, engine, settings, identity, most, warning)


def _engine(model: LoadedModel) -> TextEngine | LabelEngine:
    if isinstance(model, TextModel):
        return TextEngine(model.engine)
    return LabelEngine(model.classifier)
