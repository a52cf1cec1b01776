"""The Vision Transformer on subsets of tokens: positions, reach, symmetries, counts, and its options."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import posemb
from cxrjax.models.vit import ViT

VIT = ViT("test", patch_px=8, image_px=32)  # 16 tokens


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 32, 32, 1))


@pytest.fixture(scope="module")
def params(images):
    return jax.jit(VIT.init)(jax.random.key(0), images)


@functools.cache
def compiled(vit, options):
    return jax.jit(lambda params, images, ids, paths: vit.apply(params, images, ids, paths=paths, **dict(options)))


def apply(params, images, ids=None, vit=VIT, key=None, **options):
    paths = None if key is None else vit.paths(key, len(images))
    return compiled(vit, tuple(options.items()))(params, images, ids, paths)


def test_sincos_table_is_maes():
    """Written out from MAE's get_2d_sincos_pos_embed: w half first; sin before cos."""
    p, q, d = 3, 5, 16
    table = posemb.sincos_2d((p, q), d)
    for row in range(p):
        for column in range(q):
            for i in range(d // 4):
                omega = 1 / 10000 ** (i / (d / 4))
                expected = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
                np.testing.assert_allclose(table[row * q + column, i :: d // 4], expected, atol=1e-6)


def test_moco_v3_has_the_rows_first():
    maes, mocos = (posemb.fixed(name, (3, 5), 16) for name in ("sincos", "sincos_rows"))
    np.testing.assert_array_equal(mocos, np.concatenate([maes[:, 8:], maes[:, :8]], axis=1))
    assert posemb.fixed("learned", (3, 5), 16) is None
    with pytest.raises(ValueError, match="positions must be one of sincos, sincos_rows, learned, got 'rows'"):
        posemb.fixed("rows", (3, 5), 16)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_positions_are_resized_as_torch_does(offset):
    """DINO's code asks for a scale of (new + 0.1) / old, others for a size: 28 % apart on noise."""
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((14 * 14, 8), np.float32)
    grid = torch.from_numpy(table).reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    asked = {"scale_factor": (6 + offset) / 14} if offset else {"size": 6}
    theirs = torch.nn.functional.interpolate(grid, mode="bicubic", **asked)[0].permute(1, 2, 0).reshape(36, 8)
    np.testing.assert_allclose(posemb.resize(table, (14, 14), (6, 6), offset), theirs, atol=1e-5)


def test_learned_positions_resize_to_another_grid():
    smooth = np.linspace(0, 1, 8)[:, None, None] + np.linspace(0, 2, 8)[None, :, None]
    resized = posemb.resize(jnp.asarray(smooth.reshape(64, 1)), (8, 8), (16, 16)).reshape(16, 16)
    # A ramp keeps its slope at half the step, taken over two: torch's kernel (a = −0.75) ripples with that period.
    np.testing.assert_allclose(resized[6:-4] - resized[4:-6], 2 / 14, rtol=1e-4)
    np.testing.assert_allclose(resized[:, 6:-4] - resized[:, 4:-6], 4 / 14, rtol=1e-4)
    np.testing.assert_allclose(posemb.resize(jnp.ones((64, 1)), (8, 8), (5, 11)), 1, atol=1e-6)


def test_layer_norm_has_maes_epsilon():
    """[CLS] of variance 1e-6, which no block changes, is divided by √2e-6."""
    model, images = ViT("test", 8, 16), np.zeros((1, 16, 16, 1), np.float32)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0), images))
    cls = 1e-3 * np.tile([1.0, -1.0], 32)
    params["params"] |= {"cls": cls, "norm": {"scale": np.ones(64), "bias": np.zeros(64)}}
    np.testing.assert_allclose(model.apply(params, images)["cls"][0], cls / 2e-6**0.5, rtol=1e-4)


