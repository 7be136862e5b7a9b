"""`KEY=A,B` stands for every combination of values, each under a name of its own."""

from __future__ import annotations

import pytest

from llmkit.cli.sweep.grid import configurations
from llmkit.errors import UsageError
from llmkit.storage import numbered


def names(*overrides: str) -> list[str]:
    return [each.name for each in configurations(overrides)]


def test_the_grid_has_every_combination_and_keeps_the_other_keys() -> None:
    found = configurations(["train.max_steps=5", "train.learning_rate=1e-3,3e-3", "seed=1,2"])
    assert [each.name for each in found] == [
        f"learning_rate={rate},seed={seed}" for rate in ("1e-3", "3e-3") for seed in (1, 2)
    ]
    assert found[1].overrides == ["train.max_steps=5", "train.learning_rate=1e-3", "seed=2"]
    assert found[1].values == {"train.learning_rate": "1e-3", "seed": "2"}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3, 3e-3", ["1e-3", "3e-3"]),
        ("[a.txt,b.txt],[c.txt]", ["[a.txt,b.txt]", "[c.txt]"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("hub:a/b@train,c.txt", ["hub:a/b@train", "c.txt"]),
        ("null,0.1", ["null", "0.1"]),
    ],
)
def test_commas_separate_values_as_in_a_yaml_list(text: str, values: list[str]) -> None:
    key = "data.train_files"
    assert [each.values[key] for each in configurations([f"{key}={text}"])] == values


@pytest.mark.parametrize("text", ["[1,2]", "'1,2'", "{a: 1, b: 2}", "1,", ",1", "1,,2", "a],[b"])
def test_a_text_that_is_not_a_list_is_one_value(text: str) -> None:
    with pytest.raises(UsageError, match="needs a key with several values"):
        configurations([f"data.train_files={text}"])


def test_a_later_value_of_a_key_replaces_an_earlier_list() -> None:
    assert names("seed=1,2", "train.max_steps=1,2", "seed=3") == ["max_steps=1", "max_steps=2"]
    assert names("seed=1,2", "seed=3,4") == ["seed=3", "seed=4"]


def test_names_differ_on_every_file_system_and_are_short() -> None:
    keys = ("model.lora.dropout=0,0.1", "model.config.dropout=0,0.1")
    assert names(*keys)[0] == "lora.dropout=0,config.dropout=0"
    models = names("model.name_or_path=a/b,A-B,/,ü ö,x")
    assert models[3:] == ["name_or_path=ü-ö", "name_or_path=x"]
    assert len({name.casefold() for name in models}) == 5
    assert all("/" not in name for name in models)
    long = names(f"data.train_files={'x' * 300},{'x' * 301}", f"data.test_files={'y' * 300},b")
    assert len(set(long)) == 4
    assert max(map(len, long)) <= 255
    assert names("train.learning_rate=-1,1") == ["learning_rate=-1", "learning_rate=1"]
    assert numbered.safe("=-a") == "a"


@pytest.mark.parametrize("key", ["output_dir", "resume"])
def test_keys_of_the_sweep_itself_have_one_value(key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} cannot be swept"):
        configurations([f"{key}=a,b"])


def test_a_grid_is_refused_before_it_is_made_if_it_is_huge() -> None:
    numbers = ",".join(map(str, range(1000)))
    with pytest.raises(UsageError, match="1,000,000,000 runs"):
        configurations(
            [f"{key}={numbers}" for key in ("seed", "train.max_steps", "train.save_steps")]
        )


def test_an_unknown_key_is_kept_whole_so_that_its_fault_shows_what_was_typed() -> None:
    assert configurations(["lr=1e-3,3e-3"])[0].overrides == ["lr=1e-3,3e-3"]
