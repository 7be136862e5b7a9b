"""Pretraining, shared by causal and masked models: text, mixtures of domains, model size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.examples.mixture import Mixture
from llmkit.data.text import domains, fingerprints
from llmkit.data.text.fingerprints import Fingerprints, Overlap
from llmkit.data.text.found_domains import FoundDomains
from llmkit.data.text.prepare import Prepared, prepare_domains, sampled_report, text_report
from llmkit.data.text.token_file import TokenFile
from llmkit.evaluation.baselines import unigram_figures
from llmkit.models import build, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained, open_model
from llmkit.reporting import held_out, summary
from llmkit.reporting.held_out import HeldOut
from llmkit.storage.units import ALONE, Workers
from llmkit.training import run_directory
from llmkit.training.forecast.expectation import expect
from llmkit.training.forecast.text import workload_of_text
from llmkit.training.schedule import readable_minutes
from llmkit.training.tasks import by_domain, defaults, sizing, unnamed_domains
from llmkit.training.tasks.sizing import Sizes
from llmkit.training.tasks.task import Examples, Loss, Rows, Session, Task


@dataclass(frozen=True)
class Pretraining(Task):
    """Pretraining of a language model on raw text."""

    session: Session
    asked: Config
    config: Config
    pretrained: Pretrained | None
    data: Mapping[str, Prepared]
    """By domain; data without a mixture has an empty name."""
    found: FoundDomains | None
    """The domains of `data.domains: auto`."""
    tokenizer: PreTrainedTokenizerFast
    model_config: PretrainedConfig
    sizes: Sizes

    command = "pretrain"
    objective: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    framing: ClassVar[int] = 0
    """Number of positions of a block that hold no text."""

    @classmethod
    @abstractmethod
    def special_ids(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The ids of special tokens in the config of a new model."""

    @classmethod
    def prepare_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, config: Config, block_size: int
    ) -> None:
        """Set what the objective needs of a tokenizer; raises ConfigError if it is unsuitable."""

    @classmethod
    def resolve_objective(cls, config: Config, pretrained: Pretrained | None) -> Config:
        """The config with the objective and its settings resolved."""
        return config.changed(train={"objective": cls.objective})

    def limit_length(self) -> Self:
        """The task with a maximum number of steps, if its time limit needs one."""
        return self

    @abstractmethod
    def blocks(self, file: TokenFile, held_out: bool) -> Any:
        """The examples of a token file."""

    @abstractmethod
    def losses_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], Loss]:
        """Makes the loss of one domain; `isolated` documents must not attend to each other."""

    @abstractmethod
    def draw(self, step: int, **how: Any) -> Rows:
        """The rows of a step if there is one domain."""

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read and tokenize the text, and resolve what depends on it."""
        config, sizes, found, data = cls.read_text(asked, pretrained, session)
        block = sizes.block_size
        tokenizer = next(iter(data.values())).tokenizer
        cls.prepare_tokenizer(tokenizer, config, block)
        made = cls._model_config(config, pretrained, tokenizer, block)
        if config.data.mixture:
            n_tokens = {name: len(domain.train.ids) for name, domain in data.items()}
            config = domains.with_weights(config, n_tokens)
            shares = domains.shares(config).items()
            session.console.say(
                "mixture: " + ", ".join(f"{name} {share:.2%}" for name, share in shares)
            )
        parts = (pretrained, data, found, tokenizer, made, sizes)
        task = cls(session, asked, config, *parts).limit_length()
        if session.processes.is_main:
            for text in by_domain.data_warnings(task.learned, task.overlaps):
                session.console.warn(text)
        return task

    @classmethod
    def read_text(
        cls,
        asked: Config,
        pretrained: Pretrained | None,
        session: Session,
        workers: Workers = ALONE,
    ) -> tuple[Config, Sizes, FoundDomains | None, dict[str, Prepared]]:
        """Read and tokenize the text, with a new tokenizer if none is given, or find it in the
        cache; also returns the resolved config and the domains that were found."""
        config, sizes = cls._resolved(asked, pretrained, session)
        given = cls._given_tokenizer(config, pretrained, sizes.block_size)
        if given is not None:
            beside = cls._model_config(config, pretrained, given, sizes.block_size)
            tokenizers.check_fit(given, beside, config)
            given = tokenizer_saving.savable_tokenizer(given, beside)
        found = unnamed_domains.find_domains(config, pretrained, session)
        how = (session.watch, session.console.say, found, workers)
        return config, sizes, found, prepare_domains(config, session.sources, given, *how)

    @classmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """Report the files and their model; the text is read once, but not tokenized."""
        config, sizes = cls._resolved(asked, pretrained, session)
        block = sizes.block_size
        given = cls._given_tokenizer(config, pretrained, block)
        report, sample = sampled_report(config, session.sources, session.watch)
        if config.data.domains is not None:
            report["domains"] = unnamed_domains.preview_domains(config, pretrained, session)
        size = len(given) if given else sizes.vocab_size
        # The ids of a released architecture may lie outside a small vocabulary.
        made = cls._sized_config(config, pretrained, size, block, {"pad_token_id": 0})
        if given is not None:
            tokenizers.check_fit(given, made, asked)
            tokenizer_saving.savable_tokenizer(given, made)
        with torch.device("meta"):
            model = build.new_model(made, 0, cls.purpose)
        work = workload_of_text(config, report, sample, given, model, sizes, cls.framing)
        return {
            "command": cls.command,
            "run_dir": str(run_directory.locate_run(asked, cls.command)),
            "data": report,
            "objective": config.train.objective,
            "architecture": made.model_type,
            "parameters": model.num_parameters(),
            "vocab_size": size,
            "block_size": block,
            "global_batch_size": sizes.global_batch_size,
            "precision": session.processes.precision,
            "expected": expect(asked, cls.command, work, session.processes),
        }

    @classmethod
    def _resolved(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> tuple[Config, Sizes]:
        """The config with each `auto` that is resolved before the data is read: from the size of
        the text, and from the machine if there is a time limit. A resumed run keeps its values."""
        config = cls.resolve_objective(asked, pretrained)
        config = config.changed(train=defaults.pretraining(config.train))
        keys, of = domains.keys_by_domain(config).values(), session.sources.of
        validated = config.data.validation_fraction != 0 or any(of(key) for _, key in keys)
        names = by_domain.names_of_figures(cls.metrics, list(config.data.mixture))
        defaults.check_best(config.train, names, validated)
        texts = {learned for learned, _ in keys}
        n_bytes = sum(source.n_bytes for text in texts for source in of(text))
        if (earlier := run_directory.sizes(asked, cls.command)) is not None:
            sizes = Sizes.from_json(earlier, config)
            return sizes.written_to(config), sizes
        because, minutes = f"for {n_bytes:,} bytes of text", config.train.max_minutes
        if pretrained is not None:
            kind = session.processes.device.type
            sizes = sizing.of_pretrained(config, pretrained, n_bytes, kind, cls.purpose)
            because += f" and {readable_minutes(minutes)} on a {kind}" if minutes else ""
        else:
            chosen, limited = sizing.choose_recipe(n_bytes, config, session.processes)
            vocabulary = tokenizers.auto_vocab_size(n_bytes)
            sizes = sizing.of_new(config, chosen, vocabulary, cls.purpose)
            because += limited
        resolved = sizes.written_to(config)
        if note := sizing.explained(config, resolved, because):
            session.console.say(note)
        return resolved, sizes

    @classmethod
    def _given_tokenizer(
        cls, config: Config, pretrained: Pretrained | None, block_size: int
    ) -> PreTrainedTokenizerFast | None:
        """The tokenizer of the config or of the given model, if it suits the objective."""
        given = pretrained.tokenizer if pretrained else tokenizers.configured_tokenizer(config)
        if given is not None:
            cls.prepare_tokenizer(given, config, block_size)
        return given

    @classmethod
    def _model_config(
        cls,
        config: Config,
        pretrained: Pretrained | None,
        tokenizer: PreTrainedTokenizerFast,
        block_size: int,
    ) -> PretrainedConfig:
        ids = cls.special_ids(tokenizer)
        return cls._sized_config(config, pretrained, len(tokenizer), block_size, ids)

    @classmethod
    def _sized_config(
        cls,
        config: Config,
        pretrained: Pretrained | None,
        vocab_size: int,
        block_size: int,
        special: dict[str, int],
    ) -> PretrainedConfig:
        if pretrained is not None:
            pretrained.check_purpose(cls.purpose)
            return pretrained.config
        model = config.model
        return build.model_config(
            model.architecture, model.config, vocab_size, block_size, special, cls.purpose
        )

    @property
    def lora(self) -> None:
        """Pretraining has no LoRA."""

    @cached_property
    def shares(self) -> dict[str, float]:
        """The shares of the training domains; empty without a mixture."""
        return {name: share for name, share in domains.shares(self.config).items() if share > 0}

    @cached_property
    def learned(self) -> dict[str, TokenFile]:
        """The training token files by domain."""
        return {name: self.data[name].train for name in self.shares or self.data}

    @cached_property
    def held_out(self) -> dict[str, TokenFile]:
        """The validation token files by domain."""
        return {name: each.validation for name, each in self.data.items() if each.validation}

    @cached_property
    def examples(self) -> Any:
        """Blocks of the text, or a mixture of them."""
        made = {name: self.blocks(file, held_out=False) for name, file in self.learned.items()}
        if not self.config.data.mixture:
            return made[""]
        occurrences = self.config.train.objective != "causal"
        return Mixture(made, list(self.shares.values()), occurrences=occurrences)

    @cached_property
    def validation(self) -> Any:
        """Blocks of the held-out text."""
        made = {name: self.blocks(file, held_out=True) for name, file in self.held_out.items()}
        if not self.config.data.mixture:
            return made.get("")
        return Mixture(made, tells_domain=True, trained_on=self.shares) if made else None

    @cached_property
    def representative(self) -> Any:
        """The held-out blocks whose metrics are those of the run: of a mixture, those of the
        domains that are trained on."""
        held_out = self.validation
        return held_out.representative if isinstance(held_out, Mixture) else held_out

    @property
    def tokens_per_example(self) -> int:
        """Tokens per block."""
        return int(self.examples.block_size)

    @property
    def content(self) -> dict[str, str]:
        """The hashes of the data, by description."""
        content = {}
        for name, domain in self.data.items():
            of = f" of {name}" if name else ""
            content[f"training data{of}"] = domain.train.fingerprint
            if domain.validation is not None:
                content[f"validation data{of}"] = domain.validation.fingerprint
        return content

    @cached_property
    def data_report(self) -> Mapping[str, Any]:
        """What is trained on and held out, by domain, and what is in domains that were found."""
        text = text_report(self.config, self.session.sources, self.data, self.overlaps)
        return {"text": text, **({"domains": self.found.report} if self.found else {})}

    @cached_property
    def overlaps(self) -> dict[str, Overlap]:
        """How much of the held-out text of each domain is trained on."""
        seen = self.seen()
        with self.session.watch("comparing held-out and training text", 0):
            parts = {name: fingerprints.of_tokens([file]) for name, file in self.held_out.items()}
            return {name: fingerprints.overlap(part, seen) for name, part in parts.items()}

    @property
    def measured_first(self) -> bool:
        """Whether a pretrained model continues on a mixture: its report lists gains and losses."""
        return bool(self.config.data.mixture and self.pretrained and self.validation)

    def accompany(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the domains that were found, for the branches of this model."""
        self.keep(directory)

    def keep(self, directory: Path) -> None:
        """Write the domains that were found, which a resumed run does not find again."""
        if self.found is not None:
            self.found.clusters.write(directory)

    def begin(self) -> PreTrainedModel:
        """New weights from the seed, or those of the given model."""
        if self.pretrained is None:
            return build.new_model(self.model_config, self.config.seed, self.purpose)
        return pretrained.load_model(self.pretrained, self.purpose, say=self.session.console.warn)

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The loss; for a mixture, also measured by domain."""
        files = [*(each.train for each in self.data.values()), *self.held_out.values()]
        isolated = self.config.data.isolate_documents and any(len(f.starts) > 1 for f in files)
        return partial(by_domain.measured_by_domain, self.losses_of(model, isolated))

    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """Every example once per epoch; from a mixture, each domain by its share."""
        how: dict[str, Any] = {"global_batch_size": global_batch_size, "limit": limit}
        how["seed"] = self.config.seed
        if isinstance(self.examples, Mixture):
            return self.examples.rows_of_step(step, **how)
        return self.draw(step, n_examples=len(self.examples), **how)

    def progress(
        self, step: int, *, global_batch_size: int, limit: int | None
    ) -> Mapping[str, float]:
        """The epochs of each domain of a mixture."""
        if not isinstance(self.examples, Mixture):
            return {}
        how: dict[str, Any] = {"global_batch_size": global_batch_size, "limit": limit}
        return by_domain.progress(self.examples, step, **how)

    def seen(self) -> Fingerprints:
        """The fingerprints of the training text."""
        return self._seen

    @cached_property
    def _seen(self) -> Fingerprints:
        return fingerprints.of_training_text(list(self.learned.values()), self.session.watch)

    def speeds(self, figures: Mapping[str, Any]) -> dict[str, float]:
        """More speeds of a run for its results."""
        return {}

    @abstractmethod
    def passages(self, model: PreTrainedModel, examples: Any) -> HeldOut:
        """What the final model makes of each passage of held-out examples."""

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The unigram baseline, and the gains and losses of each domain of a mixture; writes what
        became of each held-out passage."""
        console, found = self.session.console, dict[str, Any]()
        if self.config.train.max_minutes is None:  # with a time limit, the run itself warns
            for text in summary.of_steps(figures["step"], self.from_scratch):
                console.warn(text)
        measured = figures["validation"]
        if validation is not None and measured:
            self._write_passages(validation, figures)
            figures_of = by_domain.whole(loss).figures
            unigram = unigram_figures(figures_of, self.examples, self.representative)
            for text in summary.of_language_model(measured, unigram, figures["train_loss"]):
                console.warn(text)
            found["baseline"] = {"unigram": unigram}
        found |= self.speeds(figures)
        if self.config.data.mixture:
            run = Path(figures["run_dir"])
            found["domains"] = by_domain.domain_report(domains.shares(self.config), figures, run)
        return found

    def _write_passages(self, validation: Any, figures: Mapping[str, Any]) -> None:
        """Measure the model in `final/` on each held-out passage, and write the result."""
        device = self.session.processes.device
        opened = open_model(figures["model_dir"], encoder_decoder=True)
        final = pretrained.load_model(opened, self.purpose)
        found = self.passages(final.to(device).eval(), validation)
        held_out.write_held_out(Path(figures["run_dir"]), found)