def test_trainable_parameter_count_of_vit_b():
    shapes = jax.eval_shape(ViT("B").init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 85_647_360


def test_initialisations(images):
    """Deviations of xavier: √(2/(in + out)), for moco_v3 of q, k and v alone; of normal: 0.02, and 1/√(3·64) for the
    patch embedding."""
    xavier = (2 / 128) ** 0.5
    for kind, qkv, embedding, cls in (
        ("xavier", (2 / 256) ** 0.5, xavier, 0.02),
        ("moco_v3", xavier, xavier, 1e-6),
        ("normal", 0.02, 192**-0.5, 0.02),
        ("i_jepa", 0.02, 0.02, 0.02),
        ("dinov2", 0.02, 192**-0.5, 1e-6),
    ):
        params = VIT.clone(initialisation=kind).init(jax.random.key(0), images)["params"]
        assert float(params["cls"].std()) == pytest.approx(cls, rel=0.3)
        assert float(params["blocks"]["attention"]["qkv"]["kernel"].std()) == pytest.approx(qkv, rel=0.03)
        assert float(params["patch_embed"]["kernel"].std()) == pytest.approx(embedding, rel=0.05)
    with pytest.raises(ValueError, match="one of xavier, normal, i_jepa, dinov2, moco_v3, got 'zeros'"):
        VIT.clone(initialisation="zeros").init(jax.random.key(0), images)


def test_dropping_cls_leaves_the_patches_to_themselves(params, images):
    """No output for [CLS], other patches than with it, and none that depend on its value."""
    out = apply(params, images, drop_cls=True, intermediates=True)
    assert set(out) == {"patches", "blocks"} and out["blocks"].shape == (2, 3, 16, 64)
    assert np.abs(out["patches"] - apply(params, images)["patches"]).max() > 1e-3
    moved = {"params": params["params"] | {"cls": params["params"]["cls"] + 1}}
    np.testing.assert_array_equal(apply(moved, images, drop_cls=True)["patches"], out["patches"])


def test_positions_belong_to_the_token(params, images):
    """With a zero patch embedding, and blocks that pass their input on, token t is row ids[t] of the table."""
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["params"]["norm"]["scale"] += 1
    ids = jnp.asarray([[5, 0, 11], [2, 3, 4], [15, 14, 1]])
    table = posemb.sincos_2d((4, 4), 64)
    normalised = (table - table.mean(-1, keepdims=True)) / np.sqrt(table.var(-1, keepdims=True) + 1e-6)
    for embed in ("kept", "all"):
        patches = apply(silent, images, ids, embed=embed)["patches"]
        np.testing.assert_allclose(patches, normalised[np.asarray(ids)], atol=1e-5)


def test_rotary_positions_belong_to_the_token_too(params, images):
    """Kept tokens in another order are the same tokens, and another order of patches is another picture."""
    turned = VIT.clone(positions="rope", registers=1)
    params = {"params": {**params["params"], "registers": jnp.ones((1, 64))}}
    order = jax.random.permutation(jax.random.key(2), 16)
    ids = jnp.stack([jnp.arange(16), order])[None].repeat(3, axis=0)  # b v n
    patches = jax.jit(turned.apply)(params, images, ids)["patches"]
    np.testing.assert_allclose(patches[:, 1], patches[:, 0][:, order], atol=1e-5)
    angles = np.asarray(turned.angles((4, 4)))
    assert len(np.unique(angles.round(4), axis=0)) == 16
    np.testing.assert_allclose(angles[0], -angles[15], atol=1e-5)


def test_embedding_only_what_is_kept_changes_nothing(params, images):
    ids = jax.random.permutation(jax.random.key(2), 16)[:6] * jnp.ones((3, 1), int)
    kept, every = (apply(params, images, ids, embed=embed) for embed in ("kept", "all"))
    np.testing.assert_allclose(kept["patches"], every["patches"], atol=1e-5)


def test_views_do_not_see_each_other_or_dropped_patches(params, images):
    """A patch reaches the view that holds it and nothing else; a dropped one has no gradient."""
    ids = jnp.stack([jnp.arange(0, 5), jnp.arange(5, 10)])[None].repeat(3, axis=0)  # b v n; tokens 10–15 dropped

    def views(x):
        return apply(params, x, ids)["cls"]

    before = views(images)
    of_second = views(images.at[:, 8:16, 8:16].add(1.0))  # token 5
    assert np.abs(of_second - before)[:, 0].max() == 0
    assert np.abs(of_second - before)[:, 1].max() > 1e-3
    gradient = jax.grad(lambda x: views(x).sum())(images)
    assert np.abs(gradient[:, 24:]).max() == 0 and np.abs(gradient[:, :8]).max() > 0


def test_token_order_is_irrelevant_to_cls(params, images):
    """[CLS] is invariant, patch outputs are equivariant."""
    ids = jnp.arange(10)[None].repeat(3, axis=0)
    order = jax.random.permutation(jax.random.key(3), 10)
    straight, shuffled = apply(params, images, ids), apply(params, images, ids[:, order])
    np.testing.assert_allclose(straight["cls"], shuffled["cls"], atol=1e-5)
    np.testing.assert_allclose(straight["patches"][:, order], shuffled["patches"], atol=1e-5)


def test_two_views_in_one_call_are_two_calls(params, images):
    """Un-merging must give view v of picture i, not another pairing."""
    ids = jnp.stack([jnp.arange(8), jnp.arange(8, 16)])[None].repeat(3, axis=0)
    both = apply(params, images, ids)["cls"]
    for view in (0, 1):
        np.testing.assert_allclose(both[:, view], apply(params, images, ids[:, view])["cls"], atol=1e-5)


def test_last_block_trains_keys_and_values_through_cls(params, images):
    """The last block's patch outputs are not read, its queries, keys and values are."""
    gradient = jax.grad(lambda p: apply(p, images)["cls"][:, 0].sum())(params)["params"]["blocks"]
    last_qkv = gradient["attention"]["qkv"]["kernel"][-1]
    assert all(np.abs(last_qkv[:, i * 64 : (i + 1) * 64]).max() > 0 for i in range(3))


def test_cls_shortcut_is_exact_in_value_and_gradient(params, images):
    def value(p, shortcut):
        return (apply(p, images, cls_only=shortcut)["cls"] ** 3).sum()

    assert float(value(params, True)) == pytest.approx(float(value(params, False)), rel=1e-5)
    short, full = (jax.grad(value)(params, shortcut) for shortcut in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), short, full)
    assert "patches" not in apply(params, images, cls_only=True)


