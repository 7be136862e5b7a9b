"""Which architectures can be built: those of transformers, and those registered beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import llmkit.models.transformer  # noqa: F401 (registers our architecture)


def known(names: Mapping[str, Any], mapping: Mapping[Any, Any]) -> dict[str, str]:
    """Model type -> class, of all that can be built for one purpose.

    `names` and `mapping` are what transformers has for it, such as
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and MODEL_FOR_CAUSAL_LM_MAPPING.
    """
    found = {kind: names[kind] for kind in CONFIG_MAPPING_NAMES if kind in names}
    for kind in registered():
        if CONFIG_MAPPING[kind] in mapping:
            found[kind] = mapping[CONFIG_MAPPING[kind]].__name__
    return found


def registered() -> set[str]:
    """The model types that are not transformers' own."""
    return set(CONFIG_MAPPING) - set(CONFIG_MAPPING_NAMES)
