"""Distillation: teachers are what was read, at their own size and scale, and a step is its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import checkpoint, initial, lineage, methods, parallel, trained
from cxrjax.interop import huggingface, torch_vit
from cxrjax.methods.distill import largest, resized
from cxrjax.models import posemb
from tests import runs
from tests.methods import oracles
from tests.test_initial import TrainState


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of a ResNet that sees 16 px, one of a ViT, and what an export of the ViT would be."""
    folder = tmp_path_factory.mktemp("teachers")
    config = runs.config("simclr", model__variant="resnet_test", model__image_px=16, standardise__mean=0.4)
    runs.write(folder / "resnet", config, seed=1)
    config = runs.config("mae", standardise__mean=0.3, model__pool="cls")
    learned = runs.write(folder / "vit", config, seed=2)["encoder"]
    table = posemb.sincos_2d((8, 8), 64)
    exported = torch_vit.to_huggingface(learned, heads=2, patch_px=4, image_px=32, position_table=table)
    huggingface.write(folder / "exported", *exported, 0.3, 0.2449)
    return folder


def started(config):
    """The method, and noise in which the teachers are those of the config's folders."""
    method = methods.make(config)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    state = TrainState(*(oracles.noise(tree, seed) for seed, tree in enumerate(shapes)))
    abstract = parallel.abstract(jax.eval_shape(lambda: state), parallel.make_mesh({"data": 1}))
    return method, initial.initialise(initial.encoders(config, abstract), state, abstract)


@pytest.fixture(scope="module")
def step(folders):
    config = oracles.config("distill", loss__pooled__smooth_l1=0.25, loss__patches__cosine=0.5)
    config.teachers.init_from = f"{folders / 'resnet'}, {folders / 'exported'}"
    config = initial.of_run(config)
    method, (params, state) = started(config)
    batch = {"image": oracles.pictures(6, views=1)}
    prepared = jax.jit(method.parts.prepare)(batch, jax.random.key(0))
    features, _ = jax.jit(method.parts.embed)(params, state, prepared)
    return config, method, params, state, batch, prepared, features


def test_teachers_are_the_runs_and_the_folders(step, folders):
    """Their vectors are what the runs encode, of the same pictures at the size that each was trained on."""
    config, *_, batch, _, features = step
    assert [network.model.image_px for _, network in sorted(config.teachers.networks.items())] == [16, 32]
    for number, name in enumerate(("resnet", "vit")):
        learned = trained.load(folders / name)
        grey = resized(batch["image"][:, 0] / np.float32(255), learned.method.image_px)
        expected = jax.jit(learned.method.encode)(learned.params, learned.state, grey)
        found = features["targets"][str(number)]
        oracles.close(found["pooled"], expected["pooled"])
        oracles.close(found["patches"], resized(expected["patches"], 8))
    assert expected["patches"].shape[1:3] == (8, 8) and found["patches"].std() > 0.1


def test_a_step_is_its_terms(step):
    config, method, params, state, _, prepared, features = step
    _, aux = jax.jit(method.parts.loss_of)(params, state, features, prepared, 0)
    expected = dict.fromkeys(aux.terms, 0.0)
    for number, targets in features["targets"].items():
        for kind, target in targets.items():
            fc1, norm, fc2 = (
                {name: torch.tensor(np.asarray(leaf)) for name, leaf in params["heads"][number][kind][layer].items()}
                for layer in ("fc1", "norm1", "fc2")
            )
            x = torch.tensor(np.asarray(features["student"][kind])) @ fc1["kernel"] + fc1["bias"]
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], norm["scale"], norm["bias"])
            x = torch.nn.functional.gelu(x) @ fc2["kernel"] + fc2["bias"]
            target, weights = np.asarray(target), config.loss[kind]
            others = tuple(range(target.ndim - 1))
            target = torch.tensor((target - target.mean(others)) / np.sqrt(target.var(others) + 1e-6))
            cosine = (1 - torch.nn.functional.cosine_similarity(x, target, dim=-1)).mean()
            expected[f"{kind}_cosine"] += weights.cosine * cosine
            expected[f"{kind}_smooth_l1"] += weights.smooth_l1 * torch.nn.functional.smooth_l1_loss(x, target)
    assert expected.keys() == aux.terms.keys()
    for name, value in aux.terms.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-4) and value > 0


def test_sizes_of_model_and_teachers_have_one_aspect():
    assert largest({"model": 32, "0": [48, 48]}) == (48, 48)
    assert largest({"model": (96, 64), "0": (48, 32)}) == (96, 64)
    with pytest.raises(ValueError, match=r"must have one aspect, got 48 x 32 \(model\), 32 \(0\); give teachers"):
        largest({"model": (48, 32), "0": 32})


def test_the_same_picture_at_another_size():
    """Means where it shrinks, so that no pixel is lost; and nothing where it has the size."""
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    assert resized(x, 8) is x
    assert resized(x, 4, 2).shape == (2, 4, 2, 3)
    np.testing.assert_allclose(resized(x, 4).mean(), x.mean(), rtol=1e-2)
    lit = jnp.zeros((1, 9, 9, 1)).at[0, 0, 0].set(1.0)  # between the centres that no antialiasing would look at
    assert float(resized(lit, 3).sum()) > 0.05


def test_what_teaches_is_in_the_lineage(folders):
    config = runs.config("distill", teachers__init_from=f"{folders / 'resnet'},{folders / 'exported'}")
    run, folder = lineage.of(config)
    assert (run["part"], run["method"], run["sets"]) == ("teacher", "simclr", ["phantom_smoke"])
    assert (folder["part"], folder["kind"]) == ("teacher", "hugging_face")
    assert all(sentence.startswith("Teacher: ") for sentence in lineage.sentences([run, folder]))


def test_all_teachers_may_see_another_size(folders):
    config = runs.config("distill", model__dtype="bfloat16", teachers__image_px=16)
    config.teachers.init_from = str(folders / "exported")
    config = initial.of_run(config)
    model = config.teachers.networks["0"].model
    assert (model.image_px, model.patch_px, model.dtype, model.variant) == (16, 4, "bfloat16", "test")
    _, start = started(config)
    assert start.state["frozen"]["teachers"]["0"]["params"]["blocks"]["attention"]["out"]["kernel"].shape[0] == 2


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(ValueError, match="nobody to learn from: give --config.teachers.init_from=FOLDER"):
        methods.make(runs.config("distill", ""))
    with pytest.raises(checkpoint.CheckpointNotFound, match="teachers.init_from=.*there is no such folder"):
        initial.of_run(runs.config("distill", teachers__init_from=str(tmp_path / "gone")))
