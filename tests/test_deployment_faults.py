"""A federation on three hosts survives what happens to processes, cables, disks and clocks.

Each fault strikes at a random moment, `FEDMTL_FAULT_TIMES` times in a row (1 by default); the
moments go by `FEDMTL_FAULT_SEED`, which a failure names. By hand, with a table at the end:
``python -m tests.deployment_faults --times 20``.
"""

import os
import random
import shutil

import pytest

from tests.deployment_faults import DISK_BYTES, FAULTS, HANG_S, try_fault, warm_up
from tests.hosts import Federation
from tests.namespaces import why_not

TIMES = int(os.environ.get("FEDMTL_FAULT_TIMES", "1"))
SEED = int(os.environ.get("FEDMTL_FAULT_SEED") or random.SystemRandom().randrange(10**6))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * HANG_S * TIMES),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("hosts"), disk_bytes=DISK_BYTES) as federation:
        federation.start_nodes()
        yield federation


@pytest.fixture(scope="module")
def expected_s(federation) -> float:
    return warm_up(federation)


@pytest.mark.parametrize("number", range(TIMES))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_comes_to_its_end_whatever_happens(federation, expected_s, fault, number):
    if fault == "node-clock-wrong" and shutil.which("faketime") is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    verdict = try_fault(federation, fault, SEED + number, expected_s)
    assert not verdict.wrong, f"FEDMTL_FAULT_SEED={SEED + number}: {verdict}"
