"""Trunks that begin with a ready model: what they compute, where they start, what is refused."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from common.encoder import build_encoder
from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.model import build_model
from common.model_folder import digest_folder
from common.pretrained.naming import is_adapter
from common.privacy.assumptions import assumptions
from common.sections.model import Trunk
from common.sharing import is_statistic, shared_names, task_of
from common.text import PADDING, encode_texts
from tests.conftest import make_experiment
from tests.ready_models import SIZES, VIT, load_digits, save, write_bert, write_vit

pytest.importorskip("transformers")
IMAGE, TEXT = {"pixels": (1, 8, 8)}, {"text": (1, 8)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"vit": write_vit(folder / "vit"), "bert": write_bert(folder / "bert")}


def encoder(model, shapes=IMAGE, seed=0, **settings):
    trunk = Trunk(architecture="transformer", model=str(model), widths=(), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_encoder(trunk, shapes).eval()


def ready(built):
    return next(m for m in built.modules() if hasattr(m, "pooling"))


def draw(built, inputs, seed):
    built.train()
    ready(built).generator = torch.Generator().manual_seed(seed)
    return built(inputs)


def images(count=3):
    return {"pixels": torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))}


def texts(*lines, length=8):
    rows = torch.full((len(lines), 1, length), float(PADDING))
    for row, line in zip(rows, lines, strict=True):
        row[0, : len(line)] = torch.tensor(line, dtype=torch.float)
    return {"text": rows}


def test_features_are_the_first_token_of_the_librarys_own_pass(models):
    from transformers import AutoModel

    own = AutoModel.from_pretrained(models["vit"], attn_implementation="eager").eval()
    hidden = own(pixel_values=images()["pixels"]).last_hidden_state
    built = encoder(models["vit"])
    torch.testing.assert_close(built(images()), hidden[:, 0])
    torch.testing.assert_close(encoder(models["vit"], pooling="mean")(images()), hidden.mean(1))
    assert built.width == 16


def test_padding_of_a_text_counts_for_nothing(models):
    built = encoder(models["bert"], TEXT)
    short, long = [2, 5, 3], [2, 6, 7, 8, 9, 3]
    alone = torch.cat([built(texts(short)), built(texts(long))])
    torch.testing.assert_close(built(texts(short, long)), alone)
    torch.testing.assert_close(built(texts(short, length=16)), alone[:1])
    assert not torch.allclose(alone[0], alone[1])


def test_the_mean_of_a_text_is_over_its_own_tokens(models):
    from transformers import AutoModel

    own = AutoModel.from_pretrained(models["bert"], attn_implementation="eager").eval()
    hidden = own(input_ids=torch.tensor([[2, 5, 3]])).last_hidden_state
    built = encoder(models["bert"], TEXT)
    torch.testing.assert_close(built(texts([2, 5, 3])), hidden.mean(1))
    first = encoder(models["bert"], TEXT, pooling="cls")
    torch.testing.assert_close(first(texts([2, 5, 3])), hidden[:, 0])


def test_a_text_without_a_token_has_finite_features(models):
    assert encoder(models["bert"], TEXT)(texts([])).isfinite().all()


def test_weights_come_from_the_folder_or_from_the_seed(models):
    one, other = (encoder(models["vit"], seed=seed)(images()) for seed in (0, 1))
    torch.testing.assert_close(one, other)
    one, other, again = (
        encoder(models["vit"], seed=seed, pretrained=False)(images()) for seed in (0, 1, 0)
    )
    torch.testing.assert_close(one, again)
    assert not torch.allclose(one, other)


def test_a_start_from_the_seed_needs_no_weights(tmp_path):
    folder = write_vit(tmp_path / "bare", weights=False)
    assert encoder(folder, pretrained=False)(images()).shape == (3, 16)
    with pytest.raises(ConfigError, match=r"no model.safetensors.*trunk.pretrained to false"):
        encoder(folder)


def test_what_is_drawn_comes_from_the_generator_alone(tmp_path):
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    built = encoder(write_vit(tmp_path / "drops", **rates))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = draw(built, images(), 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    torch.testing.assert_close(draw(built, images(), 1), one)
    assert not torch.allclose(draw(built, images(), 2), one)


def test_a_preprocessor_brings_its_normalisation_to_pretrained_weights_alone(tmp_path):
    folder = write_vit(tmp_path / "scaled")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.25], "image_std": [0.5]})
    )
    shifted = {"pixels": (images()["pixels"] - 0.25) / 0.5}
    built = encoder(folder)
    (folder / "preprocessor_config.json").unlink()
    plain = encoder(folder)
    torch.testing.assert_close(built(images()), plain(shifted))
    names = [name for name, _ in built.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]


def test_one_channel_stands_for_three_and_other_sizes_are_interpolated(tmp_path):
    folder = write_vit(tmp_path / "colour", num_channels=3)
    grey = encoder(folder)(images())
    colour = {"pixels": images()["pixels"].expand(-1, 3, -1, -1)}
    torch.testing.assert_close(grey, encoder(folder, {"pixels": (3, 8, 8)})(colour))
    larger = encoder(folder, {"pixels": (1, 16, 12)})
    assert larger({"pixels": torch.rand(2, 1, 16, 12)}).shape == (2, 16)
    with pytest.raises(ConfigError, match="3 channels"):
        encoder(folder, {"pixels": (2, 8, 8)})


def test_other_inputs_join_behind_the_model(models):
    built = encoder(models["bert"], {"x": (2,), "text": (1, 8)})
    inputs = {"x": torch.ones(1, 2), **texts([2, 5, 3])}
    assert built.width == 18
    torch.testing.assert_close(built(inputs)[:, :2], torch.ones(1, 2))


@pytest.mark.parametrize("kind", ["swin", "convnext", "resnet", "distilbert", "roberta", "gpt2"])
def test_models_of_many_families_give_a_vector_a_row(kind, tmp_path):
    from transformers import (
        ConvNextConfig,
        DistilBertConfig,
        GPT2Config,
        ResNetConfig,
        RobertaConfig,
        SwinConfig,
    )

    words = {"vocab_size": 20, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    configs = {
        "swin": SwinConfig(
            image_size=8, patch_size=2, num_channels=1, embed_dim=8, depths=[1, 1],
            num_heads=[1, 2], window_size=2,
        ),
        "convnext": ConvNextConfig(
            num_channels=1, hidden_sizes=[4, 8], depths=[1, 1], patch_size=2,
            num_stages=2,
        ),
        "resnet": ResNetConfig(
            num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1],
            layer_type="basic",
        ),
        "distilbert": DistilBertConfig(
            dim=8, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=12, **words
        ),
        "roberta": RobertaConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=10, **words,
        ),
        "gpt2": GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=12, **words),
    }  # fmt: skip
    folder = save(configs[kind], tmp_path / kind)
    if kind in ("swin", "convnext", "resnet"):
        built, inputs = encoder(folder), images()
    else:
        write_bert(tmp_path / "words", weights=False)
        shutil.copy(tmp_path / "words" / "tokenizer.json", folder)
        built, inputs = encoder(folder, TEXT), texts([2, 5, 3], [2, 6, 7, 8, 3])
    features = draw(built, inputs, 1)
    assert features.shape[1] == built.width
    features.sum().backward()
    idle = [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_running_statistics_of_a_ready_model_are_parameters_that_rows_move(tmp_path):
    from transformers import ResNetConfig

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic"
    )
    built = encoder(save(config, tmp_path / "resnet"))
    statistics = {n: p for n, p in built.named_parameters() if is_statistic(n)}
    assert statistics
    assert not any(p.requires_grad for p in statistics.values())
    before = {n: p.clone() for n, p in statistics.items()}
    draw(built, images(), 1)
    assert all(not torch.equal(before[n], p) for n, p in statistics.items())
    before = {n: p.clone() for n, p in statistics.items()}
    draw(built, images(1), 1)
    assert all(torch.equal(before[n], p) for n, p in statistics.items())
    left = [n for n, b in built.named_buffers() if b.is_floating_point()]
    assert left == []


@pytest.mark.parametrize("sharing", ["soft", "cross-stitch", "mtan", "adversarial", "mmoe", "ple"])
def test_every_sharing_takes_a_transformer(sharing, models):
    experiment = load_digits(models["vit"], f"trunk.sharing={sharing}")
    model = build_model(experiment, IMAGE)
    model.give_generator(torch.Generator())
    outputs, _ = model(images(), ("digit", "ink"))
    assert outputs["digit"].shape == (3, 10)
    names = [name for name, _ in model.named_parameters()]
    tasks = {task_of(name) for name in names if "model." in name}
    assert tasks <= {None, *experiment.tasks}


def test_all_of_a_model_travels_under_names_that_say_where_it_is(models):
    experiment = load_digits(models["vit"])
    names = [n for n, _ in build_model(experiment, IMAGE).named_parameters()]
    shared = shared_names(names, experiment)
    assert shared == [n for n in names if n.startswith("trunk.")]
    assert any(n.startswith("trunk.encoder.stacks.input-pixels.0.model.layers.0.") for n in shared)


@pytest.mark.parametrize(
    ("kind", "unused"),
    [("dinov2", {"mask_token"}), ("siglip", {"probe", "in_proj_weight"}), ("clip", {"bias"})],
)
def test_what_the_features_do_not_depend_on_neither_travels_nor_moves(kind, unused, tmp_path):
    from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

    kinds = {"dinov2": Dinov2Config, "siglip": SiglipVisionConfig, "clip": CLIPVisionConfig}
    folder = save(kinds[kind](**SIZES, **VIT), tmp_path / kind)
    found = encoder(folder)
    parameters = dict(found.named_parameters())
    constants = dict(found.named_buffers())
    assert unused <= {name.rpartition(".")[2] for name in constants}
    found(images()).sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    model = build_model(load_digits(folder, "trunk.adapters.rank=2"), IMAGE)
    names = [name for name, _ in model.named_parameters()]
    assert [n for n in names if is_adapter(n)]
    assert not [n for n in names if is_adapter(n) and ".head." in n]


def test_the_folder_counts_and_where_it_is_does_not(models, tmp_path):
    here = load_digits(models["vit"])
    there = load_digits(shutil.copytree(models["vit"], tmp_path / "copy"))
    assert here.trunk.model != there.trunk.model
    assert here.fingerprint() == there.fingerprint()
    other = load_digits(write_vit(tmp_path / "other", num_hidden_layers=1))
    assert other.fingerprint() != here.fingerprint()


def test_a_folder_with_other_files_is_refused(models, tmp_path):
    folder = shutil.copytree(models["vit"], tmp_path / "copy")
    experiment = load_digits(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "patch_size": 2}))
    with pytest.raises(ConfigError, match=r"trunk.model-digest .* --node-config"):
        build_model(experiment, IMAGE)


def test_another_model_on_the_command_line_brings_its_own_digest(models, tmp_path):
    experiment = load_digits(models["vit"])
    from common.experiment_file import dump_experiment

    path = tmp_path / "e.toml"
    path.write_text(dump_experiment(experiment))
    assert load_experiment(str(path)) == experiment
    other = write_vit(tmp_path / "other", num_hidden_layers=1)
    changed = load_experiment(str(path), [f"trunk.model={other}"])
    assert changed.trunk.model_digest == digest_folder(changed.trunk)


def test_pickles_are_not_read(tmp_path):
    folder = write_vit(tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"'pytorch_model.bin' may run code"):
        load_digits(folder)


def test_code_in_a_folder_is_not_run(tmp_path):
    folder = write_vit(tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {
        "AutoConfig": "code.Config", "AutoModel": "code.Model"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="transformers cannot load"):
        encoder(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, which asks by an old name
def test_an_adapter_beside_a_model_is_not_taken_for_it(models, tmp_path):
    """The library would put it into the model by itself, past the folder's digest."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    folder = shutil.copytree(models["vit"], tmp_path / "adapted")
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModel.from_pretrained(folder), settings).save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    plain, beside = encoder(models["vit"]), encoder(folder)
    assert [n for n, _ in beside.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert torch.equal(beside(images()), plain(images()))


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "other.safetensors"},
        {"configuration_files": ["config.4.0.0.json"]},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"auto_map": {"AutoConfig": "a/b--c.Config", "AutoModel": "a/b--c.Model"}},
        {"_name_or_path": "someone/model", "name_or_path": "someone/model"},
    ],
)
def test_what_a_config_says_of_other_places_is_not_followed(models, tmp_path, changes):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models["vit"], tmp_path / "led")
    zeros = {n: 0 * w for n, w in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "other.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    change_config(folder, **changes)
    if "configuration_files" in changes:
        (folder / "config.4.0.0.json").write_text("{}")
    assert torch.equal(encoder(folder)(images()), encoder(models["vit"])(images()))


def in_shards(folder, name):
    from safetensors.torch import load_file

    names = list(load_file(folder / "model.safetensors"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_in_the_digest_whatever_they_are_called(models, tmp_path):
    folder = shutil.copytree(models["vit"], tmp_path / "shards")
    in_shards(folder, "part.safetensors")
    assert torch.equal(encoder(folder)(images()), encoder(models["vit"])(images()))
    before = digest_folder(load_digits(folder).trunk)
    content = bytearray((folder / "part.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "part.safetensors").write_bytes(content)
    assert digest_folder(load_digits(folder).trunk) != before


def test_shards_outside_of_the_folder_are_refused(models, tmp_path):
    folder = shutil.copytree(models["vit"], tmp_path / "shards")
    in_shards(folder, "../outside.safetensors")
    with pytest.raises(ConfigError, match=r"beside it, got '../outside.safetensors'"):
        load_digits(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"}, "a model of timm"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "a model of timm"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "a quantised model"),
        ({"intermediate_size": 12}, r"layers.0.* in .* has another shape than config.json"),
    ],
)
def test_configs_that_cannot_be_used_are_told_in_a_line(models, tmp_path, changes, message):
    folder = shutil.copytree(models["vit"], tmp_path / "changed")
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=message) as refusal:
        encoder(folder)
    assert "\n" not in str(refusal.value)


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    weights = {n: change(w) for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_width_become_single(models, tmp_path, dtype):
    folder = shutil.copytree(models["vit"], tmp_path / "stored")
    change_weights(folder, lambda w: w.to(dtype))
    change_config(folder, dtype=str(dtype).removeprefix("torch."))
    found = encoder(folder)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    tolerance = {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(found(images()), encoder(models["vit"])(images()), **tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.int8), r"got torch.int8, as quantised weights are"),
        (lambda w: w * float("nan"), r"must be finite, got NaN"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(models, tmp_path, change, message):
    folder = shutil.copytree(models["vit"], tmp_path / "stored")
    change_weights(folder, change)
    with pytest.raises(ConfigError, match=message):
        encoder(folder)


def test_half_of_the_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_vit(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if ".1." not in name}
    assert len(weights) - len(kept) == 16
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lack 16 of the model"):
        encoder(folder)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("vit", {"shapes": TEXT}, "encoder of kind 'text'"),
        ("bert", {}, "encoder of kind 'image'"),
        ("bert", {"shapes": {"text": (1, 17)}}, r"cannot read rows of shape \[1, 17\]"),
    ],
)
def test_a_model_of_another_kind_or_size_is_refused(models, kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        encoder(models[kind], **settings)


def test_a_first_token_that_has_seen_nothing_is_no_summary(tmp_path):
    from transformers import GPT2Config

    config = GPT2Config(
        n_embd=8, n_layer=1, n_head=2, n_positions=12, vocab_size=20, bos_token_id=0, eos_token_id=0
    )
    folder = save(config, tmp_path / "gpt")
    with pytest.raises(ConfigError, match=r"trunk.pooling must be 'mean'"):
        encoder(folder, TEXT, pooling="cls")


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    folder = write_bert(tmp_path / "few", vocab_size=9)
    with pytest.raises(ConfigError, match="at most 9 tokens, which the model knows, got 18"):
        encoder(folder, TEXT)


def test_texts_are_numbered_cut_and_padded(models):
    trunk = Trunk(architecture="transformer", model=str(models["bert"]))
    found = encode_texts(["Red box", None, "red red red red red"], trunk, 5)
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [[2, 4, 13, 3, -1], [2, 3, -1, -1, -1], [2, 4, 4, 4, 3]]


def test_a_length_without_room_for_a_word_is_refused(models):
    trunk = Trunk(architecture="transformer", model=str(models["bert"]))
    with pytest.raises(ConfigError, match="max-length must be above 2"):
        encode_texts(["red"], trunk, 2)


TEXTS = {"text": {"kind": "text", "columns": ["text"]}}
READY = {"architecture": "transformer", "model": "m"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"inputs": TEXTS}, "trunk.architecture must be 'transformer' for inputs.text"),
        ({"trunk": READY}, "needs one input of kind 'image' or 'text', got none"),
        ({"inputs": TEXTS, "trunk": {**READY, "model": ""}}, "trunk.model is missing"),
        ({"inputs": TEXTS, "trunk": {**READY, "sharing": "mmoe"}}, "numbers of tokens"),
        ({"inputs": TEXTS, "trunk": READY, "training": {"compile": True}}, "training.compile"),
        (
            {"inputs": TEXTS, "trunk": {"architecture": "timm", "model": "resnet18"}},
            "needs one input of kind 'image', got inputs.text",
        ),
        (
            {"trunk": {"architecture": "timm", "model": "resnet18"}},
            "trunk.pretrained must be false",
        ),
        (
            {"trunk": {"architecture": "timm", "model": "a/b", "pooling": "cls"}},
            "trunk.pooling is for",
        ),
        ({"trunk": {"model": "m"}}, "trunk.model is for trunk.architecture 'transformer'"),
        ({"trunk": {"pretrained": False}}, "trunk.pretrained is for"),
        (
            {"inputs": {"text": {**TEXTS["text"], "scale": 2.0}}, "trunk": READY},
            "inputs.text.scale is for",
        ),
        (
            {"inputs": {"text": {**TEXTS["text"], "standardise": "client"}}, "trunk": READY},
            "standardise does not apply to a text",
        ),
        (
            {"inputs": {"text": {**TEXTS["text"], "missing": "mean"}}, "trunk": READY},
            "missing for a text",
        ),
        ({"inputs": {"x": {"columns": ["x"], "max-length": 9}}}, "inputs.x.max-length is for"),
        (
            {
                "inputs": {
                    "p": {
                        "kind": "image",
                        "columns": ["p"],
                        "shape": [1, 8, 8],
                        "standardise": "client",
                    }
                },
                "trunk": READY,
            },
            "inputs.p.standardise must be 'none'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        make_experiment(**tables)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_budget_rests_on_what_weights_of_a_folder_have_seen(models, pretrained):
    more = [f"trunk.pretrained={str(pretrained).lower()}"]
    more += ["privacy.example-level.noise-multiplier=1", "privacy.example-level.max-norm=1"]
    told = " ".join(assumptions(load_digits(models["vit"], *more)))
    assert ("weights that the trunk starts from" in told) == pretrained


def test_batch_norm_is_refused_under_example_level_privacy(tmp_path):
    from transformers import ResNetConfig

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic"
    )
    folder = save(config, tmp_path / "resnet")
    level = "privacy.example-level={max-norm=1.0, noise-multiplier=1.0, delta=1e-5}"
    with pytest.raises(ConfigError, match=r"trunk.model must have no batch norm"):
        build_model(load_digits(folder, level), IMAGE)


def test_a_library_that_is_missing_is_told_in_a_line(models, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the library transformers.*pip install 'fedmtl"):
        encoder(models["vit"])
    monkeypatch.setitem(sys.modules, "timm", None)
    experiment = load_digits(models["vit"], "trunk.architecture=timm", "trunk.model=resnet18",
                             "trunk.pretrained=false")  # fmt: skip
    with pytest.raises(ConfigError, match=r"needs the libraries timm and torchvision"):
        build_model(experiment, IMAGE)


def test_a_timm_model_reads_images():
    pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    trunk = Trunk(architecture="timm", model="resnet18", pretrained=False, widths=())
    assert build_encoder(trunk, {"pixels": (1, 32, 32)}).width == 512


def test_the_examples_of_the_page_are_experiments():
    page = (Path(__file__).parent.parent / "docs" / "transformers.md").read_text()
    examples = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    assert len(examples) == 4
    images = examples[0]["inputs"]
    for example in examples:
        found = make_experiment(inputs=example.get("inputs", images), trunk=example["trunk"])
        assert found.trunk.is_ready
