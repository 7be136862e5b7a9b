"""What the domains of a config come to: the text of each, its weight and its share."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.config.schema import Config, DomainConfig
from llmkit.data.text import Pair
from llmkit.errors import ConfigError
from llmkit.progress import Watch


def configs(config: Config) -> dict[str, Config]:
    """The config of each domain as if it were the only data, or the config itself, without a name,
    where there is no mixture. A domain that is only measured needs no more than files to measure.

    Raises ConfigError for a domain that would be neither trained on nor measured.
    """

    def alone(name: str, domain: DomainConfig) -> Config:
        held_out = domain.validation_files or config.data.validation_fraction != 0
        if domain.weight == 0 and not held_out:
            raise ConfigError(
                f"the domain {name} would not be used: it has no weight, and nothing is held out",
                where=f"data.mixture.{name}.weight, data.validation_fraction",
                next=f"leave it out, give it a weight, or data.mixture.{name}.validation_files",
            )
        files = domain.files or (domain.validation_files if domain.weight == 0 else ())
        own = {"train_files": files, "validation_files": domain.validation_files}
        return config.model_copy(update={"data": config.data.model_copy(update=own)})

    domains = config.data.mixture
    return {name: alone(name, domain) for name, domain in domains.items()} or {"": config}


def texts(config: Config, watch: Watch) -> dict[str, Pair]:
    """The text of each domain; of data without a mixture, under no name."""
    return {name: Pair(own, watch, name) for name, own in configs(config).items()}


def weights(
    domains: Mapping[str, DomainConfig], sizes: Mapping[str, int], temperature: float
) -> dict[str, float]:
    """The weight of each domain: as it is given, or tokens ^ (1 / temperature), where `sizes` are
    tokens (Arivazhagan et al. 2019, arXiv 1907.05019)."""
    return {
        name: sizes[name] ** (1 / temperature) if domain.weight == "auto" else domain.weight
        for name, domain in domains.items()
    }


def settled(config: Config, sizes: Mapping[str, int]) -> Config:
    """The config with the weights of its domains spelled out; `sizes` are tokens."""
    data = config.data
    given = weights(data.mixture, sizes, data.mixture_temperature)
    domains = {
        name: domain.model_copy(update={"weight": given[name]})
        for name, domain in data.mixture.items()
    }
    update = {"mixture": domains, "mixture_temperature": 1.0}
    return config.model_copy(update={"data": data.model_copy(update=update)})


def shares(config: Config) -> dict[str, float]:
    """The share that each domain has of the training examples, once weights are settled."""
    given = {name: float(domain.weight) for name, domain in config.data.mixture.items()}
    return {name: weight / sum(given.values()) for name, weight in given.items()}
