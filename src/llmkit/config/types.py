"""What the value of a key may be, and what a section of keys is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
"""`auto`: llmkit measures or chooses, prints the choice with its reason, and records it."""

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]


def several(value: Any) -> Any:
    """One text as a list of one; all else as it is."""
    return [value] if isinstance(value, str) else value


def tab(value: Any) -> Any:
    """The character that `tab` stands for; all else as it is."""
    return "\t" if value in ("tab", "\\t") else value


LARGEST = 1e30
"""Arithmetic with larger numbers overflows in 32 bits."""


def in_reach(value: float) -> float:
    """The number itself; raises ValueError for one that 32-bit arithmetic cannot work with."""
    if abs(value) > LARGEST:
        raise ValueError("it overflows in 32 bits")
    return value


Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(in_reach)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(in_reach)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False), AfterValidator(in_reach)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]
Files = Annotated[
    tuple[str, ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]


Column = str | Whole
"""A column of a table, by its name, or by its number from 0."""
Columns = Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
Delimiter = Annotated[
    str, BeforeValidator(tab, json_schema_input_type=str), Field(pattern=r"^[^\r\n\"]$")
]
Fault = Literal["blank", "one_row_classes", "unseen_labels"]
Faults = Annotated[
    tuple[Fault, ...],
    BeforeValidator(several, json_schema_input_type=Fault | tuple[Fault, ...]),
    Field(strict=False),
]


Tracker = Literal["tensorboard", "wandb"]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(several, json_schema_input_type=Tracker | tuple[Tracker, ...]),
    Field(strict=False),
]


Revision = Annotated[tuple[Whole, ...], Field(strict=False, min_length=2, max_length=2)]
"""From a step on, the number of steps in all."""


class Section(BaseModel):
    """A part of the config: frozen, strict, and without room for unknown keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )
