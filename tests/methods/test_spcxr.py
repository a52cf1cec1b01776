"""SPCXR: the whole forward against PyTorch, tokens, optimizer, contrast, learning."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

from cxrjax import methods, optim
from cxrjax.imaging import pixels
from cxrjax.input import pipeline
from cxrjax.losses import masked
from cxrjax.methods import spcxr
from cxrjax.models.decoders import PixelHead
from cxrjax.models.vit import ViT
from tests import runs
from tests.methods.conftest import smooth_pictures

# Nothing random but the blocks: 8 × 8 patches of 4 px, two blocks.
PLAIN = {
    "model.drop_path": 0.0,
    "augment.jitter": 0.0,
    "augment.blur": 0.0,
    "views.scale": (1.0, 1.0),
    "views.flip": 0.0,
}


def variant(**changes):
    config = runs.config("spcxr")
    config.update_from_flattened_dict(PLAIN | {key.replace("__", "."): value for key, value in changes.items()})
    return methods.make(config)


def batch_of(method, pictures, seed=0):
    rng = np.random.default_rng(seed)
    names = {"set": "", "image_id": "", "patient_id": "", "study_id": ""}
    rows = [method.views({"image": pixels.encode(p, "png"), **names}, rng) for p in pictures[:, 0, :, :, 0]]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def noisy(shapes, seed=0):
    """Parameters of a size at which every one of them shows in the output."""
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        return np.float32(path[-1].key == "scale") + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(noise, shapes)


def torch_gmml(params, images, fill, heads, patch, blocks):
    """GMML's forward and loss written from its description: blocks set to 0, b v h w 1 → the masked L1."""
    tree = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)
    encoder, decoder = tree["encoder"], tree["decoder"]
    hidden = torch.tensor(fill > 0).reshape(-1, 1, *fill.shape[2:4])
    clean = (torch.tensor(images).reshape(hidden.shape) / 255 - 0.4978) / 0.2449  # bv 1 h w
    corrupted = clean * ~hidden
    width, side = encoder["cls"].shape[0], clean.shape[-1] // patch

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def norm(x, p):
        return F.layer_norm(x, (width,), p["scale"], p["bias"], 1e-6)

    x = linear(F.unfold(corrupted, patch, stride=patch).transpose(1, 2), encoder["patch_embed"]) + encoder["pos_embed"]
    x = torch.cat([encoder["cls"].expand(len(x), 1, -1), x], dim=1)
    streams = []
    for i in range(encoder["blocks"]["norm1"]["scale"].shape[0]):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], encoder["blocks"])
        qkv = (
            linear(norm(x, p["norm1"]), p["attention"]["qkv"])
            .reshape(*x.shape[:2], 3, heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        attended = torch.softmax(qkv[0] @ qkv[1].transpose(-1, -2) / qkv.shape[-1] ** 0.5, dim=-1) @ qkv[2]
        x = x + linear(attended.transpose(1, 2).flatten(2), p["attention"]["out"])
        x = x + linear(F.gelu(linear(norm(x, p["norm2"]), p["mlp"]["fc1"])), p["mlp"]["fc2"])
        streams.append(x)
    y = norm(torch.stack([streams[i - 1] for i in blocks]).mean(0), encoder["norm"])[:, 1:]
    for name in ("fc1", "fc2", "fc3"):
        y = F.gelu(linear(y, decoder[name]))
    maps = y.transpose(1, 2).unflatten(2, (side, side))
    restored = F.conv_transpose2d(
        maps, decoder["pixels"]["kernel"].permute(0, 3, 1, 2), decoder["pixels"]["bias"], patch
    )
    loss = (restored - clean).abs()[hidden].mean()
    loss.backward()
    return loss.item(), jax.tree.map(lambda leaf: leaf.grad.numpy(), tree)


def test_whole_forward_and_gradient_are_pytorchs():
    method = variant(corruption__kinds="zeros", corruption__donor_share=0.0)
    batch = batch_of(method, smooth_pictures(4, 32))
    params, _ = noisy(jax.eval_shape(method.init, jax.random.key(0), batch))

    def objective(params):
        return method.loss(params, {}, batch, jax.random.key(0), 0)

    (loss, aux), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    expected, slopes = torch_gmml(params, batch["image"], batch["fill"], heads=2, patch=4, blocks=(1, 2))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), gradient, slopes)
    assert float(aux.monitors["hidden"]) == pytest.approx((batch["fill"] > 0).mean())
    clean = (batch["image"] / 255 - 0.4978) / 0.2449
    assert float(aux.monitors["copy_error"]) == pytest.approx(np.abs(clean)[batch["fill"] > 0].mean(), rel=1e-5)


