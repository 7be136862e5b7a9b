"""`llmkit pretrain`: raw text -> language model, causal or masked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data import domains, fingerprints
from llmkit.data.documents import mark_hints
from llmkit.data.fingerprints import Fingerprints
from llmkit.data.mixture import Mixture
from llmkit.data.prepare import Prepared, data_report, prepare_domains
from llmkit.data.sources import Sources
from llmkit.data.tokens import TokenFile
from llmkit.distributed import device
from llmkit.distributed.processes import Processes
from llmkit.distributed.signals import stop_signal
from llmkit.evaluation.baselines import unigram_figures
from llmkit.inference import generate
from llmkit.models import build, load, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model
from llmkit.progress import Say, Watch
from llmkit.reporting import verdicts
from llmkit.reporting.console import Console
from llmkit.training import directory as run_directory
from llmkit.training import objectives
from llmkit.training import run as training
from llmkit.training.budget import Clock, readable
from llmkit.training.checkpoint import Checkpoint
from llmkit.training.session import Session
from llmkit.training.tasks import by_domain, defaults, masked, sizing
from llmkit.training.tasks.masked import MaskedLoss
from llmkit.training.tasks.sizing import Recipe
from llmkit.training.tasks.task import Examples

PROMPT = 16
"""Tokens of held-out text that each sample continues."""


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Trains the model, or goes on training it, and returns the figures of the run."""
    run_directory.check(config, "pretrain")
    with stop_signal() as stop, training.start(config, "pretrain") as processes:
        watch = stop.watched(console.watch)
        settled, data, shape = _inputs(config, sources, processes, console, watch)
        content, learned = _content(data), _learned(settled, data)
        seen = cache(partial(fingerprints.of_tokens, learned))
        if processes.is_main:
            for tokens in learned:
                for hint in mark_hints(tokens.marks, len(tokens.starts)):
                    console.warn(hint)
            _compare(data, seen, console)
        with run_directory.opened(config, "pretrain") as directory:
            resumed = training.resume_point(directory, config, content, processes, console)
            model = _model(settled, shape, resumed, console.warn)
            console.say(f"model: {type(model).__name__}, {model.num_parameters():,} parameters")
            job = _job(config, settled, data, model, resumed, seen)
            clock = Clock(resumed.state.seconds if resumed else 0.0)
            look = partial(_look, job, console)
            session = Session(processes, console, clock, stop)
            figures = training.carry_out(job, session, look)
            if processes.is_main:
                figures |= _judged(job, figures, console)
            if settled.train.objective == "masked" and "predictions_per_second" in figures:
                share = masked.share(job.examples)
                speed = figures["predictions_per_second"] / share
                figures["tokens_per_second"] = round(speed, 1)
            if settled.data.mixture and processes.is_main:
                shares = domains.shares(settled)
                figures["domains"] = by_domain.report(shares, figures, directory)
                return figures if console.json else by_domain.readable(figures)
            return figures


