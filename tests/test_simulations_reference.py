"""The reference page says what the schema says."""

from pathlib import Path

from pydantic import BaseModel

from common.experiment import METHODS, Experiment
from simulations.reference import nested_model, write_reference

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"


def test_the_page_is_what_the_schema_writes():
    assert PAGE.read_text() == write_reference(), "run: python -m simulations.reference > " + str(
        PAGE.relative_to(PAGE.parent.parent)
    )


def test_every_key_is_described():
    def undescribed(model: type[BaseModel]) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            inner = nested_model(field.annotation)
            if inner is not None:
                missing += undescribed(inner)
            elif not field.description:
                missing.append(f"{model.__name__}.{name}")
        return missing

    assert undescribed(Experiment) == []
    methods = (method for table, _ in METHODS.values() for method in table.values())
    assert [missing for m in methods for missing in undescribed(m.load().Options)] == []


def test_every_method_that_takes_options_is_on_the_page():
    page = PAGE.read_text()
    for table, _ in METHODS.values():
        for name, method in table.items():
            for field in method.load().Options.model_fields.values():
                assert f"| `{name}` | `{field.alias}` |" in page
