"""The choice of a model for a text, a time and a machine, over the whole range of all three."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from llmkit.config.schema import Config, TrainConfig
from llmkit.errors import DataError
from llmkit.training.tasks import defaults, sizing
from llmkit.training.tasks.sizing import Sizes

LAPTOP, WORKSTATION, ACCELERATOR = 4e11, 4e13, 7e14
BYTES = [20_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000]
MINUTES = [0.5, 1, 5, 10, 60, 600]


@pytest.mark.parametrize(("n_bytes", "minutes"), list(itertools.product(BYTES, MINUTES)))
def test_every_text_and_time_gets_a_sensible_model(n_bytes: int, minutes: float) -> None:
    chosen = sizing.for_minutes(n_bytes, minutes, LAPTOP)
    assert chosen.hidden_size % 64 == 0
    assert chosen.tokens_per_step >= chosen.block_size
    assert chosen.layer_parameters <= max(4e5, 12 * n_bytes / 3)
    # A token costs six operations a weight: the time must hold more than a handful of steps.
    tokens = minutes * 60 * LAPTOP * 0.4 / (6 * chosen.layer_parameters)
    assert tokens / chosen.tokens_per_step > 50


@pytest.mark.parametrize("n_bytes", BYTES)
def test_more_time_or_a_faster_machine_never_means_a_smaller_model(n_bytes: int) -> None:
    sizes = [sizing.for_minutes(n_bytes, minutes, LAPTOP).layer_parameters for minutes in MINUTES]
    assert sizes == sorted(sizes)
    sizes = [
        sizing.for_minutes(n_bytes, 10, rate).layer_parameters
        for rate in (LAPTOP, WORKSTATION, ACCELERATOR)
    ]
    assert sizes == sorted(sizes)


TEXTS = [20_000, 100_000, 1_000_000, 8_000_000, 100_000_000, 1_000_000_000, 10_000_000_000]
HOURS = 12


@pytest.mark.parametrize("n_bytes", TEXTS)
def test_one_pass_over_a_text_has_steps_enough_and_ends_within_hours(n_bytes: int) -> None:
    """Two cores take up to some hundred megabytes, one GPU ten gigabytes."""
    chosen = sizing.for_text(n_bytes)
    tokens = n_bytes / 3.3
    assert chosen.tokens_per_step >= chosen.block_size
    assert tokens / chosen.tokens_per_step > 80
    operations = 6 * (chosen.layer_parameters + chosen.largest_vocabulary * chosen.hidden_size)
    rate = 0.4 * (LAPTOP if n_bytes <= 100_000_000 else ACCELERATOR)
    assert operations * tokens / rate < HOURS * 3600


def test_more_text_never_means_a_smaller_model_or_step() -> None:
    chosen = [sizing.for_text(n_bytes) for n_bytes in TEXTS]
    assert [each.layer_parameters for each in chosen] == sorted(e.layer_parameters for e in chosen)
    assert [each.tokens_per_step for each in chosen] == sorted(e.tokens_per_step for e in chosen)
    assert sizing.for_text(0).tokens_per_step == 64


def test_a_pretrained_models_batch_goes_by_the_text_and_by_the_device_in_minutes_alone() -> None:
    free, timed = TrainConfig(), TrainConfig(max_minutes=5)
    of = [defaults.global_batch_size(free, 10**5, 512, 768, device) for device in ("cpu", "cuda")]
    assert of == [48, 48]
    assert defaults.global_batch_size(free, 100, 512, 768, "cuda") == 12
    of = [defaults.global_batch_size(timed, 10**5, 512, 768, device) for device in ("cpu", "cuda")]
    assert of == [12, 192]


@pytest.mark.parametrize(
    ("settings", "n_examples", "expected"),
    [
        ({"max_minutes": 5}, 1500, 750),  # four epochs
        ({"max_minutes": 5}, 20, 700),  # of a small text that would be a handful of steps
        ({"max_minutes": 5, "num_train_epochs": 9}, 1500, None),
        ({"max_minutes": 5, "max_steps": 9000}, 1500, 9000),
        ({"num_train_epochs": 9}, 1500, None),
    ],
)
def test_minutes_are_not_spent_on_a_text_that_is_known_by_heart(
    settings: dict[str, float], n_examples: int, expected: int | None
) -> None:
    train = TrainConfig(global_batch_size=8, **settings)
    assert defaults.bounded(train, n_examples, 8).max_steps == expected


def test_what_the_user_sets_stays() -> None:
    config = Config.model_validate(
        {
            "model": {"architecture": "gpt2", "config": {"n_layer": 3}},
            "data": {"block_size": 100},
            "tokenizer": {"vocab_size": 999},
            "train": {"global_batch_size": 7},
        }
    )
    chosen = sizing.for_minutes(10**6, 5, LAPTOP)
    resolved = sizing.of_new(config, chosen, vocab_size=2048).written_to(config)
    assert resolved.model.architecture == "gpt2"
    assert resolved.model.config["n_layer"] == 3
    assert "num_hidden_layers" not in resolved.model.config
    assert resolved.model.config["hidden_size"] == chosen.hidden_size
    assert (resolved.data.block_size, resolved.tokenizer.vocab_size) == (100, 999)
    assert resolved.train.global_batch_size == 7


def test_only_what_was_chosen_is_said() -> None:
    given = {"model": {"config": {"hidden_size": 64, "num_hidden_layers": 1}}}
    config = Config.model_validate({**given, "train": {"global_batch_size": 7}})
    resolved = sizing.of_new(config, sizing.for_text(10**7), 2048).written_to(config)
    said = sizing.explained(config, resolved, "for 10 bytes of text")
    assert said == (
        "auto: model.architecture=qwen3, data.block_size=256, tokenizer.vocab_size=2048 "
        "(for 10 bytes of text)"
    )
    assert sizing.explained(resolved, resolved, "for 10 bytes of text") == ""


def test_a_run_that_is_resumed_keeps_what_it_was_begun_with() -> None:
    small = sizing.for_text(10**6)
    begun = sizing.of_new(Config(), small, vocab_size=512).written_to(Config())
    again = Sizes.from_json(sizing.as_json(begun), Config())
    assert again.written_to(Config()) == begun


@pytest.mark.parametrize(
    ("steps", "n_validation", "every"),
    [(50, 0, 10), (50, 16, 15), (90, 0, 18), (1000, 0, 100), (1000, 16, 100), (1000, 1600, 400)],
)
def test_all_validations_with_their_samples_take_a_tenth_of_the_training_at_most(
    steps, n_validation, every
) -> None:
    share = defaults.validation_share(n_validation, 32 * steps, steps)
    found = defaults.intervals(TrainConfig(), steps, share, seconds=100.0)["eval_steps"]
    assert found == every
    assert steps / found * share <= 0.1 + 1e-9


def test_weights_decay_more_the_more_often_the_text_is_seen() -> None:
    decays = [defaults.weight_decay(TrainConfig(), epochs, True) for epochs in (0.1, 1, 2, 4, 100)]
    assert decays == sorted(decays)
    assert (decays[0], decays[-1]) == (0.1, 2.0)
    assert defaults.weight_decay(TrainConfig(), 100, from_scratch=False) == 0.1
    assert defaults.weight_decay(TrainConfig(weight_decay=0.3), 100, from_scratch=True) == 0.3


@pytest.mark.parametrize("recorded", [{"model": {}}, {"model": 5}, [1], {"data": {}}])
def test_recorded_sizes_that_are_damaged_are_refused(recorded: Any) -> None:
    with pytest.raises(DataError, match="sizes that the run recorded are damaged"):
        Sizes.from_json(recorded, Config())
