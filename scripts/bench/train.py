"""Training speed: llmkit's engine, a bare hand-written loop and transformers.Trainer.

The same llama (6 layers, 384 wide, vocabulary 8192: 13.8 million parameters), block 256, 16
sequences a step, bf16, AdamW; `--litgpt` adds litgpt. The sides run in separate processes and take
turns. Prints one JSON line: tokens/s of each side (median over rounds) and ratios to llmkit; the
machine's matrix rate, measured before and after, and llmkit's share of it; peak memory of each
side.

    .venv/bin/python scripts/bench/train.py [--rounds 5] [--steps 6] [--sides llmkit,bare,...]
        [--vocabulary 8192] [--litgpt PYTHON]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import turns
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from turns import Round

from llmkit.config.resolved import ResolvedTrain
from llmkit.config.schema import TrainConfig
from llmkit.distributed import device
from llmkit.distributed.processes import join_processes
from llmkit.distributed.signals import StopSignal
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay
from llmkit.training import engine, probe
from llmkit.training.checkpoint import State
from llmkit.training.loss_module import LossModule, quick
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.record import Recorder
from llmkit.training.schedule import Clock, Plan, Revision
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.task import Examples, Loss, Rows

VOCABULARY, BLOCK, BATCH = 8192, 256, 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model(vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=BLOCK,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE)


class Stream:
    """Random tokens as examples."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        self.vocabulary = vocabulary
        self.ids = torch.randint(vocabulary, (4096, BLOCK + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: list[int]) -> dict[str, torch.Tensor]:
        ids = self.ids[list(rows)]
        return {"input_ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}

    def count(self, rows: list[int]) -> int:
        return len(rows) * BLOCK

    def longest_first(self) -> range:
        return range(len(self))


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def bare(stream: Stream) -> Round:
    """A loop written by hand for this model only."""
    own = model(stream.vocabulary)
    decay = [p for p in own.parameters() if p.ndim >= 2]
    plain = [p for p in own.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)

    @torch.compile(dynamic=False)
    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = own(input_ids=ids, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def run(steps: int) -> float:
        start = time.perf_counter()
        for step in range(steps):
            batch = stream.batch(list(range(step * BATCH, (step + 1) * BATCH)))
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = loss_of(batch["input_ids"].to(DEVICE), batch["targets"].to(DEVICE))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait()
        return time.perf_counter() - start

    return run


def llmkit(
    stream: Examples,
    loss: Loss | None = None,
    compiled: bool = True,
    rows_of_step: Callable[[int], Rows] = lambda step: list(range(BATCH)),
    own: PreTrainedModel | None = None,
) -> Round:
    """The engine as `llmkit pretrain` sets it up."""
    own, loss = (own or model()).train(), loss or CausalLoss(1, linear_head=True)
    directory = Path(tempfile.mkdtemp())
    processes = join_processes("bf16")
    objective = quick(loss, own, processes.device).to(processes.device)
    size, _ = probe.fit(objective, stream, BATCH, None, processes)
    if compiled:
        objective.compile_layers()
    never = 10**9
    settings = ResolvedTrain(
        global_batch_size=BATCH, micro_batch_size=size, learning_rate=1e-3,
        lr_scheduler_type="linear", warmup_steps=0.03, adam_beta2=0.95,
        weight_decay=0.1, max_grad_norm=1.0,
        max_nonfinite_steps=5,
        logging_steps=never, eval_steps=never, save_steps=never, save_total_limit=2,
    )  # fmt: skip
    optimizer = NamedOptimizer(own, "adamw", defaults.pretraining(TrainConfig(weight_decay=0.1)))
    work = engine.Work(
        objective=objective, optimizer=optimizer,
        examples=stream, rows_of_step=rows_of_step, validation=None,
        validation_loss=loss, settings=settings, seed=0, processes=processes,
    )  # fmt: skip
    record = Recorder(
        directory=directory, settings=settings, processes=processes,
        display=TrainingDisplay(Console(quiet=True), 0, None), clock=Clock(),
        save_model=lambda _: None, optimizer_tensors=dict, identity={},
    )  # fmt: skip
    record.save = lambda state, must: None  # the end of a round is not the end of a run

    def run(steps: int) -> float:
        state = State(step=0, plan=Plan((Revision(0, steps),)), seconds=0.0)
        start = time.perf_counter()
        engine.train(work, state, record, StopSignal(), lambda step: {})
        wait()
        return time.perf_counter() - start

    return run


def trainer(stream: Stream, bf16: bool) -> Round:
    """transformers.Trainer as run_clm.py sets it up."""
    own = model(stream.vocabulary)
    rows = [{"input_ids": ids[:-1], "labels": ids[:-1]} for ids in stream.ids]

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            wait()
            self.seconds = time.perf_counter() - self.start

    def run(steps: int) -> float:
        watch = Watch()
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps,
            bf16=bf16, use_cpu=DEVICE.type == "cpu", save_strategy="no", report_to=[],
            logging_steps=10**6, disable_tqdm=True, learning_rate=1e-3,
        )  # fmt: skip
        Trainer(own, arguments, train_dataset=rows, callbacks=[watch]).train()
        return watch.seconds

    return run


def operations_per_token(vocabulary: int) -> float:
    """Training FLOP per token, attention included."""
    objective = LossModule(CausalLoss(1, linear_head=True), model(vocabulary))
    return probe.operations(objective, Stream(vocabulary), DEVICE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sides", default="llmkit,bare,trainer-bf16,trainer")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--litgpt", metavar="PYTHON")
    parser.add_argument("--serve", metavar="SIDE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        turns.serve(side(asked.serve, asked.vocabulary))
        return
    sides = {
        name: turns.Process([sys.executable, *sys.argv, "--serve", name])
        for name in asked.sides.split(",")
    }
    if asked.litgpt:
        sizes = (f"--vocabulary={asked.vocabulary}", f"--block={BLOCK}", f"--batch={BATCH}")
        sides["litgpt"] = turns.Process(
            [asked.litgpt, str(Path(__file__).with_name("litgpt_side.py")), *sizes]
        )
    rates = [device.matrix_rate(DEVICE, "bf16")]
    found = turns.take(sides, asked.rounds, asked.steps, BATCH * BLOCK)
    rates.append(device.matrix_rate(DEVICE, "bf16"))
    rate = statistics.mean(rates)
    used = operations_per_token(asked.vocabulary) * found["tokens_per_second"].get("llmkit", 0.0)
    shares = {"matrix_rate": rate, "share_of_matrix_rate": round(used / rate, 3)}
    peaks = {name: process.peak_bytes for name, process in sides.items()}
    print(json.dumps({**found, **shares, "peak_bytes": peaks}))


def side(name: str, vocabulary: int) -> Round:
    """One of the sides, for a separate process."""
    if name == "llmkit":
        device.keep_freed_memory()  # before torch allocates
        return llmkit(Stream(vocabulary), own=model(vocabulary))
    if name == "bare":
        return bare(Stream(vocabulary))
    return trainer(Stream(vocabulary), bf16=name == "trainer-bf16")


if __name__ == "__main__":
    main()
