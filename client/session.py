"""What a process keeps between messages: data, the resident model, and who this node is.

An engine calls the same handlers for many clients in one process, and a deployed node calls them
in a new process for every message; both go through `open_session`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from flwr.app import Context

from client.batch_source import fits_device
from client.place import Place
from client.row_cache import RowCache
from client.training import Trainer, choose_device
from common.agreement import Agreement, Description, describe_prepared, input_shapes
from common.clients import open_clients
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.errors import DataError
from common.experiment import Experiment
from common.preparation import PreparedClient, prepare
from common.pretrained.prepare import require_same
from common.sources.registry import source_signature
from common.tables import ClientTable, StreamedTable, TableSource

KEPT_BYTES = 2**28  # of prepared rows that wait to be encoded
_LENT: dict[str, "LocalRows"] = {}  # experiment as clients are sent it -> rows in its data's place


class LocalRows:
    """The raw rows of the clients of this process.

    What was prepared to describe a client is kept, up to a limit, until it is encoded to train it.
    With a cache, a client's description and its encoded rows are taken from there, and made only
    where they are not in it yet.
    """

    def __init__(self, experiment: Experiment, cache: RowCache | None = None) -> None:
        self.experiment, self.cache = experiment, cache
        self._kept: dict[str, PreparedClient] = {}
        self._free = KEPT_BYTES

    @cached_property
    def source(self) -> TableSource:
        """The raw files, opened when they are needed."""
        return open_clients(self.experiment)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all clients of the experiment."""
        if self.cache is None:
            return self.source.names
        return self.cache.names(lambda: self.source.names)

    def describe(self, name: str) -> Description:
        """Describe a client."""

        def make() -> Description:
            with _enough_memory(name, self.experiment):
                return describe_prepared(name, lambda: self._prepare(name), self.experiment)

        return make() if self.cache is None else self.cache.description(name, make)

    def encode(self, name: str, agreement: Agreement) -> ClientData:
        """Encode a client's rows."""

        def make() -> ClientData:
            with _enough_memory(name, self.experiment):
                return self._encode(name, agreement)

        return make() if self.cache is None else self.cache.rows(name, agreement, make)

    def _encode(self, name: str, agreement: Agreement) -> ClientData:
        prepared = self._kept.pop(name, None)
        if prepared is None:
            prepared = prepare(self._read(name), self.experiment)
        else:
            self._free += prepared.nbytes
        return encode_prepared(prepared, self.experiment, agreement)

    def _read(self, name: str) -> ClientTable:
        table = self.source.read(name)
        if self.cache is not None and isinstance(table, StreamedTable):
            return table.beside(self.cache.scratch())  # a node's rows stay in its state folder
        return table

    def _prepare(self, name: str) -> PreparedClient:
        before = self._kept.pop(name, None)
        self._free += before.nbytes if before else 0
        prepared = prepare(self._read(name), self.experiment)
        if prepared.nbytes <= self._free:
            self._kept[name] = prepared
            self._free -= prepared.nbytes
        return prepared


@contextmanager
def _enough_memory(name: str, experiment: Experiment) -> Iterator[None]:
    """Say in a line that a client's rows are too many for the memory there is."""
    try:
        yield
    except MemoryError as error:
        if experiment.data.memory == "disk":
            raise
        raise DataError(
            f"client '{name}': its rows do not fit in memory; set data.memory to 'disk' (a node: "
            """--node-config 'memory="disk"')"""
        ) from error


class Session:
    """One experiment in one process."""

    def __init__(self, rows: LocalRows, agreement: Agreement, *, simulated: bool = False) -> None:
        experiment = rows.experiment
        self.rows, self.experiment, self.agreement = rows, experiment, agreement
        device = choose_device(experiment.training.device)
        self.trainer = Trainer(experiment, input_shapes(agreement), device, simulated)
        require_same(self.trainer.model, experiment, agreement.frozen)
        self._clients: dict[str, ClientData] = {}
        self._names: dict[tuple[object, object], str] = {}

    def client(self, name: str) -> ClientData:
        """Read, split and encode a client's rows; the second call is free."""
        if name not in self._clients:
            data = self.rows.encode(name, self.agreement)
            if fits_device(data, self.trainer.device):
                splits = {key: rows.to(self.trainer.device) for key, rows in data.splits.items()}
                self._clients[name] = replace(data, splits=splits)
            else:
                self._clients[name] = replace(data, resident=False)
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


def open_session(experiment: str, agreement: str, place: Place) -> Session:
    """Get the process's session for an experiment, made at the first message."""
    rows = open_rows(experiment, place)
    return _open_session(rows, agreement, place.precision, place.simulated)


def open_rows(experiment: str, place: Place) -> LocalRows:
    """Open the clients' data of the experiment that the server sent; the node's decisions hold.

    Where the node names its data, or keeps its state on disk, raw files that changed are read anew.
    """
    if experiment in _LENT:
        return _LENT[experiment]
    deployed = bool(place.data or place.state)
    return _open_rows(experiment, place, _signature(experiment, place) if deployed else "")


@contextmanager
def lent_rows(rows: LocalRows) -> Iterator[None]:
    """Let this process's clients have these rows in the place of their data's, for a while.

    For a simulation that asks what would have come of other rows.
    """
    key = rows.experiment.for_clients()
    _LENT[key] = rows
    try:
        yield
    finally:
        del _LENT[key]


@lru_cache(maxsize=8)
def settled(experiment: str, place: Place) -> Experiment:
    """Read the experiment that the server sent; the node's decisions hold."""
    return place.settle(Experiment.model_validate_json(experiment))


def _signature(experiment: str, place: Place) -> str:
    return source_signature(settled(experiment, place).data)


@lru_cache(maxsize=2)
def _open_session(rows: LocalRows, agreement: str, precision: str, simulated: bool) -> Session:
    if precision:
        torch.set_float32_matmul_precision(precision)
    return Session(rows, Agreement.from_json(agreement), simulated=simulated)


@lru_cache(maxsize=8)
def _open_rows(text: str, place: Place, signature: str) -> LocalRows:
    experiment = settled(text, place)
    kept = bool(place.state and signature)  # embedded data needs no cache
    cache = RowCache(Path(place.state) / "cache", experiment, signature) if kept else None
    return LocalRows(experiment, cache)


def close_sessions() -> None:
    """Let go of everything that this process keeps; the next run reads its data anew."""
    for cached in (settled, _open_session, _open_rows):
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
