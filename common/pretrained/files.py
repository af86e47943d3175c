"""Where weights to start from lie, and what their content is known by. PyTorch is not needed."""

import hashlib
from pathlib import Path

KEY = "trunk.weights"
WHOLE_TRUNK = "trunk.safetensors"  # what a run that ended leaves in its folder
OTHERS = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def find_file(weights: str) -> Path:
    """Find the file that ``trunk.weights`` means.

    Raises:
        ValueError: there is none, or it is none of ours to open.
    """
    if not weights:
        raise ValueError(
            f"{KEY} must be a .safetensors file or a run folder, got ''; a node names its copy by "
            "--node-config 'weights=\"FILE\"'"
        )
    path = Path(weights).expanduser()
    if path.is_dir():
        return _of_run(path)
    if path.suffix in OTHERS:
        raise ValueError(
            f"{KEY} must be a .safetensors file or a run folder, got '{weights}': files of this "
            "kind can run code when they are read; write its tensors with safetensors.torch"
            ".save_file"
        )
    if not path.is_file():
        raise ValueError(
            f"{KEY} must be a .safetensors file or a run folder, got '{weights}', which is not "
            "there; correct the path, or remove it to start from the seed"
        )
    return path


def digest_of(weights: str) -> str:
    """Hash the content of the file that ``trunk.weights`` means.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = find_file(weights)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise ValueError(f"{KEY}: {path} cannot be read: {error.strerror or error}") from error


def _of_run(folder: Path) -> Path:
    path = folder / WHOLE_TRUNK
    if path.is_file():
        return path
    if (folder / "experiment.toml").is_file():
        raise ValueError(
            f"{KEY}: the run in {folder} has no {WHOLE_TRUNK}: it has not ended, or its clients "
            f"share no trunk; go on with it: fedmtl simulate --resume {folder}"
        )
    raise ValueError(
        f"{KEY} must be a .safetensors file or a run folder, got '{folder}', a folder without "
        f"{WHOLE_TRUNK}; name the file"
    )
