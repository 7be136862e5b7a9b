"""The ladder of invariants for classifiers: batches of unlike lengths, weights, the best kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from llmkit.config.resolved import ResolvedTrain
from llmkit.config.schema import TrainConfig
from llmkit.data.examples import order
from llmkit.data.examples.encoded import Encoded
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.distributed.processes import join_processes
from llmkit.distributed.signals import StopSignal
from llmkit.errors import ConfigError, Stopped
from llmkit.evaluation.labels import label_metrics
from llmkit.models import build
from llmkit.models.classifier import ClassifierHead
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay
from llmkit.training import checkpoint, engine
from llmkit.training.checkpoint import State
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer, depths
from llmkit.training.record import Recorder
from llmkit.training.schedule import Clock, Plan, Revision
from llmkit.training.tasks import defaults
from llmkit.training.tasks.labels.classification_loss import ClassificationLoss, balanced_weights

N, CLASSES, VOCABULARY = 50, 3, 40
BATCH = 8


def examples(kind: str = SINGLE, n: int = N, seed: int = 0) -> Encoded:
    """Random texts of 1 to 12 tokens; the first token tells the label."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 13, n)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids = generator.integers(4, VOCABULARY, starts[-1]).astype(np.int32)
    first = ids[starts[:-1]]
    targets = {
        SINGLE: (first % CLASSES).astype(np.int64),
        MULTI: np.stack([first % k == 0 for k in (2, 3, 5)], axis=1),
        REGRESSION: (first / 10).astype(np.float32),
    }[kind]
    return Encoded(ids, None, starts, sizes.astype(np.int32), targets, pad_id=0)


def small(kind: str = SINGLE, seed: int = 0, **settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, **settings}
    special = {"pad_token_id": 0}
    config = build.model_config("bert", shape, VOCABULARY, 12, special, build.CLASSIFIER_MODEL)
    names = ("value",) if kind == REGRESSION else ("a", "b", "c")
    return build.classifier(ClassifierHead(kind, names).describe(config, 0), seed)


def task(kind: str = SINGLE, **settings: Any) -> ClassificationLoss:
    n_classes = 1 if kind == REGRESSION else CLASSES
    return ClassificationLoss(kind, n_classes, label_metrics.figures_from(kind), **settings)


@dataclasses.dataclass
class Trial:
    """A run of the engine on a small classifier."""

    directory: Path
    kind: str = SINGLE
    micro_batch: int = BATCH
    precision: str = "fp32"
    steps: int = 12
    model: PreTrainedModel | None = None
    task: ClassificationLoss | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    stop_after: int | None = None

    def run(self, state: State | None = None, tensors: dict[str, Any] | None = None) -> State:
        state = state or State(step=0, plan=Plan((Revision(0, self.steps),)), seconds=0.0)
        settings = SETTINGS.changed(micro_batch_size=self.micro_batch, **self.changes)
        self.model = self.model or small(self.kind)
        processes = join_processes(self.precision)
        train = defaults.finetuning(self.train, N, 32, "all", "f1_macro")
        self.named = NamedOptimizer(self.model, "adamw", train)
        if tensors:
            self.named.load_state(tensors)
        data, own = examples(self.kind), self.task or task(self.kind)
        objective = LossModule(own, self.model)

        def rows(step: int) -> Any:
            size = {"global_batch_size": BATCH, "lengths": data.lengths, "seed": 0}
            return order.rows_by_length(step, **size)

        moves = itertools.count(state.step + 1)

        def moved(*_: Any) -> None:
            if next(moves) == self.stop_after:
                self.stop.handle(signal.SIGTERM, None)

        self.named.parts[0].register_step_post_hook(moved)
        work = engine.Work(
            objective, self.named, data, rows,
            examples(self.kind, 21, seed=9), own, settings, 0, processes,
        )  # fmt: skip
        self.directory.mkdir(parents=True, exist_ok=True)
        record = Recorder(
            self.directory, settings, processes, TrainingDisplay(Console(quiet=True), 0, None),
            Clock(), self.model.save_pretrained, self.named.state, {"choices": {}}, "examples",
        )  # fmt: skip
        record.begin(state)
        return engine.train(work, state, record, self.stop, lambda step: {})

    def weights(self) -> dict[str, torch.Tensor]:
        assert self.model is not None
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(x) for x in (self.directory / "metrics.jsonl").read_text().splitlines()]


