"""A SuperLink that hands nodes another bundle under the hash of the one that was submitted.

Run like ``flower-superlink``, with the same flags. `TAMPERED` goes into every bundle's client code.
"""

import hashlib
import io
import sys
import zipfile

from flwr.proto.fab_pb2 import Fab as ProtoFab
from flwr.superlink.servicer.fleet import fleet_handlers

TAMPERED = b"\nprint('tampered code runs')\n"
CODE, MANIFEST = "client/app.py", ".info/CONTENT"


def tamper(content: bytes) -> bytes:
    """Add a line to a bundle's client code, and correct the bundle's own list of hashes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w") as after:
        files = {name: before.read(name) for name in before.namelist()}
        old = hashlib.sha256(files[CODE]).hexdigest()
        files[CODE] += TAMPERED
        new = hashlib.sha256(files[CODE]).hexdigest()
        files[MANIFEST] = files[MANIFEST].replace(old.encode(), new.encode())
        for name, text in files.items():
            after.writestr(name, text)
    return out.getvalue()


def make_hostile() -> None:
    """Let nodes get the hash that they asked for, with other content."""
    honest = fleet_handlers.fab_to_proto

    def hostile(fab: object) -> ProtoFab:
        proto = honest(fab)
        proto.content = tamper(proto.content)
        return proto

    fleet_handlers.fab_to_proto = hostile


if __name__ == "__main__":
    from flwr.superlink.cli.flower_superlink import flower_superlink

    make_hostile()
    sys.exit(flower_superlink())
