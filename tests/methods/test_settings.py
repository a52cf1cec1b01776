"""Settings that name nothing or are no number of anything are refused when a method is made, not when it is traced."""

import pytest
from ml_collections import ConfigDict

from cxrjax import methods
from cxrjax.methods import settings
from tests import runs

WORDS = [
    ("spcl", "partition.scheme", "organ", "partition.scheme must be 'random', 'block' or 'checkerboard', got 'organ'"),
    ("spcl", "partition.embed", "some", "partition.embed must be 'kept' or 'all', got 'some'"),
    ("spcl", "head.kind", "conv", "head.kind must be 'none', 'linear' or 'mlp', got 'conv'"),
    ("spcl", "loss.form", "triplet", "loss.form must be 'symmetric' or 'nt_xent', got 'triplet'"),
    ("spcl", "loss.similarity", "dot", "loss.similarity must be 'cosine' or 'tsp', got 'dot'"),
    ("spcl", "standardise.mode", "none", "standardise.mode must be 'fixed' or 'per_image', got 'none'"),
    ("spcl", "model.remat", "some", "remat must be one of none, dots, full, got 'some'"),
    ("spcl", "model.positions", "rows", "positions must be one of sincos, sincos_rows, learned, rope, got 'rows'"),
    ("spcl", "model.patch_px", 5, "Pictures of 32 px cannot be cut into patches of 5 px"),
    ("spcxr", "model.initialisation", "moco_v3", "model.initialisation must be 'normal' or 'xavier', got 'moco_v3'"),
    ("simclr", "projector.norm", "group", "projector.norm must be 'batch', 'layer' or 'none', got 'group'"),
    ("simclr", "augment.brightness_kind", "power", "brightness_kind must be 'factor' or 'offset', got 'power'"),
    ("byol", "target_start", "random", "target_start must be 'copy' or 'independent', got 'random'"),
    ("dino", "loss.assignment", "swav", "loss.assignment must be 'centre' or 'sinkhorn', got 'swav'"),
    ("mae", "masking.embed", "some", "masking.embed must be 'kept' or 'all', got 'some'"),
    ("supervised", "task", "ranking", "task must be 'multilabel' or 'multiclass', got 'ranking'"),
    ("supervised", "encoder", "fixed", "encoder must be one of 'learned', 'frozen', 'drifting', got 'fixed'"),
    ("detect", "loss.assign", "all", "loss.assign must be 'best_prior' or 'best_of_level', got 'all'"),
    ("detect", "head.score", "sum", "head.score must be one of product, object, got 'sum'"),
    ("detect", "head.scales", (2, 4), r"scales are of 4, 2, 1, 0.5, from the finest on, got \(2, 4\)"),
    ("convirt", "loss.form", "hinge", "loss.form must be 'info_nce' or 'sigmoid', got 'hinge'"),
    ("convirt", "text.pool", "sum", "text.pool must be one of cls, mean, max, got 'sum'"),
    ("convirt", "text.frozen_layers", 3, "text.frozen_layers is 3; of the 2 layers of 'test' 0 to 2 can be"),
    ("convirt", "text.length", 600, "text.length must be from 3 to 512 tokens, got 600"),
    ("gloria", "loss.aggregate", "max", "loss.aggregate must be 'sum' or 'mean', got 'max'"),
    ("mgca", "loss.weights", "max", "loss.weights must be 'cls' or 'uniform', got 'max'"),
    ("sista", "loss.mode", "hard", "loss.mode must be 'soft', 'mask', .* or 'info_nce', got 'hard'"),
    ("sista", "loss.direction", "both", "loss.direction must be 'mean' or 'sum', got 'both'"),
    ("sista", "loss.average", "pairs", "loss.average must be 'reports', 'all_reports' or 'words', got 'pairs'"),
    (
        "frontal_lateral",
        "lateral.variant",
        "G",
        "there is no Swin 'G'; there are swin_T, swin_S",
    ),
    ("frontal_lateral", "lateral.standardise.mode", "none", "lateral.standardise.mode must be 'fixed' or 'per_image'"),
]

