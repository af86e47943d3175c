"""Image files as arrays."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import DataError


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read the first channel of an image file: [height, width], 0 to 255.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.getchannel(0))
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise DataError(
            f"file '{path.name}' cannot be read as an image ({type(error).__name__}); "
            "fetch it again"
        ) from error
