"""Deployment folders: certificates, keys, and files held against the tools that know their form."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from client.node.policy import read_policy
from common.errors import ConfigError
from server.deployment import certificates
from server.deployment import folder as folders
from server.deployment.folder import add_node, make_folder, nodes_of
from server.deployment.inspection import inspect_folder
from server.deployment.plan import Plan, check_nodes, read_ips, read_plan, read_server
from server.deployment.rotation import rotate_authority, rotate_node, rotate_server_certificate
from server.deployment.schemas import verify_unit
from simulations.cli import app

NODES = ["ward-1", "ward-2"]
PLAN = Plan("fl.example.org", 8000, ("192.0.2.7", "2001:db8::7"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a folder with GPUs, for tests that only read it."""
    path = tmp_path_factory.mktemp("made") / "deployment"
    make_folder(path, Plan(PLAN.host, PLAN.port, PLAN.ips, gpu=True), NODES)
    return path


@pytest.fixture
def own(tmp_path):
    """Make a folder that a test may change."""
    make_folder(tmp_path / "deployment", PLAN, NODES)
    return tmp_path / "deployment"


def needs(tool):
    return pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not installed")


def deploy(*arguments):
    return CliRunner().invoke(app, ["deploy", *[str(a) for a in arguments]])


def digests(path):
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in path.rglob("*")
        if p.is_file()
    }


def yaml_of(path):
    return list(yaml.safe_load_all(path.read_text()))


def objects_of(path):
    return {obj["kind"]: obj for obj in yaml_of(path)}


# Certificates


@needs("openssl")
@pytest.mark.parametrize(
    "asked",
    ["-verify_hostname=fl.example.org", "-verify_hostname=localhost", "-verify_ip=127.0.0.1",
     "-verify_ip=::1", "-verify_ip=192.0.2.7", "-verify_ip=2001:db8::7",
     "-verify_hostname=fedmtl-superlink.fedmtl.svc"],
)  # fmt: skip
def test_openssl_takes_the_server_certificate_strictly(made, asked):
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver"]
    command += [*asked.split("="), "-CAfile", "ca.crt", "server.crt"]
    done = subprocess.run(command, cwd=made / "certificates", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs("openssl")
def test_openssl_refuses_another_name(made):
    command = ["openssl", "verify", "-verify_hostname", "elsewhere.example.org"]
    command += ["-CAfile", "ca.crt", "server.crt"]
    done = subprocess.run(command, cwd=made / "certificates", capture_output=True)
    assert done.returncode != 0


@pytest.fixture
def serve():
    """Answer TLS handshakes on loopback with a folder's server certificate."""
    stops = []

    def start(path):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path / "certificates/server.crt", path / "certificates/server.key")
        listener = socket.create_server(("127.0.0.1", 0))

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        with context.wrap_socket(connection, server_side=True) as channel:
                            channel.sendall(b"well met")
                    except OSError:
                        pass  # the client turned away

        thread = threading.Thread(target=answer)
        thread.start()
        stops.append((listener, thread))
        return listener.getsockname()[1]

    yield start
    for listener, thread in stops:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def shake_hands(port, authority, name="localhost"):
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=name) as channel,
    ):
        return channel.recv(8)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fl.example.org"])
def test_a_client_that_trusts_the_ca_reaches_the_server(made, serve, name):
    assert shake_hands(serve(made), made / "certificates/ca.crt", name) == b"well met"


def test_a_client_refuses_a_server_of_another_name_or_another_ca(made, own, serve):
    port = serve(made)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(port, made / "certificates/ca.crt", "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(port, own / "certificates/ca.crt")


def test_a_server_certificate_never_outlives_its_ca(tmp_path):
    make_folder(tmp_path / "d", Plan("a.example.org", days=5000), ["n"])
    ca, server = (
        x509.load_pem_x509_certificate((tmp_path / "d/certificates" / name).read_bytes())
        for name in ("ca.crt", "server.crt")
    )
    assert server.not_valid_after_utc <= ca.not_valid_after_utc
    length = server.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=4999) < length <= timedelta(days=5000)


# Keys


