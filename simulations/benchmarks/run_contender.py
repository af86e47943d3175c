"""The process of one contender: ``python -m simulations.benchmarks.run_contender JOB SOCKET``.

JOB is a `Job` as JSON, SOCKET the number of the open socket to the arena.
"""

import json
import socket
import sys
from importlib import import_module

from common.errors import FedMTLError
from simulations.benchmarks.contenders import CONTENDERS, Job
from simulations.benchmarks.turns import Stopped, Turns


def main(job: Job, connection: socket.socket) -> None:
    """Do a job until the arena has seen enough."""
    turns = Turns(connection)
    module = CONTENDERS[job.contender].module
    try:
        import_module(f"simulations.benchmarks.{module}").run(job, turns)
    except Stopped:
        return
    except FedMTLError as error:
        turns.skip(str(error))


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
