"""What private clients send, read from their messages: bounds, blanks and nothing beside."""

import numpy as np
import pytest

from common.agreement import Description
from common.wire import ARRAYS, arrays_of, metrics_of, unpack_arrays
from tests.test_wire_capture import Tap, run

LEVEL = ["federation.weight-by=uniform", "privacy.client-level.noise-multiplier=0.001"]
WITHHELD = ["privacy.sums=withheld", "privacy.counts=withheld"]


class BothWays(Tap):
    """Keeps, with every reply, the trunk that it answers."""

    def deliver(self, message):
        reply = super().deliver(message)
        self.received = getattr(self, "received", [])
        self.received.append(arrays_of(message.content))
        return reply


def updates(tap) -> list[np.ndarray]:
    """Every update that left a client, one flat row each."""
    found = []
    for received, reply in zip(tap.received, tap.sent, strict=True):
        sent = arrays_of(reply.content)
        if sent is not None and received is not None:
            before, after = unpack_arrays(received), unpack_arrays(sent)
            found.append(np.concatenate([(after[n] - before[n]).ravel() for n in after]))
    return found


@pytest.fixture
def tapped(monkeypatch):
    monkeypatch.setattr("tests.test_wire_capture.Tap", BothWays)
    return run


@pytest.mark.parametrize("algorithm", ["joint", "fedrep", "mr-mtl", "fedprox", "whole-model"])
@pytest.mark.parametrize("norm", [0.05, 0.3])
def test_no_update_is_longer_than_the_norm(tmp_path, tapped, algorithm, norm) -> None:
    settings = [f"privacy.client-level.max-norm={norm}", f"federation.algorithm={algorithm}"]
    found = updates(tapped(tmp_path, *LEVEL, *settings))
    lengths = [np.linalg.norm(update) for update in found]
    assert len(lengths) == 30
    assert max(lengths) <= norm * 1.001
    assert max(lengths) >= norm * 0.99  # something was clipped, or this shows nothing


def test_under_local_noise_an_update_is_mostly_noise(tmp_path, tapped) -> None:
    loud = ["privacy.client-level.noise=client", "privacy.client-level.noise-multiplier=5"]
    found = np.stack(updates(tapped(tmp_path, LEVEL[0], *loud)))
    assert found.std() == pytest.approx(5, rel=0.02)
    # Uncorrelated from client to client, and from round to round.
    assert np.abs(np.corrcoef(found) - np.eye(len(found))).max() < 0.15


def test_withheld_figures_and_counts_are_in_no_message(tmp_path, tapped) -> None:
    tap = tapped(tmp_path, *LEVEL, *WITHHELD, "partition.clients=4")
    described = [r.content["config"]["description"] for r in tap.sent if "config" in r.content]
    assert len(described) == 4
    for text in described:
        description = Description.model_validate_json(text)
        assert description.examples == {}
        assert set(description.labelled.values()) == {1}
        assert not description.sums
        assert not description.categories
    metrics = [metrics_of(reply.content) for reply in tap.sent]
    told = [dict(record) for record in metrics if record is not None]
    assert told
    assert all(record == {"num-examples": 1} for record in told)
    assert all({*reply.content} <= {ARRAYS, "metrics", "config"} for reply in tap.sent)


def test_with_noise_no_figure_is_told_as_it_is(tmp_path, tapped) -> None:
    noised = [
        "privacy.sums=noised",
        "privacy.sums-noise-multiplier=1",
        "tasks.ink.metric=mse",
    ]
    tap = tapped(tmp_path, *LEVEL, *noised)
    for reply in tap.sent:
        record = metrics_of(reply.content)
        for name, values in dict(record or {}).items():
            if name != "num-examples":
                assert values[1] == 1
                assert values[0] != round(values[0], 6)
