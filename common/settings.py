"""What every table of settings is made of: a frozen pydantic model, and the types of its values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

# TOML arrays arrive as lists; strict mode would refuse them where a tuple keeps the model frozen.
Names = Annotated[tuple[str, ...], Field(strict=False)]
# In a file, a path of lines to read may stand in their place (`common.experiment_file`).
Lines = Annotated[
    tuple[str, ...],
    Field(strict=False),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all tables: frozen, strict about types, kebab-case keys, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def is_given(self, name: str) -> bool:
        """Whether a setting, by its Python name, differs from its default.

        A resolved experiment is written with all its defaults and must load again, so what is
        written down says nothing.
        """
        return bool(getattr(self, name) != type(self).model_fields[name].default)