def test_private_files_are_the_owners_alone(made):
    names = ["certificates/ca.key", "certificates/server.key", *(f"keys/{n}" for n in NODES)]
    assert {stat.S_IMODE((made / name).stat().st_mode) for name in names} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_flower_takes_the_node_keys(made):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    for node in NODES:
        key = serialization.load_ssh_private_key((made / "keys" / node).read_bytes(), None)
        registered = try_load_public_key(made / "keys" / f"{node}.pub")
        assert public_key_to_bytes(key.public_key()) == registered


@needs("ssh-keygen")
def test_ssh_keygen_takes_the_node_keys(made):
    done = subprocess.run(
        ["ssh-keygen", "-y", "-f", made / "keys/ward-1"], capture_output=True, text=True, check=True
    )
    assert (made / "keys/ward-1.pub").read_text().split() == [*done.stdout.split()[:2], "ward-1"]


@needs("git")
def test_git_keeps_no_private_key(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    shutil.copy(copy / "keys/ward-1", copy / "keys/ward-1.old-20260101")
    shutil.copy(copy / "certificates/ca.key", copy / "certificates/ca.key.old-20260101")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    listed = subprocess.run(["git", "ls-files"], cwd=copy, capture_output=True, text=True)
    kept = listed.stdout.split()
    assert "keys/ward-1.pub" in kept
    assert "certificates/ca.crt" in kept
    assert not [name for name in kept if b"PRIVATE KEY" in (copy / name).read_bytes()]


# Files that other programs read


def node_commands(made, node):
    """Collect the command of a node from each of its three forms."""
    compose = yaml_of(made / f"compose.{node}.yaml")[0]["services"][f"node-{node}"]["command"]
    pod = objects_of(made / f"kubernetes/node-{node}.yaml")["StatefulSet"]["spec"]["template"]
    unit = (made / "systemd/fedmtl-node@.service").read_text().replace("\\\n", "")
    text = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE).group(1)
    settings = dict(
        line.split("=", 1)
        for line in (made / f"nodes/{node}/node.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    words = []
    for word in text.split():
        for name, value in settings.items():
            word = word.replace(f"${{{name}}}", value.strip("'"))
        words.append(word.replace("%i", node).replace("/opt/fedmtl/bin/", ""))
    return [compose, pod["spec"]["containers"][0]["args"], words]


@pytest.mark.parametrize("node", NODES)
def test_flower_reads_the_flags_of_every_form_of_a_node(made, node):
    from flwr.common.config import parse_config_args
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    configs = []
    for command in node_commands(made, node):
        assert command[:3] == ["fedmtl", "node", "run"]
        flags = command[command.index("--") + 1 :]
        read = _parse_args_run_supernode().parse_args(flags)
        assert read.superlink == "fl.example.org:8000"
        assert Path(read.root_certificates).name == "ca.crt"
        assert Path(read.auth_supernode_private_key).name == "node.key"
        configs.append(parse_config_args([read.node_config]))
    expected = {
        "data": f"/srv/fedmtl/{node}",
        "state": f"/var/lib/fedmtl-node/{node}",
        "device": "cuda",
        "client": node,
    }
    assert configs == [expected] * 3


def test_flower_reads_the_flags_of_every_form_of_the_server(made):
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink

    compose = yaml_of(made / "compose.yaml")[0]["services"]["superlink"]["command"]
    pod = objects_of(made / "kubernetes/superlink.yaml")["Deployment"]["spec"]["template"]
    unit = (made / "systemd/fedmtl-superlink.service").read_text().replace("\\\n", "")
    text = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE).group(1)
    text = text.replace("${FEDMTL_LISTEN_PORT}", "8000").replace("/opt/fedmtl/bin/", "")
    for command in (compose, pod["spec"]["containers"][0]["args"], text.split()):
        assert command[0] == "flower-superlink"
        read = _parse_args_run_superlink().parse_args(command[1:])
        assert read.enable_supernode_auth
        assert read.port == 8000
        assert read.database == "/var/lib/fedmtl-superlink/state.db"


@pytest.mark.parametrize("form", ["superlink.env", "compose.yaml", "kubernetes/superlink.yaml"])
def test_the_server_never_installs_what_a_run_asks_for(made, form):
    text = (made / form).read_text()
    for name in ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "FLWR_TELEMETRY_ENABLED"):
        assert name in text
    assert "/var/lib/fedmtl-superlink/runs" in text


