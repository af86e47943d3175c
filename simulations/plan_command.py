"""What `fedmtl privacy plan` plans: flags alone, or an experiment."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from common.errors import ConfigError
from common.experiment import Experiment
from common.privacy.ledger import Unit
from common.privacy.settings import Accountant
from simulations.privacy_plan import Plan, Target, plan_experiment, plan_target

# Flags of one unit alone.
OF_CLIENTS = ("clients", "clients_per_round", "amplification", "local_noise")
OF_ROWS = ("rows", "batch_size", "epochs")


def make_plans(
    name: str, given: Mapping[str, Any], overrides: Sequence[str], data: str | None
) -> list[Plan]:
    """Make the plans that a command line asks for.

    Args:
        name: an experiment; empty for flags alone.
        given: flags, as fields of `Target`, those alone that were given.
        overrides: ``key=value`` each, of the experiment.
        data: its data.

    Raises:
        FedMTLError: flags contradict each other, or no noise keeps the budget.
    """
    if not name:
        if overrides or data:
            raise ConfigError(
                "--set and --data are for an experiment, got none; name one, or use flags alone"
            )
        return [plan_target(read_target(given))]
    if given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise ConfigError(
            f"{flags}: an experiment has its own settings; leave the flags out, and --set what is "
            "to be another, such as privacy.client-level.epsilon=8"
        )
    from common.experiment_file import load_experiment

    return plan_loaded(load_experiment(name, overrides, data_path=data))


def plan_loaded(experiment: Experiment) -> list[Plan]:
    """Plan an experiment with the rows and the model that it has.

    Raises:
        FedMTLError: its data cannot be read, or no noise keeps the budget.
    """
    from server.federation import initial_trunk
    from simulations.baselines import read_clients

    clients, agreement = read_clients(experiment)
    trunk = initial_trunk(experiment, agreement)
    rows = {client.name: len(client.train) for client in clients}
    return plan_experiment(experiment, rows, sum(array.size for array in trunk.values()))


def read_target(given: Mapping[str, Any]) -> Target:
    """Check flags.

    Raises:
        ConfigError: one is wrong, or of no use for the unit.
    """
    unit = given.get("unit", "client")
    if unit not in get_args(Unit):
        raise ConfigError(f"--unit must be one of {', '.join(get_args(Unit))}, got '{unit}'")
    unused = OF_ROWS if unit == "client" else OF_CLIENTS
    for flag in unused:
        if flag in given:
            raise ConfigError(
                f"--{flag.replace('_', '-')} is of no use with --unit {unit}; remove it, or change "
                "the unit"
            )
    accountant = given.get("accountant", "rdp")
    if accountant not in get_args(Accountant):
        names = ", ".join(get_args(Accountant))
        raise ConfigError(f"--accountant must be one of {names}, got '{accountant}'")
    for flag in ("epsilon", "noise_multiplier", "max_norm"):
        if flag in given and not 0 < given[flag] < float("inf"):
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} must be a positive finite number, got {given[flag]}")
    if "delta" in given and not 0 < given["delta"] < 1:
        raise ConfigError(f"--delta must be between 0 and 1, got {given['delta']}")
    return Target(**{**given, "unit": unit})
