"""A small vision transformer from one half of MNIST's classes, and clients with the other half.

``python -m simulations.benchmarks.small_vit FOLDER`` trains a transformer of 100,000 parameters on
digits 0 to 4 and writes it as ``FOLDER/vit``, as Hugging Face's libraries write models; and
``FOLDER/clients`` with a few images of 5 to 9 for each client. No image is in both. ``trunk.model``
takes the first, ``data.path`` the second; docs/transformers.md has the experiment.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.sections.rows import Data
from common.seeding import numpy_generator
from common.sources.registry import open_source

KNOWN, NEW = range(5), range(5, 10)  # classes
CLIENTS, IMAGES, EPOCHS, BATCH = 10, 60, 4, 64
CONFIG = {
    "image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip

Digits = tuple[NDArray[Any], NDArray[Any]]  # images [N, 28, 28] from 0 to 255, classes [N]


def read_digits(classes: range) -> Digits:
    """Read the training images of some classes, shuffled."""
    (name,) = (source := open_source(Data(source="mnist"))).names
    columns = source.read(name).columns
    wanted = np.isin(columns["digit"], classes) & (columns["mnist-split"] == "train")
    rows = numpy_generator(0, "small-vit", str(classes.start)).permutation(np.flatnonzero(wanted))
    return columns["pixels"][rows], columns["digit"][rows]


def train_vit(digits: Digits, images: int, folder: Path) -> float:
    """Train a transformer and its head on some images, and write it without the head.

    Returns:
        Its accuracy on as many other images.
    """
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False)
    head = nn.Linear(CONFIG["hidden_size"], len(KNOWN))
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    pixels = torch.from_numpy(digits[0][: 2 * images]).float().unsqueeze(1) / 255
    classes = torch.from_numpy(digits[1][: 2 * images]).long()
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(images), BATCH):
            features = model(pixel_values=pixels[batch]).last_hidden_state[:, 0]
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(head(features), classes[batch])
            torch.autograd.backward(loss)
            optimiser.step()
    model.eval()
    with torch.no_grad():
        features = model(pixel_values=pixels[images:]).last_hidden_state[:, 0]
    model.save_pretrained(folder)
    return float((head(features).argmax(1) == classes[images:]).float().mean())


def write_clients(digits: Digits, folder: Path) -> None:
    """Write each client's images, from 0 to 255, and their class, from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in range(CLIENTS):
        own = slice(client * IMAGES, (client + 1) * IMAGES)
        classes = digits[1][own] - NEW.start
        odd = digits[1][own] % 2
        path = folder / f"client-{client:02d}.npz"
        np.savez_compressed(path, pixels=digits[0][own], digit=classes, odd=odd)


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=6000, help="to train the transformer on")
    wanted = parser.parse_args()
    write_clients(read_digits(NEW), wanted.folder / "clients")
    accuracy = train_vit(read_digits(KNOWN), wanted.images, wanted.folder / "vit")
    print(f"{wanted.folder}: accuracy {accuracy:.3f} on other images of digits 0 to 4")


if __name__ == "__main__":
    main()