def test_manifests_fit_the_schemas_of_kubernetes(made):
    validate = pytest.importorskip("kubernetes_validate")
    for path in sorted((made / "kubernetes").glob("*.yaml")):
        for manifest in yaml_of(path):
            validate.validate(manifest, validate.latest_version(), strict=True)
            names = [manifest["metadata"].get("namespace"), manifest["metadata"]["name"]]
            assert names[0] == "fedmtl" or names == [None, "fedmtl"]


def test_pods_run_confined_and_with_no_key_in_their_manifests(made):
    for path in sorted((made / "kubernetes").glob("*.yaml")):
        assert "PRIVATE KEY" not in path.read_text()
        for manifest in yaml_of(path):
            assert manifest["kind"] != "Secret"
            pod = manifest.get("spec", {}).get("template", {}).get("spec")
            if pod is None:
                continue
            assert pod["securityContext"]["runAsNonRoot"]
            container = pod["containers"][0]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            claims = manifest["spec"].get("volumeClaimTemplates", [])
            offered = [v["name"] for v in pod["volumes"]] + [c["metadata"]["name"] for c in claims]
            assert mounts == set(offered)


def test_rows_are_mounted_read_only(made):
    pod = objects_of(made / "kubernetes/node-ward-1.yaml")["StatefulSet"]["spec"]["template"]
    mounts = {m["mountPath"]: m for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["/srv/fedmtl/ward-1"]["readOnly"]
    service = yaml_of(made / "compose.ward-1.yaml")[0]["services"]["node-ward-1"]
    assert {v["target"]: v.get("read_only", False) for v in service["volumes"]} == {
        "/etc/fedmtl/ca.crt": True,
        "/etc/fedmtl/policy.toml": True,
        "/srv/fedmtl/ward-1": True,
        "/var/lib/fedmtl-node": False,
    }
    assert "ReadOnlyPaths=-/srv/fedmtl/%i" in (made / "systemd/fedmtl-node@.service").read_text()


def test_gpus_are_asked_for_where_they_were_wanted_and_nowhere_else(made, own):
    for path, wanted in ((made, True), (own, False)):
        pod = objects_of(path / "kubernetes/node-ward-1.yaml")["StatefulSet"]["spec"]["template"]
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (1 if wanted else None)
        service = yaml_of(path / "compose.ward-1.yaml")[0]["services"]["node-ward-1"]
        assert ("deploy" in service) == wanted
        drop_in = path / "systemd/fedmtl-node@ward-1.service.d/gpu.conf"
        assert drop_in.exists() == wanted
        device = "cuda" if wanted else "cpu"
        assert f'device="{device}"' in (path / "nodes/ward-1/node.env").read_text()
    assert "DeviceAllow=char-nvidia* rw" in drop_in_of(made)
    assert "PrivateDevices=no" in drop_in_of(made)


def drop_in_of(path):
    return (path / "systemd/fedmtl-node@ward-1.service.d/gpu.conf").read_text()


@needs("systemd-analyze")
def test_systemd_takes_the_units(made):
    systemd = made / "systemd"
    assert verify_unit(systemd / "fedmtl-superlink.service") is None
    node = systemd / "fedmtl-node@.service"
    assert verify_unit(node) is None
    assert verify_unit(node, systemd / "fedmtl-node@ward-1.service.d") is None


@pytest.mark.parametrize("unit", ["fedmtl-superlink.service", "fedmtl-node@.service"])
def test_units_are_hardened(made, unit):
    lines = (made / "systemd" / unit).read_text().splitlines()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateDevices=yes",
        "CapabilityBoundingSet=",
        "Restart=on-failure",
        "User=fedmtl",
    ):
        assert line in lines
    assert any(line.startswith("StateDirectory=fedmtl-") for line in lines)
    assert not any(line.startswith("MemoryDenyWriteExecute") for line in lines)


