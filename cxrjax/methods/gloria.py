"""GLoRIA: a radiograph held against its report as a whole, and its regions against the report's words.

    v_g, v_n = P_g f(x),  P_l f_l(x)          picture, and its n regions: a map of layer3 (ResNet) or the patches (ViT)
    t_l                                       word l: the sum of its pieces' vectors; t_g: the mean over all tokens
    L_g = −1/b Σ_i [log softmax_j(γ₃ cos(v_gi, t_gj))_i + log softmax_j(γ₃ cos(v_gj, t_gi))_i]
    s_nl = v_n·t_l,   a_l = softmax_n(γ₁ softmax_l(s_nl)),   c_l = Σ_n a_ln v_n        the picture as word l sees it
    Z(x, t) = log Σ_l exp(γ₂ cos(c_l, t_l))                                            how well report t fits picture x
    L_l = −1/b Σ_i [log softmax_j(γ₃ Z(x_i, t_j))_i + log softmax_j(γ₃ Z(x_j, t_i))_i]
    loss = L_g + L_l

symbol     here                                  meaning                                        default; with mimic_cxr
f f_l      model, regions                        image encoder, its map that words see          ViT; ResNet-50, 299 px
P_g P_l    image_head.global, image_head.local   linear, to the width of the text encoder       128; 768, P_l no bias
γ₁ γ₂ γ₃   loss.attention_scale, word_scale,     reciprocal temperatures                        4, 5, 10
           pair_scale

Huang, Shen, Lungren, Yeung, ICCV 2021. The equations and values are those of the released code; the paper's text was
not readable to us. `loss.over_words = False` leaves out the softmax over words. The released code counts [CLS] as a
word (`loss.cls_is_a_word`); here it is none, as it stands for the whole report. Its text is one random sentence of the
report (`text.one_sentence`) of at most 97 tokens.

Our choice: words are vectors of BERT's last layer, the code adds its last four; a report without words has no part in
L_l; punctuation counts as words unless `text.cleaning` takes it out.
"""

import jax.numpy as jnp

from cxrjax import monitors, rng
from cxrjax.input import device, paired
from cxrjax.losses import contrastive, local
from cxrjax.methods.base import Aux, Joint, Method
from cxrjax.models import bert, heads, regions, text_tower


def make(config) -> Method:
    """config: model, regions, text, loss, views, standardise; see configs/gloria.py for every key."""
    encoder, tower = regions.make(config.model, **config.regions), text_tower.make(config.text)
    dtype, see = jnp.dtype(config.model.dtype), paired.StudyReader(config)
    head = {
        "global": heads.MLP((tower.width,), norm="none", dtype=dtype),
        "local": heads.MLP((tower.width,), norm="none", last_bias=False, dtype=dtype),
    }
    scales = {name: config.loss[name] for name in ("attention_scale", "word_scale", "pair_scale")}
    options = {name: config.loss[name] for name in ("over_words", "aggregate", "chunks")}

    def loss(params, state, batch, key, step):
        images = device.standardise(batch["image"][:, 0], **config.standardise)  # b h w 1
        stats = state["batch_stats"]["encoder"]
        out, stats = encoder.apply(params["encoder"], stats, images, train=True, key=rng.fold(key, "encoder"))
        v, seen = project(params, "global", out["pooled"]), project(params, "local", out["regions"])  # b d, b p q d
        t, words, mask = read(params, state, batch["ids"], batch["text_mask"], batch["word_index"])
        terms = {
            # Both directions added, not their mean.
            "global": 2 * contrastive.info_nce(v, t, temperature=1 / config.loss.pair_scale),
            "local": local.gloria(seen.reshape(len(seen), -1, tower.width), words, mask, **scales, **options),
        }
        terms = {name: config.loss[f"{name}_weight"] * value for name, value in terms.items()}
        report = monitors.embedding(v, t) | {"report_twins": monitors.twins(batch["report"])}
        return sum(terms.values()), Aux({**state, "batch_stats": {"encoder": stats}}, terms, report)

    def read(params, state, ids, text_mask, word_index, cls_is_a_word=config.loss.cls_is_a_word):
        """Report b d; words b w d and which there are, b w."""
        out = tower.apply(params["text"], state["frozen"]["text"], ids, text_mask)
        if cls_is_a_word:
            shifted = jnp.where(word_index >= 0, word_index + 1, -1)
            word_index = shifted.at[:, 0].set(jnp.where(text_mask[:, 0], 0, -1))
        # Of l tokens two are [CLS] and [SEP].
        return out["pooled"], *bert.words(out["tokens"], word_index, ids.shape[1] - (1 if cls_is_a_word else 2))

    def project(params, name, x):
        return heads.run(head[name], params["image_head"][name], {}, x, train=False)[0]

    def init(key, batch):
        params, stats, frozen = {}, {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = tower.init(rng.fold(key, "text"))
        widths = {"global": encoder.width, "local": encoder.region_width}
        params["image_head"] = {
            name: heads.start(head[name], rng.fold(key, f"image_head/{name}"), width)[0]
            for name, width in widths.items()
        }
        return params, {"batch_stats": stats, "frozen": frozen}

    def run(params, state, images):
        images = device.standardise(images, **config.standardise)
        return encoder.apply(params["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    def encode(params, state, images):
        out = run(params, state, images)
        return {name: out[name] for name in ("pooled", "patches")}

    def joint_image(params, state, images):
        out = run(params, state, images)
        vectors = {
            "pooled": project(params, "global", out["pooled"]),
            "patches": project(params, "local", out["regions"]),
        }
        return {name: contrastive.normalise(x) for name, x in vectors.items()}

    def joint_text(params, state, ids, text_mask, word_index):
        report, words, mask = read(params, state, ids, text_mask, word_index, cls_is_a_word=False)
        vectors = {"pooled": report, "words": words}
        return {name: contrastive.normalise(x) for name, x in vectors.items()} | {"word_mask": mask}

    return Method(
        see,
        init,
        loss,
        lambda params, state, step: state,
        encode,
        config.model.image_px,
        joint=Joint(joint_image, joint_text, see.tokens, see.text),
    )