def test_the_cls_shortcut_copies_the_blocks_in_the_dtype_of_the_computation_only(params, images):
    vit = VIT.clone(dtype=jnp.bfloat16)

    def loss(params):
        return vit.apply(params, images, cls_only=True)["cls"].sum()

    traced = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert "bf16[1,64,192]" in traced  # qkv of all blocks but the last, and of the last
    assert "f32[1,64,192]" not in traced


@pytest.mark.parametrize("options", [{"remat": "none"}, {"remat": "full"}, {"unroll": True, "remat": "none"}])
def test_scan_remat_and_loop_agree(params, images, options):
    def gradient(vit):
        return jax.jit(jax.grad(lambda p: (vit.apply(p, images)["cls"] ** 3).sum()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradient(VIT), gradient(VIT.clone(**options))
    )


def test_intermediates_are_the_outputs_of_every_block(params, images):
    out = apply(params, images, intermediates=True)
    assert out["blocks"].shape == (2, 3, 17, 64)
    last = out["blocks"][-1]
    normalised = (last - last.mean(-1, keepdims=True)) / jnp.sqrt(last.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out["patches"], normalised[:, 1:], atol=1e-4)


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean(params, images):
    vit = VIT.clone(drop_path=0.5)
    np.testing.assert_array_equal(apply(params, images, vit=vit)["cls"], apply(params, images)["cls"])
    keys = jax.random.split(jax.random.key(5), 400)
    first = jax.jit(jax.vmap(lambda k: apply(params, images, vit=vit, key=k, intermediates=True)["blocks"]))(keys)
    # The first block never drops; the residual of the second is 0 or doubled, half of the time each.
    np.testing.assert_allclose(first[:, 0].std(axis=0), 0, atol=1e-5)
    unchanged = np.abs(first[:, 1] - first[:, 0]).max(axis=(2, 3)) == 0
    assert 0.18 < unchanged.mean() < 0.32  # both branches dropped: 1/4
    factors = np.asarray(vit.paths(jax.random.key(5), 64))  # b l 2
    assert set(factors[:, 0].ravel()) == {1.0}
    assert all(set(factors[:, 1, branch]) == {0.0, 2.0} for branch in (0, 1))  # each picture for itself


def test_views_of_a_picture_drop_paths_of_their_own(params, images):
    vit = VIT.clone(drop_path=0.5)
    paths = vit.paths(jax.random.key(5), 3, 2)
    assert paths.shape == (3, 2, 2, 2) and VIT.paths(jax.random.key(5), 3, 2) is None
    np.testing.assert_array_equal(paths.reshape(6, 2, 2), vit.paths(jax.random.key(5), 6))
    ids = jnp.broadcast_to(jnp.arange(16), (3, 2, 16))
    run = compiled(vit, ())
    both, second = run(params, images, ids, paths)["cls"], run(params, images, None, paths[:, 1])["cls"]
    np.testing.assert_allclose(both[:, 1], second, atol=1e-5)


def test_bfloat16_stays_close_and_returns_float32(params, images):
    out = apply(params, images, vit=VIT.clone(dtype=jnp.bfloat16))
    assert out["cls"].dtype == jnp.float32
    np.testing.assert_allclose(out["cls"], apply(params, images)["cls"], atol=0.1)


def test_other_picture_sizes_and_impossible_ones(params, images):
    assert apply(params, jnp.zeros((1, 48, 32, 1)))["patches"].shape == (1, 24, 64)
    with pytest.raises(ValueError, match="do not divide into patches of 8 px"):
        apply(params, jnp.zeros((1, 30, 32, 1)))


def test_learned_positions_are_parameters_and_fixed_ones_are_not(params, images):
    learned = jax.eval_shape(VIT.clone(positions="learned").init, jax.random.key(0), images)["params"]
    assert learned["pos_embed"].shape == (16, 64)
    assert "pos_embed" not in params["params"]


FULL = ViT("test", 8, 32, registers=3, layer_scale=1e-5, cls_position=True, mask_token=True, positions="learned")


@pytest.fixture(scope="module")
def full(images):
    """Parameters of FULL, all of them noise."""
    shapes = jax.eval_shape(FULL.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)}