@needs("docker-compose")
def test_docker_compose_takes_server_and_nodes_together(made):
    files = [made / "compose.yaml", *(made / f"compose.{node}.yaml" for node in NODES)]
    command = ["docker-compose", *(part for file in files for part in ("-f", str(file)))]
    done = subprocess.run([*command, "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert sorted(services) == ["node-ward-1", "node-ward-2", "superlink"]


def test_compose_services_have_health_checks_and_what_they_mount_exists(made):
    for path in sorted(made.glob("compose*.yaml")):
        content = yaml_of(path)[0]
        for service in content["services"].values():
            kind, program, *arguments = service["healthcheck"]["test"]
            assert kind == "CMD"
            if program == "python":
                compile(arguments[-1], "healthcheck", "exec")
            else:
                (folder,) = arguments[1:]
                assert [program, arguments[0]] == ["fedmtl", "health"]
                assert f'state="{folder}"' in " ".join(service["command"])
            for volume in service["volumes"]:
                if volume["type"] == "volume":
                    assert volume["source"] in content["volumes"]
                elif volume["source"].startswith("./"):
                    assert (made / volume["source"]).is_file()
        for secret in content["secrets"].values():
            assert (made / secret["file"]).is_file()


@needs("hadolint")
def test_hadolint_takes_the_dockerfile(made):
    done = subprocess.run(
        ["hadolint", "--no-color", made / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_image_holds_the_package_alone_and_runs_without_privileges(made):
    lines = (made / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert copied == ["wheels/", "--from=build"]
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 49999:49999" in last_stage
    ignored = (made / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == [
        "*",
        "!wheels/*.whl",
        "!wheels/constraints.txt",
    ]


def test_the_gateway_passes_on_what_nodes_say_and_nothing_else(made):
    from flwr.superlink.routers.fleet.router import router

    text = (made / "gateway/nginx.conf").read_text()
    places = re.findall(r"location (.*) \{\n\s+(\w+)", text)
    assert places == [
        (f"{router.prefix}/", "proxy_pass"),
        ("= /health", "proxy_pass"),
        ("/", "return"),
    ]


def test_policies_and_the_record_are_toml(made):
    for node in NODES:
        tomllib.loads((made / "nodes" / node / "policy.toml").read_text())
    assert read_plan(made) == Plan(PLAN.host, PLAN.port, PLAN.ips, gpu=True)


def test_flower_takes_the_operators_connection(made):
    from flwr.cli.flower_config import parse_superlink_connection

    superlink = tomllib.loads((made / "operator/config.toml").read_text())["superlink"]
    connection = parse_superlink_connection(superlink[superlink["default"]], superlink["default"])
    assert connection.address == "fl.example.org:8000"
    assert Path(connection.root_certificates).is_file()


def test_the_readme_sends_only_files_that_exist(made):
    text = (made / "README.md").read_text().replace("NAME", "ward-1")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = [name for cell in table for name in re.findall(r"`([^`]+)`", cell)]
    names = [f"nodes/ward-1/{name}" if name == "node.env" else name for name in names]
    assert len(names) > 10
    assert [name for name in names if not (made / name).exists()] == []
    assert "$" not in text.replace("$PWD", "")


# Bad input


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org", "fl.example.org", 8000),
        ("FL.example.org:9000", "fl.example.org", 9000),
        ("192.0.2.7", "192.0.2.7", 8000),
        ("2001:DB8::7", "2001:db8::7", 8000),
        ("[2001:db8::7]:9000", "2001:db8::7", 9000),
    ],
)
def test_servers_are_read(text, host, port):
    assert read_server(text) == (host, port)
    assert read_server(Plan(host, port).address) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "a b", "https://a", "a/b", "-a.org", "a_b.org", "a..b", "1.2.3", "1.2.3.400", "[a]:8000",
     "fe80::1%eth0", "a:", "a:0", "a:65536", "a:port", "a" * 64 + ".org", "$(id).org", "a\n"],
)  # fmt: skip
def test_what_is_no_server_is_refused(text):
    with pytest.raises(ConfigError, match="--server must"):
        read_server(text)


def test_what_is_no_address_is_refused():
    with pytest.raises(ConfigError, match="--server-ip must be an IPv4 or IPv6 address, got 'x'"):
        read_ips(["192.0.2.7", "x"])


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "Ward", "a b", "-a", "a-", "a.b", "ä", "a" * 41, "superlink", "a\n"]
)
def test_what_cannot_name_a_node_is_refused(name):
    with pytest.raises(ConfigError, match="--node must be at most 40"):
        check_nodes(["fine", name])