def _judged(job: training.Job, figures: dict[str, Any], console: Console) -> dict[str, Any]:
    """The baseline beside the figures of a run; warns where they show that little was learned."""
    if job.config.train.max_minutes is None:  # of minutes, the run itself warns
        for text in verdicts.of_steps(figures["step"], job.from_scratch):
            console.warn(text)
    if job.validation is None or not figures["validation"]:
        return {}
    unigram = unigram_figures(by_domain.whole(job.loss).figures, job.examples, job.validation)
    for text in verdicts.of_language_model(figures["validation"], unigram, figures["train_loss"]):
        console.warn(text)
    return {"baseline": {"unigram": unigram}}


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks all that a run needs, without weights and without writing, and says what it found."""
    run_directory.check(config, "pretrain")
    with training.start(config, "pretrain") as processes:
        settled = _settle(config, sources, processes, console)
        given = _given_tokenizer(settled)
        report = data_report(settled, sources, console.watch)
        size = len(given) if given else settled.tokenizer.vocab_size
        assert isinstance(size, int)
        shape = _shape(settled, size, special={})
        if given is not None:
            tokenizers.check_fit(given, shape, config)
            tokenizer_saving.kept(given, shape)
        with torch.device("meta"):
            purpose = objectives.of(settled).purpose
            parameters = build.new_model(shape, 0, purpose).num_parameters()
    return {
        "command": "pretrain",
        "run_dir": str(run_directory.locate(config, "pretrain")),
        "data": report,
        "objective": settled.train.objective,
        "architecture": shape.model_type,
        "parameters": parameters,
        "vocab_size": size,
        "block_size": settled.data.block_size,
        "global_batch_size": settled.train.global_batch_size,
        "precision": processes.precision,
    }


def _job(
    requested: Config,
    config: Config,
    data: dict[str, Prepared],
    model: PreTrainedModel,
    resumed: Checkpoint | None,
    seen: Callable[[], Fingerprints],
) -> training.Job:
    objective = objectives.of(config)
    examples, validation = _examples(config, data)
    loss_of = objective.loss_of(model, _is_packed(config, data))
    loss = by_domain.measured(loss_of, validation)
    rows_of_step = objective.rows_of_step(examples, config.seed)
    progress = None
    if isinstance(examples, Mixture):
        rows_of_step = partial(examples.rows_of_step, seed=config.seed)
        progress = partial(by_domain.progress, examples)
    if config.model.name_or_path is None and isinstance(objective, objectives.Causal):
        train = defaults.bounded(config.train, len(examples))
        config = config.model_copy(update={"train": train})
    return training.Job(
        command="pretrain",
        requested=requested,
        config=config,
        directory=run_directory.locate(requested, "pretrain"),
        content=_content(data),
        model=model,
        tokenizer=next(iter(data.values())).tokenizer,
        from_scratch=config.model.name_or_path is None,
        loss=loss,
        examples=examples,
        tokens_per_example=examples.block_size,
        rows_of_step=rows_of_step,
        validation=validation,
        loss_of_validation=partial(by_domain.measured, loss_of),
        resumed=resumed,
        seen=seen,
        unit=objective.unit,
        progress=progress,
        measured_first=bool(config.data.mixture and config.model.name_or_path and validation),
    )


def _inputs(
    config: Config, sources: Sources, processes: Processes, console: Console, watch: Watch
) -> tuple[Config, dict[str, Prepared], PretrainedConfig]:
    """The config with its data-dependent settings, the data of each domain, and the shape of the
    model: all that can be wrong before weights are made or loaded."""
    settled = _settle(config, sources, processes, console)
    objective = objectives.of(settled)
    given = _given_tokenizer(settled)
    if given is not None:
        beside = _shape(settled, len(given), objective.ids(given))
        tokenizers.check_fit(given, beside, config)
        given = tokenizer_saving.kept(given, beside)
    data = prepare_domains(settled, sources, given, watch, console.say)
    tokenizer = next(iter(data.values())).tokenizer
    objective.take(tokenizer, settled)
    shape = _shape(settled, len(tokenizer), objective.ids(tokenizer))
    if settled.data.mixture:
        sizes = {name: len(domain.train.ids) for name, domain in data.items()}
        settled = domains.settled(settled, sizes)
        shares = domains.shares(settled).items()
        console.say("mixture: " + ", ".join(f"{name} {share:.2%}" for name, share in shares))
    return settled, data, shape


def _given_tokenizer(config: Config) -> PreTrainedTokenizerFast | None:
    """The tokenizer that is named, or the named model's own, if it does for the objective."""
    opened = pretrained.of_config(config)
    given = opened.tokenizer if opened else tokenizers.named(config)
    if given is not None:
        objectives.of(config).take(given, config)
    return given


def _learned(config: Config, data: dict[str, Prepared]) -> list[TokenFile]:
    """The token files that are trained on; of a mixture, those of the domains with a weight."""
    names = [name for name, share in domains.shares(config).items() if share > 0]
    return [data[name].train for name in names or data]


def _compare(data: dict[str, Prepared], seen: Callable[[], Fingerprints], console: Console) -> None:
    """Warns of held-out text that is trained on too; `seen` gives what is trained on."""
    held_out = {name: each.validation for name, each in data.items() if each.validation}
    for name, tokens in held_out.items():
        found = fingerprints.overlap(fingerprints.of_tokens([tokens]), seen())
        if found.is_notable:
            console.warn(
                f"validation data{f' of {name}' if name else ''}: {found.sentence('document')} "
                "are in the training data too: its figures are not held-out figures"
            )


def _content(data: dict[str, Prepared]) -> dict[str, str]:
    """The hashes of the data by what they are of."""
    content = {}
    for name, domain in data.items():
        of = f" of {name}" if name else ""
        content[f"training data{of}"] = domain.train.fingerprint
        if domain.validation is not None:
            content[f"validation data{of}"] = domain.validation.fingerprint
    return content


