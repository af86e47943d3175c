"""What `fedmtl node check` foretells is what the wire carries, within framing.

Counted on the nodes' network devices, all of Ethernet, IP, TCP, TLS and HTTP included. What a node
and the SuperLink say to each other when nothing happens is measured before the run and taken away.
"""

import json
import time

import pytest

from tests.hosts import Federation, Node, lines_of, program, rounds_of
from tests.namespaces import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]
ROUNDS, IDLE_S = 4, 15
# About 1 MB of trunk: 27 inputs, 512 and 480 units.
SETTINGS = (f"federation.rounds={ROUNDS}", "trunk.widths=[512,480]")
# TLS, TCP and HTTP cost 3 % of a long transfer; a message and its objects are some 30 requests.
SHARE, FIXED_BYTES = 1.05, 60_000
OTHER_CLIENTS_BYTES = 300  # the agreement's text differs with what the other clients hold


def foretold(node: Node, federation: Federation) -> dict[str, dict[str, int]]:
    """What the node's owner is told, without a server."""
    command = [program("fedmtl"), "node", "check", "--json"]
    command += ["--experiment", str(federation.experiment_file), "--data", str(node.data)]
    command += ["--node-config", f'client="{node.client}" device="cpu"']
    for setting in SETTINGS:
        command += ["--set", setting]
    told: dict[str, dict[str, int]] = json.loads(node.host.run(command))["messages"]
    return told


def idle_rates(federation: Federation) -> dict[str, tuple[float, float]]:
    """Bytes a second that each node receives and sends when nothing happens."""
    before = {name: node.host.traffic() for name, node in federation.nodes.items()}
    time.sleep(IDLE_S)
    return {
        name: tuple((now - then) / IDLE_S for now, then in zip(counts, before[name], strict=True))
        for name, counts in ((name, n.host.traffic()) for name, n in federation.nodes.items())
    }


def traffic_by_round(federation: Federation, rates: dict[str, tuple[float, float]]):
    """Round -> node -> bytes received and sent in it, without what is said when idle."""
    counted, last = {}, None
    for number in range(1, ROUNDS + 1):
        federation.wait_for_round(number)
        now = time.monotonic(), {n: node.host.traffic() for n, node in federation.nodes.items()}
        if last is not None:
            counted[number] = {
                name: tuple(
                    after - before - rate * (now[0] - last[0])
                    for after, before, rate in zip(
                        now[1][name], last[1][name], rates[name], strict=True
                    )
                )
                for name in federation.nodes
            }
        last = now
    return counted


def test_the_wire_carries_what_node_check_foretold(tmp_path):
    with Federation(tmp_path / "hosts") as federation:
        told = {name: foretold(node, federation) for name, node in federation.nodes.items()}
        federation.start_nodes()
        rates = idle_rates(federation)
        run = federation.submit(*SETTINGS)
        counted = traffic_by_round(federation, rates)
        assert run.wait(120) == 0, run.said()
        (folder,) = federation.run_folders()
        assert rounds_of(folder) == list(range(1, ROUNDS + 1))
        print(json.dumps({"foretold": told, "idle bytes a second": rates, "rounds": counted}))
        for number, nodes in counted.items():
            for name, (received, sent) in nodes.items():
                train = told[name]["train"]
                where = f"round {number}, node {name}"
                assert train["received_bytes"] > 1_000_000, where
                low = train["received_bytes"] - OTHER_CLIENTS_BYTES
                assert low <= received <= train["received_bytes"] * SHARE + FIXED_BYTES, where
                assert train["sent_bytes"] <= sent <= train["sent_bytes"] * SHARE + FIXED_BYTES, (
                    where
                )
        # The server's own account is the same payload.
        for line in lines_of(folder):
            for count, key in (("sent-bytes", "received_bytes"), ("received-bytes", "sent_bytes")):
                payload = sum(messages["train"][key] for messages in told.values())
                assert abs(line["traffic"][count] - payload) <= 2 * OTHER_CLIENTS_BYTES
