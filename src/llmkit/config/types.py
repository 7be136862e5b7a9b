"""The types of config values, and the base class of config sections."""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
"""`auto`: llmkit measures or chooses, prints the choice with its reason, and records it."""


class Form(IntEnum):
    """How keys are given: in a YAML file, as KEY=VALUE, or as the keywords of a call in Python."""

    YAML = 0
    ARGUMENT = 1
    KEYWORD = 2


RULE = "rule"
"""The type of errors whose message is complete."""


def rule(message: str) -> PydanticCustomError:
    """The error for a broken rule; the message is a field, since pydantic formats braces."""
    return PydanticCustomError(RULE, "{message}", {"message": message})


Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]


def several(value: Any) -> Any:
    """A string as a list of one; other values unchanged."""
    return [value] if isinstance(value, str) else value


def as_yaml_value(value: Any) -> Any:
    """A value of Python as YAML would give it: paths as text, numbers of other libraries as Python
    numbers, and what can be iterated over as a list."""
    match value:
        case None | bool() | str() | bytes():
            return value
        case os.PathLike():
            return os.fspath(value)
        case Integral():
            return int(value)
        case Real():
            return float(value)
        case Mapping():
            return {str(name): as_yaml_value(inner) for name, inner in value.items()}
        case Iterable():
            return [as_yaml_value(item) for item in value]
    return value


def tab(value: Any) -> Any:
    """The tab character for `tab`; other values unchanged."""
    return "\t" if value in ("tab", "\\t") else value


LARGEST = 1e30
"""Larger numbers overflow in fp32 arithmetic."""


def in_reach(value: float) -> float:
    """The number unchanged; raises ValueError if it would overflow in fp32 arithmetic."""
    if abs(value) > LARGEST:
        raise ValueError("it overflows in 32 bits")
    return value


def _row_range(value: Any) -> Any:
    """Checks a range of rows."""
    found = re.fullmatch(r"(-?[0-9]{1,12})?:(-?[0-9]{1,12})?", str(value))
    if not found or value == ":":
        raise rule(f"{value!r} is not a range of rows; write START:STOP, such as :8000 or -1000:")
    start, stop = (None if edge is None else int(edge) for edge in found.groups())
    if start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop:
        raise rule(f"{value} chooses no row; START should be less than STOP")
    return value


RowRange = Annotated[str, BeforeValidator(_row_range, json_schema_input_type=str)]
"""Rows by their position, `START:STOP` as in a Python slice."""

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(in_reach)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(in_reach)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False), AfterValidator(in_reach)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
COMMON_ENCODINGS = (
    "utf-8", "utf-16", "latin-1", "cp1252", "cp1251", "gb18030", "big5", "shift_jis", "euc_jp",
    "euc_kr", "koi8_r", "iso8859-15",
)  # fmt: skip
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def expand(path: str) -> str:
    """A path with `~`, `$NAME` and `${NAME}` replaced as a shell would.

    An existing file of that literal name wins. Raises ValueError for a variable that is not set.
    """
    if path.startswith("hub:") or os.path.lexists(path):
        return path
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the variable {name} is not set; set it, or write the path out")
    return os.path.expanduser(_VARIABLE.sub(lambda m: os.environ[m[1] or m[2]], path))  # noqa: PTH111 (a glob is not a Path)


def _expanded(path: str) -> str:
    try:
        return expand(path)
    except ValueError as fault:
        raise rule(str(fault)) from None


def _known_encoding(name: str) -> str:
    try:
        if codecs.lookup(name)._is_text_encoding and name != "undefined":
            return name
    except LookupError:
        pass
    near = difflib.get_close_matches(name.lower(), COMMON_ENCODINGS, n=1)
    hint = f"did you mean {near[0]}?" if near else "write one that Python knows, such as latin-1"
    raise rule(f"{name!r} is not a text encoding; {hint}")


