import pytest

from common.errors import ConfigError
from common.experiment_file import json_schema, known_experiments
from common.sources.registry import SOURCES
from simulations.catalogue import catalogue, select


def choices_of_setting(key):
    """Follow a dotted key through the schema to the words that it may be."""
    schema = json_schema()
    node = schema
    for step in key.split("."):
        options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
        table = options[0]
        table = schema["$defs"][table["$ref"].split("/")[-1]] if "$ref" in table else table
        node = table.get("additionalProperties") if step == "NAME" else table["properties"][step]
    options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
    return options[0].get("enum") or [options[0]["const"]]


NO_SETTINGS = ("experiments", "sources", "engines", "trackers")
SETTINGS = {n: h for n, h in catalogue().items() if n not in NO_SETTINGS}


@pytest.mark.parametrize("heading", SETTINGS)
def test_a_heading_lists_every_choice_of_its_setting(heading):
    assert list(SETTINGS[heading].choices) == choices_of_setting(SETTINGS[heading].setting)


def test_experiments_sources_and_engines_are_those_there_are():
    from simulations.simulate import ENGINES

    headings = catalogue()
    assert set(headings["experiments"].choices) == set(known_experiments())
    assert set(headings["sources"].choices) == set(SOURCES)
    assert set(headings["engines"].choices) == {*ENGINES, "auto"}


@pytest.mark.parametrize("heading", catalogue())
def test_every_choice_has_a_line(heading):
    lines = [choice.line for choice in catalogue()[heading].choices.values()]
    assert all(line and "\n" not in line for line in lines)


def test_an_unknown_heading_suggests_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'metrics'"):
        select(catalogue(), "metric")
