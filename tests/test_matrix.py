"""Every family of encoders that others trained × (probe, fine-tune, segment, embed, export and read again)."""

import json
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pandas
import pytest

from cxrjax import config as shared
from cxrjax import embed, evaluate, export, initial, methods, train, trained
from cxrjax.interop import families, torch_timm
from cxrjax.models import backbone, posemb
from tests import runs
from tests.interop import test_families as made
from tests.interop.test_families import vit  # noqa: F401  a fixture

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CLIP = {"vision_config": made.SIZE, "text_config": made.TEXT}
FOLDERS = {
    **made.CASES,
    "vit": lambda t: t.ViTModel(t.ViTConfig(**made.SIZE)),
    "vit_mae": lambda t: t.ViTMAEModel(t.ViTMAEConfig(**made.SIZE)),
    "dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**made.SIZE)),
    "dinov2_with_registers": lambda t: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**made.SIZE)),
    "clip_vision_model": lambda t: t.CLIPVisionModel(t.CLIPVisionConfig(**made.SIZE)),
    "siglip_vision_model": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**made.SIZE)),
}
FILES = ("vit_file", "convnext_file", "resnet_file")
NO_MASKS = "masks take a ViT or a ResNet"
EXPORTED = ("vit", "vit_mae", "dinov2", "dinov2_with_registers", "resnet", "vit_file", "resnet_file")
"""The others have no folder of ours to leave in, which is said."""


def arrival(name, place, of_timm):
    """The folder or the file of an encoder of random weights. of_timm: arrays of a ViT by timm's names."""
    px = 64 if name.removesuffix("_file").endswith(made.MAPS) else 32
    processor = {"size": {"height": px, "width": px}}
    if name in FOLDERS:
        return made.written(place / name, FOLDERS[name](transformers), processor)
    if name == "vit_file":
        found = made.save(place / f"{name}.pth", {"model": of_timm})
    elif name == "convnext_file":
        made.written(place / "same", FOLDERS["convnext"](transformers).convnext)
        arrays = made.huggingface.weights(place / "same")
        found = made.save(place / f"{name}.pth", {made._timm_convnext(key): value for key, value in arrays.items()})
    else:
        from cxrjax.interop import torch_resnet

        runs.write(place / "ours", runs.config("simclr", model__variant="resnet_test"))
        ours = trained.load(place / "ours")
        arrays = torch_resnet.to_torchvision(ours.params["encoder"], ours.state["batch_stats"]["encoder"])
        found = made.save(place / f"{name}.pth", {key: np.asarray(array) for key, array in arrays.items()})
    same = {"image_mean": [0.4978] * 3, "image_std": [0.2449] * 3}
    (place / "preprocessor_config.json").write_text(json.dumps(same | processor))
    return found


def head(name, place):
    """The config of two steps that start from an encoder."""
    config = runs.config(name, "", init_from=str(place), batch_size=8)
    config.duration.total_steps = 2
    config.optim.warmup_steps = 1
    config.data.projections = ""
    config.evals, config.checkpoint.best_metric = {}, ""
    if "drop_path" in config.model:
        config.model.drop_path = 0.0
    config = initial.of_run(config)
    if name == "segment" and backbone.kind(config.model.variant) == "ViT":
        config.head.update({"kind": "setr_pup", "features": 8})  # UNETR takes three blocks of patches of 8 px
    return config


def started(config, expected):
    """Whether the encoder starts as it arrived, but for its first layer, which sees other numbers of channels."""
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    found = initial._named_encoders(config, SimpleNamespace(params=params, state=state))["encoder"]
    ours, theirs = (
        {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, expected)
    )
    theirs.pop("['mask_token']", None)  # which whole pictures never meet
    same = [np.array_equal(ours[key], leaf) for key, leaf in theirs.items()]
    assert sum(same) >= len(theirs) - 2


def embedded(name, place, here, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (here.method.image_px,) * 2, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    embed.embed(place, [tmp_path / "a.png"], tmp_path / "f.parquet", batch_size=8, patches="float32")
    found = pandas.read_parquet(tmp_path / "f.parquet").embedding[0]
    expected = jax.jit(here.method.encode)(here.params, here.state, picture[None, :, :, None])
    scale = max(1, np.abs(expected["pooled"]).max())
    np.testing.assert_allclose(found, expected["pooled"][0], atol=1e-5 * scale)
    np.testing.assert_allclose(
        np.load(tmp_path / "f.patches" / "00000.npy")[0], expected["patches"][0], atol=1e-4 * scale
    )


def exported(name, place, here, tmp_path):
    if name not in EXPORTED:
        with pytest.raises(ValueError, match="only these can be exported|which no ViT of Hugging Face has"):
            export.export(place, tmp_path / "again")
        return
    export.export(place, tmp_path / "again")
    again = trained.load(tmp_path / "again")
    ours, theirs = dict(here.params["encoder"]), again.params["encoder"]
    if "pos_embed" in set(ours) - set(theirs):  # numbers of a fixed table, which a folder comes back with as one
        side = again.config.model.image_px // again.config.model.patch_px
        table = posemb.fixed(again.config.model.positions, (side, side), ours["cls"].shape[-1])
        np.testing.assert_array_equal(ours.pop("pos_embed"), table)
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    jax.tree.map(np.testing.assert_array_equal, again.state, here.state)


def test_no_family_is_left_out():
    of_files = {torch_timm.VIT, torch_timm.RESNET, *torch_timm.FIRST}
    assert set(families.FAMILIES) <= of_files | {"dinov3_vit" if name == "dinov3" else name for name in FOLDERS}


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
def test_what_needs_no_compilation(name, tmp_path, monkeypatch):
    """One family that is exported and one that is not."""
    monkeypatch.setattr(export, "can_compare", lambda: False)
    place = arrival(name, tmp_path, None)
    here = trained.load(place)
    exported(name, place, here, tmp_path)
    for method in ("finetune", "segment"):
        started(head(method, place), here.params["encoder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_every_cell(name, vit, phantom_dir, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)  # all of its time is compilation
    place = arrival(name, tmp_path, vit[-1])
    here = trained.load(place)
    embedded(name, place, here, tmp_path)
    exported(name, place, here, tmp_path)
    config = runs.config("eval_probe", checkpoint=str(place), references="")
    (found,) = evaluate.run(config).values()
    assert 0 <= found[place.name].metrics["auroc"].value <= 1
    for method in ("finetune", "segment"):
        config = head(method, place)
        if method == "segment" and ("convnext" in name or name == "swin"):
            with pytest.raises(ValueError, match=NO_MASKS):
                methods.make(config)
            continue
        started(config, here.params["encoder"])
        (tmp_path / method).mkdir()
        (tmp_path / method / "config.json").write_text(shared.to_json(config))
        train.fit(config, tmp_path / method)
        tuned = trained.load(tmp_path / method)
        assert tuned.step == 2
        if name in EXPORTED:
            export.export(tmp_path / method, tmp_path / f"{method}-again")
