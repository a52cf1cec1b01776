"""MAE: what is hidden, what the decoder restores, and a whole step against Hugging Face's ViTMAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import benchmark, methods, optim
from cxrjax.imaging import pixels
from cxrjax.input import crops, device
from cxrjax.methods import mae
from cxrjax.models import posemb
from cxrjax.models.mae_decoder import MAEDecoder
from cxrjax.models.transformer import Block
from cxrjax.models.vit import ViT
from cxrjax.speed import cost
from tests import runs
from tests.methods import oracles
from tests.methods.conftest import smooth_pictures


@pytest.mark.parametrize(
    ("n", "ratio", "kept"), [(196, 0.75, 49), (196, 0.9, 19), (64, 0.75, 16), (64, 0.9, 6), (100, 0.8, 20), (4, 0.5, 2)]
)
def test_kept_patches(n, ratio, kept):
    """Of 224 px in patches of 16, the papers' 25 % and 10 %."""
    assert mae.kept_patches(n, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99, 1.5, -0.5])
def test_impossible_masks_are_explained(ratio):
    with pytest.raises(ValueError, match=f"masking.ratio {ratio} leaves .* of 16 patches"):
        mae.kept_patches(16, ratio)


def test_masking_is_a_permutation_cut_in_two():
    ids_keep, ids_restore, hidden = (np.asarray(x) for x in mae.masking(jax.random.key(0), 50, 196, 49))
    assert ids_keep.shape == (50, 49) and ids_keep.dtype == ids_restore.dtype == np.int32
    np.testing.assert_array_equal(np.sort(ids_restore, axis=1), np.tile(np.arange(196), (50, 1)))
    for kept, restore, row in zip(ids_keep, ids_restore, hidden, strict=True):
        assert set(kept) == set(np.flatnonzero(~row)) and row.sum() == 147
        np.testing.assert_array_equal(restore[kept], np.arange(49))


def test_masks_are_uniform_and_drawn_per_picture():
    """Each patch is hidden with probability ρ, two patches together as in draws without replacement."""
    draw = jax.jit(lambda key: mae.masking(key, 20_000, 64, 16)[2])
    hidden = np.asarray(draw(jax.random.key(0)))
    assert np.abs(hidden.mean(axis=0) - 0.75).max() < 0.015
    covariance = np.cov(hidden[:, :20].T.astype(float))
    assert covariance[~np.eye(20, dtype=bool)].mean() == pytest.approx(48 * 47 / (64 * 63) - 0.75**2, abs=5e-4)
    assert len(np.unique(hidden[:1000], axis=0)) == 1000
    assert (hidden != np.asarray(draw(jax.random.key(1)))).any()


def test_decoder_puts_every_token_at_its_place():
    """The sequence is laid out patch by patch, and the blocks run one after the other."""
    decoder, (b, n, kept, d) = MAEDecoder(values=5, width=16, depth=2, heads=2), (3, 12, 5, 8)
    ids_keep, ids_restore, _ = mae.masking(jax.random.key(0), b, n, kept)
    cls, tokens = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(b, d), (b, kept, d)]))
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cls, tokens, ids_restore, (3, 4)))
    params = oracles.noise(shapes)["params"]
    found = decoder.apply({"params": params}, cls, tokens, ids_restore, (3, 4))

    def embed(x):
        return x @ params["embed"]["kernel"] + params["embed"]["bias"]

    sequence = np.empty((b, n, 16), np.float32)
    sequence[:] = params["mask_token"]
    for i in range(b):
        for j in range(kept):
            sequence[i, ids_keep[i, j]] = embed(tokens[i, j])
    sequence += posemb.sincos_2d((3, 4), 16)
    x = np.concatenate([np.asarray(embed(cls))[:, None], sequence], axis=1)
    for i in range(2):
        x = Block(2).apply({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])}, x)
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    expected = (x @ params["pixels"]["kernel"] + params["pixels"]["bias"])[:, 1:]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"ids_restore places 12 patches, but a grid of \(4, 4\) has 16"):
        decoder.apply({"params": params}, cls, tokens, ids_restore, (4, 4))


def hugging_face(config):
    """Their ViTMAE with the sizes of a config."""
    transformers = pytest.importorskip("transformers")
    model, decoder, size = config.model, config.decoder, ViT(config.model.variant).size
    built = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            layer_norm_eps=1e-6,
            image_size=model.image_px,
            patch_size=model.patch_px,
            num_channels=1,
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=4 * decoder.width,
            mask_ratio=config.masking.ratio,
            norm_pix_loss=config.loss.normalise,
        )
    )
    # transformers 5.23 leaves the fixed tables at zero; that the layout is MAE's is tested with the ViT.
    side = model.image_px // model.patch_px
    for table in (built.vit.embeddings.position_embeddings, built.decoder.decoder_pos_embed):
        table.data[0, 1:] = table.new_tensor(posemb.sincos_2d((side, side), table.shape[-1]))
    return built


