"""The losses of preferences: equal to their formulas, and to TRL on the same ids."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from llmkit.config.schema import TrainConfig
from llmkit.data.examples.packs import Responses
from llmkit.data.examples.preferences import EncodedPairs
from llmkit.models import tokenizer
from llmkit.training import prefetch
from llmkit.training.tasks.preference.preference import PreferenceLoss
from tests.training.conftest import BLOCK, VOCABULARY, tiny_model

DPO, IPO = {"preference_loss": "dpo"}, {"preference_loss": "ipo"}
SETTINGS = (
    DPO,
    {**DPO, "beta": 0.5, "label_smoothing_factor": 0.2},
    {**DPO, "sft_weight": 0.7},
    {**IPO, "beta": 0.3},
    {**IPO, "sft_weight": 0.7},
)


def loss(linear: bool = True, **settings: Any) -> PreferenceLoss:
    return PreferenceLoss(TrainConfig(**settings), linear)


def pairs(count: int = 12) -> EncodedPairs:
    """Random pairs of unlike lengths, with made-up log-probabilities of the reference."""
    chance = np.random.default_rng(0)
    ids, scored, lengths = [], [], []
    for _ in range(count):
        asked = chance.integers(1, VOCABULARY, chance.integers(1, BLOCK - 4))
        for _ in range(2):
            said = chance.integers(1, VOCABULARY, chance.integers(1, BLOCK - len(asked)))
            ids += [*asked, *said]
            scored += [False] * len(asked) + [True] * len(said)
            lengths.append(len(asked) + len(said))
    starts = np.cumsum([0, *lengths])
    whole = Responses(
        np.array(ids, np.int32), np.array(scored), starts, np.array(lengths), (), 0, BLOCK
    )
    reference = chance.normal(-20, 2, (count, 2)).astype(np.float32)
    return EncodedPairs(whole, np.arange(count), (), 0, reference)


def log_probability(model: PreTrainedModel, given: EncodedPairs, number: int) -> torch.Tensor:
    """Of one response, alone and without padding, one token at a time; and its length."""
    start, end = given.responses.starts[number : number + 2]
    ids = torch.from_numpy(given.responses.ids[start:end].astype(np.int64))
    chances = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
    said = np.flatnonzero(given.responses.scored[start:end])
    return torch.stack([chances[place - 1, ids[place]] for place in said])


def by_formula(model: PreTrainedModel, given: EncodedPairs, settings: TrainConfig) -> torch.Tensor:
    """The objective summed over all pairs, as the papers write it."""
    whole, beta, wrong = torch.zeros(()).double(), settings.beta, settings.label_smoothing_factor
    assert given.reference is not None
    for pair in range(len(given)):
        own = [log_probability(model, given, 2 * pair + side) for side in (0, 1)]
        ratios = [own[side].sum() - float(given.reference[pair, side]) for side in (0, 1)]
        if settings.preference_loss == "ipo":
            distance = ratios[0] / len(own[0]) - ratios[1] / len(own[1])
            whole = whole + (distance - 0.5 / beta) ** 2
        else:
            right = torch.sigmoid(beta * (ratios[0] - ratios[1]))
            whole = whole - (1 - wrong) * right.log() - wrong * (1 - right).log()
        whole = whole - settings.sft_weight * own[0].mean()
    return whole


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("architecture", "linear"), [("llama", True), ("gpt2", False)])
def test_loss_and_gradients_are_those_of_the_formula(settings, architecture, linear) -> None:
    found, given, asked = [], pairs(), loss(linear, **settings)
    for compute in (
        lambda model: asked.sums(model, given.batch(range(12)))["objective"],
        lambda model: by_formula(model, given, asked.settings),
    ):
        model = tiny_model(architecture).eval()
        objective = compute(model)
        objective.backward()
        found.append((objective.detach().float(), [p.grad for p in model.parameters()]))
    (one, gradients), (other, expected) = found
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_the_reference_has_the_loss_that_is_stated_for_it() -> None:
    given, model = pairs(), tiny_model().eval()
    with torch.no_grad():
        own = [float(log_probability(model, given, number).sum()) for number in range(24)]
        same = replace(given, reference=np.array(own, np.float32).reshape(-1, 2))
        for settings, wanted in ((DPO, math.log(2)), ({**IPO, "beta": 0.1}, 25.0)):
            asked = loss(**settings)
            sums = {k: v.numpy() for k, v in asked.sums(model, same.batch(range(12))).items()}
            found = asked.figures(sums, 12)
            assert asked.unchanged["loss"] == pytest.approx(wanted, rel=1e-6)
            assert found["loss"] == pytest.approx(wanted, rel=1e-4)
            assert found["margin"] == pytest.approx(0, abs=1e-4)


def test_figures_are_means_over_pairs() -> None:
    own, reference = torch.tensor([[-1.0, -4.0], [-3.0, -2.0]]), torch.tensor([[-2.0, -2.0]] * 2)
    found = loss(beta=1.0).of_pairs(own, reference, torch.ones(2, 2))
    sums = {name: values.sum().numpy() for name, values in found.items()}
    figures = loss(beta=1.0).figures(sums, 2)
    assert figures == pytest.approx({
        "loss": (math.log1p(math.exp(-3)) + math.log1p(math.exp(1))) / 2,
        "accuracy": 0.5, "margin": 1.0, "chosen_gain": 0.0, "rejected_gain": -1.0,
        "chosen_log_probability": -2.0, "rejected_log_probability": -3.0,
    })  # fmt: skip


@pytest.mark.parametrize("linear", [True, False])
def test_a_batch_without_a_pair_has_no_loss_and_moves_nothing(linear) -> None:
    model = tiny_model()
    sums = loss(linear, sft_weight=1.0).sums(model, pairs().batch([-1, -1]))
    sums["objective"].backward()
    assert all(value.item() == 0 for value in sums.values())
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_micro_batches_and_processes_change_no_sum(size) -> None:
    given, model, asked = pairs(), tiny_model().eval(), loss(sft_weight=0.5)
    whole = asked.sums(model, given.batch(range(12)))
    parts = [
        asked.sums(model, given.batch(np.append(np.arange(12), -1)[part]))
        for rank in (0, 1)
        for part in prefetch.share_of_rows(12, size, rank, 2)
    ]
    for name, value in whole.items():
        found = sum(part[name].item() for part in parts)
        assert found == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({**DPO, "beta": 0.2}, {"loss_type": ["sigmoid"]}),
        ({**IPO, "beta": 0.2}, {"loss_type": ["ipo"]}),
    ],
)
def test_trl_gives_the_same_loss_and_rewards_on_the_same_ids(tmp_path, settings, theirs) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    own = tokenizer.train_bpe(["a b c d e f g " * 50], 300)
    own.save_pretrained(tmp_path)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    model, base, given = tiny_model(seed=1), tiny_model(seed=0), pairs()
    trainer = trl.DPOTrainer(
        model, base,
        args=trl.DPOConfig(str(tmp_path / "out"), beta=0.2, report_to=[], use_cpu=True, **theirs),
        train_dataset=datasets.Dataset.from_list([row]),
        processing_class=AutoTokenizer.from_pretrained(tmp_path),
    )  # fmt: skip
    examples = []
    for pair in range(12):
        spans = [slice(*given.responses.starts[2 * pair + side :][:2]) for side in (0, 1)]
        ids = [given.responses.ids[span].tolist() for span in spans]
        size = int((~given.responses.scored[spans[0]]).sum())
        sides = {"chosen_ids": ids[0][size:], "rejected_ids": ids[1][size:]}
        examples.append({"prompt_ids": ids[0][:size], **sides})
    batch = DataCollatorForPreference(pad_token_id=0)(examples)
    model.eval()
    base.eval()
    with torch.no_grad():
        wanted = float(trainer.compute_loss(model, batch))
        reference = np.array(
            [float(log_probability(base, given, number).sum()) for number in range(24)]
        )
        same = replace(given, reference=reference.astype(np.float32).reshape(-1, 2))
        sums = loss(**settings).sums(model, same.batch(range(12)))
    assert float(sums["objective"]) / 12 == pytest.approx(wanted, rel=1e-5)
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    for name, key in (("logps/chosen", "chosen"), ("logps/rejected", "rejected")):
        assert float(sums[f"{key}_log_probability"]) / 12 == pytest.approx(logged[name], rel=1e-5)
    if settings["preference_loss"] == "dpo":
        for key in ("chosen", "rejected"):
            gain = float(sums[f"{key}_gain"]) / 12
            assert 0.2 * gain == pytest.approx(logged[f"rewards/{key}"], rel=1e-4, abs=1e-6)
        assert float(sums["accuracy"]) / 12 == pytest.approx(logged["rewards/accuracies"])
