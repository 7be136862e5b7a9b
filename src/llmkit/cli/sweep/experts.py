"""The plan of `merge --train`: a seed, an expert of each domain that begins with it, and the merge,
each as the run of a single command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmkit.cli.sweep.grid import Configuration
from llmkit.cli.sweep.plan import CommandLine, PlannedRun, SweepPlan
from llmkit.config import jobs, keys
from llmkit.config.checks import Faults
from llmkit.config.given import GivenOption
from llmkit.config.load import read_config
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, UsageError
from llmkit.storage import numbered
from llmkit.storage.outputs import SWEEP
from llmkit.training import run_identity
from llmkit.training.run_identity import RUNS_DIRECTORY

_SEED, _MERGED = "seed", "merged"
"""The names of the runs that are not of an expert."""
_ANYWHERE = Path("experts")
"""A directory in place of the real one, which decides nothing."""


@dataclass(frozen=True)
class _Family:
    """What the command asks for."""

    line: CommandLine
    config: Config
    """As `merge` reads it."""
    trained: Sequence[str]
    """The domains whose experts are to be trained."""
    seed: str | None
    """The model to begin with, if it is on the command line; otherwise it is trained."""
    seed_run: Path | None
    """The directory of the seed in CONFIG."""

    def runs(self, directory: Path) -> list[PlannedRun]:
        """All runs, in the order in which they are carried out."""
        found, seed = [], self.seed
        if seed is None:
            place = self.seed_run or directory / _SEED
            found.append(self._run(place, {}, []))
            seed = str(place)
        first = [run.name for run in found]
        beginning = GivenOption("--model", "model.name_or_path", seed)
        for name in self.trained:
            expert = GivenOption("--expert", "data.expert", name)
            values = {"data.expert": name}
            found.append(self._run(directory / name, values, [beginning, expert], first))
        given = [each for each in self.line.options if each.key.startswith("merge.")]
        given += [
            GivenOption("--expert", f"merge.experts.{name}", str(directory / name))
            for name in self.trained
        ]
        needs = [run.name for run in found]
        return [*found, self._run(directory / _MERGED, {}, given, needs, "merge")]

    def _run(
        self,
        directory: Path,
        values: dict[str, str],
        options: Sequence[GivenOption],
        needs: Sequence[str] = (),
        command: str = "pretrain",
    ) -> PlannedRun:
        overrides = _applying(self.line.overrides, command)
        line = replace(self.line, command=command, overrides=overrides, options=options)
        faults = Faults(command)
        config = read_config(command, line.config, overrides, options, faults).config
        config = config.changed(output_dir=str(directory))
        made = Configuration(directory.name, values, overrides)
        return PlannedRun(made, config, faults, line, needs)


def plan_experts(line: CommandLine) -> SweepPlan:
    """The runs of a command line of `merge --train`, and where they are; creates nothing.

    They are in the directory given by `--output-dir`, beside the seed that CONFIG names in
    `output_dir`, or else in a numbered directory in `runs/`. Raises UsageError or ConfigError for a
    config that has no experts to train.
    """
    family = _family(line)
    request = {"command": "merge", "runs": _requests(family.runs(_ANYWHERE))}
    directory, prefix = Path(), ""
    if ("output_dir",) in family.config._own:
        directory = Path(str(family.config.output_dir)).expanduser()
    elif family.seed_run is not None:
        directory = family.seed_run.parent
    else:
        prefix = f"experts-{'-'.join(family.config.data.mixture)}"
        found = None
        if family.config.resume != "never":
            found = numbered.find_numbered(RUNS_DIRECTORY, prefix, SWEEP, request)
        directory = found or numbered.next_free(RUNS_DIRECTORY, prefix)
    runs = family.runs(directory)
    owned = family.seed_run is None
    return SweepPlan(line, runs, directory, prefix, "--train", request, family.runs, owned)


def _requests(runs: Sequence[PlannedRun]) -> list[dict[str, object]]:
    return [run_identity.request_of(run.config, run.line.command) for run in runs]


def _family(line: CommandLine) -> _Family:
    config = read_config(
        "merge", line.config, _applying(line.overrides, "merge"), line.options, Faults("merge")
    ).config
    settings, own = config.merge, config._own
    if settings.without or settings.only is not None:
        raise UsageError(
            "`--train` makes a new merge",
            where="merge.without, merge.only",
            next="remove them, and take experts out of the merge when it is finished",
        )
    weights = {name: domain.weight for name, domain in config.data.mixture.items()}
    trained = [n for n, weight in weights.items() if weight != 0 and n not in settings.experts]
    if len(trained) + len(settings.experts) < 2:
        raise ConfigError(
            "a merge needs the experts of two domains",
            where="data.mixture",
            next="add domains with text to the config, or `data.domains: auto` to find them",
        )
    seed_run = None
    if config.output_dir is not None and ("output_dir",) not in own:
        seed_run = Path(config.output_dir).expanduser()
    seed = config.model.name_or_path if ("model", "name_or_path") in own else None
    taken = {_SEED if seed_run is None else seed_run.name, _MERGED} & set(trained)
    if taken:
        raise ConfigError(
            f"a domain cannot be called {taken.pop()}: it is the directory of another run",
            where="data.mixture",
            next="rename the domain, or train its expert with `llmkit pretrain` and another "
            "--output-dir",
        )
    return _Family(line, config, trained, seed, seed_run)


def _applying(overrides: Sequence[str], command: str) -> list[str]:
    """The KEY=VALUE that a command understands; those of no command are reported by `merge`."""
    wanted, others = set(jobs.jobs_of(command)), set(jobs.jobs_of("pretrain"))
    found = list[str]()
    for each in overrides:
        name = each.partition("=")[0]
        key = keys.owner(tuple(name.split(".")))
        scope = frozenset() if key is None else key.jobs
        applies = bool(scope & wanted) or (command == "merge" and not scope & others)
        if applies and name != "output_dir":
            found.append(each)
    return found
