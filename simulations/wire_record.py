"""``--record-wire``: writes what travelled in a run, as the server saw it, and nothing more.

The folder ``wire/`` of a run holds ``index.jsonl``, a line for each exchange of messages, the
arrays of each exchange beside it in safetensors, and ``agreement.json``. A grid is recorded from
outside: whatever a mechanism makes of an update, what arrived is what is written.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.experiment import Experiment
from common.json_gaps import without_gaps
from common.privacy.settings import Privacy
from common.wire import ARRAYS, CONFIG, EXAMPLES, Instruction, read_array, reason_of
from server.bulk import BulkGrid, BulkReplies, Trunk
from server.checkpoint import told_where
from server.run_folder import RunFolder

FOLDER, INDEX, AGREEMENT = "wire", "index.jsonl", "agreement.json"
ELSEWHERE = {"experiment", "agreement"}  # of an instruction: in files of their own
Named = dict[str, NDArray[Any]]  # "sent/0/arrays/NAME" or "reply/2/arrays/NAME" -> values


class WireRecord:
    """Writes the exchanges of one run.

    Args:
        run: the run folder.
        done: rounds that were done before; what is there of later ones is dropped. None for a new
            run.
        privacy: of the experiment. An engine that answers for all clients at once hands over single
            updates and sums that secure aggregation would have masked: these are not written.
    """

    def __init__(self, run: Path, done: int | None = None, privacy: Privacy | None = None) -> None:
        self.folder, privacy = run / FOLDER, privacy or Privacy()
        self.hides_updates = privacy.secure_aggregation is not None
        self.hides_sums = privacy.sums_regime == "secure"
        self.clients: dict[int, str] = {}  # node -> name, as its description tells
        with told_where(self.folder):
            lines = [] if done is None else self._kept(done)
            if done is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_index(lines)
        self._number = lines[-1]["number"] if lines else 0

    def _kept(self, done: int) -> list[dict[str, Any]]:
        path = self.folder / INDEX
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["round"] <= done]

    def _write_index(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder / INDEX).write_text(text, encoding="utf-8")

    def messages(self, asked: Sequence[Message], replies: Sequence[Message]) -> None:
        """Write an exchange by messages; those that share their content are written once."""
        arrays: Named = {}
        contents = {id(message.content): message.content for message in asked}
        places = {key: place for place, key in enumerate(contents)}
        sent = [self._content(c, f"sent/{i}", arrays) for i, c in enumerate(contents.values())]
        went = {m.metadata.dst_node_id: places[id(m.content)] for m in asked}
        came = []
        for number, reply in enumerate(replies):
            node = reply.metadata.src_node_id
            about: dict[str, Any] = {"client": str(node), "sent": went.get(node)}
            if reply.has_error():
                about["error"] = reason_of(reply)
            else:
                about |= self._content(reply.content, f"reply/{number}", arrays)
                self._meet(node, about["config"])
            about["client"] = self.clients.get(node, str(node))
            came.append(about)
        kind = asked[0].metadata.message_type if asked else ""
        self._write(kind, sent, came, arrays)

    def bulk(self, kind: str, trunk: Trunk, instruction: Instruction, replies: BulkReplies) -> None:
        """Write an exchange with an engine that answers for all clients of a round at once."""
        arrays: Named = {f"sent/0/{ARRAYS}/{n}": np.ascontiguousarray(a) for n, a in trunk.items()}
        config = self._config(instruction.to_record())
        came = [
            {"client": name, "sent": 0, "config": {}, "metrics": self._metrics_of(replies, row)}
            for row, name in enumerate(replies.clients)
        ]
        if replies.rows is not None and not self.hides_updates:
            for row, values in enumerate(replies.rows):
                for name, array in _cut(values, trunk).items():
                    arrays[f"reply/{row}/{ARRAYS}/{name}"] = np.ascontiguousarray(array)
        self._write(kind, [{"config": config, "metrics": {}}], came, arrays)

    def _metrics_of(self, replies: BulkReplies, row: int) -> dict[str, Any]:
        """Write one client's numbers as its metric record would hold them."""
        if self.hides_sums:
            return {}
        name = replies.clients[row]
        metrics: dict[str, Any] = {EXAMPLES: int(replies.examples[row])}
        for split in replies.sums.numbers:
            for task, numbers in replies.sums.client(name, split).items():
                metrics |= {f"{split}/{task}/{metric}": value for metric, value in numbers.items()}
        return metrics

    def _content(self, content: RecordDict, prefix: str, arrays: Named) -> dict[str, Any]:
        """Take one content apart; its arrays are added to `arrays`."""
        config: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        for key, record in content.items():
            if isinstance(record, ArrayRecord):
                for name, array in record.items():
                    try:
                        arrays[f"{prefix}/{key}/{name}"] = np.ascontiguousarray(read_array(array))
                    except ValueError:  # what a hostile client sent
                        config.setdefault("unreadable", []).append(name)
            elif isinstance(record, MetricRecord):
                metrics |= dict(record)
            else:
                config |= self._config(record) if key == CONFIG else _plain(record)
        return {"config": config, "metrics": metrics}

    def _config(self, record: ConfigRecord) -> dict[str, Any]:
        if agreement := record.get("agreement"):
            (self.folder / AGREEMENT).write_text(str(agreement), encoding="utf-8")
        return {key: value for key, value in _plain(record).items() if key not in ELSEWHERE}

    def _meet(self, node: int, config: Mapping[str, Any]) -> None:
        if "description" in config:
            self.clients[node] = str(json.loads(config["description"])["client"])

    def _write(
        self,
        kind: str,
        sent: Sequence[Mapping[str, Any]],
        came: Sequence[Mapping[str, Any]],
        arrays: Named,
    ) -> None:
        self._number += 1
        number = max((int(part["config"].get("round", 0)) for part in sent), default=0)
        line = {"number": self._number, "round": number, "kind": kind}
        line |= {"sent": list(sent), "replies": list(came)}
        with told_where(self.folder):
            save_file(arrays, self.folder / f"{self._number:06d}.safetensors")
            with (self.folder / INDEX).open("a", encoding="utf-8") as index:
                index.write(json.dumps(without_gaps(line)) + "\n")


