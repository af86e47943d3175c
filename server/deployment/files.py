"""Writing a deployment folder: templates, private files, nothing overwritten."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib import resources
from pathlib import Path
from string import Template

from common.errors import ConfigError

PRIVATE, PUBLIC = 0o600, 0o644
GPU_MARK = "#gpu# "  # begins a template's lines that only a deployment with GPUs gets


def render(template: str, values: Mapping[str, str], *, gpu: bool = False) -> str:
    """Fill in a template of this package."""
    text = resources.files("server.deployment").joinpath("templates", template).read_text("utf-8")
    lines = []
    for line in text.splitlines(keepends=True):
        before, mark, rest = line.partition(GPU_MARK)
        if not mark:
            lines.append(line)
        elif gpu:
            lines.append(before + rest)
    return Template("".join(lines)).substitute(values)


def write_new(path: Path, content: bytes | str, mode: int = PUBLIC) -> None:
    """Write a file that must not exist yet, with this mode from its first byte on.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with told_which(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask took
            file.write(data)
            file.flush()
            os.fsync(descriptor)


def replace_keeping_old(files: Mapping[Path, tuple[bytes, int]]) -> list[Path]:
    """Put new files in the place of old ones, which stay beside them as ``*.old-DATE``.

    The new ones are all on disk before the first old one moves.

    Args:
        files: path -> content and mode.

    Returns:
        Where the old ones are.

    Raises:
        ConfigError: one cannot be written or moved.
    """
    for path, (content, mode) in files.items():
        with told_which(path):
            _new(path).unlink(missing_ok=True)  # of a try that failed
        write_new(_new(path), content, mode)
    kept = []
    for path in files:
        with told_which(path):
            if path.exists():
                old = _old(path)
                os.link(path, old)  # fails where it exists; the file is never missing
                kept.append(old)
            os.replace(_new(path), path)
    return kept


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that appears complete or not at all, readable by its owner alone.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ConfigError(
            f"{path} exists and is not empty; choose another folder. To change a deployment folder "
            "take fedmtl deploy node or fedmtl deploy rotate"
        )
    with told_which(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield draft
        with told_which(path):
            os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


@contextmanager
def told_which(path: Path) -> Iterator[None]:
    """Say which file the system would not have."""
    try:
        yield
    except FileExistsError as error:
        found = error.filename2 or error.filename or path
        raise ConfigError(
            f"{found} exists already and is not overwritten; move it away first"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _old(path: Path) -> Path:
    """Name the old file after today, and number it where there was one today already."""
    stem = f"{path.name}.old-{date.today():%Y%m%d}"
    names = [stem, *(f"{stem}-{count}" for count in range(2, 1000))]
    return next(found for name in names if not (found := path.with_name(name)).exists())
