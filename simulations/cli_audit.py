"""`fedmtl attack membership` and `fedmtl attack audit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.cli_options import Json, Overrides
from simulations.terminal import print_json, told_in_lines

DEFAULT_SHADOWS, DEFAULT_CANARIES = 16, 200


def membership(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder of a simulation.")],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="threshold, or lira, which trains shadows.")
    ] = "threshold",
    attacker: Annotated[
        str, typer.Option(metavar="NAME", help="insider, server or both; what each knows is below.")
    ] = "both",
    shadows: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Shadow federations of lira (default: {DEFAULT_SHADOWS})."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Its raw data, if that has moved.")
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: the run folder."),
    ] = None,
) -> None:
    """Tell rows that a finished run trained on from rows that it held out.

    The insider knows the final trunk and the clients' own heads. The server knows the trunk alone,
    and fits heads to rows of its own: half of those that were held out. Writes
    attack-membership.json, and a page with the curves.

    threshold: a row with a small loss is a member. lira: shadow federations, each on half of the
    rows in question, show what a row's score is with and without it.
    """
    with told_in_lines():
        from rich.console import Console

        from simulations.attacks.membership import ATTACKERS, Attack, infer_membership
        from simulations.attacks.membership_page import print_membership, write_membership

        if method == "threshold" and shadows is not None:
            raise ConfigError(
                f"--shadows is for --method lira, got {shadows} with 'threshold'; remove it"
            )
        attackers = ATTACKERS if attacker == "both" else (attacker,)
        attack = Attack(method, attackers, DEFAULT_SHADOWS if shadows is None else shadows)
        figures = infer_membership(run, attack, data, _tell_shadow)
        paths = write_membership(figures, out or run)
        if as_json:
            print_json(figures)
            return
        print_membership(figures, Console())
        tell_paths(paths)


def _tell_shadow(done: int, count: int, seconds: float) -> None:
    each = seconds / done
    typer.echo(f"shadow federation {done} of {count}, {each:.1f} s each", err=True)


def audit(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="A known experiment, or a TOML file.")
    ],
    unit: Annotated[
        str, typer.Option(metavar="NAME", help="client or example: whose privacy is audited.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write: run, figures, page.")],
    canaries: Annotated[
        int, typer.Option(metavar="N", help="About half of them are in; more refute more.")
    ] = DEFAULT_CANARIES,
    client: Annotated[
        str,
        typer.Option(metavar="NAME", help="--unit example: whose rows; default: most rows."),
    ] = "",
    score: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="--unit example: gradient (default; of a canary, against the updates), or loss.",
        ),
    ] = "",
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="The raw data; overrides data.path.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the experiment's seed.")] = None,
    as_json: Json = False,
) -> None:
    """Run an experiment with canaries, once, and bound its epsilon from below.

    Canaries are clients that send a random direction, or rows of one client that nobody would
    mistake for others. A coin decides of each whether it is in; how often this can be guessed from
    what was released refutes every epsilon that is too small for it, with 95 % confidence.

    Beside the bound stand an estimate without confidence, and what the accountant claims. Writes
    the run, attack-audit.json, and a page.
    """
    with told_in_lines():
        from common.experiment_file import load_experiment
        from simulations.attacks.audit_page import lines_of, notes_of, write_audit
        from simulations.compare import require_new_folder

        settings = load_experiment(experiment, overrides or [], seed=seed, data_path=data)
        require_new_folder(out)
        if unit == "client":
            from simulations.attacks.audit_clients import audit_clients

            for option, value in (("--client", client), ("--score", score)):
                if value:
                    raise ConfigError(
                        f"{option} is for --unit example, got '{value}' with 'client'; remove it"
                    )
            figures = audit_clients(settings, canaries, out)
        elif unit == "example":
            from simulations.attacks.audit_examples import audit_examples

            figures = audit_examples(settings, canaries, out, client, score or "gradient")
        else:
            raise ConfigError(f"--unit must be client or example, got '{unit}'")
        paths = write_audit(figures, out)
        if as_json:
            print_json(figures)
            return
        for name, value in lines_of(figures):
            typer.echo(f"{name:36} {value}")
        for text in notes_of(figures):
            typer.echo(text)
        tell_paths(paths)


def tell_paths(paths: Sequence[Path]) -> None:
    """Say where figures and page were written."""
    for path in paths:
        typer.echo(f"written: {path}")
