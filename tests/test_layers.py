"""The layers: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
MODULES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_the_layers(path):
    package = path.relative_to(ROOT).parts[0]
    assert not imported(path) & ({*ALLOWED, "tests"} - ALLOWED[package])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flower_will_take_the_module_into_its_bundle(path):
    # Flower drops test_*.py and *_test.py silently, and imports packages where it submits a run.
    assert not path.name.startswith("test_")
    assert not path.name.endswith("_test.py")
    if path.name == "__init__.py":
        assert [type(node).__name__ for node in ast.parse(path.read_text()).body] == ["Expr"]


def test_flower_stays_at_the_rims():
    rims = {
        "common/wire.py", "common/lazy_array.py",
        "client/app.py", "client/job.py", "client/state.py", "client/session.py",
        "client/node/worker.py", "client/node/runtime.py", "client/node/guard.py",
        "client/node/run.py", "client/node/supernode.py",
        "server/app.py", "server/strategy.py", "server/loop.py", "server/roster.py",
        "server/federation.py", "server/patient_grid.py", "server/exchange.py", "server/bulk.py",
        "server/replies.py", "server/flat_trunk.py", "server/aggregation/flower.py",
        "simulations/loopback.py", "simulations/workers.py", "simulations/worker_messages.py",
        "simulations/batched.py", "simulations/flower_engine.py", "simulations/wire_record.py",
        "simulations/benchmarks/quickstart/quickstart_app.py",
        "client/node/dry_run.py",
        "common/secure_aggregation/records.py", "client/secure.py", "client/node/secure_guard.py",
        "client/node/secure_dry_run.py",
        "server/secure_stages.py", "server/secure_exchange.py",
    }  # fmt: skip
    users = {str(p.relative_to(ROOT)) for p in MODULES if "flwr" in imported(p)}
    assert users <= rims