def test_bad_input_ends_in_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    good = ["--server", "a.example.org", "--node", "n"]
    for arguments, message in (
        (["d", "--server", "a.example.org", "--node", "n", "--node", "n"], "got 'n' 2 times"),
        (["d", *good, "--days", "0"], "--days must be from 1 to"),
        (["full", *good], "exists and is not empty"),
        (["full/file", *good], "exists and is not empty"),
        (["full/file/d", *good], "full/file exists already and is not overwritten"),
    ):
        result = deploy("init", tmp_path / arguments[0], *arguments[1:])
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full"]


def test_a_folder_that_failed_half_way_is_not_there(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConfigError("the disk is full")

    monkeypatch.setattr(folders, "write_node", fail)
    with pytest.raises(ConfigError, match="disk is full"):
        make_folder(tmp_path / "d", PLAN, NODES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["check"], ["rotate", "--ca"], ["node", "--node", "n"]])
def test_other_commands_want_a_deployment_folder(tmp_path, command):
    result = deploy(command[0], tmp_path, *command[1:])
    assert result.exit_code == 2
    assert "is no deployment folder" in result.stderr


# Later changes


def test_a_new_node_changes_nothing_else(own):
    before = digests(own)
    result = deploy("node", own, "--node", "ward-3", "--gpu")
    assert result.exit_code == 0, result.output
    after = digests(own)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == set(folders.names_of_node("ward-3", gpu=True))
    assert nodes_of(own) == [*NODES, "ward-3"]
    assert not [f for f in inspect_folder(own, read_policy) if f.level == "wrong"]


def test_a_node_is_added_once(own):
    before = digests(own)
    with pytest.raises(ConfigError, match="--node must be a new name, got 'ward-1'"):
        add_node(own, "ward-1")
    (own / "keys" / "ward-9").touch()
    with pytest.raises(ConfigError, match="keys/ward-9 exists already and is not overwritten"):
        add_node(own, "ward-9")
    assert digests(own) == before | {"keys/ward-9": hashlib.sha256(b"").hexdigest()}


def changed(before, after):
    return {name for name in before if after.get(name) != before[name]}


def test_a_new_server_certificate_is_of_the_same_ca(own, serve):
    before = digests(own)
    kept, _ = rotate_server_certificate(own)
    rotate_server_certificate(own)  # twice a day
    after = digests(own)
    assert changed(before, after) == {"certificates/server.crt", "certificates/server.key"}
    for path in kept:
        name = f"certificates/{path.name.partition('.old-')[0]}"
        assert after[str(path.relative_to(own))] == before[name]
    assert len(list(own.glob("certificates/server.key.old-*"))) == 2
    assert shake_hands(serve(own), own / "certificates/ca.crt") == b"well met"
    assert [f.text for f in inspect_folder(own, read_policy) if f.level == "wrong"] == []


def test_a_new_node_key_leaves_the_other_nodes_alone(own):
    before = digests(own)
    (own / "nodes/ward-1/registered.json").write_text('{"success": true, "node-id": 77}')
    kept, steps = rotate_node(own, "ward-1")
    after = digests(own)
    assert changed(before, after) == {"keys/ward-1", "keys/ward-1.pub"}
    assert after[str(kept[0].relative_to(own))] == before["keys/ward-1"]
    assert "flwr supernode unregister 77 fedmtl" in steps
    with pytest.raises(ConfigError, match="--node must be a node of"):
        rotate_node(own, "ward-9")


def test_after_a_new_ca_nodes_may_trust_both_for_a_while(own, made, serve, tmp_path):
    old_port = serve(own)
    kept, _ = rotate_authority(own)
    new_port = serve(own)
    old = next(path for path in kept if path.name.startswith("ca.crt.old-"))
    both = tmp_path / "ca-both.crt"
    both.write_bytes((own / "certificates/ca.crt").read_bytes() + old.read_bytes())
    for port in (old_port, new_port):
        assert shake_hands(port, both) == b"well met"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(new_port, old)
    assert [f.text for f in inspect_folder(own, read_policy) if f.level == "wrong"] == []


