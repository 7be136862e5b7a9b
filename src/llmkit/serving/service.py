"""The loaded models with all that their requests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from llmkit.config.schema import Config
from llmkit.distributed.device import resolve_precision
from llmkit.inference import generate
from llmkit.inference.labels import classify, tag
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
from llmkit.serving.tag_model import TagModel
from llmkit.serving.text_model import TextModel

LoadedModel = TextModel | LabelModel | TagModel


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

    def text_model(self, name: str | None) -> TextModel:
        """The language model of a request, by default the first; raises Refusal for one that is not
        served or does something else."""
        found = self._model(name, (TextModel,))
        if isinstance(found, TextModel):
            return found
        raise _wrong_path(found, "/v1/classify")

    def label_model(self, name: str | None) -> LabelModel | TagModel:
        """The same for the classifier or tagger of a request."""
        found = self._model(name, (LabelModel, TagModel))
        if not isinstance(found, TextModel):
            return found
        raise _wrong_path(found, "/v1/completions or /v1/chat/completions")

    def _model(self, name: str | None, kinds: tuple[type, ...]) -> LoadedModel:
        """The model of a name; without one the first of these kinds, or the first of all."""
        if name is None:
            several = list(self.models.values())
            return next((each for each in several if isinstance(each, kinds)), several[0])
        if name not in self.models:
            raise refusals.no_such_model(name, list(self.models))
        return self.models[name]


def _wrong_path(model: LoadedModel, path: str) -> Refusal:
    return Refusal(f"the model {model.name!r} is for {path}", param="model", code="wrong_task")


def load_service(served: Sequence[ServedModel], config: Config, warn: Say) -> Service:
    """Loads all models on the usual device."""
    device = generate.usual_device()
    config = generate.resolved(config, device)
    models = {each.name: _loaded(each, config, device) for each in served}
    return Service(config, models, {each.name: each.task for each in served}, warn)


def _loaded(served: ServedModel, config: Config, device: torch.device) -> LoadedModel:
    opened = served.opened
    identity = directory.content_identity(opened.location, opened.revision)[:12]
    precision = resolve_precision(config.predict.precision, device)
    if opened.kind == "classifier":
        classifier = classify.open_classifier(opened, device, precision)
        return LabelModel(served.name, identity, classifier.precision, classifier)
    if opened.kind == "tagger":
        tagger = tag.open_tagger(opened, device, precision)
        return TagModel(served.name, identity, tagger.precision, tagger)
    engine = generate.engine(config, opened, device)
    settings, most = config.generation, config.serve.max_new_tokens
    warning = generate.warning_of_precision(settings, n_texts=2)
    own = "int8" if settings.weights == "int8" else settings.precision
    return TextModel(served.name, identity, own, engine, settings, most, warning)


def _engine(model: LoadedModel) -> TextEngine | LabelEngine:
    if isinstance(model, TextModel):
        return TextEngine(model.engine)
    return LabelEngine(model.classifier if isinstance(model, LabelModel) else model.tagger)
