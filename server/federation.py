"""A whole run on the server's side: meet the clients, start or resume, loop, record."""

import logging
from collections.abc import Mapping
from secrets import token_hex

from flwr.serverapp import Grid

from common.agreement import Agreement, input_shapes
from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from common.experiment import Experiment
from common.model import MultiTaskModel, build_model
from common.pretrained.prepare import fixed_digest, require_same, require_weights
from common.privacy.example_level import require_new_heads
from common.secure_aggregation.contribution import adds_sums, require_room
from common.secure_aggregation.grids import require_room_for_sums
from common.sharing import shared_names, with_beside
from common.wire import FloatArray, pack_arrays
from server.bulk import BulkGrid
from server.checkpoint import KeepClients, Progress
from server.exchange import BulkExchange, Exchange, MessageExchange
from server.figures import Figures
from server.loop import RoundLoop
from server.privacy_accounts import PrivacyAccounts
from server.roster import Roster
from server.run_folder import RunFolder
from server.sampling import require_trace
from server.secure_exchange import SecureBulkExchange, SecureExchange
from server.snapshots import refuse_snapshots
from server.strategy import TrunkStrategy, make_strategy
from server.watch import Watch

logger = logging.getLogger("fedmtl.server")


def initial_trunk(
    experiment: Experiment, agreement: Agreement, model: MultiTaskModel | None = None
) -> dict[str, FloatArray]:
    """Make what is sent in round 1: trunk, and what travels beside it.

    Args:
        experiment: the resolved experiment.
        agreement: has the shapes of inputs.
        model: as the seed and given weights made it; built where it is left out.

    Raises:
        ConfigError: the algorithm shares no parameter of this model.
    """
    model = model or build_model(experiment, input_shapes(agreement))
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    shared, algorithm = shared_names(arrays, experiment), experiment.federation.algorithm
    if not shared and ALGORITHMS[algorithm].shares != "nothing":
        if not experiment.trunk.trains_everything:
            raise ConfigError(
                f"trunk.trains leaves nothing to share under algorithm '{algorithm}': all that "
                "travels would be frozen; let a part of the trunk train, give it adapters, or set "
                "federation.heads to 'per-task'"
            )
        raise ConfigError(
            f"trunk.widths is empty, so there is no trunk to share under algorithm '{algorithm}'; "
            "give the trunk a layer, or set federation.algorithm to 'whole-model'"
        )
    return with_beside({name: arrays[name] for name in shared}, experiment)


def settle_trunk(
    experiment: Experiment, agreement: Agreement, kept: Mapping[str, FloatArray] | None
) -> tuple[Agreement, dict[str, FloatArray]]:
    """Settle what a sitting begins with.

    Args:
        experiment: the resolved experiment.
        agreement: of the clients.
        kept: the trunk of a checkpoint; None where the run is new.

    Returns:
        The agreement, with a digest of what never travels; and the trunk, in the model's order.

    Raises:
        ConfigError: there is nothing to share, or what never travels is not what was agreed on.
    """
    model = build_model(experiment, input_shapes(agreement))
    fresh = initial_trunk(experiment, agreement, model)
    require_same(model, experiment, agreement.frozen)
    agreement = agreement.model_copy(update={"frozen": fixed_digest(model, experiment)})
    # A file keeps no order; sums over parameters in another order would differ in the last bits.
    return agreement, fresh if kept is None else {name: kept[name] for name in fresh}


