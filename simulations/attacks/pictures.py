"""True and reconstructed images, one above the other, as a PNG that one can look at."""

import base64
import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 16  # pairs in a picture
SIDE = 96  # pixels of an image on the page, at least
GAP = 4  # pixels between images
GREY = 128


def pair_png(true: Tensor, guessed: Tensor, most: int = MOST) -> bytes:
    """Draw pairs of images: the true ones above, what was made of them below.

    Args:
        true: [L, C, H, W], values from 0 to 1; C is 1 or 3, or else the first channel is drawn.
        guessed: of the same shape.
        most: how many pairs, spread evenly from the best to the worst.

    Returns:
        A PNG file.
    """
    from PIL import Image

    error = (true - guessed).square().flatten(1).mean(1)
    order = error.argsort()
    if len(order) > most:
        order = order[torch.linspace(0, len(order) - 1, most).round().long()]
    rows = [_strip(images[order]) for images in (true, guessed)]
    gap = np.full((GAP, *rows[0].shape[1:]), GREY, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([rows[0], gap, rows[1]])).save(buffer, "PNG")
    return buffer.getvalue()


def _strip(images: Tensor) -> NDArray[np.uint8]:
    """Lay images [L, C, H, W] side by side, enlarged without smoothing: [H', W'] or [H', W', 3]."""
    channels = 3 if images.shape[1] == 3 else 1
    pixels = (images[:, :channels].clamp(0, 1) * 255).round().byte()
    factor = max(1, -(-SIDE // images.shape[-2]))
    pixels = pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    large = pixels.permute(0, 2, 3, 1).numpy()
    gap = np.full((large.shape[1], GAP, channels), GREY, np.uint8)
    parts = [part for image in large for part in (image, gap)][:-1]
    strip: NDArray[np.uint8] = np.concatenate(parts, axis=1)
    return strip[..., 0] if channels == 1 else strip


def inline(png: bytes, text: str) -> str:
    """Make an HTML image of a PNG that needs no file beside the page."""
    from html import escape

    content = base64.b64encode(png).decode()
    style = "max-width:100%;image-rendering:pixelated"
    return f'<img style="{style}" alt="{escape(text)}" src="data:image/png;base64,{content}">'
