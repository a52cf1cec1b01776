"""ConVIRT, CLIP and SigLIP: contrast of a radiograph with the report that was written on it.

    u_i = h_v(f(x_i)),   w_i = h_t(g(t_i))                          picture and text of study i, then unit length
    a_ij = u_i · w_j / τ
    ConVIRT   loss = −1/M Σ_i [λ log softmax_j(a_ij)_i + (1−λ) log softmax_j(a_ji)_i]
    CLIP      the same with λ = ½ and a learned τ
    SigLIP    loss = −1/M Σ_ij log σ(± (e^t u_i · w_j + β)), + for i = j, t and β learned

symbol   here                    meaning                                        ConVIRT
f g      model, text             encoders of the picture and of the text        ResNet-50; maximum over BERT's tokens
h_v h_t  image_head, text_head   Linear → ReLU → Linear (CLIP, SigLIP: one)     512
τ λ      temperature, share      temperature, weight of picture → text          0.1, ¾

ConVIRT: Zhang et al., MLHC 2022 (arXiv 2010.00747), sections 3.2, 3.3: text is one random sentence of the report, the
embeddings and the lower six layers of BERT stay as they were (`text.frozen_layers`). CLIP: Radford et al., ICML 2021.
SigLIP: Zhai et al., ICCV 2023, algorithm 1, t from log 10 and β from −10. Negatives are all other pairs of the global
batch, also those whose text is word for word the same: `report_twins` says how many pairs have one.
"""

import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.input import device, paired
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import contrastive
from cxrjax.methods.base import Aux, Joint, Method
from cxrjax.models import backbone, bert, heads, text_tower


def make(config) -> Method:
    """config: model, text, head, loss, views, augment, standardise; see configs/convirt.py for every key."""
    encoder, tower = backbone.make(config.model), text_tower.make(config.text)
    sizes = (config.head.out,) if config.head.layers == 1 else (config.head.hidden, config.head.out)
    head = heads.MLP(sizes, norm="none", dtype=jnp.dtype(config.model.dtype))
    see, settings = paired.StudyReader(config), Augment(**config.augment)
    if config.loss.form not in ("info_nce", "sigmoid"):
        raise ValueError(f"loss.form must be 'info_nce' or 'sigmoid', got {config.loss.form!r}")

    def loss(params, state, batch, key, step):
        images = augment(rng.fold(key, "augment"), batch["image"], settings)
        images = device.standardise(images[:, 0], **config.standardise)  # b h w 1
        out, stats = encoder.apply(
            params["encoder"], state["batch_stats"]["encoder"], images, train=True, key=rng.fold(key, "encoder")
        )
        u = project(params["image_head"], out["pooled"])  # b d
        w = project(params["text_head"], read(params, state, batch["ids"], batch["text_mask"])["pooled"])
        if config.loss.form == "sigmoid":
            value = contrastive.sigmoid(u, w, scale=jnp.exp(params["log_scale"]), bias=params["bias"])
        else:
            options = {name: config.loss[name] for name in ("share", "groups", "chunks")}
            value = contrastive.info_nce(u, w, temperature=temperature(params), **options)
        report = monitors.embedding(u, w) | {"report_twins": monitors.twins(batch["report"])}
        if "log_scale" in params:
            report["scale"] = jnp.exp(params["log_scale"])
        return value, Aux({**state, "batch_stats": {"encoder": stats}}, {"contrast": value}, report)

    def temperature(params):
        if not config.loss.learned:
            return config.loss.temperature
        # CLIP's bound: logits of at most 100.
        return jnp.exp(-jnp.minimum(params["log_scale"], jnp.log(100.0)))

    def read(params, state, ids, mask):
        return tower.apply(params["text"], state["frozen"]["text"], ids, mask)

    def project(params, x):
        return contrastive.normalise(heads.run(head, params, {}, x, train=False)[0])

    def init(key, batch):
        params, stats, frozen = {}, {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = tower.init(rng.fold(key, "text"))
        params["image_head"], _ = heads.start(head, rng.fold(key, "image_head"), encoder.width)
        params["text_head"], _ = heads.start(head, rng.fold(key, "text_head"), tower.width)
        if config.loss.form == "sigmoid":
            params |= {"log_scale": jnp.log(10.0), "bias": jnp.asarray(-10.0)}
        elif config.loss.learned:
            params["log_scale"] = -jnp.log(jnp.asarray(config.loss.temperature))
        return params, {"batch_stats": stats, "frozen": frozen}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return encoder.apply(params["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    def joint_image(params, state, images):
        out = encode(params, state, images)
        return {name: project(params["image_head"], out[name]) for name in ("pooled", "patches")}

    def joint_text(params, state, ids, mask, word_index):
        out = read(params, state, ids, mask)
        words, word_mask = bert.words(out["tokens"], word_index, ids.shape[1])
        return {
            "pooled": project(params["text_head"], out["pooled"]),
            "words": jnp.where(word_mask[..., None], project(params["text_head"], words), 0.0),
            "word_mask": word_mask,
        }

    return Method(
        see,
        init,
        loss,
        lambda params, state, step: state,
        encode,
        config.model.image_px,
        joint=Joint(joint_image, joint_text, see.tokens, see.text),
    )
