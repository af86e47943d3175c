"""An inversion's figures as a file, a table, a page and pictures."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.json_gaps import without_gaps
from simulations.attacks.inversion import Reconstruction
from simulations.attacks.inversion_settings import Settings
from simulations.attacks.pictures import inline, pair_png
from simulations.attacks.results import tell, write_attack_page, write_figures
from simulations.attacks.wire import EVERYBODY, Wire
from simulations.formats import format_count

KIND = "inversion"
NAMES = {
    "attack": "reconstructed",
    "mean-row": "mean of other rows, for each",
    "other-rows": "as many other rows",
}
MEANS = {
    "mse": "squared error",
    "relative": "relative error",
    "psnr-db": "PSNR, dB",
    "ssim": "SSIM",
}


def describe_inversion(
    wire: Wire, client: str, number: int, settings: Settings, found: Reconstruction
) -> dict[str, Any]:
    """Collect what attack-inversion.json holds."""
    content = {
        "kind": KIND,
        "run": wire.run.name,
        "experiment": wire.experiment.name,
        "client": None if client == EVERYBODY else client,
        "round": number,
        "settings": asdict(settings),
        "facts": found.facts,
        "objective": found.objective,
        "gain": found.gain,
        "errors": found.errors,
    }
    gapless: dict[str, Any] = without_gaps(content)
    return gapless


def table_of(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay the errors out: headings and rows."""
    measures = [name for name in MEANS if name in figures["errors"]["attack"]]
    rows = [
        [NAMES[who], *(tell(errors[name], 2 if name == "psnr-db" else 4) for name in measures)]
        for who, errors in figures["errors"].items()
    ]
    return ["guess", *(MEANS[name] for name in measures)], rows


def notes_of(figures: Mapping[str, Any]) -> list[str]:
    """Say what the figures mean, a sentence each."""
    facts, settings = figures["facts"], figures["settings"]
    steps = format_count(facts["steps"], "local step")
    notes = [
        f"{format_count(facts['rows'], 'row')} looked for, {facts['true-rows']} true ones, {steps}."
        " Rows are paired so that their squared errors are least; all three guesses alike.",
        f"The attack takes away {figures['gain']:.1%} of the squared error of the mean row "
        "(100 % is an exact copy; below 0 it is worse than to guess the mean).",
        "Figures are means over rows, with 95 % intervals over rows.",
    ]
    if settings["heads"] == "initial" and settings["method"] != "analytic":
        notes.append(
            "Heads as the experiment's seed makes them: whoever knows the experiment knows them "
            "before a client's first round; later they are out of date."
        )
    if settings["local"] == "one-gradient" and facts["steps"] > 1:
        notes.append(
            "The update is taken for one gradient of all rows, an approximation of "
            f"{steps}; --local unrolled follows them."
        )
    return notes


def write_inversion(
    out: Path, wire: Wire, figures: dict[str, Any], found: Reconstruction
) -> list[Path]:
    """Write figures, pictures and page; returns their paths."""
    paths, shown = [write_figures(out, KIND, figures)], ""
    for name, (true, guessed) in found.pictures.items():
        png = pair_png(true, guessed)
        paths.append(out / f"attack-{KIND}-{name}.png")
        paths[-1].write_bytes(png)
        shown += inline(png, f"{name}: true above, reconstructed below")
    who = figures["client"] or "the round's mean"
    settings = figures["settings"]
    facts = {"client": who, "round": figures["round"]} | {
        key: settings[key] for key in ("method", "heads", "labels", "local")
    }
    lead = "True rows above, what an attacker makes of the update below; from best to worst."
    title = f"{wire.experiment.name}: gradient inversion"
    headings, rows = table_of(figures)
    page = write_attack_page(
        out, KIND, title, lead, facts, [("Errors", headings, rows)], notes_of(figures), shown
    )
    return [*paths, page]
