"""The loaded models with all that their requests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch

from llmkit.config.schema import Config
from llmkit.distributed.device import resolve_precision
from llmkit.inference import generate
from llmkit.inference.encoder_decoder import target_generator
from llmkit.inference.labels import answer, classify, tag
from llmkit.models import directory
from llmkit.progress import Say
from llmkit.serving import refusals
from llmkit.serving.admission import Admission
from llmkit.serving.answer_model import AnswerModel
from llmkit.serving.engines.label_engine import LabelEngine
from llmkit.serving.engines.leading import LeadingEngine, Orders
from llmkit.serving.engines.target_engine import TargetEngine
from llmkit.serving.engines.text_engine import TextEngine
from llmkit.serving.engines.worker import ModelEngine, Worker
from llmkit.serving.label_model import LabelModel
from llmkit.serving.metrics import Metrics
from llmkit.serving.refusals import Refusal
from llmkit.serving.served import ServedModel
from llmkit.serving.tag_model import TagModel
from llmkit.serving.target_model import TargetModel
from llmkit.serving.text_model import TextModel

_Classifying = LabelModel | TagModel
_Writing = TextModel | TargetModel
LoadedModel = _Writing | _Classifying | AnswerModel


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

    def text_model(self, name: str | None) -> _Writing:
        """The model of a request that writes text, by default the first; raises Refusal for one
        that is not served or does something else."""
        return cast(_Writing, self._model(name, (TextModel, TargetModel)))

    def label_model(self, name: str | None) -> _Classifying:
        """The same for a classifier or tagger."""
        return cast(_Classifying, self._model(name, (LabelModel, TagModel)))

    def answer_model(self, name: str | None) -> AnswerModel:
        """The same for a model that answers questions."""
        return cast(AnswerModel, self._model(name, (AnswerModel,)))

    def _model(self, name: str | None, kinds: tuple[type, ...]) -> LoadedModel:
        several = list(self.models.values())
        if name is None:
            found = next((each for each in several if isinstance(each, kinds)), several[0])
        elif name in self.models:
            found = self.models[name]
        else:
            raise refusals.no_such_model(name, list(self.models))
        if isinstance(found, kinds):
            return found
        message = f"the model {found.name!r} is for {found.paths}"
        raise Refusal(message, param="model", code="wrong_task")


def load_service(
    served: Sequence[ServedModel], config: Config, warn: Say, orders: Orders | None = None
) -> Service:
    """Loads all models on the usual device; with `orders`, other processes follow the engine."""
    device = generate.usual_device()
    config = generate.resolved(config, device)
    models = {each.name: _loaded(each, config, device, orders) for each in served}
    return Service(config, models, {each.name: each.task for each in served}, warn)


def _loaded(
    served: ServedModel, config: Config, device: torch.device, orders: Orders | None
) -> LoadedModel:
    opened = served.opened
    identity = directory.content_identity(opened.location, opened.revision)[:12]
    precision = resolve_precision(config.predict.precision, device)
    if opened.kind == "classifier":
        classifier = classify.open_classifier(opened, device, precision)
        return LabelModel(served.name, identity, classifier.precision, classifier)
    if opened.kind == "tagger":
        tagger = tag.open_tagger(opened, device, precision)
        return TagModel(served.name, identity, tagger.precision, tagger)
    if opened.kind == "answerer":
        answerer = answer.open_answerer(opened, device, precision)
        return AnswerModel(served.name, identity, answerer.precision, answerer)
    settings, most = config.generation, config.serve.max_new_tokens
    warning = generate.warning_of_precision(settings, n_texts=2)
    if opened.kind == "encoder-decoder":
        generator = target_generator(config, opened, device)
        known = (settings.precision, settings, most, warning)
        return TargetModel(served.name, identity, *known, generator)
    engine = generate.engine(config, opened, device)
    if orders is not None:
        engine = LeadingEngine(engine, orders)
    own = "int8" if settings.weights == "int8" else settings.precision
    return TextModel(served.name, identity, own, settings, most, warning, engine)


def _engine(model: LoadedModel) -> ModelEngine:
    match model:
        case TextModel():
            return TextEngine(model.engine)
        case TargetModel():
            return TargetEngine()
        case LabelModel():
            return LabelEngine(model.classifier)
        case TagModel():
            return LabelEngine(model.tagger)
        case _:
            return LabelEngine(model.answerer)
