"""The deployment guide works as written: its commands are run from its text."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "deployment.md"
# A machine of its own, as far as ports go: 8000 may be taken, and nothing must reach this one.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "alone"]


def commands() -> str:
    """Join the guide's blocks; each is echoed, so that a failure shows where it was."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    steps = [f"echo '== block {n}'\n{block}" for n, block in enumerate(blocks, 1)]
    return "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(steps)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="needs root, unshare and ip, for a network of its own",
)
def test_the_guide_works_as_written(tmp_path):
    script = tmp_path / "guide.sh"
    script.write_text(commands())
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"HOME": str(tmp_path), "PATH": programs, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*ALONE, "bash", str(script)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1400, check=False,
    )  # fmt: skip
    logs = "\n".join(
        f"== {log}\n{log.read_text()[-2000:]}" for log in sorted(tmp_path.rglob("*.log"))
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}\n{logs}"
    predictions = (tmp_path / "clinics" / "predictions.csv").read_text().splitlines()
    assert predictions[0].startswith("age,lab_a,lab_b,predicted.readmitted")
    assert len(predictions) == 201


def test_the_guide_has_commands_for_every_step_it_promises():
    text = commands()
    for promised in (
        "fedmtl deploy init", "flower-superlink", "flwr supernode register", "fedmtl node check",
        "fedmtl node run", "flwr run", "fedmtl health", "flwr stop", "resume=", "heads-from=",
        "flwr supernode unregister", "fedmtl deploy node", "fedmtl deploy rotate",
        "fedmtl predict",
    ):  # fmt: skip
        assert promised in text