NameOrPath = Annotated[str, AfterValidator(_expanded)]
"""A name, such as that of a model on the hub, or a path."""
FilePath = Annotated[NameOrPath, Field(json_schema_extra={"format": "path"})]
"""The path of a file or directory."""
Encoding = Annotated[str, AfterValidator(_known_encoding)]
TextList = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Files = Annotated[
    tuple[FilePath, ...],
    BeforeValidator(several, json_schema_input_type=FilePath | tuple[FilePath, ...]),
    Field(strict=False),
]
NamesOrPaths = Annotated[
    tuple[NameOrPath, ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]


EXPERT_NAME = re.compile(r"\w[\w-]{0,59}")
"""The name of an expert. An ensemble has a directory of that name."""
NOT_EXPERTS = ("frequency", "average")
"""Values of `merge.shared` that name no expert."""


def expert_name(name: str) -> str:
    """The name of an expert unchanged; raises an error for pydantic if it is not allowed."""
    if not EXPERT_NAME.fullmatch(name):
        what = "should be at most 60 letters, digits, - and _, the first of them not -"
        raise rule(f"the name {name!r} of an expert {what}")
    if name in NOT_EXPERTS:
        raise rule(f"{name!r} cannot name an expert: it is a value of merge.shared")
    return name


ExpertName = Annotated[str, AfterValidator(expert_name)]


def name_and_model(given: str) -> tuple[str, str]:
    """The two sides of `NAME=RUN`; without a name, or for a path that holds `=`, no name."""
    name, equals, model = given.partition("=")
    if not equals or "/" in name or os.path.lexists(given):
        return "", given
    return name, model


def _named_model(given: str) -> str:
    name, model = name_and_model(given)
    if not model or given.startswith("="):
        raise rule(f"{given!r} is neither RUN nor NAME=RUN")
    return f"{name}={_expanded(model)}" if name else _expanded(model)


ServedModels = Annotated[
    tuple[Annotated[str, AfterValidator(_named_model)], ...],
    BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]
"""Models, each with the name under which it is served if that is not its own."""


NAMED_SIZES = {"tiny": 1_000_000, "small": 10_000_000, "base": 100_000_000}
"""Numbers of parameters with a name."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parameters_of(size: str) -> int:
    """The number of parameters of a size such as `small` or `10M`; raises ValueError."""
    if size in NAMED_SIZES:
        return NAMED_SIZES[size]
    match = _SIZE.fullmatch(size)
    if match is None or not (number := round(float(match[1]) * _UNITS[match[2].lower()])):
        raise ValueError(f"should be {', '.join(NAMED_SIZES)} or a number such as 10M")
    return number


def _known_size(size: Any) -> Any:
    try:
        parameters_of(str(size))
    except ValueError as fault:
        raise rule(f"{size!r} {fault}") from None
    return str(size)


ModelSize = Annotated[str, BeforeValidator(_known_size, json_schema_input_type=str | int)]
"""A number of parameters: a name, or a number with k, M or B."""
Column = str | Whole
"""A column of a table, by name or by number from 0."""
ColumnNames = Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
Delimiter = Annotated[
    str, BeforeValidator(tab, json_schema_input_type=str), Field(pattern=r"^[^\r\n\"]$")
]
_Fault = Literal[
    "blank",
    "one_row_classes",
    "unseen_labels",
    "tag_count",
    "bad_tags",
    "bad_spans",
    "bad_marks",
    "bad_answers",
]
AllowedFaults = Annotated[
    tuple[_Fault, ...],
    BeforeValidator(several, json_schema_input_type=_Fault | tuple[_Fault, ...]),
    Field(strict=False),
]


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(several, json_schema_input_type=Tracker | tuple[Tracker, ...]),
    Field(strict=False),
]


PlanRevision = Annotated[tuple[Whole, ...], Field(strict=False, min_length=2, max_length=2)]
"""A step, and the total number of steps planned from it on."""


class Section(BaseModel):
    """A section of the config: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    def changed(self, **values: Any) -> Self:
        """The same with other values, which are taken as they are; a mapping changes some keys of a
        section."""
        update = {}
        for key, value in values.items():
            section = getattr(self, key)
            inner = isinstance(section, Section) and isinstance(value, Mapping)
            update[key] = section.changed(**value) if inner else value
        return self.model_copy(update=update)

    def filled(self, **values: Any) -> Self:
        """The same with these values where it says `auto`."""
        return self.changed(
            **{k: value for k, value in values.items() if getattr(self, k) == "auto"}
        )
