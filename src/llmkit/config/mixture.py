"""The domains of a mixture, and which of their weights make sense together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmkit.config.types import Auto, Files, Rate, Section, rule


class DomainConfig(Section):
    """One domain of a mixture."""

    files: Files = ()
    """Text of the domain: files, directories, globs, or hub data sets."""
    validation_files: Files = ()
    """Held-out text of the domain; without it a part of its text is held out."""
    weight: Rate | Auto = "auto"
    """The domain's share of the training examples is its weight over the sum of all; one of weight
    0 is only measured. `auto`, for all or none, goes by size: see `data.mixture_temperature`."""


def check_mixture(
    mixture: dict[str, DomainConfig], data: Mapping[str, Any]
) -> dict[str, DomainConfig]:
    """The mixture; raises what pydantic takes where names, weights or other data do not go with it.

    `data` holds the keys of the data section that come before it.
    """
    weights = {name: domain.weight for name, domain in mixture.items()}
    left_open = [name for name, weight in weights.items() if weight == "auto"]
    for name in mixture:
        if not re.fullmatch(r"[\w-]+", name):
            raise rule(f"the name {name!r} of a domain should be letters, digits, - and _")
    for key in ("train_files", "validation_files"):
        if mixture and data.get(key):
            raise rule(f"does not go with data.{key}; leave one out, or make that a domain")
    if left_open and len(left_open) < len(mixture):
        raise rule(f"{', '.join(left_open)} has no weight; give one to every domain or to none")
    if mixture and not left_open and not any(weights.values()):
        raise rule(f"all weights are 0 ({', '.join(mixture)}); give one domain a weight above 0")
    return mixture


def check_temperature(temperature: float, data: Mapping[str, Any]) -> float:
    """The temperature; raises what pydantic takes where there is nothing that it could scale."""
    mixture: Mapping[str, DomainConfig] = data.get("mixture", {})
    if temperature != 1 and any(domain.weight != "auto" for domain in mixture.values()):
        raise rule("is for domains without weights; leave it out, or the weights")
    return temperature
