"""Segmentation: a head that makes a mask of an encoder's features, on a frozen encoder or together with it.

    s = head(f(x)),  b h w, one logit per pixel
    loss = w_d dice + w_c cross-entropy + w_f focal_γ + w_l (−log Dice of the batch)       losses/segmentation.py
         + 0.4 × the same of the auxiliary logits, where the head has them (UPerNet)

symbol  here           meaning                                             default
w_·     config.loss    weights of the terms; a term of weight 0 is absent  dice 1, cross_entropy 1
γ       loss.gamma     exponent of the focal loss                          2

f: config.encoder, learned, frozen or drifting (`base.trunk`). Heads: models/segmenters.py. Target: config.target, any
mask of the set, or the union of its boxes (MGCA's masks of RSNA). A picture without a mask counts for nothing.
Picture and mask are cut, turned and mirrored as two channels of one array. Dice + cross-entropy is the usual pair
(nnU-Net, Isensee et al. 2021); MGCA's is focal 10 with log_dice 1, MRM's focal 2 with dice 1, and its auxiliary weight
is 0.4 as well.
"""

import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, rng
from cxrjax.drawing.panels import Panel
from cxrjax.input import crops, device, masks
from cxrjax.losses import segmentation
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, keep_state, total
from cxrjax.methods.trunk import pictures, trunk
from cxrjax.models import segmenters

TERMS = ("dice", "cross_entropy", "focal", "log_dice")
AUXILIARY = 0.4
WHOLE = "its loss divides by the masks of the whole batch, and its head's BatchNorm normalises maps by it"
"""Why its gradient is not accumulated over slices of the batch."""


def make(config: Config) -> Method:
    """config: model, encoder, head, target, loss, views, augment, standardise; see configs/segment.py for every key."""
    settings.weights(config, "head.features", "loss.gamma", *(f"loss.{name}" for name in TERMS))
    encoder = trunk(config)
    head = segmenters.make(config.head, encoder.backbone)
    weights = {name: config.loss[name] for name in TERMS if config.loss[name]}
    if not weights:
        raise ValueError(f"loss = {dict(config.loss)} weighs nothing; give one of {', '.join(TERMS)} a weight")
    single = pictures(config, 1)

    def loss(params, state, batch, key, step):
        images = single.prepare(key, batch["image"])[:, 0]  # b h w 1
        paths = encoder.backbone.paths(rng.fold(key, "drop_path"), len(images))
        y, moved = encoder.apply(params, state, images, train=True, paths=paths, levels=True)
        s, auxiliary, moved_head = head.apply(params["head"], state["batch_stats"]["head"], y, images, True)
        terms = measure(s, batch)
        if auxiliary is not None:
            terms |= {f"auxiliary_{name}": AUXILIARY * value for name, value in measure(auxiliary, batch).items()}
        known = batch["known"].astype(jnp.float32)
        hard = 1 - segmentation.dice(jnp.where(s > 0, 1e4, -1e4), batch["mask"], known, smooth=1e-6)
        watched = monitors.embedding(y["pooled"]) | {"dice": hard, "known_masks": known.mean()}
        stats = {"encoder": moved, "head": moved_head}
        return total(terms), Aux({**state, "batch_stats": stats}, terms, watched)

    def measure(s, batch):
        options = {"focal": {"gamma": config.loss.gamma}}
        return {
            name: weight * getattr(segmentation, name)(s, batch["mask"], batch["known"], **options.get(name, {}))
            for name, weight in weights.items()
        }

    def init(key, batch):
        params, state = encoder.init(rng.fold(key, "encoder"))
        params["head"], state["batch_stats"]["head"] = head.init(rng.fold(key, "head"))
        return params, state

    def make_views(example, rng):
        image = crops.decode(example["image"])
        # A picture of no set has no mask: `blank_batch` makes one.
        inside, known = np.zeros_like(image), False
        if example["set"]:
            inside, known = masks.mask(example, config.target, image.shape)
        image, inside = masks.together(image, inside, lambda both: crops.crop(both, rng, single.specs[0]))
        return {"image": image[None, :, :, None], "mask": (inside > 0)[:, :, None], "known": np.bool_(known)}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        y, _ = encoder.apply(params, state, images, train=False, levels=True)
        s, *_ = head.apply(params["head"], state["batch_stats"]["head"], y, images, False)
        return {"pooled": y["pooled"], "patches": y["patches"], "mask_logits": s}

    def look(params, state, batch, key):
        images = single.prepare(key, batch["image"])[:, 0, ..., 0]
        return [Panel("picture, and the mask to be found", images, outline=batch["mask"][..., 0])]

    functions = make_views, init, loss, keep_state, encode
    options = {"parts": WHOLE, "encoder": encoder.params, "target": config.target, "look": look}
    return Method(*functions, config.model.image_px, **options)