def _settle(config: Config, sources: Sources, processes: Processes, console: Console) -> Config:
    """The config with each `auto` that is resolved before the data is read: by the text, and by the
    machine where minutes are given. A resumed run keeps what it began with."""
    requested, config = config, objectives.settled(config)
    objective, train = objectives.of(config), defaults.pretraining(config.train)
    keys = domains.keys_by_domain(config).values()
    validated = config.data.validation_fraction != 0 or any(
        sources.of(held_out) for _, held_out in keys
    )
    names = list(config.data.mixture)
    defaults.check_best(train, by_domain.names_of_figures(objective.figures, names), validated)
    config = config.model_copy(update={"train": train})
    n_bytes = sum(source.n_bytes for learned, _ in keys for source in sources.of(learned))
    because = f"for {n_bytes:,} bytes of text"
    if (earlier := run_directory.settled(requested, "pretrain")) is not None:
        return sizing.settle_again(config, earlier)
    if config.model.name_or_path is not None:
        device = processes.device.type
        settled = sizing.settle_existing(config, n_bytes, device, objective.purpose)
        because += f" and {readable(train.max_minutes)} on a {device}" if train.max_minutes else ""
    else:
        chosen, limited = _recipe(n_bytes, train.max_minutes, processes)
        vocabulary = tokenizers.auto_vocab_size(n_bytes)
        settled = sizing.settle_new(config, chosen, vocabulary, objective.purpose)
        because += limited
    if said := sizing.explained(config, settled, because):
        console.say(said)
    return settled


def _recipe(n_bytes: int, minutes: float | None, processes: Processes) -> tuple[Recipe, str]:
    """What suits a new model for so much text, and what else it goes by than the text."""
    if minutes is None:
        return sizing.for_text(n_bytes), ""
    measured = device.matrix_rate(processes.device, processes.precision)
    rate = processes.largest([measured])[0] * processes.count
    return sizing.for_minutes(n_bytes, minutes, rate), (
        f" and {readable(minutes)} at the {rate / 1e9:,.0f} GFLOP/s that this machine has now"
    )


def _shape(config: Config, vocab_size: int, special: dict[str, int]) -> PretrainedConfig:
    """The transformers config of the model, new or existing."""
    model, block = config.model, config.data.block_size
    assert isinstance(block, int)
    purpose = objectives.of(config).purpose
    if model.name_or_path is not None:
        opened = open_model(model.name_or_path, model.revision)
        opened.check_purpose(purpose)
        return opened.config
    return build.model_config(model.architecture, model.config, vocab_size, block, special, purpose)


def _model(
    config: Config, shape: PretrainedConfig, resumed: Checkpoint | None, warn: Say
) -> PreTrainedModel:
    """The model with the weights that the run starts or resumes with."""
    purpose = objectives.of(config).purpose
    if resumed is not None:
        return load.load_model(open_model(str(resumed.directory)), purpose)
    if config.model.name_or_path is not None:
        name, revision = config.model.name_or_path, config.model.revision
        return load.load_model(open_model(name, revision), purpose, say=warn)
    return build.new_model(shape, config.seed, purpose)


def _is_packed(config: Config, data: dict[str, Prepared]) -> bool:
    """Whether there are documents that must be kept apart."""
    files = [file for each in data.values() for file in (each.train, each.validation) if file]
    return config.data.isolate_documents and any(len(file.starts) > 1 for file in files)


def _examples(config: Config, data: dict[str, Prepared]) -> tuple[Any, Examples | None]:
    """What is trained on, and what is measured; of a mixture, only domains with a weight train."""
    shares = {name: share for name, share in domains.shares(config).items() if share > 0}
    train = {name: data[name].train for name in shares or data}
    held_out = {name: each.validation for name, each in data.items() if each.validation}
    make = partial(
        objectives.of(config).examples,
        config=config,
        tokenizer=next(iter(data.values())).tokenizer,
    )
    learned = {name: make(file, held_out=False) for name, file in train.items()}
    measured = {name: make(file, held_out=True) for name, file in held_out.items()}
    if config.data.mixture:
        held = Mixture(measured, tells_domain=True) if measured else None
        occurrences = config.train.objective == "masked"
        return Mixture(learned, list(shares.values()), occurrences=occurrences), held
    return learned[""], measured.get("")


def _look(job: training.Job, console: Console) -> dict[str, Any]:
    """A few continuations of held-out text, or a few of its hidden tokens, shown and noted."""
    loss = by_domain.whole(job.loss)
    if isinstance(loss, MaskedLoss):
        batch = (job.validation or job.examples).batch([0])
        texts = masked.filled(loss, job.model, job.tokenizer, batch)
        for text in texts:
            console.say(f"  sample [said / hidden]: {text}")
        return {"samples": texts}
    settings = job.config.generation
    seed = job.config.seed if settings.seed is None else settings.seed
    source: Any = job.validation or job.examples
    prompt = source.tokens.ids[:PROMPT].tolist()
    texts = generate.continuations(job.model, job.tokenizer, prompt, settings, seed)
    begin = job.tokenizer.decode(prompt, skip_special_tokens=True)
    for text in texts:
        console.say(f"  sample: {begin!r} -> {text!r}")
    return {"samples": texts}
