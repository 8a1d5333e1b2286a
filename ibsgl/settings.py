"""The base class of all settings, in the config and on the command line of a step, and types with a range of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

# More than any run can use. A larger value is a slip of the hand.
LARGEST = 10_000_000

Positive = Annotated[int, Field(ge=1, le=LARGEST)]
PositiveReal = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """A group of settings. It cannot be changed, and an unknown key or a value of the wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _convert_numbers(cls, values: Any) -> Any:
        # YAML reads 1000 as an integer and 1e-3 (without a dot) as a string. Both are valid real numbers here.
        if not isinstance(values, Mapping):
            return values
        real_fields = {name for name, field in cls.model_fields.items() if "float" in str(field.annotation)}
        converted = dict(values)
        for name in real_fields & converted.keys():
            value = converted[name]
            if isinstance(value, str):
                try:
                    converted[name] = float(value)
                except ValueError:
                    continue
            elif isinstance(value, int) and not isinstance(value, bool):
                converted[name] = float(value)
        return converted
