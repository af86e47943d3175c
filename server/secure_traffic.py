"""How many bytes the messages of secure aggregation carry, for an engine that sends none."""

from dataclasses import dataclass

from common.secure_aggregation.keys import KEY_BYTES
from common.secure_aggregation.records import COMMITMENT_BYTES, SEALED_BYTES
from common.secure_aggregation.shamir import SHARE_BYTES

NUMBER = 8  # bytes of a place
EXCHANGE = 32  # bytes of an exchange's name
PUBLIC = 2 * KEY_BYTES


@dataclass(frozen=True)
class Traffic:
    """The payload of one exchange, as `common.wire.size_bytes` counts that of messages.

    Attributes:
        sent: to clients.
        received: from them.
    """

    sent: int
    received: int

    @classmethod
    def of(
        cls, asked: int, staying: int, neighbours: int, config: int, arrays: int, masked: int
    ) -> "Traffic":
        """Count.

        Args:
            asked: clients, all of whom have keys and deal shares out.
            staying: those whose masked vectors arrive.
            neighbours: of each.
            config: bytes of an instruction.
            arrays: bytes of what is trained or evaluated.
            masked: bytes of a client's masked vectors, and of what goes openly beside them.
        """
        envelope = config + EXCHANGE
        sent = asked * (
            envelope
            + (envelope + NUMBER + neighbours * (NUMBER + PUBLIC))
            + (envelope + arrays + NUMBER * asked)
        )
        received = asked * (
            PUBLIC
            + neighbours * (NUMBER + SEALED_BYTES)
            + (neighbours + 1) * (NUMBER + 2 * COMMITMENT_BYTES)
        )
        sealed = neighbours * (NUMBER + SEALED_BYTES)
        sent += staying * (envelope + NUMBER * staying + sealed)
        received += staying * (masked + (neighbours + 1) * (NUMBER + SHARE_BYTES))
        return cls(sent, received)
