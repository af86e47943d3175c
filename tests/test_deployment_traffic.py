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
SIZES = {  # name -> trunk, and the least payload of a message, either way
    "small": ("trunk.widths=[16,8]", 2_000),
    "a megabyte": ("trunk.widths=[512,480]", 1_000_000),  # of 27 inputs
}
# A message and its objects are some 20 requests, each with a signed header of its own; measured:
# 14 to 16 kB received and 36 to 38 kB sent, whatever the payload, and 0.6 % of the payload.
SHARE, FIXED_RECEIVED, FIXED_SENT = 1.02, 30_000, 55_000
OTHER_CLIENTS_BYTES = 300  # the agreement's text differs with what the other clients hold


def foretold(
    node: Node, federation: Federation, settings: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """What the node's owner is told, without a server."""
    command = [program("fedmtl"), "node", "check", "--json"]
    command += ["--experiment", str(federation.experiment_file), "--data", str(node.data)]
    command += ["--node-config", f'client="{node.client}" device="cpu"']
    for setting in settings:
        command += ["--set", setting]
    return json.loads(node.host.run(command))["messages"]


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


@pytest.mark.parametrize("size", SIZES)
def test_the_wire_carries_what_node_check_foretold(tmp_path, size):
    widths, least = SIZES[size]
    settings = (f"federation.rounds={ROUNDS}", widths)
    with Federation(tmp_path / "hosts") as federation:
        told = {n: foretold(node, federation, settings) for n, node in federation.nodes.items()}
        federation.start_nodes()
        rates = idle_rates(federation)
        run = federation.submit(*settings)
        counted = traffic_by_round(federation, rates)
        assert run.wait(120) == 0, run.said()
        (folder,) = federation.run_folders()
        assert rounds_of(folder) == list(range(1, ROUNDS + 1))
        print({"idle bytes a second": rates, "rounds": counted})
        for number, nodes in counted.items():
            for name, (received, sent) in nodes.items():
                where = f"round {number}, node {name}"
                comes, goes = (told[name]["train"][f"{w}_bytes"] for w in ("received", "sent"))
                assert min(comes, goes) > least, where
                assert comes - OTHER_CLIENTS_BYTES <= received, where
                assert received <= comes * SHARE + FIXED_RECEIVED, where
                assert goes <= sent <= goes * SHARE + FIXED_SENT, where
        # The server's own account is the same payload.
        for line in lines_of(folder):
            for count, key in (("sent-bytes", "received_bytes"), ("received-bytes", "sent_bytes")):
                payload = sum(messages["train"][key] for messages in told.values())
                assert abs(line["traffic"][count] - payload) <= 2 * OTHER_CLIENTS_BYTES
