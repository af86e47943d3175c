"""`fedmtl attack`: what a recorded run gives away."""

import typer

app = typer.Typer(
    help="Attack a run: what do its messages, or its model, tell of the clients' rows?",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
