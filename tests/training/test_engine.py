"""The ladder of invariants at the level of the engine."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from llmkit.errors import Diverged, Interrupted, Stopped, WriteError
from llmkit.training import checkpoint, prefetch
from llmkit.training.tasks.causal import CausalLoss

from . import with_dropout
from .conftest import tiny_model


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def assert_close(a: dict, b: dict) -> None:
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_micro_batch_size_changes_nothing(trial, size, optimizer) -> None:
    whole, parts = (
        trial("a", optimizer=optimizer),
        trial("b", micro_batch=size, optimizer=optimizer),
    )
    whole.run(), parts.run()
    if optimizer == "adamw":  # Muon's bf16 Newton-Schulz magnifies rounding
        assert_close(whole.weights(), parts.weights())
    for one, other in zip(metrics(whole.directory), metrics(parts.directory), strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=2e-3 if optimizer == "muon" else 1e-5)


@pytest.mark.parametrize("objective", with_dropout.OBJECTIVES)
def test_the_micro_batch_size_changes_no_loss_of_a_model_with_dropout(trial, objective) -> None:
    found = []
    for size in (8, 3, 1):
        run = trial(
            str(size), micro_batch=size, steps=10, logging=1, **with_dropout.parts(objective)
        )
        run.run()
        found.append([line["train_loss"] for line in metrics(run.directory)])
    still = trial("still", steps=1, logging=1, **with_dropout.parts(objective))
    still.model.eval()
    still.run()
    assert metrics(still.directory)[0]["train_loss"] != pytest.approx(found[0][0], rel=1e-5)
    assert len(found[0]) == 10
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_only_rounding_tells_micro_batch_sizes_apart(trial) -> None:
    """In fp32 a hundred steps magnify it to 1e-5; in fp64 nothing but the loss's own fp32 shows."""
    found = []
    for size in (8, 3):
        run = trial(
            str(size), micro_batch=size, steps=100, logging=1, model=tiny_model().double(),
            validation=None,
        )  # fmt: skip
        run.run()
        found.append([line["train_loss"] for line in metrics(run.directory)])
    assert found[1] == pytest.approx(found[0], rel=5e-7)


