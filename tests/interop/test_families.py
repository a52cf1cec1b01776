"""Encoders of all families compute here what they compute in transformers, from random weights."""

import argparse
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cxrjax import initial, methods, sizes, trained
from cxrjax.interop import families, huggingface, torch_timm, torch_vit
from cxrjax.models import backbone, posemb, segmenters
from tests import runs
from tests.interop.test_torch_vit import pictures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 200}
SIZE |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = {"num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TOLERANCE = 1e-5
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1] * 4, "layer_type": "basic"}
SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32}
SMALL = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
CASES = {
    "dinov3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**SIZE, **GATED)),
    "deit": lambda t: t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**SIZE)),
    "clip": lambda t: t.CLIPModel(t.CLIPConfig(vision_config=SIZE, text_config=TEXT)),
    "convnext": lambda t: t.ConvNextForImageClassification(t.ConvNextConfig(**SMALL)),
    "dinov3_convnext": lambda t: t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**SMALL, layer_norm_eps=1e-5)),
    "resnet": lambda t: t.ResNetModel(t.ResNetConfig(**RESNET)),
    "siglip": lambda t: t.SiglipModel(t.SiglipConfig(vision_config=SIZE, text_config=TEXT)),
    "swin": lambda t: t.SwinForImageClassification(t.SwinConfig(**SWIN)),
}
ALONE = {
    "vit": lambda t: t.ViTModel(t.ViTConfig(**SIZE), add_pooling_layer=False),
    "dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**SIZE)),
}
"""Compared in float32 in files of their own."""
MAPS = ("resnet", "convnext", "swin")
"""How the names of encoders end whose patches are a map, and which take pictures of any size."""
UNREAD = {"deit": "classifier 4", "clip": "logit_ 1, text_model 20, text_projection 1, visual_projection 1"}


def written(folder, model, processor=None):
    """The folder of a model with noise in all its arrays."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    keys = {"image_mean": MEAN, "image_std": STD, **(processor or {})}
    (folder / "preprocessor_config.json").write_text(json.dumps(keys))
    return folder


def their_features(model, images, **options):
    """pooled b d and patches b n d of grey pictures; of CLIP's patches behind its last LayerNorm, as ours are."""
    x = (np.repeat(images, 3, -1) / np.float32(255) - np.array(MEAN)) / np.array(STD)
    x = torch.from_numpy(x.transpose(0, 3, 1, 2)).float()
    for part in ("deit", "vision_model", "convnext", "swin"):
        model = getattr(model, part, model)
    with torch.inference_mode():
        out = model(pixel_values=x, **options)
        tokens = out.last_hidden_state
        if (kind := model.config.model_type).endswith(MAPS):
            tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens[:, int(kind == "dinov3_convnext") :]
            return out.pooler_output.flatten(1).numpy(), tokens.numpy()
        is_clip = hasattr(model, "pre_layrnorm")
        pooled = out.pooler_output if is_clip or hasattr(model, "head") else tokens[:, 0]
        tokens = model.post_layernorm(tokens) if is_clip else tokens
    n = math.prod(sizes.grid(images.shape[1:3], 8))
    return pooled.numpy(), tokens[:, -n:].numpy()


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_transformers(name, tmp_path, capsys):
    """At that size which its processor asks for, no square: positions are resized from the grid of the training."""
    model = CASES[name](transformers)
    px = (64, 96) if name.endswith(MAPS) else (48, 32)  # a map of more than one place
    written(tmp_path, model, {"size": {"height": px[0], "width": px[1]}})
    found = trained.load(tmp_path)
    images = pictures(px)
    ours = jax.jit(found.method.encode)(found.params, found.state, images)
    options = {} if name.endswith(("dinov3", *MAPS)) else {"interpolate_pos_encoding": True}
    pooled, patches = their_features(model, images, **options)
    for one, other in ((ours["pooled"], pooled), (ours["patches"], patches)):  # a ResNet's have no fixed scale
        np.testing.assert_allclose(one.reshape(other.shape), other, atol=TOLERANCE * max(1, np.abs(other).max()))
    assert np.std(pooled) > 0.1
    assert found.config.model.channels == (3 if name == "resnet" else 1)
    assert (found.method.sees, found.method.image_px) == ("whole", px)
    assert UNREAD.get(name, "") in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet"])
