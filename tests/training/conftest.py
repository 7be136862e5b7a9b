"""A tiny model, in-memory examples and a whole engine around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from llmkit.config.resolved import ResolvedTrain
from llmkit.config.schema import TrainConfig
from llmkit.distributed import signals
from llmkit.distributed.processes import join_processes
from llmkit.distributed.signals import StopSignal
from llmkit.models import build
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay
from llmkit.training import engine, final_model
from llmkit.training.checkpoint import State
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.record import Recorder
from llmkit.training.schedule import Clock, Plan, Revision
from llmkit.training.shards import wrapping
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.task import Batch

VOCABULARY, BLOCK = 61, 12


class Rows:
    """Random rows of different lengths; row -1 predicts nothing."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.ids = generator.integers(0, VOCABULARY, (count, BLOCK + 1))
        self.lengths = generator.integers(1, BLOCK + 1, count)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> Batch:
        inputs = np.zeros((len(rows), BLOCK), dtype=np.int64)
        targets = np.full((len(rows), BLOCK), -100, dtype=np.int64)
        for i, row in enumerate(rows):
            if row >= 0:
                n = self.lengths[row]
                inputs[i, :n], targets[i, :n] = self.ids[row, :n], self.ids[row, 1 : n + 1]
        return {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    def longest_first(self) -> Sequence[int]:
        return range(len(self))

    def count(self, rows: Sequence[int]) -> int:
        return int(sum(self.lengths[row] for row in rows if row >= 0))


def tiny_model(architecture: str = "llama", seed: int = 0, **settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = build.model_config(architecture, shape, VOCABULARY, BLOCK, special)
    return build.causal_model(config, seed)


class NoTokenizer:
    """Saves nothing."""

    def save_pretrained(self, directory: Path) -> None:
        pass


@dataclass
class Trial:
    """A training run in this process; every part of it can be set."""

    directory: Path
    model: PreTrainedModel
    steps: int = 6
    batch: int = 8
    micro_batch: int = 8
    optimizer: str = "adamw"
    precision: str = "fp32"
    save_steps: int = 1000
    compiled: bool = False
    eval_steps: int = 3
    logging: int = 2
    nonfinite: int = 3
    loss_spike: str = "warn"
    examples: Rows = field(default_factory=lambda: Rows(40))
    validation: Rows | None = field(default_factory=lambda: Rows(5, seed=9))
    task: Any = field(default_factory=lambda: CausalLoss(n_bytes=100))
    stop: StopSignal = field(default_factory=StopSignal)
    look: Callable[[], dict[str, Any]] = dict
    shard: bool = False
    shard_size: int | None = None

    def run(self, state: State | None = None, tensors: dict[str, Any] | None = None) -> State:
        state = state or State(step=0, plan=Plan((Revision(0, self.steps),)), seconds=0.0)
        settings = ResolvedTrain(
            global_batch_size=self.batch, micro_batch_size=self.micro_batch,
            learning_rate=1e-2, lr_scheduler_type="linear", warmup_steps=0.2, adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0, max_nonfinite_steps=self.nonfinite,
            logging_steps=self.logging, eval_steps=self.eval_steps,
            save_steps=self.save_steps, save_total_limit=2, loss_spike=self.loss_spike,
        )  # fmt: skip
        processes = join_processes(self.precision)
        train = defaults.pretraining(TrainConfig(weight_decay=0.1))
        objective = LossModule(self.task, self.model)
        if self.shard:
            wrapping.shard_weights(objective, processes, self.shard_size)
        self.named = NamedOptimizer(self.model, self.optimizer, train)
        if tensors:
            self.named.load_state(tensors)
        if self.compiled:
            objective.compile_layers()
        work = engine.Work(
            objective, self.named,
            self.examples,
            lambda step: [(step * self.batch + i) % 40 for i in range(self.batch)],
            self.validation, self.task, settings, 0, processes,
        )  # fmt: skip
        save_model = partial(final_model.save_model, self.model, NoTokenizer(), processes=processes)
        self.directory.mkdir(parents=True, exist_ok=True)
        record = Recorder(
            self.directory, settings, processes, TrainingDisplay(Console(quiet=True), 0, None),
            Clock(), save_model, self.named.state, {"choices": {}},
        )  # fmt: skip
        record.begin(state)
        return engine.train(work, state, record, self.stop, lambda step: self.look())

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., Trial]:
    def make(name: str = "run", **settings: Any) -> Trial:
        architecture = settings.pop("architecture", "llama")
        model = settings.pop("model", None) or tiny_model(architecture)
        return Trial(tmp_path / name, model, **settings)

    return make


@pytest.fixture(autouse=True)
def no_signal_yet() -> None:
    """A second Ctrl-C ends the process; that of an earlier test is not a first one."""
    signals.state.received = 0
