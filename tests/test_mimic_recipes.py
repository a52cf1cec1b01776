"""The image–text configs on a converted MIMIC-CXR: every recipe finds its studies, its words and its pictures."""

import jax
import numpy as np
import pytest

from cxrjax import train
from cxrjax.datasets import mimic_cxr
from tests import official, runs
from tests.datasets.test_mimic_cxr import download

METHODS = ("convirt", "gloria", "mgca", "sista", "frontal_lateral")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimic_cxr")
    return official.convert(mimic_cxr.manifest(download(folder)), folder / "converted").conversion.directory


@pytest.mark.parametrize("name", METHODS)
def test_recipe_reads_studies_and_traces(name, converted):
    config = runs.config(name, "mimic_cxr,smoke", data__sets=str(converted), batch_size=8)
    for entry in config.evals.values():
        entry.set = str(converted)
    run = train.build(config)
    batch = run.batches[0]
    whole = run.sources[0]
    said = [run.method.joint.words(whole[number]["report"]).lower() for number in range(len(whole))]
    assert len(said) == 2 and any("nothing was invented" in text for text in said)
    assert batch["text_mask"].any(axis=1).all() and batch["image"].std(axis=(1, 2, 3, 4)).min() > 0
    if name == "frontal_lateral":
        both = batch["has_lateral"]
        assert 0 < both.sum() < len(both)
        assert batch["image"][both, 1].any(axis=(1, 2, 3)).all() and not batch["image"][~both, 1].any()
    state, scalars = jax.eval_shape(run.step, run.abstract, batch)
    assert jax.tree.structure(state) == jax.tree.structure(run.abstract)
    assert np.shape(scalars["train/loss"]) == ()
