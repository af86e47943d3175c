"""MNIST as image tasks: single digits, pairs of digits side by side, and digits turned around.

Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86, 1998. Pairs after Sabour, Frosst & Hinton, "Dynamic routing between
capsules", NeurIPS 2017 (there overlapping); turned after Ghosh et al., "An efficient framework for
clustered federated learning", NeurIPS 2020.

Reads ``mnist_batch_0.png`` to ``mnist_batch_19.png`` (3,000 training images each, one a row) or, if
there, ``train-images-idx3-ubyte.gz``; and the labels and test images as published.
"""

import gzip
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.sections.rows import Data
from common.seeding import numpy_generator
from common.sources.images import read_image
from common.sources.raw_files import find_file
from common.tables import ClientTable, TableSource

Columns = dict[str, NDArray[Any]]
SIDE, BATCHES, BRIGHTEST = 28, 20, 255
TURNS = (0, 90, 180, 270)  # degrees, against the clock


def open_mnist(data: Data) -> TableSource:
    """Open all 70,000 digits as one client, to be partitioned.

    Columns: ``pixels`` [70000, 28, 28] from 0 to 255; ``digit``; ``parity`` 1 where odd; ``ink``
    the mean pixel as a share of the brightest; ``mnist-split`` as published.
    """
    columns = _load(data.path)
    return TableSource(("mnist",), lambda name: ClientTable(name, columns))


def open_mnist_pairs(data: Data) -> TableSource:
    """Open 35,000 pairs of digits side by side as one client, to be partitioned.

    Columns: ``pixels`` [35000, 28, 56] from 0 to 255; ``left`` and ``right``, the digits;
    ``mnist-split``: no image is in two pairs, so no test digit is in a training pair.
    """
    single = _load(data.path)
    parts = []
    for split in ("train", "test"):
        rows = np.flatnonzero(single["mnist-split"] == split)
        # The pairs are part of the data set, so they do not depend on the run's seed.
        parts.append(numpy_generator(0, "mnist-pairs", split).permutation(rows).reshape(-1, 2))
    left, right = np.concatenate(parts).T
    columns: Columns = {
        "pixels": np.concatenate([single["pixels"][left], single["pixels"][right]], axis=2),
        "left": single["digit"][left],
        "right": single["digit"][right],
        "mnist-split": single["mnist-split"][left],
    }
    return TableSource(("mnist-pairs",), lambda name: ClientTable(name, columns))


def open_mnist_rotated(data: Data) -> TableSource:
    """Open four clients, ``turned-000`` to ``turned-270``: 17,500 digits each, all turned alike.

    Columns as `open_mnist`, and ``turn`` in degrees.
    """
    single = _load(data.path)
    names = {f"turned-{degrees:03d}": i for i, degrees in enumerate(TURNS)}

    def read(name: str) -> ClientTable:
        quarter = names[name]
        columns = {key: column[quarter :: len(TURNS)] for key, column in single.items()}
        columns["pixels"] = np.rot90(columns["pixels"], quarter, axes=(1, 2))
        columns["turn"] = np.full(len(columns["digit"]), TURNS[quarter])
        return ClientTable(name, columns)

    return TableSource(tuple(names), read)


@lru_cache(maxsize=1)
def _load(folder: str) -> Columns:
    data = Data(source="mnist", path=folder)
    train = _read_train_images(data)
    test = _read_idx(find_file(data, "t10k-images-idx3-ubyte.gz"), 16).reshape(-1, SIDE, SIDE)
    digit = np.concatenate(
        [
            _read_idx(find_file(data, f"{split}-labels-idx1-ubyte.gz"), 8)
            for split in ("train", "t10k")
        ]
    ).astype(np.int64)
    if len(digit) != len(train) + len(test):
        raise DataError(f"MNIST: got {len(digit)} labels for {len(train) + len(test)} images")
    pixels = np.concatenate([train, test])
    return {
        "pixels": pixels,
        "digit": digit,
        "parity": digit % 2,
        "ink": pixels.mean(axis=(1, 2)) / BRIGHTEST,
        "mnist-split": np.repeat(
            np.array(["train", "test"], dtype=object), [len(train), len(test)]
        ),
    }


def _read_train_images(data: Data) -> NDArray[np.uint8]:
    published = Path(data.path) / "train-images-idx3-ubyte.gz"
    if published.exists():
        return _read_idx(published, 16).reshape(-1, SIDE, SIDE)
    sheets = [find_file(data, f"mnist_batch_{i}.png") for i in range(BATCHES)]
    return np.concatenate([read_image(sheet).reshape(-1, SIDE, SIDE) for sheet in sheets])


def _read_idx(path: Path, header: int) -> NDArray[np.uint8]:
    """Read the bytes of an idx file after its header."""
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), dtype=np.uint8, offset=header)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"file '{path.name}' cannot be read as idx ({type(error).__name__}); fetch it again"
        ) from error
