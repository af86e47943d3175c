"""A client's model as files that need no fedmtl: PyTorch's and ONNX, each checked after writing."""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from client.export_check import TOLERANCE, Inputs, Outputs, join, largest_difference, random_rows
from client.exported_model import ExportedModel
from client.kept_model import KeptModel
from client.model_description import describe
from common.errors import ExportError
from common.model_folder import TOKENIZER, tokenizer_file

BATCHES = (1, 7, 256)
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Inputs], Outputs]  # a model that was read back from its file


def export(kept: KeptModel, out: Path, formats: tuple[str, ...]) -> dict[str, float]:
    """Write a client's model into a folder, with ``model.json``; only what passes its check.

    A model of texts brings its tokenizer along.

    Args:
        kept: the model.
        out: the folder; made where it is missing.
        formats: of `FORMATS`.

    Returns:
        File name -> the largest difference between its numbers and those of the model.

    Raises:
        ExportError: a format needs a package that is not there, cannot hold this model, gives other
            numbers, or the folder cannot be written.
    """
    for name in formats:
        FORMATS[name].require()
    model = ExportedModel(kept)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as place:
            differences = _write_all(kept, model, Path(place), formats)
            about = {**describe(kept), "files": differences}
            text = json.dumps(about, indent=1, ensure_ascii=False)
            (Path(place) / "model.json").write_text(text, encoding="utf-8")
            if any(one.kind == "text" for one in kept.experiment.inputs.values()):
                shutil.copyfile(tokenizer_file(kept.experiment.trunk), Path(place) / TOKENIZER)
            for path in sorted(Path(place).iterdir()):
                os.replace(path, out / path.name)
    except OSError as error:
        raise ExportError(f"--out {out} cannot be written: {error.strerror or error}") from error
    return differences


def _write_all(
    kept: KeptModel, model: ExportedModel, place: Path, formats: tuple[str, ...]
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    batches = [random_rows(kept, model, rows, generator) for rows in BATCHES]
    expected = join(model(batch) for batch in batches)
    differences = {}
    program: torch.export.ExportedProgram | None = None
    for name in formats:
        path = place / FORMATS[name].file
        with _told_in_a_line(name):
            program = program or _trace(model, batches[-1])
            run = FORMATS[name].write(program, batches[-1], list(expected), path)
            found = join(run(batch) for batch in batches)
        differences[path.name] = largest_difference(expected, found)
        if not differences[path.name] <= TOLERANCE:
            raise ExportError(
                f"the exported {path.name} must give the model's numbers to {TOLERANCE:.0e}, got "
                f"a difference of {differences[path.name]:.1e}; nothing was written"
            )
    return differences


def _trace(model: ExportedModel, example: Inputs) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = ({name: {0: batch} for name in example},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _write_torch(
    program: torch.export.ExportedProgram, example: Inputs, names: list[str], path: Path
) -> Run:
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda batch: loaded(batch)


def _write_onnx(
    program: torch.export.ExportedProgram, example: Inputs, names: list[str], path: Path
) -> Run:
    import onnxruntime

    converted = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=list(example), output_names=names
    )
    if converted is None:
        raise RuntimeError("torch.onnx.export gave no program")
    converted.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = [output.name for output in session.get_outputs()]

    def run(batch: Inputs) -> Outputs:
        read = {value.name for value in session.get_inputs()}  # one that nothing reads may be gone
        outputs = session.run(given, {n: x.numpy() for n, x in batch.items() if n in read})
        return {n: torch.from_numpy(x) for n, x in zip(given, outputs, strict=True)}

    return run


class Format:
    """One kind of file.

    Args:
        file: its name.
        write: writes it and reads it back.
        packages: what it needs beside PyTorch.
    """

    def __init__(
        self,
        file: str,
        write: Callable[[torch.export.ExportedProgram, Inputs, list[str], Path], Run],
        packages: tuple[str, ...] = (),
    ) -> None:
        self.file, self.write, self.packages = file, write, packages

    def require(self) -> None:
        """Check that its packages are there.

        Raises:
            ExportError: one is not.
        """
        if missing := [package for package in self.packages if find_spec(package) is None]:
            raise ExportError(
                f"{self.file} needs {', '.join(missing)}: pip install 'fedmtl[export]'; or choose "
                "--format torch"
            )


FORMATS = {
    "torch": Format("model.pt2", _write_torch),
    "onnx": Format("model.onnx", _write_onnx, NEEDED),
}


@contextmanager
def _told_in_a_line(name: str) -> Iterator[None]:
    """Turn what an exporter raises into one line, and keep it from talking."""
    talking = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in talking]
    for log in talking:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ExportError(
            f"this model cannot be exported with --format {name}: {type(error).__name__}: {line}"
        ) from error
    finally:
        for log, level in zip(talking, levels, strict=True):
            log.setLevel(level)


def describe_check(differences: Mapping[str, float]) -> list[str]:
    """Say in a line for each file how well it passed."""
    return [
        f"{file}: as the model, for batches of {', '.join(map(str, BATCHES))}; largest relative "
        f"difference {difference:.1e}"
        for file, difference in differences.items()
    ]
