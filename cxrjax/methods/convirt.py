"""ConVIRT, CLIP, SigLIP and LiT: contrast of a radiograph with the report that was written on it.

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
SigLIP: Zhai et al., ICCV 2023, algorithm 1, t from log 10 and β from −10. LiT (Zhai et al., CVPR 2022) keeps an f that
is there as it is (`encoder="frozen"`); here h_v is learned with the text's encoder.

Negatives are all other pairs of the global batch, also those whose text is word for word the same: `report_twins` says
how many pairs have one.
"""

import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.input import augment, paired
from cxrjax.losses import contrastive
from cxrjax.losses.pairs import normalise
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state
from cxrjax.methods.towers import Towers
from cxrjax.models import backbone, bert, heads, text_tower


def make(config: Config) -> Method:
    """config: model, text, head, loss, views, augment, standardise; see configs/convirt.py for every key."""
    settings.one_of(config, "loss.form", ("info_nce", "sigmoid"))
    settings.one_of(config, "encoder", ("learned", "frozen"))
    settings.counts(config, "head.layers", "head.hidden", "head.out")
    settings.positive(config, "loss.temperature")
    settings.shares(config, "loss.share")
    settings.slices(config, "loss.groups", "loss.chunks")
    reader, changes = paired.StudyReader(config), augment.Augment(**config.augment)
    augment.check(changes, 1)
    locked, text = config.encoder == "frozen", text_tower.make(config.text)
    towers = Towers(backbone.make(config.model), text, reader, config.standardise, locked)
    sizes = (config.head.out,) if config.head.layers == 1 else (config.head.hidden, config.head.out)
    head = heads.MLP(sizes, norm="none", dtype=jnp.dtype(config.model.dtype))

    def prepare(batch, key):
        return towers.prepare(batch, key, augment.augment(rng.fold(key, "augment"), batch["image"], changes))

    def embed(params, state, prepared):
        out, stats = towers.see(params, state, prepared)
        text = towers.read(params, state, prepared["ids"], prepared["text_mask"])
        return {"picture": out["pooled"], "text": text["pooled"]}, stats

    def loss_of(params, state, features, prepared, step):
        u = project(params["image_head"], features["picture"])  # b d
        w = project(params["text_head"], features["text"])
        if config.loss.form == "sigmoid":
            value = contrastive.sigmoid(u, w, scale=jnp.exp(params["log_scale"]), bias=params["bias"])
        else:
            options = {name: config.loss[name] for name in ("share", "groups", "chunks")}
            value = contrastive.info_nce(u, w, temperature=temperature(params), **options)
        watched = monitors.embedding(u, w) | {"report_twins": monitors.twins(prepared["report"])}
        if "log_scale" in params:
            watched["scale"] = jnp.exp(params["log_scale"])
        return value, Aux(state, {"contrast": value}, watched)

    def temperature(params):
        if not config.loss.learned:
            return config.loss.temperature
        # CLIP's bound: logits of at most 100.
        return jnp.exp(-jnp.minimum(params["log_scale"], jnp.log(100.0)))

    def project(params, x):
        return normalise(heads.run(head, params, {}, x, train=False)[0])

    def init(key, batch):
        params, state = towers.init(key)
        params["image_head"], _ = heads.start(head, rng.fold(key, "image_head"), towers.image.width)
        params["text_head"], _ = heads.start(head, rng.fold(key, "text_head"), towers.text.width)
        if config.loss.form == "sigmoid":
            params |= {"log_scale": jnp.log(10.0), "bias": jnp.asarray(-10.0)}
        elif config.loss.learned:
            params["log_scale"] = -jnp.log(jnp.asarray(config.loss.temperature))
        return params, state

    def image_vectors(params, state, features):
        return project(params["image_head"], features["pooled"]), project(params["image_head"], features["patches"])

    def text_vectors(params, state, ids, text_mask, word_index):
        out = towers.read(params, state, ids, text_mask)
        words, word_mask = bert.words(out["tokens"], word_index, ids.shape[1])
        return project(params["text_head"], out["pooled"]), project(params["text_head"], words), word_mask

    joint = towers.joint(image_vectors, text_vectors)
    parts = Parts(prepare, embed, loss_of, keeps_statistics=locked)
    functions = reader, init, joined(parts), keep_state, towers.encode
    look = towers.look(joint, prepare)
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)
