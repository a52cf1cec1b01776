"""Folders for timm have the names, shapes and arguments that timm gives its models, and come back as they left."""

import json

import numpy as np
import pytest

from cxrjax import export, parity, trained
from cxrjax.interop import timm_folder, torch_timm
from cxrjax.models import resnet
from tests import runs

WIDTH, PATCH, GRID = 64, 4, 8
# As timm 1.0.31 lists the state_dict of vit_base_patch16_224 with our arguments.
BLOCK = {
    "norm1.weight": (64,),
    "norm1.bias": (64,),
    "attn.qkv.weight": (192, 64),
    "attn.qkv.bias": (192,),
    "attn.proj.weight": (64, 64),
    "attn.proj.bias": (64,),
    "norm2.weight": (64,),
    "norm2.bias": (64,),
    "mlp.fc1.weight": (256, 64),
    "mlp.fc1.bias": (256,),
    "mlp.fc2.weight": (64, 256),
    "mlp.fc2.bias": (64,),
}
AROUND = {
    "cls_token": (1, 1, 64),
    "pos_embed": (1, 65, 64),
    "patch_embed.proj.weight": (64, 3, 4, 4),
    "patch_embed.proj.bias": (64,),
    "norm.weight": (64,),
    "norm.bias": (64,),
    "head.weight": (2, 64),
    "head.bias": (2,),
}
KEYS = set(
    "custom_load input_size fixed_input_size interpolation crop_pct crop_mode mean std num_classes pool_size "
    "first_conv classifier".split()
)
"""Some fields of PretrainedCfg in timm 1.0.31."""
REGISTERS = {"reg_token": (1, 2, 64), "pos_embed": (1, 64, 64)}
DINOV2 = {"layer_scale": 1.0, "positions": "learned", "cls_position": True, "registers": 2, "pool": "mean"}


@pytest.mark.parametrize("model", [{}, DINOV2])
def test_names_and_shapes_are_timms(model, tmp_path):
    settings = runs.config("supervised", labels="Effusion,Nodule")
    settings.model.update(model)
    runs.write(tmp_path / "run", settings)
    run = trained.load(tmp_path / "run", dtype="float32")
    export.write_timm(run, *export.encoder_weights(run), tmp_path / "model")
    scales = {"ls1.gamma": (64,), "ls2.gamma": (64,)} if model else {}
    blocks = {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in {**BLOCK, **scales}.items()}
    found = torch_timm.huggingface.weights(tmp_path / "model")
    assert {name: array.shape for name, array in found.items()} == AROUND | blocks | (REGISTERS if model else {})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_names"] == ["Effusion", "Nodule"] and config["num_features"] == WIDTH
    arguments = config["model_args"]
    assert (arguments["img_size"], arguments["patch_size"], arguments["num_heads"]) == (32, PATCH, 2)
    assert (arguments.get("fc_norm"), arguments.get("reg_tokens")) == ((False, 2) if model else (None, None))
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["crop_pct"], cfg["mean"]) == ([3, 32, 32], 1.0, [0.4978] * 3)
    assert set(cfg) <= KEYS  # timm refuses any other

    again, encoder = trained.load(tmp_path / "model"), run.params["encoder"]
    np.testing.assert_array_equal(
        again.params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"], encoder["blocks"]["mlp"]["fc1"]["kernel"]
    )
    np.testing.assert_array_equal(
        again.params["encoder"]["blocks"]["attention"]["qkv"]["kernel"], encoder["blocks"]["attention"]["qkv"]["kernel"]
    )
    np.testing.assert_array_equal(again.params["encoder"]["patch_embed"]["kernel"], encoder["patch_embed"]["kernel"])
    assert (again.config.standardise.mean, again.config.fit) == (0.4978, "image")


def test_whole_export_is_compared_and_says_how_it_loads(tmp_path, capsys):
    runs.write(tmp_path / "run", runs.config())
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model"), "--form", "timm"]
    assert export.main(arguments) == 0
    assert 'timm.create_model("local-dir:" + folder' in capsys.readouterr().out
    card = (tmp_path / "model" / "README.md").read_text()
    through = "timm" if parity.timm_works() else "cxrjax, which read it again"
    for part in (
        "library_name: timm",
        'checkpoint_path="model.safetensors"',
        "    img_size=32,",
        f"through {through},",
    ):
        assert part in card
    files = ["README.md", "config.json", "lineage.json", "model.safetensors"]
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == files


def test_resnets_have_the_names_of_torchvision(tmp_path):
    """Every array of a ResNet-18 comes back as it left."""
    settings = runs.config("simclr", model__variant="resnet18")
    runs.write(tmp_path / "run", settings)
    run = trained.load(tmp_path / "run", dtype="float32")
    export.write_timm(run, *export.encoder_weights(run), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["architecture"], config["pretrained_cfg"]["classifier"]) == ("resnet18", "fc")
    again = trained.load(tmp_path / "model")
    for ours, theirs in ((run.params, again.params), (run.state["batch_stats"], again.state["batch_stats"])):
        leaves = (dict(torch_timm.torch_resnet._leaves(tree["encoder"])) for tree in (ours, theirs))
        one, two = leaves
        assert one.keys() == two.keys()
        for path in one:
            np.testing.assert_array_equal(one[path], two[path], err_msg="/".join(path))
    assert set(timm_folder.RESNETS.values()) == {name for name in resnet.VARIANTS if name != "resnet_test"}


@pytest.mark.parametrize("sees", ["image", "image37", "image93", "whole"])
def test_fit_comes_back(sees, tmp_path):
    found = {"mean": [0.5], "std": [0.2], "input_size": [1, 32, 32], **timm_folder._fit(sees, 32)}
    assert torch_timm._of_config(found, tmp_path).sees == sees


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_norm_eps": 1e-12}, "an epsilon of 1e-12"),
        ({"use_swiglu_ffn": True}, "SwiGLU"),
        ({"model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 1, 1], "embedding_size": 16}, "no ResNet of"),
    ],
)
def test_what_timm_has_not_is_explained(changes, sentence):
    config = {"model_type": "vit", "layer_norm_eps": 1e-6, "image_size": 32, "num_channels": 3, **changes}
    with pytest.raises(ValueError, match=f"{sentence}.*--form transformers"):
        timm_folder.describe(config, "cls")