def test_a_step_equals_a_plain_torch_step_over_all_its_tokens(trial) -> None:
    ours, plain = trial("a", steps=1), trial("b")
    ours.run()
    model = plain.model
    batch = ours.examples.batch(range(8))
    logits = model(input_ids=batch["input_ids"]).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8).step()
    assert metrics(ours.directory)[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(ours.weights(), dict(model.state_dict()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_run_is_bit_identical(trial, precision) -> None:
    runs = [trial(name, precision=precision, optimizer="muon") for name in "ab"]
    for run in runs:
        run.run()
    assert_same(runs[0].weights(), runs[1].weights())
    a, b = ((run.directory / "metrics.jsonl").read_bytes() for run in runs)
    assert a == b


class Waits(TorchDispatchMode):
    """Counts the operations whose result a program cannot go on without."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_operation_of_a_step_waits_for_the_device_but_what_the_model_has(
    trial, optimizer
) -> None:
    found = []
    for steps in (2, 12):
        task = CausalLoss(n_bytes=1, linear_head=True)
        run = trial(
            str(steps), steps=steps, optimizer=optimizer, task=task, micro_batch=3,
            validation=None, eval_steps=100,
        )  # fmt: skip
        with Waits() as waits:
            run.run()
        found.append(waits.count)
    with Waits() as waits:  # transformers looks for packed documents
        run.model.base_model(torch.zeros(1, 3, dtype=torch.int64), use_cache=False)
    assert waits.count == 1
    assert found[1] - found[0] == 10 * 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_resumed_run_is_bit_identical(trial, cut, optimizer) -> None:
    dropout = {"architecture": "gpt2"}  # has dropout by default
    whole = trial("whole", optimizer=optimizer, save_steps=1, **dropout)
    whole.run()
    first = trial("cut", optimizer=optimizer, save_steps=1, steps=6, **dropout)
    stop_at(first, cut)
    with pytest.raises(Stopped):
        first.run()
    found = checkpoint.newest(first.directory / "checkpoints", print)
    assert found is not None
    assert found.state.step == cut
    model = AutoModelForCausalLM.from_pretrained(found.directory, dtype=torch.float32).train()
    again = trial("cut", optimizer=optimizer, save_steps=1, model=model)
    again.run(found.state, found.optimizer_tensors())
    assert_same(whole.weights(), again.weights())
    a, b = ((run.directory / "metrics.jsonl").read_bytes() for run in (whole, again))
    assert a == b


def stop_at(trial, step: int) -> None:
    """Lets the stop signal come while step `step` is being computed."""
    task, calls = trial.task, {"n": 0}

    class Watched(CausalLoss):
        def sums(self, model, batch):
            if model.training:
                calls["n"] += 1
                if calls["n"] == step:
                    trial.stop.handle(signal.SIGTERM, None)
            return super().sums(model, batch)

    trial.task = Watched(task.n_bytes)


def test_validation_counts_every_token_once_whatever_the_micro_batch(trial) -> None:
    runs = [trial(str(size), micro_batch=size) for size in (1, 2, 5, 8)]
    states = [run.run() for run in runs]
    rows, model = runs[0].validation, runs[0].model.eval()
    total = count = 0.0
    for row in range(len(rows)):
        n = int(rows.lengths[row])
        ids = torch.from_numpy(rows.ids[row : row + 1])
        logits = model(input_ids=ids[:, :n]).logits.double()
        total += functional.cross_entropy(logits[0], ids[0, 1 : n + 1], reduction="sum").item()
        count += n
    last = [m for m in metrics(runs[0].directory) if "validation_loss" in m][-1]
    assert last["validation_loss"] == pytest.approx(total / count, rel=1e-5)
    assert last["validation_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert last["validation_bits_per_byte"] == pytest.approx(total / math.log(2) / 100, rel=1e-5)
    for state in states[1:]:
        assert state.best_metric == pytest.approx(states[0].best_metric, rel=1e-4)


def test_a_non_finite_step_is_refused_before_weights_move(trial) -> None:
    class Poisoned(CausalLoss):
        calls = 0

        def sums(self, model, batch):
            sums = super().sums(model, batch)
            if model.training:
                self.calls += 1
                if self.calls == 3:
                    sums["objective"] = sums["objective"] * math.inf
            return sums

    poisoned = trial("a", task=Poisoned(100), steps=3, eval_steps=1000)
    clean = trial("b", steps=3, eval_steps=1000)
    stop_at(clean, 2)
    poisoned.run()
    with pytest.raises(Stopped):
        clean.run()
    assert_same(poisoned.weights(), clean.weights())
    assert {"step": 3, "refused": "non-finite"} in metrics(poisoned.directory)


def test_too_many_refused_steps_end_the_run_with_everything_kept(trial) -> None:
    class Broken(CausalLoss):
        def sums(self, model, batch):
            sums = super().sums(model, batch)
            factor = math.nan if model.training else 1.0
            return {**sums, "objective": sums["objective"] * factor}

    run = trial(task=Broken(100), nonfinite=2)
    before = run.weights()
    with pytest.raises(Diverged, match="2 consecutive steps"):
        run.run()
    found = checkpoint.newest(run.directory / "checkpoints", print)
    saved = AutoModelForCausalLM.from_pretrained(found.directory).state_dict()
    torch.testing.assert_close(saved, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "fault"),
    [(signal.SIGTERM, Stopped), (signal.SIGUSR1, Stopped), (signal.SIGINT, Interrupted)],
)
def test_a_signal_saves_within_a_step(trial, number, fault) -> None:
    run = trial(eval_steps=2, look=lambda: run.stop.handle(number, None) or {})
    with pytest.raises(fault, match=number.name):
        run.run()
    found = checkpoint.newest(run.directory / "checkpoints", print)
    assert found.state.step == 2  # received at the validation of step 2, which it follows at once


def test_a_signal_during_validation_reports_nothing_half_measured(trial) -> None:
    class Slow(CausalLoss):
        def sums(self, model, batch):
            if not model.training:
                run.stop.handle(signal.SIGTERM, None)
            return super().sums(model, batch)

    run = trial(task=Slow(100), micro_batch=2)
    with pytest.raises(Stopped):
        run.run()
    found = checkpoint.newest(run.directory / "checkpoints", print)
    assert (found.state.step, found.state.evaluated_step) == (3, 0)
    assert not [m for m in metrics(run.directory) if "validation_loss" in m]


def test_training_continues_after_a_failed_periodic_save_but_not_after_a_failed_last_one(
    trial,
) -> None:
    run = trial(save_steps=2, steps=3)
    run.directory.mkdir()
    (run.directory / "checkpoints").write_text("in the way")
    with pytest.raises(WriteError):
        run.run()
    assert [m["step"] for m in metrics(run.directory)][-1] == 3


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_hold_each_row_once_and_are_equally_long(n, size, processes) -> None:
    shares = [prefetch.share_of_rows(n, size, rank, processes) for rank in range(processes)]
    rows = [row for part in shares for micro in part for row in micro if row >= 0]
    assert rows == list(range(n))
    assert len({len(part) for part in shares}) == 1
    assert len({len(micro) for part in shares for micro in part}) == 1


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "qwen3_moe", "gpt_neox", "olmo2"])
def test_every_architecture_learns(trial, architecture) -> None:
    run = trial(architecture=architecture, steps=12, eval_steps=12)
    run.run()
    losses = [m["train_loss"] for m in metrics(run.directory) if "train_loss" in m]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 has dropout
def test_recomputed_activations_change_no_bit(trial, architecture) -> None:
    plain, saving = (trial(name, steps=3, architecture=architecture) for name in "ab")
    saving.model.activation_checkpointing_enable()
    plain.run(), saving.run()
    assert_same(plain.weights(), saving.weights())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("objective", with_dropout.OBJECTIVES)
def test_compiled_or_not_and_whatever_the_micro_batch_a_loss_with_dropout_is_the_same(
    trial, objective
) -> None:
    found = []
    for size, compiled in ((8, False), (8, True), (3, True)):
        torch.compiler.reset()
        run = trial(
            f"{size}{compiled}", micro_batch=size, compiled=compiled, steps=10, logging=1,
            **with_dropout.parts(objective),
        )  # fmt: skip
        run.run()
        found.append([line["train_loss"] for line in metrics(run.directory)])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_compiled_run_repeats_and_resumes_to_the_bit(trial, precision, architecture) -> None:
    settings = {
        "precision": precision, "optimizer": "muon", "save_steps": 2, "compiled": True,
        "architecture": architecture,
    }  # fmt: skip
    whole, again = trial("a", **settings), trial("b", **settings)
    whole.run(), again.run()
    assert_same(whole.weights(), again.weights())
    first = trial("cut", **settings)
    first.look = lambda: first.stop.handle(signal.SIGTERM, None) or {}
    with pytest.raises(Stopped):
        first.run()
    found = checkpoint.newest(first.directory / "checkpoints", print)
    assert found is not None
    model = AutoModelForCausalLM.from_pretrained(found.directory, dtype=torch.float32).train()
    rest = trial("cut", **{**settings, "model": model})
    rest.run(found.state, found.optimizer_tensors())
    assert_same(whole.weights(), rest.weights())


@pytest.mark.parametrize(
    ("steps", "every", "validated"),
    [
        (100, 33, [33, 66, 100]),  # 99 is next to the end
        (100, 49, [49, 98, 100]),
        (100, 98, [98, 100]),  # two steps before the end are not within a hundredth
        (6, 3, [3, 6]),
        (6, 4, [4, 6]),
        (101, 50, [50, 101]),
    ],
)
def test_a_model_is_not_validated_twice_within_a_hundredth_of_its_steps(
    trial, steps, every, validated
) -> None:
    run = trial(steps=steps, eval_steps=every)
    run.run()
    assert [m["step"] for m in metrics(run.directory) if "validation_loss" in m] == validated


def test_validation_as_often_as_was_asked_is_kept(trial) -> None:
    run = trial(steps=200, eval_steps=1)
    run.run()
    assert len([m for m in metrics(run.directory) if "validation_loss" in m]) == 200
