"""MGCA: picture and report aligned as wholes, token by token, and by the prototypes that they are assigned to.

    v, r;  v_n, t_l              heads of the picture and the report; of its n regions and its words l; unit length
    ITA = −1/b Σ_i [log softmax_j(v_i·r_j / τ₁)_i + log softmax_j(v_j·r_i / τ₁)_i]
    c_l = Σ_n softmax_n(t_l·v_n / τ₂) v_n,   o_n = Σ_l softmax_l(t_l·v_n / τ₂) t_l     what each token sees of the other
    CTA = mean over pairs of ½ Σ_l w_l [CE_k(t_l·c_k / τ₂) + CE_k(c_l·t_k / τ₂)]  +  the same of v_n and o_n
    q(z) = Sinkhorn–Knopp of z·p / ε over the batch,   CPA = ½ [H(q(v), softmax(r·p / τ₃)) + H(q(r), softmax(v·p / τ₃))]
    loss = λ₁ ITA + λ₂ CTA + λ₃ CPA

symbol     here                                    meaning                                default; with mimic_cxr
τ₁ τ₂ τ₃   loss.temperature, local_temperature,    temperatures                           0.07, 0.1, 0.2
           prototype_temperature
p          prototypes.count                        k directions of unit length, learned   128; 500
ε          prototypes.epsilon, iterations          how soft the assignments are; rounds   0.05, 3
w          loss.weights                            "cls": attention of [CLS] in the last layer, mean over heads,
                                                   clipped to its 10th and 90th percentile; or uniform
λ          loss.ita_weight, cta_weight, cpa_weight                                        1, 1, 1

Wang, Zhou, Wang, Vardhanabhuti, Yu, NeurIPS 2022 (arXiv 2210.06044). Equations and values are those of the released
code, the paper's text was not readable to us. A ResNet's regions are layer3 of the picture enlarged to 299 px, and
weigh the same; prototypes stay as they start for the first epoch (`prototypes.freeze_share` of the run).

What the released code does otherwise, each a switch:
    loss.groups            ITA's negatives are those of one device, 71 (CPA's assignments are of all)
    loss.padding_counts    padded words are negatives of words, and count in the statistics of their head
    loss.raw_seen_words    o_n keeps its length where the encoder is a ViT
    loss.shifted_attention     a word weighs as much as [CLS] attends to the token after each of its own
It also takes [SEP] for a word, which is left out here. Our choice: reports without words take part in nothing local.
"""

import jax
import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.input import device, paired
from cxrjax.losses import contrastive, local
from cxrjax.losses import prototypes as assign
from cxrjax.methods.base import Aux, Joint, Method, frozen_at_first
from cxrjax.models import bert, heads, regions, text_attention
from cxrjax.models.prototypes import Prototypes

HEADS = ("image_head", "region_head", "text_head", "word_head")


