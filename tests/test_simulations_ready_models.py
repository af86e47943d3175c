"""Federations whose trunk is a ready model: images and texts, on every engine, to the end."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from client.place import Place
from client.private_autograd import RowGradients
from client.row_cache import RowCache
from client.training import Trainer
from common.agreement import agree, describe, input_shapes
from common.clients import open_clients
from common.encoding import encode
from common.errors import ConfigError, DataError
from common.experiment_file import dump_experiment
from simulations.attacks.canary_rows import draw_canaries
from simulations.attacks.inversion_settings import Settings, check
from simulations.cli import app
from simulations.simulate import simulate
from tests.ready_models import (
    WORDS,
    load_digits,
    load_texts,
    write_bert,
    write_models,
    write_texts,
    write_vit,
)
from tests.test_simulations_engines import assert_same_trunk, trunk

pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models and the texts of two clients."""
    return write_models(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def trained(place):
    """A run over texts."""
    more = ("training.optimiser=adam", "training.lr=0.01", "trunk.widths=[]")
    experiment = load_texts(place, place / "bert", *more)
    simulate(experiment, engine="loopback", out=place / "run")
    return place / "run"


def clients_of(experiment):
    source = open_clients(experiment)
    tables = [source.read(name) for name in source.names]
    agreement = agree([describe(one, experiment) for one in tables], experiment)
    return agreement, [encode(one, experiment, agreement) for one in tables]


def test_a_text_is_encoded_once_and_only_tokens_go_on(place):
    agreement, (first, _) = clients_of(load_texts(place, place / "bert"))
    assert agreement.shapes["text"] == (1, 8)
    numbers = first.train.inputs["text"]
    assert numbers.dtype == torch.float32
    assert set(numbers.unique().tolist()) <= set(range(-1, 4 + len(WORDS)))
    assert (numbers[:, 0, 0] == 2).all()  # the mark before every text


def test_an_empty_text_follows_missing(place, tmp_path):
    write_texts(tmp_path / "texts")
    path = tmp_path / "texts" / "c0.csv"
    frame = pd.read_csv(path)
    frame.loc[:4, "text"] = None
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"column 'text' \(inputs.text\) must be filled"):
        clients_of(load_texts(tmp_path, place / "bert"))
    both = {}
    for missing in ("drop-row", "zero"):
        experiment = load_texts(tmp_path, place / "bert", f"inputs.text.missing={missing}")
        _, (client, _) = clients_of(experiment)
        rows = torch.cat([rows.inputs["text"] for rows in client.splits.values()])[:, 0]
        both[missing] = len(rows), int((rows[:, 2] < 0).sum())
    assert both == {"drop-row": (19, 0), "zero": (24, 5)}


def test_two_columns_are_not_one_text(place):
    experiment = load_texts(place, place / "bert", 'inputs.text.columns=["text", "x"]')
    with pytest.raises(DataError, match=r"inputs.text: a text is one column, got 2: 'text', 'x'"):
        clients_of(experiment)


def test_cached_rows_are_of_one_tokenizer(place, tmp_path):
    one = load_texts(place, place / "bert")
    other = load_texts(place, write_bert(tmp_path / "bert", intermediate_size=20))
    folders = {RowCache(tmp_path, e, "signature").folder for e in (one, other, one)}
    assert len(folders) == 2


def test_a_node_names_its_own_copy_of_the_model(place):
    experiment = load_texts(place, place / "bert")
    settled = Place.of({"model": "/srv/bert"}).settle(experiment)
    assert settled.trunk.model == "/srv/bert"
    assert settled.fingerprint() == experiment.fingerprint()
    assert Place.of({"simulated": True}).settle(experiment) == experiment
    with pytest.raises(ConfigError, match="model must name this node's copy"):
        Place.of({}).settle(experiment)
    timm = experiment.model_copy(
        update={"trunk": experiment.trunk.model_copy(
            update={"architecture": "timm", "model": "resnet18"})}
    )  # fmt: skip
    assert Place.of({"model": "/srv/bert"}).settle(timm).trunk.model == "resnet18"