def test_without_the_cas_key_there_is_no_new_certificate(own, made):
    (own / "certificates/ca.key").unlink()
    before = digests(own)
    with pytest.raises(ConfigError, match=r"ca\.key cannot be read: No such file"):
        rotate_server_certificate(own)
    shutil.copy(made / "certificates/ca.key", own / "certificates/ca.key")
    with pytest.raises(ConfigError, match=r"is not the key of certificates/ca\.crt"):
        rotate_server_certificate(own)
    (own / "certificates/ca.key").unlink()
    assert digests(own) == before
    assert [f.text for f in inspect_folder(own, read_policy) if f.level == "wrong"] == []


@pytest.mark.parametrize("options", [[], ["--ca", "--server-certificate"]])
def test_rotate_wants_one_thing(own, options):
    result = deploy("rotate", own, *options)
    assert result.exit_code == 2
    assert "must have one of --server-certificate, --node NAME and --ca" in result.stderr


# Check


def expire(path):
    plan = Plan(PLAN.host, ips=PLAN.ips, days=-0.5)
    key = serialization.load_pem_private_key((path / "certificates/ca.key").read_bytes(), None)
    ca = x509.load_pem_x509_certificate((path / "certificates/ca.crt").read_bytes())
    certificate, key = certificates.make_server_certificate(certificates.Authority(ca, key), plan)
    (path / "certificates/server.crt").write_bytes(certificates.certificate_pem(certificate))
    (path / "certificates/server.key").write_bytes(certificates.key_pem(key))


def swap(path, name, text, other):
    content = (path / name).read_text()
    assert text in content
    (path / name).write_text(content.replace(text, other))


DAMAGES = {
    "certificates/server.crt: ran out on": expire,
    "certificates/server.crt: is not for b.example.org": lambda path: swap(
        path, "deploy.toml", "fl.example.org", "b.example.org"
    ),
    "certificates/server.crt: not signed by certificates/ca.crt": lambda path: (
        rotate_authority(path),
        next(path.glob("certificates/server.crt.old-*")).replace(path / "certificates/server.crt"),
    ),
    "certificates/server.key: not the key of certificates/server.crt": lambda path: shutil.copy(
        path / "certificates/ca.key", path / "certificates/server.key"
    ),
    "certificates/ca.crt: no readable PEM certificate": lambda path: (
        path / "certificates/ca.crt"
    ).write_text("-----BEGIN"),
    "keys/ward-1: mode 0640": lambda path: (path / "keys/ward-1").chmod(0o640),
    "keys/ward-1: does not fit keys/ward-1.pub": lambda path: shutil.copy(
        path / "keys/ward-2", path / "keys/ward-1"
    ),
    "keys/ward-2: the same key as keys/ward-1": lambda path: [
        shutil.copy(path / f"keys/ward-1{end}", path / f"keys/ward-2{end}") for end in ("", ".pub")
    ],
    "keys/ward-1, keys/ward-1.pub: no readable OpenSSH key pair": lambda path: (
        path / "keys/ward-1.pub"
    ).unlink(),
    "nodes/ward-1/policy.toml is no TOML": lambda path: swap(
        path, "nodes/ward-1/policy.toml", "[code]", "[code"
    ),
    "operator/config.toml: superlink.fedmtl.root-certificates must be": lambda path: swap(
        path, "operator/config.toml", "/certificates/", "/elsewhere/"
    ),
    "kubernetes/node-ward-1.yaml: no YAML": lambda path: swap(
        path, "kubernetes/node-ward-1.yaml", "kind: Service", "kind: [Service"
    ),
    "superlink.env: missing": lambda path: (path / "superlink.env").unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_check_names_what_is_wrong_and_exits_2(own, message):
    DAMAGES[message](own)
    result = deploy("check", own)
    assert result.exit_code == 2, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith(f"wrong: {message}")]


def test_check_holds_manifests_against_their_schemas(own):
    pytest.importorskip("kubernetes_validate")
    swap(own, "kubernetes/superlink.yaml", "replicas: 1", "replicass: 1")
    wrong = [f.text for f in inspect_folder(own, read_policy) if f.level == "wrong"]
    assert len(wrong) == 1
    assert wrong[0].startswith("kubernetes/superlink.yaml: ")
    assert "replicass" in wrong[0]