def make(config) -> Method:
    """config: model, regions, text, head, prototypes, loss, views, standardise; see configs/mgca.py for every key."""
    if config.loss.weights not in ("cls", "uniform"):
        raise ValueError(f"loss.weights must be 'cls' or 'uniform', got {config.loss.weights!r}")
    by_cls = config.loss.weights == "cls"
    encoder = regions.make(config.model, **config.regions, attention=by_cls)
    tower, see = text_attention.make(config.text), paired.StudyReader(config)
    dtype, hold = jnp.dtype(config.model.dtype), frozen_at_first(config, config.prototypes.freeze_share)
    sizes = (config.head.hidden, config.head.out)
    # A BatchNorm takes away again what a bias before it adds.
    head = heads.MLP(sizes, last_norm=True, last_affine="none", bias=False, last_bias=False, dtype=dtype)
    prototypes = Prototypes(config.prototypes.count)
    padding_counts = config.loss.padding_counts

    def loss(params, state, batch, key, step):
        images = device.standardise(batch["image"][:, 0], **config.standardise)  # b h w 1
        picture, stats = see_picture(params, state["batch_stats"], images, True, rng.fold(key, "encoder"))
        report, stats = read(params, {**state, "batch_stats": stats}, batch, True)
        v, r, mask = picture["pooled"], report["pooled"], report["word_mask"]
        of_words, of_regions = local.token_alignment(
            picture["regions"].reshape(len(v), -1, v.shape[-1]),
            report["words"],
            mask,
            temperature=config.loss.local_temperature,
            region_weights=picture["weights"],
            word_weights=report["weights"],
            raw_seen_words=config.loss.raw_seen_words,
            padding_is_negative=padding_counts,
        )
        cpa, used = align_prototypes(hold(params["prototypes"], step), v, r)
        terms = {
            # Both directions added, not their mean.
            "ita": 2 * contrastive.info_nce(v, r, temperature=config.loss.temperature, groups=config.loss.groups),
            "cta": of_words + of_regions,
            "cpa": cpa,
        }
        terms = {name: config.loss[f"{name}_weight"] * value for name, value in terms.items()}
        watched = monitors.embedding(v, r) | {
            "report_twins": monitors.twins(batch["report"]),
            "cta_words": of_words,
            "prototypes_used": used,
        }
        return sum(terms.values()), Aux({**state, "batch_stats": stats}, terms, watched)

    def see_picture(params, stats, images, train, key=None):
        """pooled b d, regions b p q d, weights b n or None; and running statistics."""
        out, moved = encoder.apply(params["encoder"], stats["encoder"], images, train=train, key=key)
        stats = {**stats, "encoder": moved}
        pooled, stats = project("image_head", params, stats, out["pooled"], train)
        tokens, stats = project("region_head", params, stats, out["regions"], train)
        attention = out["attention"]
        weights = None if attention is None else local.clipped(attention, jnp.ones(attention.shape, bool))
        return {"features": out, "pooled": pooled, "regions": tokens, "weights": weights}, stats

    def read(params, state, batch, train):
        """pooled b d, words b w d, word_mask b w, weights b w or None; and running statistics."""
        out = tower.apply(params["text"], state["frozen"]["text"], batch["ids"], batch["text_mask"])
        count = batch["ids"].shape[1] - 2  # of l tokens two are [CLS] and [SEP]
        words, mask = bert.words(out["tokens"], batch["word_index"], count)
        pooled, stats = project("text_head", params, state["batch_stats"], out["pooled"], train)
        words, stats = project("word_head", params, stats, words, train, None if padding_counts else mask)
        weights = None
        if by_cls:
            attention = out["attention"][..., None]
            attention = (
                jnp.pad(attention[:, 1:], ((0, 0), (0, 1), (0, 0))) if config.loss.shifted_attention else attention
            )
            attention, _ = bert.words(attention, batch["word_index"], count)
            weights = local.clipped(attention[..., 0], mask)
        return {"pooled": pooled, "words": words, "word_mask": mask, "weights": weights}, stats

    def project(name, params, stats, x, train, mask=None):
        y, moved = heads.run(head, params[name], stats[name], x, train=train, mask=mask)
        return contrastive.normalise(y), {**stats, name: moved}

    def align_prototypes(learned, v, r):
        """CPA, and the share of prototypes that are some picture's first."""
        of_v, of_r = (prototypes.apply({"params": learned}, x) for x in (v, r))
        options = {"epsilon": config.prototypes.epsilon, "iterations": config.prototypes.iterations}
        codes_v, codes_r = (assign.codes(scores, **options) for scores in (of_v, of_r))
        temperature = config.loss.prototype_temperature
        value = assign.assignment(of_r, codes_v, temperature) + assign.assignment(of_v, codes_r, temperature)
        first = jax.nn.one_hot(jnp.argmax(codes_v, axis=1), config.prototypes.count)
        return value / 2, jnp.mean(first.max(axis=0))

    def init(key, batch):
        params, stats, frozen = {}, {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = tower.init(rng.fold(key, "text"))
        widths = (encoder.width, encoder.region_width, tower.width, tower.width)
        for name, width in zip(HEADS, widths, strict=True):
            params[name], stats[name] = heads.start(head, rng.fold(key, name), width)
        direction = jnp.zeros((1, config.head.out))
        params["prototypes"] = prototypes.init(rng.fold(key, "prototypes"), direction)["params"]
        return params, {"batch_stats": stats, "frozen": frozen}

    def look(params, state, images):
        images = device.standardise(images, **config.standardise)
        return see_picture(params, state["batch_stats"], images, False)[0]

    def encode(params, state, images):
        return {name: look(params, state, images)["features"][name] for name in ("pooled", "patches")}

    def joint_image(params, state, images):
        found = look(params, state, images)
        return {"pooled": found["pooled"], "patches": found["regions"]}

    def joint_text(params, state, ids, text_mask, word_index):
        batch = {"ids": ids, "text_mask": text_mask, "word_index": word_index}
        report = read(params, state, batch, False)[0]
        words = jnp.where(report["word_mask"][..., None], report["words"], 0.0)
        return {"pooled": report["pooled"], "words": words, "word_mask": report["word_mask"]}

    return Method(
        see,
        init,
        loss,
        lambda params, state, step: state,
        encode,
        config.model.image_px,
        joint=Joint(joint_image, joint_text, see.tokens, see.text),
    )
