"""Traced counts against the closed form, to the last digit, and the closed form against the published integers."""

import jax
import jax.numpy as jnp
import pytest

from cxrjax import methods
from cxrjax.models.vit import ViT
from cxrjax.speed import flops
from tests import runs

B16 = flops.encoder("B")


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_closed_form_gives_the_integers_of_vit_b():
    assert B16.whole() == 17_563_060_224
    assert [flops.spcl(B16, k, k).forward for k in (98, 49, 19, 9)] == [
        17_293_971_456,
        8_701_231_104,
        3_527_737_344,
        1_817_985_024,
    ]
    assert flops.spcl(B16, 98, 98).train == 51_766_308_864
    assert flops.spcl(B16, 19, 19).train == 10_467_606_528
    assert flops.simclr(B16, head=0).forward == 35_126_120_448
    assert flops.simclr(B16).forward == 35_127_496_704
    assert flops.moco_v3(B16).forward == 70_340_321_280
    assert flops.mae(B16, 49).forward == 9_781_133_312
    assert flops.mae(B16, 19).forward == 7_182_589_952
    assert flops.mae(B16, 49, decoder_depth=2).forward == 5_824_440_320


def test_ratios_and_the_break_even_with_mae():
    ours, mae = flops.spcl(B16, 98, 98), flops.mae(B16, 49)
    assert flops.simclr(B16, head=0).forward / ours.forward == pytest.approx(2.031, abs=5e-4)
    assert flops.moco_v3(B16).forward / ours.forward == pytest.approx(4.067, abs=5e-4)
    assert mae.forward / ours.forward == pytest.approx(0.566, abs=5e-4)
    assert flops.moco_v3(B16).train == pytest.approx(140.45e9, rel=1e-4)
    assert flops.spcl(B16, 55, 55).forward < mae.forward < flops.spcl(B16, 56, 56).forward
    shortcut = flops.spcl(B16, 98, 98, cls_shortcut=True).forward
    assert ours.forward - shortcut == pytest.approx(1.186e9, abs=5e5)


def test_plain_vit_traced():
    encoder = ViT(variant="B", channels=3)
    images = struct(2, 224, 224, 3)
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)
    assert flops.count(encoder.apply, params, images) == (2 * B16.whole(), 0)


@pytest.mark.parametrize(
    ("keep", "split", "embed", "shortcut"),
    [(1.0, 0.5, "all", False), (0.2, 0.5, "all", False), (0.2, 0.5, "kept", True), (1.0, 0.25, "kept", True)],
)
def test_spcl_traced_forward_and_backward(keep, split, embed, shortcut):
    config = runs.config(
        words="",
        model__variant="B",
        model__image_px=224,
        model__patch_px=16,
        model__remat="none",
        partition__keep_ratio=keep,
        partition__split_ratio=split,
        partition__embed=embed,
        cls_shortcut=shortcut,
    )
    method = methods.make(config)
    batch = {"image": struct(4, 1, 224, 224, 3, dtype=jnp.uint8), "patient": struct(4, dtype=jnp.int32)}
    key = jax.random.key(0)
    params, state = jax.eval_shape(method.init, key, batch)

    def forward(params, batch):
        return method.loss(params, state, batch, key, 0)[0]

    kept = round(196 * keep) // 2 * 2
    parts = (kept // 2, kept // 2) if split == 0.5 else (49, 147)
    expected = flops.spcl(B16, *parts, embedded=196 if embed == "all" else sum(parts), cls_shortcut=shortcut)
    found = flops.count(forward, params, batch)
    assert found.single == 4 * expected.forward
    assert found.pairwise > 0
    assert flops.count(jax.grad(forward), params, batch).single == 4 * expected.train


def test_loops_branches_and_scopes():
    x, w = struct(5, 3), struct(3, 3)

    def program(x, w):
        x, _ = jax.lax.scan(jax.checkpoint(lambda c, _: (jnp.tanh(c @ w), None)), x, length=7)
        x = jax.lax.cond(x[0, 0] > 0, lambda a: a @ w @ w, lambda a: a @ w, x)
        with jax.named_scope("pairwise"):
            return jax.jit(jnp.matmul)(x, x.T).sum()

    product = 5 * 3 * 3
    assert flops.count(program, x, w) == (7 * product + 2 * product, 5 * 5 * 3)
    assert flops.count(jax.grad(program), x, w).pairwise == 3 * 5 * 5 * 3

    def loop(x, w):
        return jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="unknown length"):
        flops.count(loop, x, w)


@pytest.mark.parametrize(("groups", "stride", "px"), [(1, 1, 8), (1, 2, 8), (1, 2, 7), (4, 2, 8)])
def test_convolutions_cost_the_same_forward_and_for_either_gradient(groups, stride, px):
    images, kernel = struct(2, px, px, 8), struct(3, 3, 8 // groups, 12)

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    side = -(-px // stride)
    macs = 2 * side * side * 9 * (8 // groups) * 12
    assert flops.count(convolve, images, kernel).single == macs
    kernel_gradient = jax.grad(lambda k, x: convolve(x, k).sum())
    assert flops.count(kernel_gradient, kernel, images).single == 2 * macs
    both = flops.count(jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1)), images, kernel).single
    assert both == pytest.approx(3 * macs, rel=0.12 if px % stride else 0)


def test_shard_map_counts_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    product = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    assert flops.count(product, struct(16, 3), struct(3, 5)).single == 16 * 3 * 5


def test_table_has_a_row_per_method():
    assert "| MoCo v3 | 18.476 | 70.340 | 246.307 |" in flops.table()