def test_parameters_are_those_of_dinov2():
    """DINOv2's own, of three channels: S/14 at 224 px, B/14 at 224 and 518 px, with four registers, and L/14."""
    options = {"channels": 3, "positions": "learned", "cls_position": True, "mask_token": True, "layer_scale": 1e-5}
    counted = []
    for variant, px, registers in (("S", 224, 0), ("B", 224, 0), ("B", 518, 0), ("B", 518, 4), ("L", 224, 0)):
        model = ViT(variant, 14, px, registers=registers, **options)
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, px, px, 3)))
        counted.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)))
    assert counted == [21_629_184, 85_725_696, 86_580_480, 86_583_552, 303_228_928]
    swiglu = jax.eval_shape(ViT("L", ffn="swiglu").init, jax.random.key(0), np.zeros((1, 224, 224, 1)))["params"]
    assert swiglu["blocks"]["mlp"]["fc2"]["kernel"].shape == (24, 2736, 1024)


def test_layer_scale_starts_with_almost_nothing(images):
    params = jax.jit(FULL.init)(jax.random.key(0), images)
    assert np.all(params["params"]["blocks"]["layer_scale1"]["scale"] == np.float32(1e-5))
    blocks = apply(params, images, vit=FULL, intermediates=True)["blocks"]
    assert blocks.shape == (2, 3, 1 + 3 + 16, 64)
    assert np.abs(blocks[1] - blocks[0]).max() < 1e-3 * np.abs(blocks[0][:, 4:]).max()


def test_registers_have_no_order_and_no_position(full, images):
    """Permuted rows give permuted outputs, and leave [CLS] and patches as they were."""
    permuted = {"params": {**full["params"], "registers": full["params"]["registers"][::-1]}}
    one, other = (apply(params, images, vit=FULL, intermediates=True) for params in (full, permuted))
    for name in ("cls", "patches"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)
    np.testing.assert_allclose(one["blocks"][:, :, 1:4], other["blocks"][:, :, 3:0:-1], atol=1e-5)
    assert np.abs(one["blocks"][:, :, 1] - one["blocks"][:, :, 2]).max() > 1e-2


def test_hidden_patches_show_nothing_of_their_pixels(full, images):
    """With no attention a hidden place depends on its position only; with it others see the mask token there."""
    mask = np.arange(16)[None] % 3 == np.arange(3)[:, None]
    run = jax.jit(lambda params, images: FULL.apply(params, images, mask=mask))
    deaf = jax.tree.map_with_path(lambda k, x: 0 * x if any(p.key == "attention" for p in k) else x, full)
    one, other = run(deaf, images)["patches"], run(deaf, images + 1)["patches"]
    np.testing.assert_array_equal(one[mask], other[mask])
    assert np.abs(one - other)[~mask].min(axis=1).max() > 1e-5
    assert np.abs(run(full, images)["cls"] - apply(full, images, vit=FULL)["cls"]).max() > 1e-5
    with pytest.raises(ValueError, match="mask_token=True"):
        jax.eval_shape(lambda i: VIT.init(jax.random.key(0), i, mask=mask), images)
    with pytest.raises(ValueError, match="give one of them"):
        jax.eval_shape(lambda i: FULL.apply(full, i, mask[:, :4] * 1, mask=mask), images)


