"""S-PCL: Semantic-Partitioned Contrastive Learning. Feng, Young, Xu, arXiv 2603.07113.

    π_i uniform over permutations of the N patch tokens of picture i
    A_i = first k_a of π_i,  B_i = last k_b of π_i,  A_i ∩ B_i = ∅           two disjoint parts of one picture
    u_i = f([c; E x_t + p_t, t ∈ A_i])_cls,   v_i likewise on B_i            one encoder, no head, no augmentation
    a_ij = φ_κ(û_i · v̂_j) / τ,   φ_κ(s) = ½(1+s) / (1 + κ(1−s))
    loss = −1/(2M) Σ_i [log softmax_j(a_ij)_i + log softmax_j(a_ji)_i]       M pictures over all devices

symbol   here                     meaning                                  default; with chestxray14
k_a k_b  partition_sizes()        tokens of the two parts                  8, 8 of N = 64; 98, 98 of 196
ρ r      keep_ratio, split_ratio  share of tokens used; share of A in it   ¼, ½; 1, ½
κ τ      kappa, temperature       shape of φ, temperature                  1/64, 0.07

Only the abstract was readable to us. It states: a random split of the patch tokens into two non-overlapping subsets,
agreement between them, one encoder; no reconstruction, decoder, momentum copy or heavy augmentation. The similarity,
τ, κ, the missing head, [CLS] as the view vector and the fixed sine–cosine positions follow the released code of OCL
(arXiv 2411.09858), a method of the same senior author; ρ = 1 is our reading of "partition", OCL keeps ρ = 0.1–0.2.
OCL takes negatives from one device's rows only: `loss.groups` reproduces that; the default is the global batch.
"""

import zlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, sizes
from cxrjax.drawing.panels import Panel
from cxrjax.input import crops, device
from cxrjax.losses import contrastive
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, outside
from cxrjax.methods.trunk import encode_by
from cxrjax.models import linen
from cxrjax.models.backbone import make_vit
from cxrjax.models.heads import KINDS as HEADS
from cxrjax.models.heads import ProjectionHead
from cxrjax.models.vit import EMBED

SCHEMES = ("random", "block", "checkerboard")


def make(config: Config) -> Method:
    """config: model, partition, head, loss, views, standardise; see configs/spcl.py for every key."""
    settings.one_of(config, "partition.scheme", SCHEMES)
    settings.one_of(config, "partition.embed", EMBED)
    settings.one_of(config, "head.kind", ("none", *HEADS))
    settings.one_of(config, "loss.form", ("symmetric", "nt_xent"))
    settings.one_of(config, "loss.similarity", contrastive.SIMILARITIES)
    settings.positive(config, "loss.temperature")
    settings.weights(config, "loss.kappa")
    settings.counts(config, "head.hidden", "head.out")
    settings.slices(config, "loss.groups", "loss.chunks")
    if config.loss.mask_same_patient and config.loss.groups > 1:
        raise ValueError("loss.mask_same_patient compares all pictures of the batch, so it needs loss.groups = 1")
    (whole, encoder), pool = make_vit(config.model), config.model.pool
    head = None if config.head.kind == "none" else ProjectionHead(**config.head)
    grid = sizes.grid(config.model.image_px, config.model.patch_px)
    n = grid[0] * grid[1]
    k_a, k_b = partition_sizes(n, config.partition.keep_ratio, config.partition.split_ratio)
    transform = crops.transform(config.views.transform, config.model.image_px)
    if config.cls_shortcut and pool != "cls":
        raise ValueError("cls_shortcut leaves the patches of the last block uncomputed, so it needs model.pool='cls'")

    def prepare(batch, key):
        images = device.standardise(batch["image"][:, 0], **config.standardise)  # b h w 1
        ids = partition(key, len(images), grid, k_a, k_b, config.partition.scheme)
        return {"images": images, "ids": ids, "patient": batch["patient"]}

    def embed(params, state, prepared):
        u, v = view_vectors(params, prepared["images"], *prepared["ids"])  # b d
        return {"u": u, "v": v}, {}

    def loss_of(params, state, features, prepared, step):
        u, v = project(params, **features)  # b d
        exclude = same_patient(prepared["patient"]) if config.loss.mask_same_patient else None
        options = {k: config.loss[k] for k in ("similarity", "kappa", "temperature", "groups", "chunks")}
        contrast = contrastive.info_nce if config.loss.form == "symmetric" else contrastive.nt_xent
        value = contrast(u, v, exclude=exclude, **options)
        return value, Aux(state, {"contrast": value}, monitors.embedding(u, v))

    def view_vectors(params, images, ids_a, ids_b):
        """View vectors of both parts, b d each: one call when the parts are equally long, two otherwise."""

        def run(ids):
            options = {"embed": config.partition.embed, "cls_only": config.cls_shortcut}
            out = linen.apply(encoder, params["encoder"], images, ids, **options)
            return out["cls"] if pool == "cls" else out["patches"].mean(axis=-2)

        if k_a == k_b:
            both = run(jnp.stack([ids_a, ids_b], axis=1))  # b v d
            return both[:, 0], both[:, 1]
        return run(ids_a), run(ids_b)

    def project(params, u, v):
        return (u, v) if head is None else tuple(linen.apply(head, params["head"], x) for x in (u, v))

    def init(key, batch):
        key_encoder, key_head = jax.random.split(key)
        images = device.standardise(batch["image"][:1, 0], **config.standardise)
        params = {"encoder": linen.init(encoder, key_encoder, images)}
        if head is not None:
            params["head"] = linen.init(head, key_head, jnp.zeros((1, encoder.size.width)))
        return params, {}

    def make_views(example, rng):
        image = transform(crops.decode(example["image"]), rng)
        patient = zlib.crc32(f"{example['set']}/{example['patient_id']}".encode()) & 0x7FFFFFFF
        return {"image": image[None, :, :, None], "patient": np.int32(patient)}

    def look(params, state, batch, key):
        prepared = prepare(batch, key)
        images = prepared["images"][..., 0]
        found = [Panel("picture", images)]
        for name, ids in zip("AB", prepared["ids"], strict=True):
            label = f"part {name}: {ids.shape[1]} of {n} patches"
            found.append(Panel(label, images, hidden=outside(ids, grid)))
        return found

    encode, parts = encode_by(whole, config.standardise), Parts(prepare, embed, loss_of)
    functions = make_views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=look)


