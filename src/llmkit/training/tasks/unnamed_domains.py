"""The domains that a run finds in its text, or knows from its first part or from its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.config.schema import Config
from llmkit.data.text import found_domains
from llmkit.data.text.clusters import DOMAINS, Clusters
from llmkit.data.text.domains import TRAIN_FILES
from llmkit.data.text.found_domains import FoundDomains
from llmkit.models.pretrained import Pretrained
from llmkit.training import run_directory
from llmkit.training.tasks.task import Session


def find_domains(
    config: Config, pretrained: Pretrained | None, session: Session
) -> FoundDomains | None:
    """The domains of `data.domains: auto`, which are also listed on the console; None without it.

    A resumed run keeps its domains, and a run that begins with a model has those of the model.
    """
    if config.data.domains is None:
        return None
    (known, origin), say = _known(config, pretrained), session.console.say
    found = FoundDomains(config, session.sources, known, session.watch, say)
    lines = list(found_domains.domain_lines(found.report))
    for line in (f"domains found in {TRAIN_FILES}{origin}:", *lines):
        say(line)
    return found


def preview_domains(
    config: Config, pretrained: Pretrained | None, session: Session
) -> dict[str, dict[str, Any]]:
    """What will be in each domain, for a dry run; writes nothing."""
    known, _ = _known(config, pretrained)
    return found_domains.outline_domains(config, session.sources, known, session.watch)


def _known(config: Config, pretrained: Pretrained | None) -> tuple[Clusters | None, str]:
    """The domains of the run, if it is resumed, else those of its model, and where they come from;
    None if both have none."""
    begun = run_directory.begun_run(config, "pretrain")
    if begun is not None and (begun / DOMAINS).is_file():
        return found_domains.known_clusters(config, [begun]), " when the run began"
    places = [] if pretrained is None else [Path(pretrained.location)]
    known = found_domains.known_clusters(config, places)
    return known, f" by {pretrained.name}" if known and pretrained else ""