def test_three_channels_of_one_picture_are_its_one():
    """A head that gives every pixel three times has the loss of a head that gives it once, and so has the copy."""
    one, three = variant(), variant(decoder__channels=3)
    batch = batch_of(one, smooth_pictures(4, 32))
    shapes = jax.eval_shape(one.init, jax.random.key(0), batch)[0]
    wanted = jax.eval_shape(three.init, jax.random.key(0), batch)[0]
    params = noisy(shapes)

    def repeated(leaf, target):
        axis = next((i for i, (a, b) in enumerate(zip(leaf.shape, target.shape, strict=True)) if a != b), None)
        return leaf if axis is None else np.repeat(leaf, target.shape[axis] // leaf.shape[axis], axis=axis)

    found = [
        jax.jit(method.loss)(of_it, {}, batch, jax.random.key(0), 0)
        for method, of_it in ((one, params), (three, jax.tree.map(repeated, params, wanted)))
    ]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    assert float(found[0][1].monitors["copy_error"]) == pytest.approx(float(found[1][1].monitors["copy_error"]))


def test_recons_blocks():
    assert spcxr.recons_blocks("spread", 12) == (6, 8, 10, 12)
    assert [spcxr.recons_blocks("spread", depth) for depth in (2, 4, 24)] == [(1, 2), (2, 3, 4), (12, 16, 20, 24)]
    assert spcxr.recons_blocks("last", 12) == (12,) and spcxr.recons_blocks("3, 6", 12) == (3, 6)
    for words in ("", "6,13", "0", "6,6", "six"):
        with pytest.raises(ValueError, match="different numbers from 1 to 12"):
            spcxr.recons_blocks(words, 12)


@pytest.fixture(scope="module")
def encoder():
    vit, images = (
        ViT("test", patch_px=8, image_px=32, positions="learned"),
        jax.random.normal(jax.random.key(0), (2, 32, 32, 1)),
    )
    params = noisy(jax.eval_shape(vit.init, jax.random.key(0), images)["params"])
    apply = jax.jit(lambda params, images: vit.apply({"params": params}, images, intermediates=True))
    return apply, params, images


def silenced(params, *names):
    """The same parameters, with 0 for those of these parts of every block."""
    changed = jax.tree.map_with_path(
        lambda path, leaf: leaf * 0 if any(name in jax.tree_util.keystr(path) for name in names) else leaf,
        params["blocks"],
    )
    return params | {"blocks": changed}


def test_averaged_tokens(encoder):
    """The last block alone gives the encoder's own patches; blocks that change nothing LN(patches + positions)."""
    apply, params, images = encoder
    out = apply(params, images)
    np.testing.assert_allclose(spcxr.averaged_tokens(params["norm"], out["blocks"], (2,)), out["patches"], atol=1e-5)
    idle = silenced(params, "out", "fc2")
    found = spcxr.averaged_tokens(params["norm"], apply(idle, images)["blocks"], (1, 2))
    patches = np.asarray(images).reshape(2, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(2, 16, 64)
    x = patches @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"] + params["pos_embed"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, x * params["norm"]["scale"] + params["norm"]["bias"], atol=1e-4)


def test_tokens_follow_their_patches_where_there_are_no_positions(encoder):
    apply, params, images = encoder
    params = params | {"pos_embed": np.zeros_like(params["pos_embed"])}
    order = np.random.default_rng(0).permutation(16)
    cells = np.asarray(images).reshape(2, 4, 8, 4, 8, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 8, 8, 1)
    moved = cells[:, order].reshape(2, 4, 4, 8, 8, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 32, 32, 1)
    straight, shuffled = (
        spcxr.averaged_tokens(params["norm"], apply(params, x)["blocks"], (1, 2)) for x in (images, moved)
    )
    np.testing.assert_allclose(straight[:, order], shuffled, atol=1e-5)


def test_cls_learns_through_attention_only(encoder):
    """Its own row is dropped."""
    apply, params, images = encoder

    def slope(params):
        def objective(cls):
            blocks = apply(params | {"cls": cls}, images)["blocks"]
            return (spcxr.averaged_tokens(params["norm"], blocks, (1, 2)) ** 3).sum()

        return np.abs(jax.grad(objective)(params["cls"])).max()

    assert slope(params) > 1e-3
    assert slope(silenced(params, "attention")) == 0


def test_parameters_of_vit_s():
    """21 665 664 with a position for [CLS]: 384 numbers, which beside its own value we leave out."""
    vit = ViT("S", positions="learned", channels=3)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) + 384 == 21_665_664
    tokens, grey = jnp.zeros((1, 196, 384)), PixelHead(16, 1)
    shapes = jax.eval_shape(lambda key: grey.init(key, tokens, (14, 14)), jax.random.key(0))
    # One grey channel instead of three: 738 435 less two thirds of the deconvolution.
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 738_435 - 2 * (384 * 256 + 1)


def test_schedules_of_the_recipe():
    """lr from 0 to the base within the warm-up, to 1e-6 at the end; decay 0.04 to 0.4, not of 1-D parameters."""
    config = runs.config("spcxr", "chestxray14")
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    epoch = 10
    transformation, report = optim.make(config.optim, params, 800 * epoch, config.batch_size, epoch)
    lr, wd = (lambda step, name=name: float(report(step)[name]) for name in ("lr", "wd"))
    assert lr(0) == 0 and lr(99) == lr(100) == pytest.approx(5e-4) and lr(98) < lr(99)
    assert (
        lr(7999) == pytest.approx(1e-6, abs=1e-9)
        and wd(0) == pytest.approx(0.04)
        and wd(7999) == pytest.approx(0.4, abs=1e-6)
    )
    state = optax.tree.set(transformation.init(params), count=np.int32(4000))
    updates, _ = transformation.update(jax.tree.map(np.zeros_like, params), state, params)
    np.testing.assert_allclose(updates["kernel"], -lr(4000) * wd(4000), rtol=1e-5)
    assert not np.any(updates["bias"])


@pytest.mark.parametrize(
    "changes",
    [
        {
            "recons_blocks": "last",
            "model__pool": "cls",
            "model__dtype": "bfloat16",
            "corruption__kinds": "noise,zeros,image",
            "corruption__align": 4,
            "corruption__sampler": "uniform",
        },
        {
            "corruption__groups": 4,
            "corruption__self_donor": True,
            "loss__groups": 4,
            "standardise__mode": "per_image",
            "model__drop_path": 0.1,
            "model__initialisation": "normal",
            "augment__jitter": 1.0,
            "views__scale": (0.2, 1.0),
        },
    ],
)
def test_every_option_trains(changes):
    method = variant(**changes)
    batch = batch_of(method, smooth_pictures(8, 48))
    params, state = noisy(jax.eval_shape(method.init, jax.random.key(0), batch))

    def objective(params):
        return method.loss(params, state, batch, jax.random.key(0), 0)

    (loss, _), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert 0 < float(loss) < 2
    idle = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)]
    assert not idle and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_contrast_is_sits():
    """Each corrupted view's [CLS] finds the other clean view's, times 2τ; the momentum copy follows the encoder."""
    config = runs.config("spcxr", "sit,smoke")
    config.update_from_flattened_dict(PLAIN | {"corruption.donor_share": 0.0})
    method = methods.make(config)
    batch = batch_of(method, smooth_pictures(8, 32))
    one, other = batch["image"][:, 0], batch["image"][:, 1]
    batch["image"] = np.stack([one, other[:, :, ::-1]], axis=1)  # else both views are the whole picture
    params, state = noisy(jax.eval_shape(method.init, jax.random.key(0), batch))

    def objective(params):
        return method.loss(params, state, batch, jax.random.key(0), 0)

    (loss, aux), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert float(loss) == pytest.approx(float(aux.terms["reconstruction"] + aux.terms["contrast"]), rel=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["projector"]) if leaf.ndim > 1)

    clean = ((batch["image"] / 255 - 0.4978) / 0.2449).astype(np.float32)
    encoder = jax.jit(ViT("test", patch_px=4, image_px=32, positions="learned").apply)

    def vectors(params, images):
        x = torch.tensor(np.asarray(encoder({"params": params["encoder"]}, images.reshape(-1, 32, 32, 1))["cls"]))
        p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params["projector"])
        for i in (1, 2, 3):
            x = x @ p[f"fc{i}"]["kernel"] + p[f"fc{i}"]["bias"]
            affine = () if i == 3 else (p[f"norm{i}"]["scale"], p[f"norm{i}"]["bias"])
            x = F.batch_norm(x, None, None, *affine, training=True)
            x = x if i == 3 else F.gelu(x)
        return F.normalize(x).reshape(8, 2, -1).transpose(0, 1)

    q, k = vectors(params, clean * (batch["fill"] == 0)), vectors(state["target"], clean)
    expected = sum(F.cross_entropy(q[i] @ k[1 - i].T / 0.2, torch.arange(8)) * 2 * 0.2 for i in (0, 1))
    assert float(aux.terms["contrast"]) == pytest.approx(float(expected), rel=1e-4)
    before, moved = (s["batch_stats"]["projector"]["norm1"]["mean"] for s in (state, aux.state))
    assert np.all(before != moved)

    after = method.after(params, aux.state, 0)["target"]
    jax.tree.map(
        lambda new, old, online: np.testing.assert_allclose(new, 0.996 * old + 0.004 * online, atol=1e-6),
        *(after, state["target"], {name: params[name] for name in after}),
    )