def partition_sizes(n: int, keep_ratio: float, split_ratio: float) -> tuple[int, int]:
    """Tokens of the two parts, k_a + k_b ≤ n. Equal halves (OCL's rounding) at split_ratio ½; both at least 1.

    Counted in rationals: ⌊100·(1−0.8)⌋ is 19 in floats. Raises ValueError when a part would be empty.
    """
    keep, split = Fraction(str(keep_ratio)), Fraction(str(split_ratio))
    if not (0 < keep <= 1 and 0 < split < 1):
        raise ValueError(f"keep_ratio must be in (0, 1] and split_ratio in (0, 1), got {keep_ratio}, {split_ratio}")
    total = int(n * keep)
    k_a = total // 2 if split == Fraction(1, 2) else round(total * split)
    k_b = k_a if split == Fraction(1, 2) else total - k_a
    if min(k_a, k_b) < 1:
        raise ValueError(
            f"keep_ratio {keep_ratio} and split_ratio {split_ratio} leave parts of {k_a} and {k_b} of {n} tokens; "
            "both need at least one: use more tokens (larger picture, smaller patches) or larger ratios"
        )
    return k_a, k_b


def partition(
    key: jax.Array, b: int, grid: tuple[int, int], k_a: int, k_b: int, scheme: str = "random"
) -> tuple[jax.Array, jax.Array]:
    """Token numbers of the two disjoint parts, int32 b k_a and b k_b, drawn per picture.

    scheme: "random" (the paper's); "block": the two sides of a line in a random direction; "checkerboard": the two
    colours of the grid, the same for every picture when all tokens are kept. The last two are ours, for ablation.
    """
    p, q = grid
    noise = jax.random.uniform(key, (b, p * q))
    rows, columns = jnp.divmod(jnp.arange(p * q), q)
    if scheme == "random":
        score = noise
    elif scheme == "block":
        angle = 2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, 1), (b, 1))
        score = rows * jnp.sin(angle) + columns * jnp.cos(angle) + 1e-3 * noise
    elif scheme == "checkerboard":
        score = (rows + columns) % 2 + 0.5 * noise
    else:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    order = jnp.argsort(score, axis=1).astype(jnp.int32)
    return order[:, :k_a], order[:, p * q - k_b :]


def same_patient(patient: jax.Array) -> jax.Array:
    """b int → b b bool: pairs of pictures of one patient, which are doubtful negatives."""
    return patient[:, None] == patient[None, :]
