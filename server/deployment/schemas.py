"""Manifests, Compose files and units held against the tools that know their form.

What has no tool on this machine is said to be unchecked; every YAML file is parsed at least.
"""

import re
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
    place = folder / "systemd"
    for path in sorted(place.glob("*.service")):
        # A template is read for one instance, and for each that has settings of its own.
        drop_ins = sorted(place.glob(path.name.replace("@.", "@*.") + ".d"))
        for drop_in in (*drop_ins,) or (None,):
            name = f"systemd/{path.name if drop_in is None else drop_in.name}"
            complaint = verify_unit(path, drop_in)
            if complaint is None:
                yield "ok", f"{name}: accepted by systemd-analyze verify"
            else:
                yield "wrong", f"{name}: {complaint}"


def verify_unit(path: Path, drop_in: Path | None = None) -> str | None:
    """Have systemd-analyze read a unit, with the settings of one instance where it has its own.

    Its programs are replaced by one that every machine has: this one need not be a host of the
    deployment.

    Returns:
        What it complains about; None if nothing.
    """
    with tempfile.TemporaryDirectory() as place:
        instance = path.name.replace("@.", "@check.") if drop_in is None else drop_in.name[:-2]
        copy = Path(place) / instance
        copy.write_text(_with_true(path.read_text(encoding="utf-8")), encoding="utf-8")
        for settings in [] if drop_in is None else sorted(drop_in.glob("*.conf")):
            target = Path(f"{copy}.d") / settings.name
            target.parent.mkdir(exist_ok=True)
            target.write_text(_with_true(settings.read_text(encoding="utf-8")), encoding="utf-8")
        return _complaint(["systemd-analyze", "verify", "--man=no", str(copy)], strict=True)


def _with_true(unit: str) -> str:
    return re.sub(r"^(Exec\w+=[+@!:-]*)/\S+", r"\1/bin/true", unit, flags=re.MULTILINE)


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