def test_features_in_bfloat16_are_within_two_percent(name, tmp_path):
    """Of transformers' in float32, in the length of the difference over that of the feature."""
    model, images = {**CASES, **ALONE}[name](transformers), pictures(64 if name.endswith(MAPS) else 32)
    found = trained.load(written(tmp_path, model), dtype="bfloat16")
    ours = jax.jit(found.method.encode)(found.params, found.state, images)
    theirs = dict(zip(("pooled", "patches"), their_features(model, images), strict=True))
    for part, other in theirs.items():
        difference = np.asarray(ours[part]).reshape(other.shape) - other
        share = np.linalg.norm(difference, axis=-1) / np.linalg.norm(other, axis=-1)
        assert 1e-4 < share.max() <= 2e-2, part  # less is no bfloat16


def test_a_run_starts_from_an_encoder_without_cls(tmp_path, capsys):
    """Whatever its config says of positions and pool; all arrays of the encoder are the folder's."""
    written(tmp_path, CASES["siglip"](transformers))
    config = runs.config("finetune", init_from=str(tmp_path), labels="Mass", model__patch_px=8)
    config = initial.of_run(config)
    assert (config.model.pool, config.model.positions, config.model.activation) == ("attention", "learned", "gelu_tanh")
    assert "since it has no [CLS]" in capsys.readouterr().out
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    found = initial._named_encoders(config, SimpleNamespace(params=params, state=state))["encoder"]
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, params["encoder"])


def test_a_smoke_run_starts_from_an_encoder_that_is_no_vit(tmp_path):
    written(tmp_path, CASES["convnext"](transformers))
    config = initial.of_run(runs.config("finetune", init_from=str(tmp_path), labels="Mass"))
    assert (config.model.variant, config.model.eps) == ("convnext_test", 1e-12)
    assert backbone.make(config.model).width == 32


def test_a_family_that_is_not_known_is_told_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match="of type 'mamba'; expected vit, vit_mae, dinov2, .*, siglip.*, resnet"):
        families.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    with pytest.raises(ValueError, match="of type 'beit': it adds a table of relative positions to the attention"):
        families.read(tmp_path)


def test_a_swin_that_is_none_of_ours_is_told_ours():
    folder = huggingface.Pretrained({}, {"model_type": "swin", "window_size": 12}, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="Swin has {'window_size': 12}, as none of ours: swin_T, .* Windows are of 7"):
        families.model_of(folder)
    named = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
    assert families.model_of(folder._replace(config={"model_type": "swin", **named}))["variant"] == "swin_B"


