"""Who and what is turned away from a federation on three hosts, and that the run goes on."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from tests.hosts import (
    ROOT,
    Federation,
    lines_of,
    make_key,
    program,
    rounds_of,
    write_deployment,
)
from tests.namespaces import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]
TWO_ROUNDS = ("federation.rounds=2", "federation.round-timeout-s=60")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A federation whose node "a" is honest; host "b" is for intruders."""
    with Federation(tmp_path_factory.mktemp("hosts")) as federation:
        federation.nodes["a"].start().wait_for("SuperNode ID", 120)
        yield federation


def unregistered(federation: Federation) -> list[str]:
    node = federation.nodes["b"]
    key = node.host.folder / "another-key"
    if not key.exists():
        make_key(key, "-t", "ecdsa", "-b", "384")
    return [str(key) if flag == str(node.key) else flag for flag in node.flags()]


def wrong_ca(federation: Federation) -> list[str]:
    node = federation.nodes["b"]
    folder = node.host.folder / "another-deployment"
    write_deployment(folder, federation.address, ["b"])
    other = str(folder / "certificates" / "ca.crt")
    return [other if flag == str(node.ca) else flag for flag in node.flags()]


def plain_http(federation: Federation) -> list[str]:
    return ["--insecure", *federation.nodes["b"].flags()[4:]]


def plain_http_with_key(federation: Federation) -> list[str]:
    return ["--insecure", *federation.nodes["b"].flags()[2:]]


INTRUDERS = {  # -> what the intruder's own process says
    unregistered: "Failed to activate SuperNode",
    wrong_ca: "CERTIFICATE_VERIFY_FAILED",
    plain_http: "Connection attempt failed",
    plain_http_with_key: "requires a secure TLS connection",
}


@pytest.mark.parametrize("intruder", INTRUDERS, ids=lambda intruder: intruder.__name__)
def test_an_intruder_never_becomes_a_node(federation, intruder):
    node = federation.nodes["b"]
    before = len(node.said())
    try:
        node.start(intruder(federation)).wait_for(INTRUDERS[intruder], 120, after=before)
        assert "SuperNode ID" not in node.said()[before:]
        online = [listed for listed in federation.listed_nodes() if listed["status"] == "online"]
        assert len(online) == 1  # the honest one
        assert len(federation.listed_nodes()) == 2  # nobody else was written down
    finally:
        node.kill()


def test_a_run_goes_on_while_an_intruder_knocks(federation):
    node = federation.nodes["b"]
    node.start(plain_http(federation))
    try:
        run = federation.submit(*TWO_ROUNDS)
        assert run.wait(300) == 0, run.said()
        lines = lines_of(federation.run_folders()[-1])
        assert [line["clients"]["answered"] for line in lines] == [1, 1], run.said()
    finally:
        node.kill()


def test_the_superlink_says_whom_it_turned_away(federation):
    node = federation.nodes["b"]
    before, heard = len(node.said()), len(federation.superlink.said())
    try:
        process = node.start(unregistered(federation))
        process.wait_for(INTRUDERS[unregistered], 120, after=before)
    finally:
        node.kill()
    assert "No SuperNode found with the given public key" in federation.superlink.said()[heard:]


def copy_of_the_project(folder: Path) -> Path:
    """The files that a bundle is made of."""
    folder.mkdir()
    for name in ("common", "client", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def bundle_hash(federation: Federation, project: Path) -> str:
    """The hash of a project's bundle, as an owner who has read it writes it down."""
    federation.server.run([program("flwr"), "build", "--app", str(project)])
    (bundle,) = federation.server.folder.glob("*.fab")
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    bundle.unlink()
    return digest


def bundles_only(*hashes: str) -> str:
    listed = ", ".join(f'"{digest}"' for digest in hashes)
    return f'[code]\nrun = "bundle"\nbundles = [{listed}]\n'


def start_both(federation: Federation, policy: str, *more: str) -> None:
    """Start node a by the defaults, and node b with a policy and more flags."""
    strict = federation.nodes["b"]
    strict.policy.write_text(policy)
    federation.nodes["a"].start().wait_for("SuperNode ID", 120)
    strict.start([*strict.flags(), *more]).wait_for("SuperNode ID", 120)


def assert_ran_with(federation: Federation, run, clients: set[str]) -> None:
    """The run did its rounds with these clients."""
    assert run.wait(400) == 0, run.said()
    folder = federation.run_folders()[-1]
    assert rounds_of(folder) == [1, 2], run.said()
    named = {node.client for node in federation.nodes.values() if node.kept(folder)}
    assert named == clients, run.said()
    assert [line["clients"]["answered"] for line in lines_of(folder)] == [len(clients)] * 2


def test_a_bundle_that_is_not_on_the_owners_list_is_turned_away(tmp_path):
    honest = copy_of_the_project(tmp_path / "honest")
    tampered = copy_of_the_project(tmp_path / "tampered")
    with (tampered / "client" / "app.py").open("a") as code:
        code.write("\nprint('tampered code runs')\n")
    with Federation(tmp_path / "hosts") as federation:
        start_both(federation, bundles_only(bundle_hash(federation, honest)))
        assert_ran_with(
            federation,
            federation.submit(*TWO_ROUNDS, project=honest),
            {"school-001", "school-003"},
        )
        run = federation.submit(*TWO_ROUNDS, project=tampered)
        assert_ran_with(federation, run, {"school-001"})
        strict = federation.nodes["b"]
        assert "code.bundles" in strict.said()
        assert "tampered code runs" not in strict.said()
        assert "code.bundles" in (federation.run_folders()[-1] / "results.json").read_text()


def test_a_bundle_that_does_not_fit_its_hash_never_runs(tmp_path):
    honest = copy_of_the_project(tmp_path / "honest")
    with Federation(tmp_path / "hosts") as federation:
        listed = bundle_hash(federation, honest)
        federation.server.kill()
        hostile = [sys.executable, str(ROOT / "tests" / "hostile_superlink.py")]
        federation.start_superlink(hostile)
        for node in federation.nodes.values():
            node.policy.write_text(bundles_only(listed))
        federation.start_nodes()
        run = federation.submit(*TWO_ROUNDS, project=honest)
        for node in federation.nodes.values():
            assert node.process is not None
            node.process.wait_for("FAB hash mismatch", 120)
        run_folders = federation.run_folders()
        assert not any(rounds_of(folder) for folder in run_folders)
        for node in federation.nodes.values():
            assert "tampered code runs" not in node.said()
            assert not list(node.state.rglob("own-*"))
        assert run.is_alive() or run.wait(1) != 0


def test_an_unsigned_bundle_is_turned_away_where_signers_are_named(tmp_path):
    signer = tmp_path / "signer"
    with Federation(tmp_path / "hosts") as federation:
        node = federation.nodes["b"]
        make_key(signer, "-t", "ed25519")
        trusted = node.host.folder / "trusted.yaml"
        trusted.write_text(f"fpk_1: '{signer.with_suffix('.pub').read_text().strip()}'\n")
        start_both(federation, "", "--trusted-entities", str(trusted))
        assert_ran_with(federation, federation.submit(*TWO_ROUNDS), {"school-001"})
        assert "The FAB could not be verified" in node.said()
