"""Texts as numbers: each row's tokens, by the tokenizer in the folder of ``trunk.model``.

A text becomes the numbers of its tokens, [1, L], with `PADDING` behind the last. They stay float32
as all inputs are, so that what moves rows, caches them or joins them needs no case for text: a
float32 holds whole numbers exactly up to 2^24, more than any vocabulary has. They never leave the
client.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.model_folder import tokenizer_file
from common.sections.model import Trunk
from common.sections.rows import Input

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = -1  # no token has this number, whatever the tokenizer
LARGEST_VOCABULARY = 2**24
AT_ONCE = 1024  # texts
NEEDS = "pip install 'fedmtl[transformers]'"


def encode_texts(
    texts: Sequence[str | None], settings: Trunk, max_length: int
) -> NDArray[np.float32]:
    """Number the tokens of texts, [N, 1, max_length]; what is longer is cut.

    Args:
        texts: of N rows; None, in a row that is dropped, has no tokens but the special ones.
        settings: name the folder.
        max_length: tokens of a row, those that the tokenizer adds among them.

    Raises:
        ConfigError: the folder, its tokenizer or the library cannot be used.
    """
    tokenizer = open_tokenizer(tokenizer_file(settings), settings.model_digest, max_length)
    numbers = np.full((len(texts), 1, max_length), PADDING, np.float32)
    for start in range(0, len(texts), AT_ONCE):
        batch = [text or "" for text in texts[start : start + AT_ONCE]]
        for row, found in enumerate(tokenizer.encode_batch(batch), start):
            numbers[row, 0, : len(found.ids)] = found.ids
    return numbers


def encode_cells(cells: NDArray[Any], trunk: Trunk, settings: Input) -> NDArray[np.float32]:
    """Number the texts of an input's cells, objects [N, 1]; what is numbered already stays so.

    Raises:
        ConfigError: as `encode_texts`.
    """
    if cells.dtype != object:
        return cells
    return encode_texts(cells[:, 0].tolist(), trunk, settings.max_length)


@lru_cache(maxsize=4)
def open_tokenizer(path: Path, digest: str, max_length: int) -> "Tokenizer":
    """Open a tokenizer that cuts texts at a length.

    Args:
        path: of its file.
        digest: of the folder; another one is read anew.
        max_length: tokens of a row.

    Raises:
        ConfigError: it cannot be used.
    """
    tokenizer: Any = read_tokenizer(path)
    tokenizer.no_padding()
    added = tokenizer.num_special_tokens_to_add(False)
    if max_length <= added:
        raise ConfigError(
            f"inputs: max-length must be above {added}, the number of tokens that the tokenizer "
            f"of trunk.model adds to every text, got {max_length}; raise it"
        )
    tokenizer.enable_truncation(max_length)
    return tokenizer  # type: ignore[no-any-return]


def read_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer's file.

    Raises:
        ConfigError: the library is missing, or the file is none of its.
    """
    # One thread, as everywhere; and a process that forks later is not warned about.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            f"an input of kind 'text' needs the library tokenizers, which is not installed: {NEEDS}"
        ) from error
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise ConfigError(
            f"trunk.model: '{path}' is no tokenizer that tokenizers can read "
            f"({type(error).__name__}); write it anew with save_pretrained"
        ) from error
    if tokenizer.get_vocab_size() > LARGEST_VOCABULARY:
        raise ConfigError(
            f"trunk.model: the tokenizer must have at most {LARGEST_VOCABULARY} tokens, got "
            f"{tokenizer.get_vocab_size()}; use another model"
        )
    return tokenizer