def test_heads_are_not_built_on_a_swin():
    encoder = backbone.make({"variant": "swin_test", "image_px": 32, "dtype": "float32"})
    with pytest.raises(ValueError, match="the encoder is a Swin, 'swin_test': masks take a ViT or a ResNet"):
        segmenters.make({"kind": ""}, encoder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Our parameters of a ViT with a fixed table, and its arrays under the names of timm."""
    found = runs.write(tmp_path_factory.mktemp("run"), runs.config())["encoder"]
    table = posemb.sincos_2d((8, 8), 64)
    arrays, config = torch_vit.to_huggingface(found, heads=2, patch_px=4, image_px=32, position_table=table)
    renamed = {}
    for name, array in arrays.items():
        for theirs, timm in TIMM.items():
            name = name.replace(theirs, timm)
        renamed[name] = array
    for i in range(2):
        for leaf in ("weight", "bias"):
            parts = [renamed.pop(f"blocks.{i}.attn.{part}.{leaf}") for part in ("query", "key", "value")]
            renamed[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
    return arrays, config, renamed


TIMM = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layer.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention": "attn",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm": "norm",
}


def save(path, state):
    torch.save({key: _tensors(value) for key, value in state.items()}, path)
    keys = {"image_mean": [0.4978] * 3, "image_std": [0.2449] * 3}
    (path.parent / "preprocessor_config.json").write_text(json.dumps(keys))
    return path


def _tensors(value):
    if isinstance(value, dict):
        return {key: _tensors(inner) for key, inner in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("origin", ["mae", "moco_v3", "dino", "timm", "gmml", "mgca", "ocl"])
def test_the_authors_files_are_read(origin, vit, tmp_path):
    """The same parameters as from a folder of Hugging Face, wherever the encoder lies in the file."""
    arrays, config, renamed = vit
    wrong = {name: array + 1 for name, array in renamed.items()}
    prefixed = {f"module.base_encoder.{name}": array for name, array in renamed.items()}
    other = {f"module.momentum_encoder.{name}": array for name, array in wrong.items()}
    head = {"module.predictor.0.weight": np.zeros((3, 3), np.float32)}
    backbone = {f"backbone.{name}": array for name, array in renamed.items()}
    place = tmp_path / "model.pth"
    if origin == "mae":
        save(place, {"model": {**renamed, "decoder_embed.weight": np.zeros((3, 64), np.float32)}, "epoch": 3})
    elif origin == "moco_v3":
        save(place, {"state_dict": {**prefixed, **other, **head}, "arch": "vit_small"})
    elif origin == "dino":
        student = {f"module.backbone.{name}": array for name, array in wrong.items()}
        save(place, {"student": student, "teacher": backbone, "dino_loss": {"center": np.zeros((1, 3), np.float32)}})
    elif origin == "gmml":
        state = {f"module.backbone.{name}": array for name, array in renamed.items()}
        state["module.head_recons.mlp.0.weight"] = np.zeros((64, 64), np.float32)
        save(place, {"SiT_model": state, "epoch": 3, "args": argparse.Namespace(model="vit_small")})
    elif origin == "mgca":
        state = {f"img_encoder_q.model.{name}": array for name, array in renamed.items()}
        state |= {f"{name}.weight": np.zeros((3, 3), np.float32) for name in ("text_encoder_q.a", "prototype_layer")}
        save(place, {"state_dict": state, "hyper_parameters": {"emb_dim": 128}})
    elif origin == "ocl":
        save(place, {"model": renamed, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(mask_ratio=0.9)})
    else:
        place = tmp_path / "timm"
        huggingface.write(place, renamed, config, 0.5, 0.5)
        cfg = {"mean": [0.4978] * 3, "std": [0.2449] * 3, "input_size": [3, 32, 32], "crop_pct": 0.9}
        (place / "config.json").write_text(json.dumps({"architecture": "vit_test", "pretrained_cfg": cfg}))
    huggingface.write(tmp_path / "same", arrays, config, 0.4978, 0.2449)
    expected, found = trained.load(tmp_path / "same"), trained.load(place)
    tree = expected.params["encoder"]
    if "pos_embed" not in tree:  # a fixed table, which files of arrays have as numbers
        tree = {**tree, "pos_embed": posemb.sincos_2d((8, 8), 64)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params["encoder"], tree)
    assert found.config.model.resize_offset == (0.1 if origin in ("dino", "gmml") else 0)
    assert found.config.model.pool == ("mean" if origin == "gmml" else "cls")
    beside = {
        "gmml": "head_recons",
        "mgca": "prototype_layer, text_encoder_q",
        "moco_v3": "momentum_encoder, predictor",
    }
    beside |= {"dino": "dino_loss, student", "mae": "decoder 1"}
    assert families.unread(families.read(place)) == beside.get(origin, "")
    assert found.method.sees == ("image35" if origin == "timm" else "image")


def test_a_convnext_under_timms_names_is_read(tmp_path):
    """The same parameters as from a folder of Hugging Face; heads that take its levels say that they do not."""
    written(tmp_path / "same", CASES["convnext"](transformers).convnext)
    theirs = huggingface.weights(tmp_path / "same")
    renamed = {_timm_convnext(name): array for name, array in theirs.items()}
    found = trained.load(save(tmp_path / "convnext.pth", {"model": renamed}))
    keys = {"image_mean": [0.4978] * 3, "image_std": [0.2449] * 3}
    (tmp_path / "same" / "preprocessor_config.json").write_text(json.dumps(keys))
    expected = trained.load(tmp_path / "same")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    with pytest.raises(ValueError, match="masks take a ViT or a ResNet"):
        segmenters.make({"kind": "", "features": 0, "taps": ""}, backbone.make(found.config.model))


def _timm_convnext(name):
    words = {"embeddings.patch_embeddings": "stem.0", "embeddings.layernorm": "stem.1", "encoder.stages": "stages"}
    words |= {".layers.": ".blocks.", "downsampling_layer": "downsample", "dwconv": "conv_dw", "pwconv": "mlp.fc"}
    words |= {"layer_scale_parameter": "gamma"}
    for theirs, timm in words.items():
        name = name.replace(theirs, timm)
    return name.replace("layernorm", "norm") if name.startswith("stages") else name.replace("layernorm", "head.norm")


def test_a_resnet_under_torchvisions_names_is_read(tmp_path):
    """Inside of another model, as MGCA's and MoCo's files have it."""
    from cxrjax.interop import torch_resnet

    runs.write(tmp_path / "run", runs.config("simclr", model__variant="resnet_test"))
    ours = trained.load(tmp_path / "run")
    encoder, statistics = ours.params["encoder"], ours.state["batch_stats"]["encoder"]
    arrays = torch_resnet.to_torchvision(encoder, statistics)
    state = {f"img_encoder_q.model.{name}": np.asarray(array, np.float32) for name, array in arrays.items()}
    found = trained.load(save(tmp_path / "mgca.ckpt", {"state_dict": state, "lr": 0.1}))
    assert found.config.model.image_px == 299  # to which MGCA enlarges pictures
    jax.tree.map(np.testing.assert_array_equal, found.params["encoder"], encoder)
    jax.tree.map(np.testing.assert_array_equal, found.state["batch_stats"]["encoder"], statistics)


@pytest.mark.parametrize("place", ["online.", "model.encoder."])
def test_mlvicx_numbers_the_parts_of_its_resnet(place, tmp_path):
    """Its two files, and the names and shapes of its gates; the trunk is read as without them."""
    from cxrjax.interop import torch_resnet

    runs.write(tmp_path / "run", runs.config("simclr", model__variant="resnet_test"))
    ours = trained.load(tmp_path / "run")
    encoder, statistics = ours.params["encoder"], ours.state["batch_stats"]["encoder"]
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {}
    for name, array in torch_resnet.to_torchvision(encoder, statistics).items():
        part, rest = name.split(".", 1)
        state[f"{place}encoder.{numbers[part]}.{rest}"] = np.asarray(array, np.float32)
    gates = {"cbt1.cam.fc.0.weight": (8, 16, 1, 1), "cbt1.cam.fc.2.weight": (16, 8, 1, 1)}
    gates |= {"cbt1.sam.conv1.weight": (1, 2, 7, 7), "projetion.l1.0.weight": (4, 128)}
    state |= {f"{place}{name}": np.ones(shape, np.float32) for name, shape in gates.items()}
    file = save(tmp_path / "mlvicx.pth", state)
    found = trained.load(file)
    jax.tree.map(np.testing.assert_array_equal, found.params["encoder"], encoder)
    jax.tree.map(np.testing.assert_array_equal, found.state["batch_stats"]["encoder"], statistics)
    assert families.unread(families.read(file)) == "cbt1, projetion"


@pytest.mark.parametrize(("width", "depth", "variant"), [(1280, 32, "H"), (384, 12, "S")])
def test_heads_of_a_file_are_those_of_its_size(width, depth, variant):
    """The H of timm, MAE and OCL has 16 heads, and not width / 64."""
    arrays = {"patch_embed.proj.weight": np.broadcast_to(0.0, (width, 3, 14, 14)), "norm.weight": np.zeros(width)}
    arrays |= {f"blocks.{i}.norm1.weight": np.zeros(1) for i in range(depth)}
    arrays |= {"blocks.0.mlp.fc1.weight": np.broadcast_to(0.0, (4 * width, width))}
    arrays |= {"blocks.0.mlp.fc2.weight": np.broadcast_to(0.0, (width, 4 * width))}
    described = {"model_type": torch_timm.VIT, "place": "", "known": {}}
    assert torch_timm.options(huggingface.Pretrained(arrays, described, MEAN, STD))["variant"] == variant


def test_a_file_that_says_too_little_is_refused(vit, tmp_path):
    arrays, _, renamed = vit
    place = save(tmp_path / "a.pth", {"model": renamed})
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no preprocessor_config.json, so its normalisation is unknown"):
        trained.load(place)
    with pytest.raises(ValueError, match="no ViT or ConvNeXt under timm's names and no ResNet under torchvision's"):
        families.read(save(tmp_path / "b.pth", {"model": arrays}))
    twice = {f"{place}.{name}": array for name, array in renamed.items() for place in ("left", "right")}
    with pytest.raises(ValueError, match=r"several encoders, at \['left.', 'right.'\]"):
        families.read(save(tmp_path / "c.pth", twice))
    deep = {**renamed, "norm_pre.weight": np.zeros(64, np.float32)}
    with pytest.raises(ValueError, match="norm_pre or no norm"):
        torch_timm.options(families.read(save(tmp_path / "d.pth", deep)))


def test_what_is_hostile_or_broken_ends_in_a_sentence(vit, tmp_path):
    """Nothing in a folder is run: no pickle's code, no module that its config names."""
    arrays, config, renamed = vit
    (tmp_path / "remote.py").write_text("raise SystemExit('run')")
    mapped = {**config, "auto_map": {"AutoModel": "remote.Model"}, "model_type": "remote"}

    def folder(name, **changes):
        huggingface.write(tmp_path / name, {**arrays, **changes}, config, 0.5, 0.25)
        return tmp_path / name

    (folder("mapped") / "config.json").write_text(json.dumps(mapped))
    (folder("cut") / "model.safetensors").write_bytes((tmp_path / "mapped/model.safetensors").read_bytes()[:5000])
    (folder("outside") / "model.safetensors").unlink()
    index = {"weight_map": {"layernorm.weight": "../mapped/model.safetensors"}}
    (tmp_path / "outside/model.safetensors.index.json").write_text(json.dumps(index))
    (folder("no_map") / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "no_map/model.safetensors.index.json").write_text("{}")
    without_mlp = {key: value for key, value in config.items() if key != "intermediate_size"}
    (folder("no_mlp") / "config.json").write_text(json.dumps(without_mlp))
    (folder("list") / "config.json").write_text("[1, 2]")
    (folder("no_json") / "config.json").write_bytes(b"\x80\x04broken")
    nan = np.full(64, np.nan, np.float32)
    for place, said in [
        (tmp_path / "mapped", "of type 'remote'; expected"),
        (tmp_path / "cut", "cannot be read"),
        (tmp_path / "outside", "not files of its folder"),
        (tmp_path / "no_map", "index.json lacks the key 'weight_map'"),
        (tmp_path / "no_mlp", "config.json lacks the key 'intermediate_size'"),
        (tmp_path / "list", "holds a list and no object of keys"),
        (tmp_path / "no_json", "config.json is damaged"),
        (
            folder("nan", **{"layernorm.weight": nan}),
            "NaN or infinite numbers in 1 arrays, such as .'layernorm.weight'",
        ),
        (folder("shape", **{"layernorm.weight": np.zeros(3, np.float32)}), r"layernorm.weight has the shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            trained.load(place)

    class Code:
        def __reduce__(self):
            return exec, ("raise SystemExit('run')",)

    torch.save({"model": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="it wants to run .*exec, and is not let"):
        trained.load(tmp_path / "code.pth")
