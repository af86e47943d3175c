"""Errors that mean "the input is wrong": one line for the person who can mend it, no traceback."""


class FedMTLError(Exception):
    """Base of all errors that the command line prints as one line and exits 2 for."""


class ConfigError(FedMTLError):
    """A setting is wrong. The message names the key, what it must be, what it was, a way out."""


class DataError(FedMTLError):
    """A client's data cannot serve the experiment. Names, shapes and counts only, never rows."""


class ShapeError(FedMTLError, ValueError):
    """Arrays that belong together do not fit together."""


class CheckpointError(FedMTLError):
    """A run folder cannot be used: it exists, is incomplete, or is another experiment's."""
