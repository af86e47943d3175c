"""What a resumed run may change, wherever it is resumed."""

from collections.abc import Sequence

from common.errors import ConfigError

# Settings that an experiment's fingerprint leaves out.
CHANGEABLE = (
    "federation.rounds",
    "federation.round-timeout-s",
    "federation.snapshot-every",
    "federation.snapshots",
    "training.device",
    "data.path",
    "trunk.weights",
)


def check_changes(overrides: Sequence[str], how: str) -> None:
    """Refuse overrides that would make an interrupted run another experiment.

    Args:
        overrides: ``key=value`` each.
        how: names the two options to the user, as in "With --resume, --set".

    Raises:
        ConfigError: an override changes another setting.
    """
    for override in overrides:
        if override.partition("=")[0].strip() not in CHANGEABLE:
            raise ConfigError(f"{how} may change only {', '.join(CHANGEABLE)}, got '{override}'.")