def federate(
    grid: Grid,
    experiment: Experiment,
    folder: RunFolder,
    *,
    resume: bool = False,
    strict: bool = False,
    nodes: int = 1,
    keep_clients: KeepClients | None = None,
    heads_from: str = "",
    watch: Watch | None = None,
) -> Figures:
    """Run an experiment on whatever engine the grid belongs to.

    Args:
        grid: Flower's way to the clients.
        experiment: the resolved experiment.
        folder: the run's folder, made by the caller.
        resume: go on from the folder's checkpoint.
        strict: a simulation: refuse to start where a client's data does not fit, which else is left
            out, and make noise from the experiment's seed.
        nodes: that are known to be starting, and are waited for.
        keep_clients: writes the clients' own state, for engines that hold it.
        heads_from: an earlier run, with whose heads clients start; a resumed run keeps its own.
        watch: follows the run.

    Returns:
        What results.json holds.

    Raises:
        FedMTLError: the settings, the data or the checkpoint cannot be used.
    """
    require_new_heads(experiment, heads_from)
    checkpoints = folder.checkpoints(keep_clients)
    federation = experiment.federation
    if keep_clients is None:
        refuse_snapshots(experiment, "on this engine")
    snapshots = folder.snapshots(federation, keep_clients)
    wanted = federation.clients_per_round
    needed = max(federation.min_clients, nodes, 1 if wanted == "all" or strict else wanted)
    watch, roster = watch or Watch(), Roster(experiment)
    trunk: dict[str, FloatArray] | None = None
    name = f"{experiment.name}-{token_hex(4)}"
    progress = Progress(experiment.fingerprint(), run=name, heads_from=heads_from)
    if resume:
        progress, trunk = checkpoints.load(experiment.fingerprint())
        folder.rewind(progress.round)
        snapshots.forget_after(progress.round)
        roster.agreement = Agreement.from_json(progress.agreement)
    agreement = call_roll(grid, roster, needed, strict=strict)
    if not resume:
        require_weights(experiment)
    agreement, trunk = settle_trunk(experiment, agreement, trunk)
    progress.agreement = agreement.to_json()
    strategy = make_strategy(experiment, roster, pack_arrays(trunk), simulated=strict)
    if resume:
        strategy.restore(checkpoints.load_strategy(progress))
        checkpoints.load_best(progress)
    checkpoints.strategy_state = strategy.state
    exchange = make_exchange(grid, strategy, roster)
    accounts = open_accounts(experiment, roster, progress, folder, simulated=strict)
    watch.started(progress, roster)
    loop = RoundLoop(
        experiment,
        grid,
        roster,
        exchange,
        folder,
        checkpoints,
        progress,
        accounts,
        watch,
        snapshots,
    )
    return loop.run(trunk)


def make_exchange(grid: Grid, strategy: TrunkStrategy, roster: Roster) -> Exchange:
    """Choose how rounds reach the clients: by messages or in bulk, openly or as sums alone.

    Raises:
        ConfigError: the sum of so many clients has no room in the integers that are added securely.
    """
    timeout_s = roster.experiment.federation.round_timeout_s
    if roster.experiment.privacy.secure_aggregation is None:
        if isinstance(grid, BulkGrid):
            return BulkExchange(grid, strategy, roster)
        return MessageExchange(grid, strategy, roster, timeout_s)
    # A Poisson sample may draw everybody.
    poisson = roster.experiment.federation.sampling == "poisson"
    asked = roster.count if poisson else roster.asked_per_round
    require_room(roster.experiment, asked, strategy.form.width)
    if adds_sums(roster.experiment):
        require_room_for_sums(roster.count)
    if isinstance(grid, BulkGrid):
        return SecureBulkExchange(grid, strategy, roster)
    return SecureExchange(grid, strategy, roster, timeout_s)


def open_accounts(
    experiment: Experiment,
    roster: Roster,
    progress: Progress,
    folder: RunFolder,
    *,
    simulated: bool,
) -> PrivacyAccounts:
    """Open the clients' accounts where the run stands.

    Args:
        experiment: the resolved experiment.
        roster: the clients met at the start.
        progress: has what was counted before.
        folder: gets the ledgers of a simulation.
        simulated: a resumed run repeats its rounds exactly, so that nothing is released twice.

    Raises:
        ConfigError: not even one round fits the budgets, or delta is too large.
        CheckpointError: the ledgers lack what the checkpoint knows of.
    """
    accounts = PrivacyAccounts(experiment, roster, progress.privacy)
    if not accounts.is_on:
        return accounts
    folder.keeps_ledgers = simulated
    if simulated:
        folder.rewind_ledgers(accounts.counts.lines)
    if not progress.privacy:
        accounts.require_a_round()
        if simulated:
            folder.append_ledgers(accounts.descriptions())
    elif not simulated:
        accounts.restarted()
    return accounts


def call_roll(grid: Grid, roster: Roster, needed: int, *, strict: bool) -> Agreement:
    """Wait for the clients and get to know them; returns what they agree on.

    Args:
        grid: Flower's way to the clients.
        roster: takes them in.
        needed: how many are waited for.
        strict: refuse to start where a client's data does not fit; else it is left out.

    Raises:
        FedMTLError: too few came, or what they have does not fit.
    """
    timeout_s = roster.experiment.federation.round_timeout_s
    roster.wait_for(grid, needed, timeout_s)
    if strict:
        roster.meet(grid, timeout_s)
    else:
        roster.settle(grid, needed, timeout_s)
    roster.require(strict)
    for line in require_trace(roster.experiment, roster, strict=strict):
        logger.warning("%s; it may join later", line)
    if roster.agreement is None:
        raise RuntimeError("a roster with clients has an agreement")
    return roster.agreement
