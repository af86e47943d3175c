"""What a resumed run may change, wherever it is resumed."""

from collections.abc import Sequence

from common.errors import ConfigError


def check_changes(overrides: Sequence[str], how: str) -> None:
    """Refuse overrides that would make an interrupted run another experiment.

    Args:
        overrides: ``key=value`` each.
        how: names the two options to the user, as in "With --resume, --set".

    Raises:
        ConfigError: an override changes another setting.
    """
    if not overrides:
        return
    from common.fingerprint import NEVER, SOMETIMES  # which brings in pydantic: --help does without

    # The fingerprint refuses those of `SOMETIMES` that this experiment's result does depend on.
    changeable = (*SOMETIMES, *NEVER)
    for override in overrides:
        if override.partition("=")[0].strip() not in changeable:
            raise ConfigError(f"{how} may change only {', '.join(changeable)}, got '{override}'.")