def test_tokens_that_are_not_there_reach_nothing(full, images):
    """Of kept tokens the first so many: value of [CLS] and of those, and no gradient through the rest."""
    ids = np.stack([np.random.default_rng(s).permutation(16)[:7] for s in range(3)])
    lengths = jnp.array([5, 7, 2])

    @jax.jit
    def run(params, images, ids):
        return FULL.apply(params, images, ids, lengths=lengths)

    found, other = run(full, images, ids), run(full, images, np.where(np.arange(7) < lengths[:, None], ids, 0))
    np.testing.assert_array_equal(found["cls"], other["cls"])
    alone = apply(full, images[:1], ids[:1, :5], vit=FULL)
    np.testing.assert_allclose(found["cls"][0], alone["cls"][0], atol=1e-5)
    np.testing.assert_allclose(found["patches"][0, :5], alone["patches"][0], atol=1e-5)


def test_stochastic_depth_of_a_subset_and_alike_in_all_blocks():
    """⌊b (1 − rate)⌋ of b pictures keep a branch, at b over that; one at least. Uniform: the first block drops too."""
    subset = ViT("mini", drop_path=0.4, drop_path_shape="uniform", drop_path_subset=True)
    paths = np.asarray(subset.paths(jax.random.key(0), 8))  # b l 2
    assert paths.shape == (8, 4, 2)
    np.testing.assert_allclose(np.sort(paths, axis=0)[:, 0, 0], [0] * 4 + [2] * 4)
    assert np.all((paths > 0).sum(axis=0) == 4)
    assert len({branch.tobytes() for branch in paths.reshape(8, 8).T}) > 1
    np.testing.assert_array_equal(subset.paths(jax.random.key(0), 1), np.ones((1, 4, 2)))
    each = np.asarray(ViT("mini", drop_path=0.4, drop_path_shape="uniform").paths(jax.random.key(0), 4000))
    np.testing.assert_allclose((each > 0).mean(axis=0), 0.6, atol=0.03)
    with pytest.raises(ValueError, match="drop_path_shape must be one of linear, uniform, got 'flat'"):
        ViT(drop_path_shape="flat").check()


@pytest.mark.parametrize("side", [3, 9])
def test_positions_are_resized_with_antialiasing_as_torch_does(side):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((49, 8), np.float32)
    grid = torch.from_numpy(table).reshape(1, 7, 7, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=side, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    found = posemb.resize(table, (7, 7), (side, side), antialias=True)
    np.testing.assert_allclose(found, theirs.reshape(-1, 8), atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_a_patch_alone_is_read_by_its_own_value(pool, images):
    """MaskCLIP's last block, x + W_o v and its MLP, in which no patch sees another; or the pool on one patch."""
    vit = ViT("test", patch_px=8, image_px=32, attention_pool=pool, eps=1e-5)
    params = jax.jit(vit.init)(jax.random.key(0), images)
    found = jax.jit(lambda *given: vit.apply(*given, alone=True))(params, images)
    whole = vit.apply(params, images, intermediates=True)
    for name in whole.keys() - {"blocks"}:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-6)
    p = jax.tree.map(np.asarray, params["params"])

    def norm(x, given):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * given["scale"] + given["bias"]

    def linear(x, given, columns=slice(None)):
        return x @ given["kernel"][:, columns] + given["bias"][columns]

    def mlp(x, given):
        return linear(np.asarray(jax.nn.gelu(linear(x, given["fc1"]), approximate=False)), given["fc2"])

    if pool:
        y = linear(linear(np.asarray(whole["patches"]), p["pool"]["kv"], slice(64, None)), p["pool"]["out"])
        expected = y + mlp(norm(y, p["pool"]["norm"]), p["pool"]["mlp"])
    else:
        x, last = np.asarray(whole["blocks"])[-2, :, 1:], jax.tree.map(lambda leaf: leaf[-1], p["blocks"])
        value = linear(norm(x, last["norm1"]), last["attention"]["qkv"], slice(128, None))
        x = x + linear(value, last["attention"]["out"])
        expected = norm(x + mlp(norm(x, last["norm2"]), last["mlp"]), p["norm"])
    np.testing.assert_allclose(found["alone"], expected, atol=1e-5)
    assert np.abs(found["alone"] - found["patches"]).max() > 0.1
