"""Settings of new models: names, types and sizes, as the config class takes them."""

from __future__ import annotations

import pytest

from llmkit.models import build


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"hidden_sice": 64}, "hidden_sice", "hidden_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps", "float"),
        ({"hidden_size": 0}, "hidden_size", "int >= 1"),
        ({"hidden_size": 64.5}, "hidden_size", "int"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads", "write 3"),
    ],
)
def test_each_wrong_setting_is_named_with_what_to_write(given, name, said) -> None:
    [(found, *text)] = build.settings_faults("llama", given, [build.LANGUAGE_MODEL])
    assert found == name
    assert said in " ".join(text)


def test_a_size_that_the_heads_do_not_divide_is_refused() -> None:
    [(name, what, instead)] = build.settings_faults(
        "bert", {"hidden_size": 65, "num_attention_heads": 2}, [build.MASKED_MODEL]
    )
    assert name == "hidden_size"
    assert "not a multiple of the 2 attention heads" in what
    assert instead == "write 64, or 1 heads"


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_whole_numbers_are_floats_where_a_float_is_taken(value) -> None:
    given = {"router_aux_loss_coef": value, "hidden_size": 32}
    assert not (
        build.settings_faults("mixtral", {"router_aux_loss_coef": value}, [build.LANGUAGE_MODEL])
    )
    config = build.model_config("mixtral", given, 50, 16, {})
    assert config.router_aux_loss_coef == float(value)
    assert isinstance(config.router_aux_loss_coef, float)
    assert isinstance(config.hidden_size, int)
