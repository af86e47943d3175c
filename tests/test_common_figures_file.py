"""Figures for Prometheus: the file is what its own parser reads; nothing ends the work."""

from prometheus_client.parser import text_string_to_metric_families

from client.node.figures import NodeFigures
from common.figures_file import FiguresFile
from server.prometheus import reason_class


def figures_of(path):
    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_nodes_figures_are_counted_and_shown(tmp_path):
    figures = NodeFigures(tmp_path / "state")
    figures.message_done("train", "answered", (10, 20), (0.01, 0.3, 0.02))
    figures.message_done("train", "refused", (10, 0), (0.01, 0.02, 0.02))
    found = figures_of(tmp_path / "state" / "metrics.prom")
    name = "fedmtl_node_messages_total"
    assert found[name, ("kind", "train"), ("outcome", "answered")] == 1
    assert found[name, ("kind", "train"), ("outcome", "refused")] == 1
    assert found[name, ("kind", "query"), ("outcome", "refused")] == 0
    assert found[("fedmtl_node_received_bytes_total",)] == 20
    assert found[("fedmtl_node_sent_bytes_total",)] == 20
    assert found["fedmtl_node_stage_seconds_bucket", ("le", "0.1"), ("stage", "work")] == 1
    assert found[("fedmtl_node_last_message_timestamp_seconds",)] > 0


def test_each_has_a_registry_of_its_own(tmp_path):
    for name in ("a", "b"):
        NodeFigures(tmp_path / name)


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    FiguresFile(tmp_path / "file", "fedmtl").write()


def test_reasons_are_classed():
    reasons = {
        "no answer in time": "timeout",
        "went offline before it answered": "offline",
        "the trunk holds NaN or infinity; a smaller training.lr may help": "not-finite",
        "not the trunk: extra ['x'], missing []": "malformed",
        "trunk.w has shape (2,), the trunk has (3,)": "malformed",
        "trunk.w is float64, the trunk is float32": "malformed",
        "validation sums of task digit: loss has 3 numbers, expected 2": "malformed",
        "its reply cannot be read (ValueError)": "malformed",
        "KeyError in train, line 90": "refused",
    }
    assert {reason: reason_class(reason) for reason in reasons} == reasons
