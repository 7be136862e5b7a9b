"""Choose the pretraining objective of a language model."""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.config import checks
from llmkit.config.schema import Config
from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.build import known_architectures
from llmkit.models.pretrained import Pretrained

PURPOSES = {
    "causal": build.LANGUAGE_MODEL,
    "masked": build.MASKED_MODEL,
    "span_corruption": build.SEQ2SEQ_MODEL,
}


def objective_of(config: Config, pretrained: Pretrained | None) -> str:
    """The configured objective, or the likeliest of the model.

    Raises ConfigError if the model cannot learn it, and for keys of another objective.
    """
    kind, can = _abilities(config, pretrained)
    asked = config.train.objective
    chosen = can[0] if asked == "auto" else asked
    if chosen not in can:
        sees = {
            "causal": "only the tokens before a token",
            "masked": "the tokens on both sides",
            "span_corruption": "a source and the target so far",
        }
        raise ConfigError(
            f"{kind} sees {sees[can[0]]}: it is a {can[0]} language model",
            where=f"train.objective: {asked}",
            next=f"remove train.objective, or choose a model that is {chosen}: "
            f"{PURPOSES[chosen].common}",
        )
    checks.refuse_inapplicable(config, f"pretrain/{chosen}")
    return chosen


def _abilities(config: Config, pretrained: Pretrained | None) -> tuple[str, tuple[str, ...]]:
    """The type of the model, and the objectives that it can learn, the likeliest first."""
    model = config.model
    if pretrained is not None:
        return pretrained.config.model_type, _of_model(pretrained.config)
    if model.architecture == "auto":
        return "auto", tuple(PURPOSES)
    if model.architecture not in CONFIG_MAPPING:
        return model.architecture, (
            "causal",
            "masked",
            "span_corruption",
        )  # building the model refuses it
    default = getattr(CONFIG_MAPPING[model.architecture], "is_decoder", None)
    decodes = model.config.get("is_decoder", default)
    return model.architecture, _of_type(model.architecture, decodes)


def _of_model(config: PretrainedConfig) -> tuple[str, ...]:
    """The objectives of a pretrained model, from the class that saved its weights."""
    if config.is_encoder_decoder:
        return ("span_corruption",)
    saved = set(config.architectures or ())
    if any(name.endswith("ForPreTraining") for name in saved):
        return ("masked",)
    can = tuple(
        kind
        for kind, purpose in PURPOSES.items()
        if saved & set(known_architectures(purpose).values())
    )
    return can or _of_type(config.model_type, getattr(config, "is_decoder", None))


def _of_type(kind: str, decodes: object) -> tuple[str, ...]:
    """The objectives of an architecture; BERT-like ones state whether they are decoders."""
    masked = kind in known_architectures(build.MASKED_MODEL)
    causal = kind in known_architectures(build.LANGUAGE_MODEL)
    found = ("causal", "masked") if masked and decodes is None else ("causal",)
    if masked and (not causal or decodes is False):
        found = ("masked",)
    if kind not in known_architectures(build.SEQ2SEQ_MODEL):
        return found
    return (*found, "span_corruption") if masked or causal else ("span_corruption",)