SETTINGS = ResolvedTrain(
    global_batch_size=BATCH, micro_batch_size=BATCH, learning_rate=5e-3,
    lr_scheduler_type="linear", warmup_steps=0.1, adam_beta2=0.95,
        weight_decay=0.1, max_grad_norm=1.0,
    max_nonfinite_steps=3, logging_steps=3, eval_steps=4, save_steps=4, save_total_limit=2,
    metric_for_best_model="loss",
)  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., Trial]:
    return lambda name="run", **settings: Trial(tmp_path / name, **settings)


KINDS = (SINGLE, MULTI, REGRESSION)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_size_changes_nothing(trial, kind, size) -> None:
    runs = [trial(str(n), kind=kind, micro_batch=n) for n in (BATCH, size)]
    for run in runs:
        run.run()
    for one, other in zip(*(run.metrics() for run in runs), strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_run_is_bit_identical(trial, precision) -> None:
    runs = [trial(name, precision=precision) for name in "ab"]
    for run in runs:
        run.run()
    assert runs[0].metrics() == runs[1].metrics()
    for name, weight in runs[0].weights().items():
        assert torch.equal(weight, runs[1].weights()[name])


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_resumed_run_is_bit_identical(trial, cut) -> None:
    whole, first = trial("whole"), trial("cut", stop_after=cut)
    whole.run()
    with pytest.raises(Stopped):
        first.run()
    found = checkpoint.newest(first.directory / "checkpoints", print)
    assert found is not None
    assert found.state.step == cut
    model = AutoModelForSequenceClassification.from_pretrained(found.directory).train()
    again = trial("cut", model=model)
    again.run(found.state, found.optimizer_tensors())
    assert whole.metrics() == again.metrics()
    for name, weight in whole.weights().items():
        assert torch.equal(weight, again.weights()[name])


@pytest.mark.parametrize("kind", KINDS)
def test_validation_figures_are_those_of_sklearn_over_plain_transformers(trial, kind) -> None:
    run = trial(kind=kind, micro_batch=4)
    run.run()
    data, found = examples(kind, 21, seed=9), run.metrics()[-1]
    with torch.no_grad():
        ids = [torch.from_numpy(part).long() for part in np.split(data.ids, data.starts[1:-1])]
        logits = torch.cat([run.model.eval()(input_ids=each[None]).logits for each in ids])
    targets = torch.from_numpy(data.targets)
    if kind == SINGLE:
        expected = {
            "loss": functional.cross_entropy(logits, targets).item(),
            "accuracy": sklearn.accuracy_score(targets, logits.argmax(1)),
            "f1_macro": sklearn.f1_score(targets, logits.argmax(1), average="macro"),
            "matthews": sklearn.matthews_corrcoef(targets, logits.argmax(1)),
        }
    elif kind == MULTI:
        expected = {
            "loss": functional.binary_cross_entropy_with_logits(logits, targets.float()).item(),
            "accuracy": sklearn.accuracy_score(targets, logits >= 0),
            "f1_micro": sklearn.f1_score(targets, logits >= 0, average="micro", zero_division=0),
        }
    else:
        distance = logits[:, 0] - targets
        expected = {
            "mse": (distance**2).mean().item(),
            "mae": distance.abs().mean().item(),
            "pearson": np.corrcoef(logits[:, 0], targets)[0, 1],
        }
    for name, value in expected.items():
        assert found[f"validation_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_and_rows_of_padding_count_nothing(kind) -> None:
    model, data = small(kind).eval(), examples(kind)
    batch = data.batch([3, -1, 7, -1, 11])
    own = task(kind)
    sums = own.sums(model, batch)
    real = data.batch([3, 7, 11])
    expected = model(**real).loss.item()
    assert sums["loss"].item() / data.count([3, -1, 7, -1, 11]) == pytest.approx(expected, rel=1e-5)
    counts = own.sums(model, real)
    for name, value in sums.items():
        torch.testing.assert_close(value, counts[name], rtol=1e-5, atol=1e-6)


def test_class_weights_and_smoothing_are_those_of_torch() -> None:
    model, data = small().eval(), examples()
    weights = balanced_weights(SINGLE, data.targets, CLASSES)
    assert weights[data.targets].mean() == pytest.approx(1.0)
    own, rows = task(class_weights=weights, label_smoothing=0.1), list(range(9))
    batch = data.batch(rows)
    sums = own.sums(model, batch)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = functional.cross_entropy(
        logits, batch["labels"], weight=torch.from_numpy(weights), label_smoothing=0.1
    )
    found = sums["objective"].item() / own.weight(data, [*rows, -1])
    assert found == pytest.approx(expected.item(), rel=1e-5)
    plain = functional.cross_entropy(logits, batch["labels"])
    assert sums["loss"].item() / 9 == pytest.approx(plain.item(), rel=1e-5)


def test_of_several_labels_the_rare_ones_weigh_more() -> None:
    data, model = examples(MULTI), small(MULTI).eval()
    weights = balanced_weights(MULTI, data.targets, CLASSES)
    assert weights[0] * data.targets[:, 0].sum() == pytest.approx((~data.targets[:, 0]).sum())
    batch = data.batch(range(5))
    found = task(MULTI, class_weights=weights).sums(model, batch)["objective"].item() / 5
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = functional.binary_cross_entropy_with_logits(
        logits, batch["labels"], pos_weight=torch.from_numpy(weights)
    )
    assert found == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, BATCH])
