"""Errors that mean "the input is wrong": one line for the person who can mend it, no traceback."""

from typing import Any


class FedMTLError(Exception):
    """Base of all errors that the command line prints as one line and exits 2 for."""


class ConfigError(FedMTLError):
    """A setting is wrong. The message names the key, what it must be, what it was, a way out."""


class DataError(FedMTLError):
    """A client's data cannot serve the experiment. Names, shapes and counts only, never rows."""


class ShapeError(FedMTLError, ValueError):
    """Arrays that belong together do not fit together."""


class NothingLearnedError(FedMTLError):
    """A run ended without a figure: no reply was usable. Its checkpoint and metrics.jsonl stay.

    Args:
        message: the commonest reason, and a way out.
        best: the best evaluation on the way there, if any.
    """

    def __init__(self, message: str, best: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.best = best


class WeightingError(FedMTLError):
    """A loss weighting found no weights for a step. Names and counts only."""


class CheckpointError(FedMTLError):
    """A run folder cannot be used: it exists, is incomplete, or is another experiment's."""


class StateError(FedMTLError):
    """What a client keeps at home cannot be read or written; what was kept before is whole."""


class PolicyError(FedMTLError):
    """The owner of a node does not allow what a message asks for, or what a reply would tell."""


class BudgetError(FedMTLError):
    """A reply would cost more privacy than a budget has left."""


class NodeError(FedMTLError):
    """A node cannot run."""


class ExportError(FedMTLError):
    """A model cannot be written as a file, or the file would not give the model's numbers."""


class ClientsMissingError(FedMTLError):
    """Too few clients are connected for a round; the run can go on from its last checkpoint."""


class SecureAggregationError(FedMTLError):
    """A client does not go on with a secure aggregation. Names, places and counts only."""
