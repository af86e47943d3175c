"""The rows that workloads train on, made from scikit-learn's handwritten digits.

Every function gives the columns of one table, client after client: ``client`` int64 [N], ``pixels``
float32 [N, height, width] in [0, 1], and a target column per task, NaN where there is no label.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]

TASKS = ("digit", "parity", "ink")
BRIGHTEST = 16  # of scikit-learn's pixels
NOISE = 0.05  # deviation of what is added to a pixel of a digit that is used again


def deal_digits(generator: np.random.Generator, clients: int) -> Columns:
    """Deal the 1,797 digits evenly."""
    pixels, digit = load_digits()
    order = generator.permutation(len(digit))
    sizes = [len(part) for part in np.array_split(order, clients)]
    return make_columns(sizes, pixels[order], digit[order])


def resample_digits(generator: np.random.Generator, sizes: Sequence[int]) -> Columns:
    """Draw digits with replacement, so that there are enough for clients of these sizes."""
    pixels, digit = load_digits()
    drawn = generator.integers(0, len(digit), sum(sizes))
    return make_columns(sizes, add_noise(generator, pixels[drawn]), digit[drawn])


def draw_images(generator: np.random.Generator, sizes: Sequence[int]) -> Columns:
    """Draw digits enlarged to 24 x 24, each somewhere on an image of 28 x 28."""
    pixels, digit = load_digits()
    drawn = generator.integers(0, len(digit), sum(sizes))
    images = np.zeros((len(drawn), 28, 28), dtype=np.float32)
    corners = generator.integers(0, 5, (len(drawn), 2))
    for image, (top, left), index in zip(images, corners, drawn, strict=True):
        image[top : top + 24, left : left + 24] = pixels[index].repeat(3, axis=0).repeat(3, axis=1)
    return make_columns(sizes, add_noise(generator, images), digit[drawn])


def drop_labels(generator: np.random.Generator, sizes: Sequence[int], missing: float) -> Columns:
    """Draw digits of which clients hold unlike tasks, and lack some labels of those they hold.

    Args:
        generator: draws the digits and the gaps.
        sizes: rows of each client.
        missing: share of the labels of a held task that is dropped. Every row keeps one label.

    Returns:
        Columns in which client c holds the tasks of the bits of ``1 + c % 7``.
    """
    columns = resample_digits(generator, sizes)
    held = (1 + columns["client"][:, None] % 7) >> np.arange(len(TASKS)) & 1  # [N, T]
    # Of the tasks that a row's client holds, one with the highest number keeps its label.
    chances = np.where(held, generator.random(held.shape), -1.0)
    keeps = (chances >= missing) | (chances == chances.max(axis=1, keepdims=True))
    for task, kept in zip(TASKS, keeps.T, strict=True):
        columns[task] = np.where(kept, columns[task], np.nan).astype(np.float32)
    return columns


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Get the digits that ship with scikit-learn: pixels [1797, 8, 8] in [0, 1], and classes."""
    from sklearn.datasets import load_digits as load  # a second to import

    bunch = load()
    return (bunch.images / BRIGHTEST).astype(np.float32), bunch.target.astype(np.int64)


def add_noise(generator: np.random.Generator, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make digits that were drawn twice differ."""
    noise = NOISE * generator.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + noise, 0, 1)


def make_columns(
    sizes: Sequence[int], pixels: NDArray[np.float32], digit: NDArray[np.int64]
) -> Columns:
    """Name the rows' clients, and the three targets: which digit, odd or even, how much ink."""
    return {
        "client": np.repeat(np.arange(len(sizes)), sizes),
        "pixels": pixels,
        "digit": digit,
        "parity": digit % 2,
        "ink": pixels.mean(axis=(1, 2)),
    }
