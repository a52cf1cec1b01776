"""Detection: a head that finds boxes in an encoder's maps, on a frozen encoder or together with it.

    maps = head(f(x)),   candidates = decode(maps),   boxes = non-maximum suppression(candidates)
    yolov3:  loss = place + size + object + class      on the maps of layer2 to layer4 of a ResNet
    dense:   loss = quality + box                      on a simple pyramid of a ViT's last map
                                                       both in losses/detection.py, the heads in models/detection.py

f: config.encoder, learned, frozen or drifting (`base.trunk`). Classes are config.labels, the names that boxes have in
the sets; with none named every box is of the one class "any". x is the whole picture as a square (`boxes.whole`), or a
window of it whose boxes are cut off with it.

YOLOv3 is Redmon and Farhadi's (1804.02767) with MGCA's widths, weights and means (Wang et al., NeurIPS 2022, released
code). The defects of that code are switches, all off by default: loss.assign="best_of_level" (a box is to be found on
all three levels and not by its best prior alone), loss.inclusive_iou (shapes overlap too much, by one cell a side),
loss.object_is_background (a place may be told both), head.score="object" (the class has no say in the score) and
encoder="drifting" (BatchNorm of the frozen encoder in training mode). That code also divides the stored boxes in place;
with loaders in processes of their own, as its scripts run them, no epoch sees that, and here none can.

The dense head is our choice for ViTs: the pyramid of ViTDet (Li et al., ECCV 2022), the levels and towers of FCOS, the
quality in place of its centre-ness from GFL (Li et al., NeurIPS 2020).
"""

import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.config import names
from cxrjax.input import boxes, crops, device
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import detection as losses
from cxrjax.methods.base import Answers, Aux, Method, trunk
from cxrjax.models import detection


def make(config) -> Method:
    """config: model, encoder, head, labels, loss, boxes, answer, views, augment, standardise; see configs/detect.py."""
    encoder, labels = trunk(config), names(config.labels)
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels = {config.labels!r} names a label twice")
    classes = labels or (boxes.ANY,)
    head = detection.make(config.head, encoder.backbone, len(classes))
    crop, settings = crops.Crop(config.model.image_px, **config.views), Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = augment(rng.fold(key, "augment"), batch["image"], settings)
        images = device.standardise(images[:, 0], **config.standardise)  # b h w 1
        drop, stats = rng.fold(key, "drop_path"), state["batch_stats"]
        y, moved = encoder.apply(params, state, images, train=True, key=drop, levels=head.levels)
        maps, moved_head = head.apply(params["head"], stats["head"], y, True)
        truth = batch["boxes"], batch["classes"]  # b m 4, b m
        if head.kind == "yolov3":
            terms = losses.yolo(maps, *truth, detection.priors(), **config.loss)
        else:
            terms = losses.dense(*maps, *truth)
        report = monitors.embedding(y["pooled"]) | {"boxes": jnp.mean((batch["classes"] >= 0).sum(axis=1))}
        return sum(terms.values()), Aux({**state, "batch_stats": {"encoder": moved, "head": moved_head}}, terms, report)

    def init(key, batch):
        params, state = encoder.init(rng.fold(key, "encoder"))
        params["head"], state["batch_stats"]["head"] = head.init(rng.fold(key, "head"))
        return params, state

    def make_views(example, rng):
        found = boxes.of_example(example, labels)
        image, found = boxes.crop(crops.decode(example["image"]), found, rng, crop, config.boxes.min_visible)
        return {"image": image[None, :, :, None], **boxes.pad(found, config.boxes.most, example["image_id"])}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        y, _ = encoder.apply(params, state, images, train=False, levels=head.levels)
        maps, _ = head.apply(params["head"], state["batch_stats"]["head"], y, False)
        found = detection.nms(head.decode(maps), **config.answer)
        return {"pooled": y["pooled"], "patches": y["patches"], **found._asdict()}

    functions = make_views, init, loss, lambda params, state, step: state, encode
    return Method(*functions, config.model.image_px, answers=Answers(classes, "boxes"), box_labels=labels)