def tensors(model):
    """Their tensors by our names, each with the function that brings one, or its gradient, into our layout."""
    found = {}

    def linear(name, *modules):
        found[f"{name}/kernel"] = [m.weight for m in modules], lambda *w: np.concatenate([x.T for x in w], axis=1)
        found[f"{name}/bias"] = [m.bias for m in modules], lambda *b: np.concatenate(b)

    def norm(name, module):
        found[f"{name}/scale"], found[f"{name}/bias"] = ([module.weight], np.asarray), ([module.bias], np.asarray)

    def blocks(name, layers):
        for i, layer in enumerate(layers):
            attention, block = layer.attention, f"{name}/blocks/{i}"
            norm(f"{block}/norm1", layer.layernorm_before)
            norm(f"{block}/norm2", layer.layernorm_after)
            linear(f"{block}/attention/qkv", attention.q_proj, attention.k_proj, attention.v_proj)
            linear(f"{block}/attention/out", attention.o_proj)
            linear(f"{block}/mlp/fc1", layer.mlp.fc1)
            linear(f"{block}/mlp/fc2", layer.mlp.fc2)

    vit, decoder = model.vit, model.decoder
    projection = vit.embeddings.patch_embeddings.projection
    found["encoder/cls"] = [vit.embeddings.cls_token], np.ravel
    found["encoder/patch_embed/kernel"] = (
        [projection.weight],
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    )
    found["encoder/patch_embed/bias"] = [projection.bias], np.asarray
    blocks("encoder", vit.layers)
    norm("encoder/norm", vit.layernorm)
    linear("decoder/embed", decoder.decoder_embed)
    found["decoder/mask_token"] = [decoder.mask_token], np.ravel
    blocks("decoder", decoder.decoder_layers)
    norm("decoder/norm", decoder.decoder_norm)
    linear("decoder/pixels", decoder.decoder_pred)
    return found


def tree_of(found, value):
    """Our parameter tree out of their tensors: `value` of each, blocks stacked."""
    flat = {name: layout(*(value(tensor).numpy() for tensor in parts)) for name, (parts, layout) in found.items()}
    tree = {}
    for name, array in flat.items():
        if "/blocks/" in name:
            tower, rest = name.split("/blocks/")
            i, part = rest.split("/", 1)
            if i != "0":
                continue
            depth = sum(key.startswith(f"{tower}/blocks/") and key.endswith(f"/{part}") for key in flat)
            name, array = f"{tower}/blocks/{part}", np.stack([flat[f"{tower}/blocks/{j}/{part}"] for j in range(depth)])
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


@pytest.mark.parametrize(
    ("words", "changes"), [("smoke", {}), ("smoke,medical_mae", {"masking__embed": "all", "decoder__depth": 2})]
)
def test_a_step_is_hugging_faces(batch, monkeypatch, words, changes):
    """Loss and gradient of every parameter under the same mask, target normalised or not."""
    torch = pytest.importorskip("torch")
    config = runs.config("mae", words, **changes)
    method, theirs = methods.make(config), hugging_face(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    found = tensors(theirs)
    params = tree_of(found, torch.Tensor.detach)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)[0]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def objective(params):
        return method.loss(params, {}, batch, jax.random.key(3), 0)[0]

    masks = mae.masking(jax.random.key(7), 16, 64, mae.kept_patches(64, config.masking.ratio))
    monkeypatch.setattr(mae, "masking", lambda *_: masks)
    loss, gradient = jax.jit(jax.value_and_grad(objective))(params)
    images = np.asarray(device.standardise(batch["image"][:, 0], **config.standardise)).transpose(0, 3, 1, 2)
    out = theirs(torch.tensor(images), noise=torch.tensor(np.asarray(masks[1], np.float32)))
    out.loss.backward()
    assert float(loss) == pytest.approx(out.loss.item(), rel=1e-5)
    jax.tree.map(oracles.close, gradient, tree_of(found, lambda tensor: tensor.grad))


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("smoke", {}),
        ("smoke,medical_mae", {"masking__embed": "all", "decoder__depth": 3, "model__remat": "full"}),
        ("chestxray14", {}),
    ],
)
def test_traced_cost_is_the_closed_form(words, changes):
    config = runs.config("mae", words, **changes)
    px = config.model.image_px
    batch = {"image": jax.ShapeDtypeStruct((4, 1, px, px, 1), np.uint8)}
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), batch)
    found = cost.of_step(config, params, state, batch)
    assert (found.forward, found.train) == benchmark.closed_form(config)


