"""Who is refused is told once: in the error that ends a run, or in a warning where it goes on."""

import pytest

from client.app import app
from common.errors import DataError
from common.experiment_file import load_experiment
from server.roster import Roster
from simulations.loopback import LoopbackGrid

FILES = {"good": "x,t\n1,2\n3,4\n5,6\n7,8\n", "odd": "x,t\n1,2\nword,3\n5,6\n7,8\n"}


@pytest.fixture
def roster(tmp_path):
    for client, text in FILES.items():
        (tmp_path / f"{client}.csv").write_text(text)
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[data]\nsource = "folder"\npath = "."\nvalidation = 0.0\n'
        '[inputs.x]\ncolumns = ["x"]\n[tasks.t]\nkind = "regression"\n'
    )
    roster = Roster(load_experiment(str(tmp_path / "mine.toml")))
    roster.meet(LoopbackGrid(app, list(FILES)), 10.0)
    return roster


def test_under_strict_a_refusal_is_in_the_error_alone(roster, caplog):
    with pytest.raises(DataError, match="odd"):
        roster.require(strict=True)
    assert "takes no part" not in caplog.text


def test_else_it_is_a_warning_and_the_run_goes_on(roster, caplog):
    roster.require(strict=False)
    assert roster.names == ["good"]
    assert caplog.text.count("takes no part") == 1