def test_hosts_together_draw_what_one_draws():
    """The blocks and crops of a batch do not depend on the number of hosts; views and steps differ."""
    method = methods.make(runs.config("spcxr"))
    names = {"set": "", "patient_id": "", "study_id": ""}
    pictures = enumerate(smooth_pictures(8, 48)[:, 0, :, :, 0])
    examples = [{"image": pixels.encode(picture, "png"), "image_id": f"{i}", **names} for i, picture in pictures]

    def host(index, count):
        return pipeline.dataset([examples], None, method.views, 8, 0, index, count)

    whole, halves = host(0, 1)[1], [host(index, 2)[1] for index in (0, 1)]
    for name, rows in whole.items():
        np.testing.assert_array_equal(rows, np.concatenate([half[name] for half in halves]))
        assert (rows[:, 0] != rows[:, 1]).any(axis=(1, 2, 3)).all()
    assert (whole["fill"] != host(0, 1)[2]["fill"]).any(axis=(1, 2, 3, 4)).all()


def test_unknown_words_are_explained():
    with pytest.raises(ValueError, match="model.pool='max'.*pools: 'cls', 'mean'"):
        variant(model__pool="max")
    with pytest.raises(ValueError, match="align 16 must divide the 32 px"):
        variant(corruption__align=16)


