"""Image files as arrays."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

# "P5", width, height and the brightest value, with white space and comments between them.
_PGM_HEADER = re.compile(rb"P5\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*(\d+)\s")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read the first channel of an image file: [height, width], 0 to 255.

    Raises:
        DataError: the file is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.getchannel(0))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_pgm(path: Path) -> NDArray[np.float32]:
    """Read a binary PGM file of one byte a pixel: [height, width], 0 to 255.

    Pillow takes ten milliseconds for one whose header names another brightest value than 255.

    Raises:
        DataError: the file is missing or no such image.
    """
    try:
        content = path.read_bytes()
        header = _PGM_HEADER.match(content)
        if header is None:
            raise ValueError("no PGM header")
        width, height, brightest = (int(number) for number in header.groups())
        pixels = np.frombuffer(content, dtype=np.uint8, offset=header.end(), count=width * height)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return pixels.reshape(height, width) * np.float32(255 / brightest)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"file '{path.name}' cannot be read as an image ({type(error).__name__}); fetch it again"
    )