def test_weighted_classes_train_the_same_on_any_micro_batch(trial, size) -> None:
    weights = balanced_weights(SINGLE, examples().targets, CLASSES)
    runs = [
        trial(f"{n}-{name}", micro_batch=n, task=task(class_weights=weights))
        for n, name in ((BATCH, "a"), (size, "b"))
    ]
    for run in runs:
        run.run()
    for one, other in zip(*(run.metrics() for run in runs), strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-5)


def test_a_classifier_learns_what_can_be_learned(trial) -> None:
    run = trial(steps=80, changes={"eval_steps": 40})
    run.run()
    figures = run.metrics()
    assert figures[-1]["validation_accuracy"] > 0.8


def test_training_stops_when_validation_has_not_been_the_best_for_long(trial) -> None:
    changes = {
        "eval_steps": 2, "early_stopping_patience": 2, "learning_rate": 0.3, "save_steps": 3,
    }  # fmt: skip
    run = trial(steps=60, changes=changes)
    state = run.run()
    assert state.step < 60
    assert state.finished
    assert state.evaluations_since_best == 2
    assert state.step == state.best_step + 2 * 2
    assert {"step": state.step, "total_steps": state.step} in run.metrics()
    found = checkpoint.newest(run.directory / "checkpoints", print)
    model = AutoModelForSequenceClassification.from_pretrained(found.directory)
    again = trial(model=model, steps=60, changes=changes)
    assert again.run(found.state, found.optimizer_tensors()).step == state.step


def test_a_resumed_run_stops_early_at_the_same_step(trial) -> None:
    changes = {"eval_steps": 2, "early_stopping_patience": 2, "learning_rate": 0.3}
    whole = trial("whole", steps=60, changes=changes)
    state = whole.run()
    first = trial("cut", steps=60, changes=changes, stop_after=state.best_step + 2)
    with pytest.raises(Stopped):
        first.run()
    found = checkpoint.newest(first.directory / "checkpoints", print)
    model = AutoModelForSequenceClassification.from_pretrained(found.directory).train()
    again = trial("cut", model=model, steps=60, changes=changes)
    again.run(found.state, found.optimizer_tensors())
    assert whole.metrics() == again.metrics()


