"""What a process keeps between messages: data, the resident model, and who this node is.

An engine calls the same handlers for many clients in one process, and a deployed node calls them
in a new process for every message; both go through `open_session`.
"""

from collections.abc import Sequence
from functools import lru_cache

from flwr.app import Context

from client.training import Trainer, choose_device
from common.agreement import Agreement, Description, describe_prepared, input_shapes
from common.clients import open_clients
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.errors import DataError
from common.experiment import Experiment
from common.preparation import PreparedClient, prepare

KEPT_BYTES = 2**28  # of prepared rows that wait to be encoded


class LocalRows:
    """The raw rows of the clients of this process.

    What was prepared to describe a client is kept, up to a limit, until it is encoded to train it.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.source = experiment, open_clients(experiment)
        self._kept: dict[str, PreparedClient] = {}
        self._free = KEPT_BYTES

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all clients of the experiment."""
        return self.source.names

    def describe(self, name: str) -> Description:
        """Describe a client."""
        return describe_prepared(name, lambda: self._prepare(name), self.experiment)

    def encode(self, name: str, agreement: Agreement) -> ClientData:
        """Encode a client's rows."""
        prepared = self._kept.pop(name, None)
        if prepared is None:
            prepared = prepare(self.source.read(name), self.experiment)
        else:
            self._free += prepared.nbytes
        return encode_prepared(prepared, self.experiment, agreement)

    def _prepare(self, name: str) -> PreparedClient:
        before = self._kept.pop(name, None)
        self._free += before.nbytes if before else 0
        prepared = prepare(self.source.read(name), self.experiment)
        if prepared.nbytes <= self._free:
            self._kept[name] = prepared
            self._free -= prepared.nbytes
        return prepared


class Session:
    """One experiment in one process."""

    def __init__(self, rows: LocalRows, agreement: Agreement, device: str) -> None:
        experiment = rows.experiment
        self.rows, self.experiment, self.agreement = rows, experiment, agreement
        self.fingerprint = experiment.fingerprint()
        self.trainer = Trainer(experiment, input_shapes(agreement), choose_device(device))
        self._clients: dict[str, ClientData] = {}
        self._names: dict[tuple[object, object], str] = {}

    def client(self, name: str) -> ClientData:
        """Read, split and encode a client's rows; the second call is free."""
        if name not in self._clients:
            data = self.rows.encode(name, self.agreement)
            splits = {key: rows.to(self.trainer.device) for key, rows in data.splits.items()}
            self._clients[name] = ClientData(name, splits, data.target_scales, data.notes)
        return self._clients[name]

    def name_of(self, context: Context) -> str:
        """Say which client a node is; the second call is free. See `client_name`."""
        key = (context.node_config.get("client"), context.node_config.get("partition-id"))
        if key not in self._names:
            self._names[key] = client_name(context, self.rows.names)
        return self._names[key]

    def forget_clients(self) -> None:
        """Let go of the clients' data, where somebody else holds it now."""
        self._clients.clear()


@lru_cache(maxsize=8)
def parse_experiment(text: str, data_path: str) -> Experiment:
    """Read the experiment that the server sent; a node's own data folder takes precedence."""
    experiment = Experiment.model_validate_json(text)
    if not data_path:
        return experiment
    data = experiment.data.model_copy(update={"path": data_path})
    return experiment.model_copy(update={"data": data})


@lru_cache(maxsize=2)
def open_session(experiment: str, agreement: str, data_path: str, device: str) -> Session:
    """Get the process's session for an experiment, made at the first message."""
    rows = open_rows(experiment, data_path)
    device = device or rows.experiment.training.device
    return Session(rows, Agreement.from_json(agreement), device)


@lru_cache(maxsize=8)
def open_rows(experiment: str, data_path: str) -> LocalRows:
    """Open the clients' data of the experiment that the server sent."""
    return LocalRows(parse_experiment(experiment, data_path))


def close_sessions() -> None:
    """Let go of everything that this process keeps; the next run reads its data anew."""
    for cached in (parse_experiment, open_session, open_rows):
        cached.cache_clear()


def client_name(context: Context, names: Sequence[str]) -> str:
    """Say which client of the experiment this node is.

    A node names itself by ``client`` in its config; a simulated node has Flower's
    ``partition-id``; a node whose data holds one client only is that one.

    Raises:
        DataError: none of these settles it.
    """
    if "client" in context.node_config:
        name = str(context.node_config["client"])
        if name not in names:
            raise DataError(f"node config: client must be one of {len(names)} names, got '{name}'")
        return name
    if "partition-id" in context.node_config:
        index = int(context.node_config["partition-id"])
        if index >= len(names):
            raise DataError(
                f"node {index} has no data: the experiment has {len(names)} clients; "
                f"start {len(names)} nodes"
            )
        return names[index]
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"this node's data holds {len(names)} clients; say which one it is: "
        """--node-config 'client="NAME"'"""
    )