def test_texts_are_learned(place, trained):
    lines = pd.read_json(trained / "metrics.jsonl", lines=True)
    assert len(lines) == 2
    shapes = {"text": (1, 8), "x": (1,)}
    before = Trainer(load_texts(place, place / "bert"), shapes, torch.device("cpu"))
    name = "trunk.encoder.stacks.input-text.0.model.embeddings.word_embeddings.weight"
    assert not np.allclose(trunk(trained)[name], before.flat.read([name])[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["texts", "digits"])
def test_workers_change_no_bit(place, tmp_path, kind):
    load = {
        "texts": lambda: load_texts(place, place / "bert"),
        "digits": lambda: load_digits(place / "vit"),
    }[kind]
    simulate(load(), engine="loopback", out=tmp_path / "one")
    simulate(load(), engine="loopback", workers=2, out=tmp_path / "two")
    assert_same_trunk(tmp_path / "one", tmp_path / "two", tolerance=0)


@pytest.mark.slow
def test_flowers_runtime_gives_the_trunk_of_loopback(place, tmp_path):
    experiment = load_texts(place, place / "bert")
    (tmp_path / "e.toml").write_text(dump_experiment(experiment))
    simulate(experiment, engine="loopback", out=tmp_path / "loopback")
    script = (
        "import sys; from pathlib import Path\n"
        "from common.experiment_file import load_experiment\n"
        "from simulations.simulate import simulate\n"
        "simulate(load_experiment(sys.argv[1]), engine='flower', out=Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "e.toml"), str(tmp_path / "flower")],
        cwd=ROOT, check=True, timeout=240,
    )  # fmt: skip
    assert_same_trunk(tmp_path / "loopback", tmp_path / "flower")


def test_no_stacked_form_is_told(place, tmp_path):
    with pytest.raises(ConfigError, match="'transformer' has no stacked form"):
        simulate(load_texts(place, place / "bert"), engine="batched", out=tmp_path / "run")


@pytest.mark.parametrize("kind", ["texts", "digits"])
def test_gradients_of_rows_are_those_of_each_row_alone(place, kind):
    level = "privacy.example-level={max-norm=1.0, noise-multiplier=1.0, delta=1e-5}"
    if kind == "texts":
        experiment = load_texts(place, place / "bert", level)
    else:
        experiment = load_digits(place / "vit", level)
    agreement, clients = clients_of(experiment)
    trainer = Trainer(experiment, input_shapes(agreement), torch.device("cpu"), simulated=True)
    trainer.model.eval()
    rows = clients[0].train.select(slice(4))
    weights = dict.fromkeys(experiment.tasks, 1.0)
    found, _ = RowGradients(experiment, trainer.model, trainer.flat).find(rows, weights)
    trainer.flat.gradients.zero_()
    whole, _ = RowGradients(experiment, trainer.model, trainer.flat)._loss(rows, weights)
    torch.autograd.backward(whole)
    torch.testing.assert_close(found.sum(0), trainer.flat.gradients, rtol=1e-4, atol=1e-5)
    assert all((found[:, place] != 0).any() for place in trainer.flat.layout.slices.values())


def test_private_texts_train_with_noise(place, tmp_path):
    level = "privacy.example-level={max-norm=1.0, noise-multiplier=1.0, delta=1e-5}"
    for name, more in {"quiet": [], "noisy": [level]}.items():
        experiment = load_texts(place, place / "bert", "federation.rounds=1", *more)
        simulate(experiment, engine="loopback", out=tmp_path / name)
    with pytest.raises(AssertionError):
        assert_same_trunk(tmp_path / "quiet", tmp_path / "noisy", tolerance=1e-3)


def test_new_texts_are_predicted_and_exported(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    new = tmp_path / "new.csv"
    new.write_text("text,x\nlarge red box,0.5\nsmall unheard lamp,0.1\n")

    def fedmtl(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    client = ("--client", "c0")
    fedmtl("predict", trained, *client, "--rows", new, "--out", tmp_path / "out.csv")
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["predicted.size.probability"].between(0, 1).all()
    assert frame["predicted.size.probability"].nunique() == 2
    fedmtl("export", trained, *client, "--out", tmp_path / "files")
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert names == {"model.pt2", "model.onnx", "model.json", "tokenizer.json"}
    module = torch.export.load(tmp_path / "files" / "model.pt2").module()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "files" / "tokenizer.json"))
    numbers = torch.full((2, 1, 8), -1)
    for row, text in enumerate(["large red box", "small unheard lamp"]):
        ids = tokenizer.encode(text).ids
        numbers[row, 0, : len(ids)] = torch.tensor(ids)
    answers = module({"text": numbers, "x": torch.tensor([[0.5], [0.1]], dtype=torch.float64)})
    np.testing.assert_allclose(
        answers["size.probability"], frame["predicted.size.probability"], atol=1e-5
    )


def test_canaries_of_texts_are_tokens(place):
    experiment = load_texts(place, place / "bert")
    _, (client, _) = clients_of(experiment)
    canaries = draw_canaries(client.train, experiment, 5).inputs["text"]
    assert canaries.shape == (5, 1, 8)
    assert set(canaries.unique().tolist()) <= set(range(4 + len(WORDS)))


def test_inversion_of_texts_is_refused(place):
    observed = SimpleNamespace(experiment=load_texts(place, place / "bert"), client="c0")
    with pytest.raises(ConfigError, match=r"inputs.text of kind 'text', whose tokens have none"):
        check(observed, Settings())


def test_activations_of_a_ready_model_are_computed_again_to_the_same_bits(place, tmp_path):
    arrays = []
    for again in ("false", "true"):
        experiment = load_digits(place / "vit", f"training.recompute-activations={again}")
        simulate(experiment, engine="loopback", out=tmp_path / again)
        arrays.append(trunk(tmp_path / again))
    assert arrays[0].keys() == arrays[1].keys()
    assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0])


