"""Detection: a head that finds boxes in an encoder's maps, on a frozen encoder or together with it.

    maps = head(f(x)),   candidates = decode(maps),   boxes = non-maximum suppression(candidates)
    yolov3:  loss = place + size + object + class      on the maps of layer2 to layer4 of a ResNet
    dense:   loss = quality + box                      on a simple pyramid of a ViT's last map
                                                       both in losses/detection.py, the heads in models/detection.py

f: config.encoder, learned, frozen or drifting (`base.trunk`). Classes are config.labels, the names that boxes have in
the sets; with none named every box is of the one class "any". x is the whole picture without its aspect
(`boxes.whole`), or a window of it whose boxes are cut off with it.

YOLOv3 is Redmon and Farhadi's (1804.02767) with MGCA's widths, weights and means (Wang et al., NeurIPS 2022, released
code). The defects of that code are switches, all off by default: loss.assign="best_of_level" (a box is to be found on
all three levels and not by its best prior alone), loss.inclusive_iou (shapes overlap too much, by one cell a side),
loss.object_is_background (a place may be told both), head.score="object" (the class has no say in the score),
answer.inclusive_iou (answers overlap too much, by one pixel a side) and encoder="drifting" (BatchNorm of the frozen
encoder in training mode). That code also divides the stored boxes in place.
Its scripts load them in processes of their own, where no epoch sees that; here it cannot happen.

The dense head is our choice for ViTs: the pyramid of ViTDet (Li et al., ECCV 2022), the levels and towers of FCOS, and
in place of its centre-ness the quality of GFL (Li et al., NeurIPS 2020).
"""

import jax.numpy as jnp

from cxrjax import monitors, rng, sizes
from cxrjax.config import names
from cxrjax.input import boxes, crops, device
from cxrjax.losses import detection as losses
from cxrjax.methods import settings
from cxrjax.methods.base import Answers, Aux, Config, Method, keep_state, total
from cxrjax.methods.trunk import pictures, trunk
from cxrjax.models import detection

WHOLE = "its loss divides by the boxes of the whole batch, and YOLOv3's BatchNorm normalises maps by it"
"""Why its gradient is not accumulated over slices of the batch."""


def make(config: Config) -> Method:
    """config: model, encoder, head, labels, loss, boxes, answer, views, augment, standardise; see configs/detect.py."""
    settings.one_of(config, "loss.assign", losses.ASSIGN)
    settings.counts(config, "head.width", "boxes.most", "answer.most")
    settings.shares(config, "answer.confidence", "answer.overlap", "boxes.min_visible")
    encoder, labels = trunk(config), names(config.labels)
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels = {config.labels!r} names a label twice")
    classes = labels or (boxes.ANY,)
    head = detection.make(config.head, encoder.backbone, len(classes))
    single = pictures(config, 1)
    answer = {name: config.answer[name] for name in ("most", "confidence", "overlap")}
    if config.answer.inclusive_iou:
        height, width = sizes.sides(config.model.image_px)
        answer["longer"] = (1 / height, 1 / width)

    def loss(params, state, batch, key, step):
        images = single.prepare(key, batch["image"])[:, 0]  # b h w 1
        paths, stats = encoder.backbone.paths(rng.fold(key, "drop_path"), len(images)), state["batch_stats"]
        y, moved = encoder.apply(params, state, images, train=True, paths=paths, levels=head.levels)
        maps, moved_head = head.apply(params["head"], stats["head"], y, True)
        if head.kind == "yolov3":
            terms = losses.yolo(maps, batch["boxes"], batch["classes"], detection.priors(), **config.loss)
        else:
            terms = losses.dense(maps[0], maps[1], batch["boxes"], batch["classes"])
        watched = monitors.embedding(y["pooled"]) | {"boxes": jnp.mean((batch["classes"] >= 0).sum(axis=1))}
        stats = {"encoder": moved, "head": moved_head}
        return total(terms), Aux({**state, "batch_stats": stats}, terms, watched)

    def init(key, batch):
        params, state = encoder.init(rng.fold(key, "encoder"))
        params["head"], state["batch_stats"]["head"] = head.init(rng.fold(key, "head"))
        return params, state

    def make_views(example, rng):
        found = boxes.of_example(example, labels)
        image, found = boxes.crop(crops.decode(example["image"]), found, rng, single.specs[0], config.boxes.min_visible)
        return {"image": image[None, :, :, None], **boxes.pad(found, config.boxes.most, example["image_id"])}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        y, _ = encoder.apply(params, state, images, train=False, levels=head.levels)
        maps, _ = head.apply(params["head"], state["batch_stats"]["head"], y, False)
        found = detection.nms(head.decode(maps), **answer)
        return {"pooled": y["pooled"], "patches": y["patches"], **found._asdict()}

    functions, meaning = (make_views, init, loss, keep_state, encode), Answers(classes, "boxes")
    options = {"parts": WHOLE, "answers": meaning, "box_labels": labels, "look": single.look, "sees": "whole"}
    return Method(*functions, config.model.image_px, encoder=encoder.params, **options)