def test_encodes_whole_pictures_by_the_encoder_alone(batch):
    """Both ways to pool, of pictures of another size as well; the decoder has no part in it."""
    tokens = {}
    for pool in ("mean", "cls"):
        method = methods.make(runs.config("mae", model__pool=pool))
        shapes = jax.eval_shape(method.init, jax.random.key(0), batch)[0]
        params = oracles.noise(shapes)
        tokens[pool] = jax.jit(method.encode)({"encoder": params["encoder"]}, {}, batch["image"][:2, 0])
    np.testing.assert_allclose(tokens["mean"]["pooled"], tokens["mean"]["patches"].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(tokens["mean"]["patches"], tokens["cls"]["patches"])
    assert np.abs(tokens["cls"]["pooled"] - tokens["mean"]["pooled"]).max() > 0.01
    images = device.standardise(batch["image"][:2, 0])
    out = jax.jit(ViT("test", 4, 32).apply)({"params": params["encoder"]}, images)
    np.testing.assert_allclose(tokens["cls"]["pooled"], out["cls"], atol=1e-5)
    wide = jax.eval_shape(method.encode, {"encoder": params["encoder"]}, {}, jnp.zeros((2, 32, 48, 1), jnp.uint8))
    assert wide["patches"].shape == (2, 8, 12, 64)


def test_views_are_one_crop():
    picture = smooth_pictures(1, 48)[0, 0, :, :, 0]
    config = runs.config("mae", "smoke,medical_mae")
    assert tuple(config.views.scale) == (0.5, 1.0) and config.masking.ratio == 0.9
    method = methods.make(config)
    example = {"image": pixels.encode(picture, "png")}
    view = method.views(example, np.random.default_rng(5))["image"]
    assert view.shape == (1, 32, 32, 1) and view.dtype == np.uint8
    expected = crops.crop(picture, np.random.default_rng(5), crops.Crop(32, (0.5, 1.0), flip=0.5))
    np.testing.assert_array_equal(view[0, :, :, 0], expected)


def test_recipes_are_the_papers():
    for words, variant, batch_size, depth, ratio in (
        ("chestxray14", "B", 4096, 8, 0.75),
        ("chestxray14,medical_mae", "S", 2048, 2, 0.9),
    ):
        config = runs.config("mae", words)
        assert (config.model.variant, config.batch_size) == (variant, batch_size)
        assert (config.decoder.width, config.decoder.depth, config.masking.ratio) == (512, depth, ratio)
        params = jax.eval_shape(methods.make(config).init, jax.random.key(0), methods.blank_batch(methods.make(config)))
        _, report = optim.make(config.optim, params[0], 8000, batch_size, 10)
        assert float(report(400)["lr"]) == pytest.approx(1.5e-4 * batch_size / 256, rel=1e-6)
        assert config.duration.total_epochs == 800


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__variant": "resnet_test"},
            "takes a ViT with \\[CLS\\]: got model.variant='resnet_test' .*variants: test, mini",
        ),
        ({"model__pool": "without_cls"}, "model.pool='without_cls'.*pools: 'cls', 'mean'"),
        ({"masking__ratio": 0.999}, "leaves 0 of 64 patches"),
    ],
)
def test_what_cannot_be_built_is_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        methods.make(runs.config("mae", **changes))


@pytest.mark.slow
def test_learns_one_mask_by_heart(batch, monkeypatch):
    """Hidden patches follow from the picture: far below 0.92, the best of one answer for all of them."""
    masks = mae.masking(jax.random.key(0), 16, 64, 16)
    monkeypatch.setattr(mae, "masking", lambda *_: masks)
    _, _, reports = oracles.learn(methods.make(runs.config("mae")), batch, 450, lr=2e-3)
    assert float(reports[60]["loss"]) > 0.85 and float(reports[-1]["loss"]) < 0.6


def test_a_decoder_that_says_nothing_is_seen_as_the_mean_of_each_hidden_patch(batch):
    """The target is normalised by patch, so 0 stands for the patch's own mean; kept patches are the picture's."""
    method = methods.make(runs.config("mae"))
    few = {"image": batch["image"][:2]}
    params = oracles.noise(jax.eval_shape(method.init, jax.random.key(0), few)[0])
    params["decoder"] = jax.tree.map(jnp.zeros_like, params["decoder"])
    whole, given, drawn = jax.jit(method.look)(params, {}, few, jax.random.key(0))
    hidden = np.asarray(given.hidden)
    assert hidden.sum(axis=(1, 2)).tolist() == [48, 48]
    side = whole.images.shape[1] // hidden.shape[1]
    true, found = (np.asarray(x.images).reshape(2, 8, side, 8, side).swapaxes(2, 3) for x in (whole, drawn))
    np.testing.assert_allclose(found[~hidden], true[~hidden], atol=1e-6)
    means = np.broadcast_to(true[hidden].mean(axis=(1, 2), keepdims=True), true[hidden].shape)
    np.testing.assert_allclose(found[hidden], means, atol=1e-5)