def test_layers_of_a_ready_model_run_twice_where_they_are_computed_again(place, monkeypatch):
    passes, forward = [], torch.nn.LayerNorm.forward
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda *a: passes.append(1) or forward(*a))
    counts = []
    for again in ("false", "true"):
        experiment = load_digits(place / "vit", f"training.recompute-activations={again}")
        agreement, (data, *_) = clients_of(experiment)
        trainer = Trainer(experiment, input_shapes(agreement), torch.device("cpu"))
        trainer.load({}, {})
        passes.clear()
        trainer.train(data, dict.fromkeys(experiment.tasks, 1.0), 1)
        counts.append(len(passes))
    # Two norms in each of two layers, and one behind them, which is not computed again.
    assert counts[1] * 5 == counts[0] * 9 > 0


def test_a_batch_in_pieces_steps_a_ready_model_as_the_whole(tmp_path):
    vit = write_vit(tmp_path / "plain", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for override in ("training.epochs=1", "training.micro-batch=5"):
        experiment = load_digits(vit, override, "training.optimiser=sgd", "training.lr=0.1")
        simulate(experiment, engine="loopback", out=tmp_path / override)
    assert_same_trunk(tmp_path / "training.epochs=1", tmp_path / "training.micro-batch=5", 1e-5)


@pytest.mark.parametrize("override", ["training.precision=bfloat16", "training.precision=float16"])
def test_a_ready_model_trains_in_coarse_precision(place, tmp_path, override):
    experiment = load_digits(place / "vit", override)
    results = simulate(experiment, engine="loopback", out=tmp_path / "run")
    assert np.isfinite(results["final"]["validation"]["loss"])


def test_texts_on_disk_are_those_in_memory(place, tmp_path):
    for memory in ("ram", "disk"):
        experiment = load_texts(place, place / "bert", f"data.memory={memory}")
        simulate(experiment, engine="loopback", out=tmp_path / memory)
    assert_same_trunk(tmp_path / "ram", tmp_path / "disk", 0.0)