@needs("systemd-analyze")
def test_the_settings_of_single_nodes_are_read_with_their_unit(own):
    add_node(own, "a", gpu=True)
    swap(own, "systemd/fedmtl-node@a.service.d/gpu.conf", "DeviceAllow=c", "DeviceAlow=c")
    systemd = own / "systemd"
    complaint = verify_unit(systemd / "fedmtl-node@.service", systemd / "fedmtl-node@a.service.d")
    assert "DeviceAlow" in complaint


def test_check_of_a_fresh_folder_finds_nothing_wrong(made):
    result = deploy("check", made)
    assert result.exit_code == 0, result.output
    assert "wrong" not in result.stdout


def test_soon_is_told_before_it_is_too_late(tmp_path):
    make_folder(tmp_path / "d", Plan("a.example.org", days=10), ["n"])
    notes = [f.text for f in inspect_folder(tmp_path / "d", read_policy) if f.level == "note"]
    assert any(text.startswith("certificates/server.crt: valid until") for text in notes)


# Against Flower itself


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.5)


@pytest.fixture
def flower(tmp_path):
    """Run Flower's programs; what was started is ended."""
    beside, started = Path(sys.executable).parent, []
    base = os.environ | {"FLWR_TELEMETRY_ENABLED": "0"}

    def start(program, *flags):
        home = tmp_path / f"home-{len(started)}"
        log = (tmp_path / f"log-{len(started)}").open("w+")
        process = subprocess.Popen(
            [beside / program, *map(str, flags)],
            env=base | {"FLWR_HOME": str(home)}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        started.append((process, log))
        return process

    def ask(home, *words):
        return subprocess.run(
            [beside / "flwr", *map(str, words)],
            env=base | {"FLWR_HOME": str(home)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    yield start, ask
    for process, log in reversed(started):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


@pytest.mark.slow
def test_flower_works_with_the_folder(tmp_path, flower):
    start, ask = flower
    path, port = tmp_path / "deployment", free_port()
    assert deploy("init", path, "--server", f"localhost:{port}", "--node", "a", "--node", "b",
                  "--node", "stranger").exit_code == 0  # fmt: skip
    place, home = path / "certificates", path / "operator"
    start(
        "flower-superlink", "--port", port, "--ssl-ca-certfile", place / "ca.crt",
        "--ssl-certfile", place / "server.crt", "--ssl-keyfile", place / "server.key",
        "--enable-supernode-auth", "--database", tmp_path / "state.db",
    )  # fmt: skip
    wait_until(lambda: ask(home, "supernode", "list", "fedmtl").returncode == 0)

    def register(node):
        done = ask(home, "supernode", "register", path / f"keys/{node}.pub", "fedmtl",
                   "--name", node, "--format", "json")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (path / f"nodes/{node}/registered.json").write_text(done.stdout)

    def online():
        done = ask(home, "supernode", "list", "fedmtl", "--format", "json")
        return {n["node-id"] for n in json.loads(done.stdout)["nodes"] if n["status"] == "online"}

    def connect(node):
        return start(
            "flower-supernode", "--superlink", f"localhost:{port}", "--port", free_port(),
            "--root-certificates", place / "ca.crt",
            "--auth-supernode-private-key", path / "keys" / node,
        )  # fmt: skip

    def id_of(node):
        return str(json.loads((path / f"nodes/{node}/registered.json").read_text())["node-id"])

    register("a")
    register("b")
    connect("stranger")
    first = connect("a")
    connect("b")
    wait_until(lambda: online() == {id_of("a"), id_of("b")})

    # A new key for a node, by the commands that rotate prints.
    _, steps = rotate_node(path, "a")
    unregister, register_again = (s for s in steps if s.startswith("flwr supernode"))
    assert ask(home, *shlex.split(unregister)[1:]).returncode == 0
    first.terminate()
    first.wait(20)
    command, _, target = register_again.partition(" > ")
    done = ask(home, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    Path(shlex.split(target)[0]).write_text(done.stdout)
    connect("a")
    wait_until(lambda: online() == {id_of("a"), id_of("b")})
