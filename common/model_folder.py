"""A folder with a ready model, as Hugging Face's libraries write it: its files and their digest.

Every participant of a run has such a folder, at a place of its own. The digest travels with the
experiment, so that one with other files is refused before it computes anything. Nothing here, and
nothing that reads these folders, downloads, unpickles or runs what is in them.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.cells import list_names
from common.errors import ConfigError
from common.sections.model import Trunk

CONFIG, TOKENIZER, PREPROCESSOR = "config.json", "tokenizer.json", "preprocessor_config.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"  # whole, or in pieces
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
PIECE = 2**20

Stat = tuple[str, int, int]  # a file's path, size in bytes, time of its last change in ns


def digest_folder(settings: Trunk) -> str:
    """Hash the files of `trunk.model` that a model depends on; its weights where they are read.

    Raises:
        ConfigError: one that is needed is missing, or cannot be read.
    """
    folder = Path(settings.model)
    require_file(folder, CONFIG, "the model is built from it")
    names = [CONFIG, TOKENIZER]
    if settings.pretrained:
        names += [PREPROCESSOR, *(path.name for path in weight_files(folder))]
    files = [folder / name for name in names if (folder / name).is_file()]
    try:
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return _digest(tuple(stats))
    except OSError as error:
        raise ConfigError(
            f"trunk.model: folder '{folder}' cannot be read: {error.strerror}; correct its rights"
        ) from error


def open_folder(settings: Trunk) -> Path:
    """Get the folder of `trunk.model`, once its files are those that the experiment was read with.

    Raises:
        ConfigError: they are not, or one is missing.
    """
    found = digest_folder(settings)
    if settings.model_digest not in ("", found):
        raise ConfigError(
            f"trunk.model: folder '{settings.model}' must hold the files that the experiment was "
            f"made with (trunk.model-digest {settings.model_digest}), got {found}; copy them here "
            "from where the run was started, or name their place: --node-config 'model=\"PATH\"'"
        )
    return Path(settings.model)


def read_json(folder: Path, name: str) -> Mapping[str, Any]:
    """Read one of the folder's JSON files; empty where it is missing.

    Raises:
        ConfigError: it holds no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"trunk.model: '{path}' cannot be read ({type(error).__name__}); replace it"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"trunk.model: '{path}' must hold an object; replace it")
    return content


def tokenizer_file(settings: Trunk) -> Path:
    """Get the path of the folder's tokenizer.

    Raises:
        ConfigError: there is none, or the folder is another than the experiment was made with.
    """
    folder = open_folder(settings)
    require_file(folder, TOKENIZER, "an input of kind 'text' is read by it")
    return folder / TOKENIZER


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder that its model's weights are in: one, or several shards.

    Raises:
        ConfigError: there are none, or one is not in the folder itself.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / SHARDS).is_file():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        found = f"; {list_names(pickles)} may run code when read, and is not" if pickles else ""
        raise ConfigError(
            f"trunk.model: folder '{folder}' has no {WEIGHTS}{found}; save the model with "
            "safe_serialization, or set trunk.pretrained to false for a start from the seed"
        )
    places = read_json(folder, SHARDS).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"trunk.model: {SHARDS} in '{folder}' must name .safetensors files beside it, got "
                f"'{name}'; save the model anew with save_pretrained"
            )
        require_file(folder, name, f"{SHARDS} names it")
    if not names:
        raise ConfigError(
            f"trunk.model: {SHARDS} in '{folder}' names no file of weights; save the model anew "
            "with save_pretrained"
        )
    return [folder / name for name in names]


def require_file(folder: Path, name: str, why: str) -> None:
    """Check that a folder is there and has a file.

    Raises:
        ConfigError: it has not.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"trunk.model must be a folder with {name}, got '{folder}', which is none; name one "
            "on this machine, for nothing is downloaded"
        )
    if not (folder / name).is_file():
        raise ConfigError(
            f"trunk.model: folder '{folder}' has no {name}: {why}; add it, as save_pretrained "
            "writes it"
        )


@lru_cache(maxsize=16)
def _digest(files: tuple[Stat, ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{Path(path).name} {size}\n".encode())
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]
