"""The matrices of affinity in the report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.experiment_file import load_experiment
from server.affinity import Affinity
from simulations.affinity_charts import affinity_chart, make_affinity
from simulations.client_section import make_client_table
from simulations.formats import NOTHING
from simulations.page_parts import Charts
from simulations.report import make_page
from simulations.run_record import RunRecord
from tests.updates import updates_of

EVIL = "<script>"
MATRIX = [[None, 0.1, 0.9], [0.1, None, -0.2], [0.9, -0.2, None]]


def record_of(found):
    experiment = load_experiment("digits")
    final = {"trunk-round": 3, "clients": 3, "validation": None, "test": None}
    results = {"stopped": "all rounds done", "final": final, "best": None, "clients": {}}
    results |= {"traffic": {"sent-bytes": 0, "received-bytes": 0}, "affinity": found}
    return RunRecord(Path("run"), experiment, "", {}, [], results)


def measured(clients):
    affinity = Affinity(["digit", "parity", "ink"], 1)
    steps = np.random.default_rng(0).normal(size=(clients, 30))
    affinity.observe(updates_of(steps.tolist()))
    return affinity.figures()


def charts_of(found):
    collected = Charts()
    page = make_affinity(record_of(found), collected)
    return page, list(json.loads(collected.to_json()).values())


def test_tasks_and_clients_have_a_matrix_each():
    page, charts = charts_of(measured(5))
    assert [len(chart["traces"][0]["z"]) for chart in charts] == [3, 5]
    assert "over 1 round:" in page


def test_many_clients_leave_the_matrix_of_tasks():
    _, charts = charts_of(measured(201))
    assert [len(chart["traces"][0]["z"]) for chart in charts] == [3]


@pytest.mark.parametrize("found", [None, {}])
def test_a_run_without_a_measurement_has_no_section(found):
    assert charts_of(found) == ("", [])


def test_one_task_needs_no_matrix():
    found = measured(4)
    found["tasks"] = {"names": ["digit"], "matrix": [[0.5]]}
    page, charts = charts_of(found)
    assert [len(chart["traces"][0]["z"]) for chart in charts] == [4]
    assert "Between tasks" not in page


def test_the_like_are_neighbours_and_every_cell_keeps_its_names():
    trace = affinity_chart("Clients", ["a", "b", "c"], MATRIX).traces[0]
    assert trace["text"][0][0] in ("b<br>b", "a<br>a", "c<br>c")
    for names, values in zip(trace["text"], trace["z"], strict=True):
        for pair, value in zip(names, values, strict=True):
            one, other = ("abc".index(name) for name in pair.split("<br>"))
            assert value == MATRIX[one][other]
    shown = [pair.split("<br>")[0] for pair in (row[0] for row in trace["text"])]
    assert abs(shown.index("a") - shown.index("c")) == 1


@pytest.mark.parametrize(("count", "named"), [(24, True), (25, False)])
def test_many_things_are_named_by_pointing_only(count, named):
    chart = affinity_chart("Clients", [f"c{n}" for n in range(count)], np.eye(count).tolist())
    assert ("ticktext" in chart.layout["xaxis"]) is named
    assert bool(chart.note) is not named


def test_names_are_escaped():
    trace = affinity_chart("Clients", [EVIL, "b", "c"], MATRIX).traces[0]
    assert EVIL not in json.dumps(trace)


def test_the_page_has_the_section():
    page = make_page(record_of(measured(5)))
    assert "<h2>Affinity</h2>" in page
    assert '"heatmap"' in page


def test_groups_are_told_beside_their_clients():
    record = record_of(None)
    names = ["anna", "bert", "cleo"]
    rows = {"train": 3, "validation": 1, "test": 1}
    record.results["clients"] = {name: {"examples": rows, "tasks": {}} for name in names}
    assert "group" not in make_client_table(record)
    record.results["groups"] = {"anna": 1, "cleo": 0}
    page = make_page(record)
    assert "Each client has the trunk of its group, of which there are 2." in page
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", make_client_table(record))
    assert [cells[cells.index(name) + 1] for name in names] == ["1", NOTHING, "0"]


@pytest.mark.parametrize("nothing", ["federation.algorithm=local", "trunk.sharing=soft"])
def test_where_nothing_is_common_a_measurement_is_refused(nothing):
    load_experiment("digits", [nothing, "federation.affinity-every=0"])
    with pytest.raises(ConfigError, match=r"affinity-every is for updates .* got 5; remove it"):
        load_experiment("digits", [nothing, "federation.affinity-every=5"])