def start_record(grid: Grid, folder: RunFolder, experiment: Experiment, done: int | None) -> None:
    """Let a grid write down every exchange from now on.

    Args:
        grid: the server's.
        folder: of the run.
        experiment: of the run.
        done: rounds that were done before; None for a new run.

    Raises:
        CheckpointError: the record cannot be written.
    """
    record = WireRecord(folder.path, done, experiment.privacy)
    ask = grid.send_and_receive

    def send_and_receive(messages: Iterable[Message], **options: Any) -> list[Message]:
        asked = list(messages)
        replies = list(ask(asked, **options))
        record.messages(asked, replies)
        return replies

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]
    if isinstance(grid, BulkGrid):
        _record_bulk(grid, record)


def _record_bulk(grid: BulkGrid, record: WireRecord) -> None:
    train, evaluate = grid.train_all, grid.evaluate_all

    def train_all(clients: Sequence[str], trunk: Trunk, instruction: Instruction) -> BulkReplies:
        replies = train(clients, trunk, instruction)
        record.bulk("train", trunk, instruction, replies)
        return replies

    def evaluate_all(clients: Sequence[str], trunk: Trunk, instruction: Instruction) -> BulkReplies:
        replies = evaluate(clients, trunk, instruction)
        record.bulk("evaluate", trunk, instruction, replies)
        return replies

    grid.train_all = train_all  # type: ignore[method-assign]
    grid.evaluate_all = evaluate_all  # type: ignore[method-assign]


def _cut(values: NDArray[Any], trunk: Trunk) -> Named:
    """Cut a flat row into the arrays of the trunk; one of another length is kept as it is."""
    if values.size != sum(array.size for array in trunk.values()):
        return {"row": values}
    arrays, start = {}, 0
    for name, array in trunk.items():
        arrays[name] = values[start : start + array.size].reshape(array.shape)
        start += array.size
    return arrays


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Make a record's values fit for JSON."""
    return {key: _text(value) for key, value in record.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [_text(v) for v in value] if isinstance(value, list) else value
