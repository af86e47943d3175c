"""A node whose owner runs other software: its replies are garbage, or come more than once.

`write_hostile` makes a folder for the front of ``PYTHONPATH``; Flower's own programs then answer in
the way that ``FEDMTL_HOSTILE`` names. The server cannot tell: the key is registered.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

MODE = "FEDMTL_HOSTILE"


def write_hostile(folder: Path) -> Path:
    """Write what Python runs at its start."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "from tests.hostile_client import turn_hostile\n\nturn_hostile()\n"
    (folder / "sitecustomize.py").write_text(text)
    return folder


def turn_hostile() -> None:
    """Change Flower's programs in this process, if it is one of them."""
    mode = os.environ.get(MODE, "")
    program = " ".join(Path(word).name for word in sys.orig_argv[:3])
    if mode == "twice" and "flower-supernode" in program:
        _push_twice()
    elif mode in GARBAGE and "flwr-clientapp" in program:
        _answer_with(GARBAGE[mode])


def _answer_with(spoil: Callable[[Any], None]) -> None:
    from flwr.clientapp import ClientApp

    honest = ClientApp.__call__

    def hostile(app: Any, message: Any, context: Any) -> Any:
        reply = honest(app, message, context)
        if message.metadata.message_type == "train" and reply.has_content():
            spoil(reply.content)
        return reply

    ClientApp.__call__ = hostile


def _push_twice() -> None:
    """Once a reply is uploaded whole, send it again, and again under another id."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    push, pull, sent = FleetHttpClient.PushMessages, FleetHttpClient.PullMessages, []

    def remember(client: Any, request: Any) -> Any:
        sent.append(request)
        return push(client, request)

    def repeat(client: Any, request: Any) -> Any:
        for first in sent:
            other = type(first).FromString(first.SerializeToString())
            other.messages_list[0].metadata.message_id = "0" * 64
            other.message_object_trees[0].object_id = "0" * 64
            for again in (first, other):
                with suppress(Exception):
                    push(client, again)
        sent.clear()
        return pull(client, request)

    FleetHttpClient.PushMessages, FleetHttpClient.PullMessages = remember, repeat


def _change_array(content: Any, change: Callable[[Any], Any]) -> None:
    from flwr.app import Array

    record = content["arrays"]
    name = next(iter(record))
    record[name] = Array(change(record[name].numpy().copy()))


def _gaps(content: Any) -> None:
    _change_array(content, lambda values: np.full_like(values, np.nan))


def _shape(content: Any) -> None:
    _change_array(content, lambda values: values[:1])


def _type(content: Any) -> None:
    _change_array(content, lambda values: values.astype(np.float64))


def _extra(content: Any) -> None:
    from flwr.app import Array

    content["arrays"]["heads.task-score.weight"] = Array(np.ones(3, np.float32))


def _bytes(content: Any) -> None:
    record = content["arrays"]
    record[next(iter(record))].data = b"no array"


def _examples(content: Any) -> None:
    content["metrics"]["num-examples"] = -5


def _sums(content: Any) -> None:
    content["metrics"]["train/score/loss"] = [float("nan"), 1.0, 2.0]


def _nothing(content: Any) -> None:
    for name in list(content):
        del content[name]


GARBAGE: dict[str, Callable[[Any], None]] = {
    "gaps": _gaps,
    "shape": _shape,
    "type": _type,
    "extra": _extra,
    "bytes": _bytes,
    "examples": _examples,
    "sums": _sums,
    "nothing": _nothing,
}
MODES = ("twice", *GARBAGE)