def train(method, pictures, steps, fresh):
    """Parameters and losses of Adam steps; fresh: noise new in every step, and blocks from eight draws by turns."""
    batches = [batch_of(method, pictures, seed) for seed in range(8 if fresh else 1)]
    params, state = jax.jit(method.init)(jax.random.key(0), batches[0])
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, opt_state, batch, key):
        loss, gradient = jax.value_and_grad(lambda params: method.loss(params, state, batch, key, 0)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = optimizer.init(params), []
    for i in range(steps):
        key = jax.random.key(i if fresh else 0)
        params, opt_state, loss = step(params, opt_state, batches[i % len(batches)], key)
        losses.append(float(loss))
    return params, losses


@pytest.mark.slow
def test_overfits_8_pictures():
    """With the blocks kept, the error falls below 0.1."""
    _, losses = train(variant(), smooth_pictures(8, 32), 200, fresh=False)
    assert losses[0] > 0.5 and losses[-1] < 0.1


@pytest.mark.slow
def test_restores_unseen_pictures_and_learns_less_from_another_pictures_mask(monkeypatch):
    """On held-out pictures better than their mean and than a copy of the input; worse from mixed up masks."""
    method, honest = variant(), masked.l1
    held_out = smooth_pictures(48, 32, seed=1)
    batch = batch_of(method, held_out, seed=99)
    clean = (batch["image"] / 255 - 0.4978) / 0.2449
    mean_error = honest(np.broadcast_to(clean.mean(axis=(2, 3), keepdims=True), clean.shape), clean, batch["fill"] > 0)

    def mixed_up(prediction, target, mask, groups=1):
        return honest(prediction, target, jnp.roll(mask, 1, axis=0), groups)

    errors = {}
    for name, loss in (("honest", honest), ("mixed up", mixed_up)):
        monkeypatch.setattr(masked, "l1", loss)
        params, _ = train(method, smooth_pictures(24, 32), 130, fresh=True)
        monkeypatch.setattr(masked, "l1", honest)
        scalar, aux = jax.jit(lambda params: method.loss(params, {}, batch, jax.random.key(9), 0))(params)  # noqa: B023
        errors[name] = float(scalar)
    assert errors["honest"] < 0.9 * float(mean_error) and errors["honest"] < 0.6 * float(aux.monitors["copy_error"])
    assert errors["mixed up"] > 1.08 * errors["honest"]
