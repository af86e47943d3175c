"""Tiny ready models made on the spot, as Hugging Face's libraries write them, and texts."""

import contextlib
import csv
import io
from pathlib import Path

import torch

from common.experiment import Experiment
from common.experiment_file import load_experiment

WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "old",
    "new",
    "quick",
    "slow",
    "box",
    "ball",
    "lamp",
    "chair",
    "table",
]
VIT = {"image_size": 8, "patch_size": 4, "num_channels": 1}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def save(config, folder: Path, *, weights: bool = True) -> Path:
    """Write a model with random weights, or its config alone."""
    from transformers import AutoModel

    with contextlib.redirect_stderr(io.StringIO()):  # its bars
        if weights:
            with torch.random.fork_rng():
                torch.manual_seed(7)
                AutoModel.from_config(config).save_pretrained(folder)
        else:
            config.save_pretrained(folder)
    return folder


def write_vit(folder: Path, *, weights: bool = True, **changes) -> Path:
    from transformers import ViTConfig

    return save(ViTConfig(**{**SIZES, **VIT, **changes}), folder, weights=weights)


def write_bert(folder: Path, *, weights: bool = True, **changes) -> Path:
    from transformers import BertConfig

    sizes = {**SIZES, "vocab_size": len(WORDS) + 4, "max_position_embeddings": 16}
    save(BertConfig(**{**sizes, **changes}), folder, weights=weights)
    write_tokenizer(folder)
    return folder


def write_models(folder: Path) -> Path:
    """Write two models with dropout, and the texts of two clients."""
    drops = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    write_bert(folder / "bert", **drops)
    write_vit(folder / "vit", **drops)
    write_texts(folder / "texts")
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words, with marks before and behind a text as BERT has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    numbers = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_texts(folder: Path, clients: int = 2, rows: int = 24) -> Path:
    """Write clients whose two tasks a word or two of each text decides."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    for client in range(clients):
        with (folder / f"c{client}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "size", "thing", "x"])
            for row in range(rows):
                length = int(torch.randint(2, 6, (), generator=generator))
                chosen = torch.randint(len(WORDS), (length,), generator=generator).tolist()
                words = [WORDS[i] for i in chosen]
                large = int("large" in words or "table" in words)
                writer.writerow([" ".join(words), large, row % 3, chosen[0] / 10])
    return folder


def load_texts(path: Path, model: Path, *overrides: str) -> Experiment:
    """Write and read an experiment of texts beside their folder ``texts``."""
    (path / "texts.toml").write_text(
        f"""
name = "texts"
data = {{ source = "folder", path = "texts", unseen-classes = "keep" }}
inputs.text = {{ kind = "text", columns = ["text"], max-length = 8 }}
inputs.x = {{ columns = ["x"] }}
tasks.size = {{ kind = "binary" }}
tasks.thing = {{ kind = "multiclass", classes = 3 }}
trunk = {{ architecture = "transformer", model = "{model}", widths = [6] }}
training = {{ lr = 0.05, batch-size = 4, device = "cpu" }}
federation = {{ rounds = 2, affinity-every = 0 }}
"""
    )
    return load_experiment(str(path / "texts.toml"), overrides)


def load_digits(model: Path, *overrides: str) -> Experiment:
    """Read digits with a transformer over the pixels."""
    more = [
        "trunk.architecture=transformer",
        f"trunk.model={model}",
        "trunk.widths=[6]",
        "partition.clients=3",
        "training.epochs=1",
        "training.device=cpu",
        "federation.rounds=2",
        "federation.affinity-every=0",
    ]
    return load_experiment("digits", [*more, *overrides])
