"""A config is changed by one method, and filled where it says `auto`."""

from __future__ import annotations

from llmkit.config.schema import Config, TrainConfig


def test_a_change_of_some_keys_of_a_section_keeps_the_others() -> None:
    config = Config(train=TrainConfig(max_steps=3))
    changed = config.changed(seed=1, train={"learning_rate": 0.5}, model={"config": {"a": 1}})
    assert (changed.seed, changed.train.max_steps, changed.train.learning_rate) == (1, 3, 0.5)
    assert changed.model.config == {"a": 1}
    assert config == Config(train=TrainConfig(max_steps=3))


def test_only_what_says_auto_is_filled() -> None:
    train = TrainConfig(learning_rate=0.5).filled(learning_rate=0.1, weight_decay=0.2)
    assert (train.learning_rate, train.weight_decay) == (0.5, 0.2)
