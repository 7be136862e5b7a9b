"""What is exported: a model, or one expert of a merged model as a dense model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, UsageError
from llmkit.models import pretrained
from llmkit.models.experts import record
from llmkit.models.experts import sources as experts
from llmkit.models.experts.sources import Family
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say, Watch


@dataclass(frozen=True)
class ExportSource:
    """The model to export, located and checked, without weights."""

    opened: Pretrained
    family: Family | None = None
    """The merged model whose only wanted expert is exported; None for a whole model."""

    @property
    def config(self) -> PretrainedConfig:
        """The config of the exported model."""
        if self.family is None:
            return self.opened.config
        return self.family.record.dense_config

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer saved with the model."""
        return self.opened.own_tokenizer

    @property
    def name(self) -> str:
        """A name without folders: of the run, the directory or the hub."""
        path = Path(self.opened.location)
        given = path.parent.name if path.name == "final" else path.name
        return given if self.family is None else f"{given}-{self.family.names[0]}"

    def outline(self) -> PreTrainedModel:
        """The model without memory for its weights."""
        with torch.device("meta"):
            made: PreTrainedModel = self.opened.purpose.auto.from_config(self.config)
        return made.eval()

    def load(self, watch: Watch, say: Say) -> PreTrainedModel:
        """The model with its weights in fp32.

        Raises DataError for a weight that is NaN or infinite.
        """
        if self.family is None:
            model = pretrained.load_model(self.opened, say=say)
        else:
            (expert,) = self.family.sources()
            with watch("loading the model", 0):
                model = expert.model()
        check_finite(model, self.opened.name)
        return model.eval()


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raises DataError for a weight that is NaN or infinite."""
    for weight, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise DataError(
                f"the weight {weight} holds values that are NaN or infinite",
                where=name,
                kept="nothing was written",
                next="export an earlier checkpoint of the run, or train again with a lower "
                "train.learning_rate",
            )


def open_source(config: Config, warn: Say) -> ExportSource:
    """Opens the model that `model.name_or_path` names, or its expert `export.expert`.

    Raises UsageError without a model, and ConfigError for an ensemble of which no expert is named.
    """
    opened = pretrained.of_config(config, encoder_decoder=True)
    if opened is None:
        raise UsageError(
            "`llmkit export` needs a model",
            where="model.name_or_path",
            next="pass a run directory, a model directory or a hub name with `--model`",
        )
    if opened.kind == "encoder-decoder":
        raise ConfigError(
            f"{opened.name} is an encoder-decoder model ({opened.config.model_type}), which has no "
            f"{config.export.written_format} form in llmkit",
            where="model.name_or_path",
            next="serve it with `llmkit serve`; transformers reads its directory as it is",
        )
    expert = config.export.expert
    if expert is None:
        _check_one_model(opened)
        return ExportSource(opened)
    family = experts.open_family(config.changed(merge={"only": expert}))
    if left := experts.STAYS.get(family.record.lost):
        warn(f"what was learned from the other domains is not forgotten: {left}")
    return ExportSource(opened, family)


def _check_one_model(opened: Pretrained) -> None:
    found: Any = record.merged_record(opened)
    if found is not None and found.kind == "ensemble":
        raise ConfigError(
            f"{opened.name} is an ensemble of {len(found.experts)} models, which only llmkit reads",
            where="export.expert",
            next=f"export one of them with `--expert {found.names[0]}` (of "
            f"{', '.join(found.names)}), or make one model of them with `llmkit merge` and "
            "merge.into=moe",
        )
