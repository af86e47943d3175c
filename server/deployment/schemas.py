"""Manifests, Compose files and units held against the tools that know their form.

What has no tool on this machine is said to be unchecked; every YAML file is parsed at least.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

Told = tuple[Literal["ok", "note", "wrong"], str]
TIMEOUT_S = 60


def check_manifests(folder: Path) -> Iterator[Told]:
    """Check the YAML files and the units of a deployment folder."""
    compose = sorted(folder.glob("compose*.yaml"))
    manifests = sorted((folder / "kubernetes").glob("*.yaml"))
    parsed: dict[Path, list[Any]] = {}
    for path in (*compose, *manifests):
        try:
            parsed[path] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError) as error:
            yield "wrong", f"{path.relative_to(folder)}: no YAML: {_first_line(str(error))}"
    yield from _kubernetes(folder, {path: parsed[path] for path in manifests if path in parsed})
    yield from _compose(folder, [path for path in compose if path in parsed])
    yield from _units(folder)


def _kubernetes(folder: Path, manifests: dict[Path, list[Any]]) -> Iterator[Told]:
    try:
        import kubernetes_validate
    except ImportError:
        yield "note", "kubernetes/: YAML only; for its schemas: pip install kubernetes-validate"
        return
    latest = kubernetes_validate.latest_version()
    for path, objects in manifests.items():
        problems = []
        for manifest in objects:
            try:
                kubernetes_validate.validate(manifest, latest, strict=True)
            except Exception as error:  # its own errors, and whatever no mapping makes it raise
                problems.append(_first_line(getattr(error, "message", "") or str(error)))
        name = path.relative_to(folder)
        for problem in problems:
            yield "wrong", f"{name}: {problem}"
        if not problems:
            yield "ok", f"{name}: fits the schemas of Kubernetes {latest}"


def _compose(folder: Path, files: list[Path]) -> Iterator[Told]:
    command = _compose_command()
    if not command:
        yield "note", "compose*.yaml: YAML only; for their schema: install docker compose"
        return
    for path in files:
        complaint = _complaint([*command, "-f", str(path), "config", "--quiet"])
        if complaint is None:
            yield "ok", f"{path.name}: accepted by docker compose config"
        else:
            yield "wrong", f"{path.name}: {complaint}"


def _compose_command() -> list[str]:
    if shutil.which("docker") and _complaint(["docker", "compose", "version"]) is None:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def _units(folder: Path) -> Iterator[Told]:
    if not shutil.which("systemd-analyze"):
        yield "note", "systemd/: unchecked; systemd-analyze is not installed here"
        return
    for path in sorted((folder / "systemd").glob("*.service")):
        complaint = verify_unit(path)
        if complaint is None:
            yield "ok", f"systemd/{path.name}: accepted by systemd-analyze verify"
        else:
            yield "wrong", f"systemd/{path.name}: {complaint}"


def verify_unit(path: Path) -> str | None:
    """Have systemd-analyze read a unit, for an instance and with its drop-ins.

    Its program is replaced by one that this machine has: it need not be a host of the deployment.

    Returns:
        What it complains about; None if nothing.
    """
    with tempfile.TemporaryDirectory() as place:
        instance = path.name.replace("@.", "@check.")
        copy = Path(place) / instance
        text = path.read_text(encoding="utf-8").replace(
            "ExecStart=/opt/fedmtl/bin/", "ExecStart=/bin/true "
        )
        copy.write_text(text, encoding="utf-8")
        for drop_in in sorted(path.parent.glob(path.name.replace("@.", "@*.") + ".d")):
            shutil.copytree(drop_in, f"{copy}.d", dirs_exist_ok=True)
        return _complaint(["systemd-analyze", "verify", "--man=no", str(copy)], strict=True)


def _complaint(command: list[str], *, strict: bool = False) -> str | None:
    """Run a checker: None if it is content, else its first line. Strict: silence is content."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} could not be run: {type(error).__name__}"
    said = (done.stderr.strip() or done.stdout.strip()) if done.returncode or strict else ""
    if done.returncode and not said:
        return f"{command[0]} ended with {done.returncode}"
    return _first_line(said) if said else None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown problem"