NUMBERS = [
    ("spcl", "loss.temperature", 0.0, "loss.temperature must be a number above 0, got 0.0"),
    ("spcl", "loss.groups", 3, "loss.groups = 3 does not divide batch_size = 16; choose one of 1, 2, 4, 8, 16"),
    ("spcxr", "corruption.groups", 0, "corruption.groups must be a whole number from 1 on, got 0"),
    ("spcxr", "contrast.weight", -1.0, "contrast.weight must be a number from 0 on, got -1.0"),
    ("mlvicx", "levels.grid", 0, "levels.grid must be a whole number from 1 on, got 0"),
    ("mlvicx", "heads.sizes", (8, 0), r"heads.sizes must be a whole number from 1 on, got \(8, 0\)"),
    ("simclr", "projector.layers", 0, "projector.layers must be a whole number from 1 on, got 0"),
    ("moco_v3", "predictor.layers", 0, "predictor.layers must be a whole number from 1 on, got 0"),
    ("byol", "momentum", 1.5, "momentum must be a number from 0 to 1, got 1.5"),
    ("vicreg", "expander.sizes", (), r"expander.sizes must be a whole number from 1 on, got \(\)"),
    ("barlow_twins", "loss.lambd", -0.1, "loss.lambd must be a number from 0 on, got -0.1"),
    ("dino", "prototypes", 0, "prototypes must be a whole number from 1 on, got 0"),
    ("dino", "loss.warmup_share", 2.0, "loss.warmup_share must be a number from 0 to 1, got 2.0"),
    ("mae", "decoder.heads", 3, "decoder.width must be a multiple of decoder.heads and of 4, got .* and 3"),
    ("supervised", "loss.smoothing", -0.5, "loss.smoothing must be a number from 0 to 1, got -0.5"),
    ("segment", "loss.gamma", -2.0, "loss.gamma must be a number from 0 on, got -2.0"),
    ("detect", "boxes.most", 0, "boxes.most must be a whole number from 1 on, got 0"),
    ("convirt", "head.layers", 0, "head.layers must be a whole number from 1 on, got 0"),
    ("convirt", "loss.chunks", 5, "loss.chunks = 5 does not divide batch_size = 16"),
    ("gloria", "loss.pair_scale", 0.0, "loss.pair_scale must be a number above 0, got 0.0"),
    ("mgca", "prototypes.count", 0, "prototypes.count must be a whole number from 1 on, got 0"),
    ("sista", "loss.sparsity", 1.5, "loss.sparsity must be a number from 0 to 1, got 1.5"),
    ("frontal_lateral", "decoder.heads", 3, "decoder.heads = 3 do not divide width = 32"),
    ("frontal_lateral", "masking.beside", 1.1, "masking.beside must be a number from 0 to 1, got 1.1"),
]


@pytest.mark.parametrize(("method", "key", "value", "message"), WORDS + NUMBERS)
def test_a_method_is_not_made_of(method, key, value, message):
    config = runs.config(method)
    config.duration.total_steps = 4
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        methods.make(config)


def test_settings_that_exclude_each_other():
    for changes, message in (
        ({"loss__mask_same_patient": True, "loss__groups": 2}, "mask_same_patient .* needs loss.groups = 1"),
        ({"model__pool": "mean"}, "needs model.pool='cls'"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.make(runs.config("spcl", **changes))
    with pytest.raises(ValueError, match="'triage' needs loss.neutral ≤ loss.threshold, got 0.9 and 0.5"):
        methods.make(runs.config("sista", loss__mode="triage", loss__threshold=0.5))


def test_what_passes():
    """Values of every kind, placeholders that are not set, and sequences."""
    config = ConfigDict({"batch_size": 12, "a": {"word": "x", "n": 3, "many": (1, 2), "none": None, "f": 0.5}})
    settings.one_of(config, "a.word", ("x",))
    settings.counts(config, "a.n", "a.many", "a.none")
    settings.positive(config, "a.f", "a.n")
    settings.shares(config, "a.f", "a.none")
    settings.weights(config, "a.f")
    settings.slices(config, "a.n")
    with pytest.raises(ValueError, match="a.word must be 'y', got 'x'"):
        settings.one_of(config, "a.word", ("y",))
    for wrong in ("a.f", "a.word"):
        with pytest.raises(ValueError, match=f"{wrong} must be a whole number"):
            settings.counts(config, wrong)