def test_the_best_is_saved_when_it_is_to_be_kept_whatever_the_intervals(trial) -> None:
    changes = {"eval_steps": 2, "save_steps": 1000, "load_best_model_at_end": True}
    run = trial(steps=20, changes={**changes, "metric_for_best_model": "f1_macro"})
    state = run.run()
    values = {m["step"]: m["validation_f1_macro"] for m in run.metrics() if "validation_loss" in m}
    assert state.best_metric == max(values.values())
    assert state.best_step == min(step for step in values if values[step] == state.best_metric)
    assert (run.directory / "checkpoints" / f"step-{state.best_step:010}").is_dir()


def test_a_figure_that_validation_does_not_give_is_refused() -> None:
    train = TrainConfig(metric_for_best_model="acuracy")
    with pytest.raises(ConfigError, match="no metric 'acuracy'") as caught:
        defaults.check_best(train, ("loss", "accuracy"), validated=True)
    assert "accuracy" in caught.value.next
    train = TrainConfig(metric_for_best_model="loss", early_stopping_patience=1)
    with pytest.raises(ConfigError, match="early stopping needs validation data"):
        defaults.check_best(train, ("loss",), validated=False)


def test_each_layer_learns_slower_than_the_one_above(trial) -> None:
    model = small()
    above = depths(model)
    assert above["classifier.weight"] == above["bert.pooler.dense.weight"] == 0
    assert above["bert.encoder.layer.1.output.dense.weight"] == 1
    assert above["bert.encoder.layer.0.output.dense.weight"] == 2
    assert above["bert.embeddings.word_embeddings.weight"] == 3
    assert above["bert.embeddings.LayerNorm.bias"] == 3
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changes = {"warmup_steps": 0.0, "max_grad_norm": None}
    train = TrainConfig(layer_decay=0.5, head_scale=1.0)
    run = trial(steps=1, model=model, changes=changes, train=train)
    run.run()
    # AdamW's first step moves every weight by the learning rate, whatever its gradient.
    for name, depth in (("classifier.bias", 0), ("bert.encoder.layer.0.output.dense.bias", 2)):
        moved = (run.weights()[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(5e-3 * 0.5**depth, rel=0.02)


def test_a_head_has_its_own_learning_rate(trial: Callable[..., Trial]) -> None:
    model = small()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changes = {"warmup_steps": 0.0, "max_grad_norm": None}
    run = trial(steps=1, model=model, changes=changes, train=TrainConfig(head_scale=3.0))
    run.run()
    # AdamW's first step moves every weight by the learning rate, whatever its gradient.
    for name, scale in (("classifier.bias", 3), ("bert.encoder.layer.0.output.dense.bias", 1)):
        moved = (run.weights()[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(5e-3 * scale, rel=0.02)


def test_only_a_new_head_on_an_old_body_learns_faster() -> None:
    scales = {
        part: defaults.finetuning(TrainConfig(), 1000, 384, part, "loss").head_scale
        for part in ("all", "again", "new", "lora", "head")
    }
    assert scales.pop("all") == 5.0
    assert set(scales.values()) == {1.0}


def test_auto_takes_the_settings_that_classifiers_are_known_to_like() -> None:
    known = defaults.finetuning(TrainConfig(), 1000, 768, "all", "f1_macro")
    assert known.learning_rate == pytest.approx(1e-4)
    assert (known.num_train_epochs, known.global_batch_size, known.eval_steps) == (3.0, 32, 32)
    assert (known.weight_decay, known.adam_beta2, known.optimizer) == (0.01, 0.999, "adamw")
    rates = {
        part: defaults.finetuning(TrainConfig(), 1000, 384, part, "loss").learning_rate
        for part in ("all", "new", "lora", "head")
    }
    assert rates["all"] == pytest.approx(2e-4)
    assert min(rates, key=rates.__getitem__) == "all"
    own = TrainConfig(max_steps=7, learning_rate=1e-3, global_batch_size=4)
    settled = defaults.finetuning(own, 1000, 384, "all", "loss")
    assert (settled.num_train_epochs, settled.learning_rate) == (None, 1e-3)
    assert settled.eval_steps == 250
