"""A node's rows, read and encoded once: what a later process needs lies ready in a mapped file.

On a deployed node a process may live for one message only. Reading tables, checking and encoding
them would cost it pandas, and seconds; a file of the finished tensors is mapped in milliseconds.
Entries are named by a hash of the raw files' names, sizes and times, and of every setting that rows
depend on, so that what changed is simply not found. They are rows: they stay in the node's own
state folder, readable by its owner alone.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from client.state import folder_name, replace_file
from common.agreement import Agreement, Description
from common.blocks import rows_at_once
from common.dataset import SPLITS, ClientData, Rows, TargetScale
from common.errors import StateError
from common.experiment import Experiment
from common.fitted import Fitted
from common.tensor_file import TensorFile, as_tensor, map_file

logger = logging.getLogger("fedmtl.client")
FORMAT = 1  # of the files; another one is not found
ROW_SETTINGS = {"data", "inputs", "tasks", "partition", "seed"}
MOST_AGE_S = 30 * 24 * 3600  # entries unused for longer go


class RowCache:
    """The cache of one experiment on one state of the raw files.

    Args:
        folder: of the cache.
        experiment: decides how rows are read and encoded.
        signature: of the raw files.
    """

    def __init__(self, folder: Path, experiment: Experiment, signature: str) -> None:
        settings = experiment.model_dump(mode="json", include=ROW_SETTINGS)
        self.resident = experiment.data.memory == "ram"
        if any(one.kind == "text" for one in experiment.inputs.values()):
            settings["tokenizer"] = experiment.trunk.model_digest
        self.folder = folder / _hash(FORMAT, _own_version(), settings, signature)

    def names(self, make: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Get the names of the clients in the data."""
        path = self.folder / "names.json"
        with suppress(OSError, ValueError, TypeError):
            return tuple(json.loads(path.read_text(encoding="utf-8")))
        names = make()
        _put(path, json.dumps(names).encode())
        return names

    def description(self, name: str, make: Callable[[], Description]) -> Description:
        """Get a client's description."""
        path = self.folder / f"{folder_name(name)}.description.json"
        with suppress(OSError, ValueError):
            return Description.from_json(path.read_text(encoding="utf-8"))
        description = make()
        _put(path, description.to_json().encode())
        return description

    def rows(self, name: str, agreement: Agreement, make: Callable[[], ClientData]) -> ClientData:
        """Get a client's encoded rows; their tensors are views of the mapped file."""
        key = _hash(agreement.model_dump(mode="json"))
        path = self.folder / f"{folder_name(name)}.{key}.safetensors"
        if path.exists():
            try:
                path.touch()
                return _load(path, name, resident=self.resident)
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                logger.warning("%s cannot be read (%s): rows are encoded anew", path, error)
        data = make()
        tensors, info = _flatten(data)
        metadata = {"info": json.dumps(info)}
        if self.resident:
            _put(path, save(tensors, metadata=metadata))
        elif _put_in_pieces(path, tensors, metadata):
            data = _load(path, name, resident=False)  # the file that it came from can go
        _forget_old(self.folder.parent)
        return data

    def scratch(self) -> Path:
        """Get the folder, made where it is not there, for files without a name.

        Raises:
            StateError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"state: {self.folder} cannot be made: {error.strerror or error}; correct the "
                "permissions of the state folder"
            ) from error
        return self.folder


def _flatten(data: ClientData) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = {f"scale/{task}/mean": scale.mean for task, scale in data.target_scales.items()}
    tensors |= {f"scale/{task}/dev": scale.deviation for task, scale in data.target_scales.items()}
    for split in SPLITS:
        rows = data.splits[split]
        for kind, part in _parts(rows):
            tensors |= {f"{split}/{kind}/{key}": t.contiguous() for key, t in part.items()}
    train = data.train
    info: dict[str, object] = {
        "inputs": list(train.inputs),
        "tasks": list(train.targets),
        "scaled": list(data.target_scales),
        "notes": data.notes,
        "fitted": data.fitted.to_json(),
    }
    return tensors, info


def _parts(rows: Rows) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "inputs", rows.inputs
    yield "targets", rows.targets
    yield "labelled", rows.labelled


def _load(path: Path, name: str, *, resident: bool) -> ClientData:
    tensors, metadata = _read_resident(path) if resident else _read_mapped(path)
    info = json.loads(metadata["info"])

    def part(split: str, kind: str) -> dict[str, Tensor]:
        names = info["inputs"] if kind == "inputs" else info["tasks"]
        return {key: tensors[f"{split}/{kind}/{key}"] for key in names}

    splits = {
        split: Rows(part(split, "inputs"), part(split, "targets"), part(split, "labelled"))
        for split in SPLITS
    }
    scales = {
        task: TargetScale(*(tensors[f"scale/{task}/{k}"] for k in ("mean", "dev")))
        for task in info["scaled"]
    }
    fitted = Fitted.from_json(info["fitted"])
    return ClientData(name, splits, scales, tuple(info["notes"]), fitted, resident)


def _read_resident(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a file so that writing into the tensors changes memory alone, which may hold them all."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def _read_mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    arrays, metadata = map_file(path)
    return {key: as_tensor(array) for key, array in arrays.items()}, metadata


def _put_in_pieces(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    """Write an entry block by block; without room for it, False."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    layout = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with TensorFile(layout, path=partial, metadata=metadata) as file:
            for name, array in arrays.items():
                size = rows_at_once(array.shape)
                for start in range(0, len(array), size):
                    file.write(name, start, array[start : start + size])
        partial.replace(path)
    except (OSError, StateError) as error:
        logger.warning("no cache of the rows: %s", error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return False
    return True


@cache
def _own_version() -> str:
    """Another version of this package may encode rows otherwise."""
    try:
        return version("fedmtl")
    except PackageNotFoundError:
        return "unknown"


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _put(path: Path, content: bytes) -> None:
    """Write an entry; without room for it, the rows are encoded again next time."""
    try:
        replace_file(path, content)
    except StateError as error:
        logger.warning("no cache of the rows: %s", error)


def _forget_old(root: Path) -> None:
    """Remove entries that nobody used for long."""
    limit = time.time() - MOST_AGE_S
    for path in root.glob("*/*"):
        try:
            if path.stat().st_mtime < limit:
                path.unlink()
        except OSError:
            continue
