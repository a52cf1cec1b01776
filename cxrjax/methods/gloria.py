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
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.input import paired
from cxrjax.losses import contrastive, local
from cxrjax.losses.pairs import normalise
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.towers import Towers
from cxrjax.models import bert, heads, regions, text_tower


def make(config: Config) -> Method:
    """config: model, regions, text, loss, views, standardise; see configs/gloria.py for every key."""
    settings.one_of(config, "loss.aggregate", local.AGGREGATES)
    settings.weights(config, "loss.attention_scale")  # 0 attends to every region alike
    settings.positive(config, "loss.word_scale", "loss.pair_scale")
    settings.weights(config, "loss.global_weight", "loss.local_weight")
    settings.slices(config, "loss.chunks")
    encoder, reader = regions.make(config.model, **config.regions), paired.StudyReader(config)
    towers = Towers(encoder, text_tower.make(config.text), reader, config.standardise)
    width, dtype = towers.text.width, jnp.dtype(config.model.dtype)
    head = {
        "global": heads.MLP((width,), norm="none", dtype=dtype),
        "local": heads.MLP((width,), norm="none", last_bias=False, dtype=dtype),
    }
    scales = {name: config.loss[name] for name in ("attention_scale", "word_scale", "pair_scale")}
    options = {name: config.loss[name] for name in ("over_words", "aggregate", "chunks")}

    def prepare(batch, key):
        return towers.prepare(batch, key)

    def embed(params, state, prepared):
        out, stats = towers.see(params, state, prepared)
        v, seen = project(params, "global", out["pooled"]), project(params, "local", out["regions"])  # b d, b p q d
        texts = prepared["ids"], prepared["text_mask"], prepared["word_index"]
        t, words, mask = read(params, state, *texts, config.loss.cls_is_a_word)
        return {"v": v, "regions": seen, "t": t, "words": words, "mask": mask}, stats

    def loss_of(params, state, features, prepared, step):
        v, t, words, mask = (features[name] for name in ("v", "t", "words", "mask"))
        regions = rearrange(features["regions"], "b p q d -> b (p q) d")
        terms = {
            # Both directions added, not their mean.
            "global": 2 * contrastive.info_nce(v, t, temperature=1 / config.loss.pair_scale),
            "local": local.gloria(regions, words, mask, **scales, **options),
        }
        terms = {name: config.loss[f"{name}_weight"] * value for name, value in terms.items()}
        watched = monitors.embedding(v, t) | {"report_twins": monitors.twins(prepared["report"])}
        return total(terms), Aux(state, terms, watched)

    def read(params, state, ids, text_mask, word_index, cls_is_a_word):
        """Report b d; words b w d and which there are, b w."""
        out = towers.read(params, state, ids, text_mask)
        if cls_is_a_word:
            shifted = jnp.where(word_index >= 0, word_index + 1, -1)
            word_index = shifted.at[:, 0].set(jnp.where(text_mask[:, 0], 0, -1))
        # Of l tokens two are [CLS] and [SEP].
        return out["pooled"], *bert.words(out["tokens"], word_index, ids.shape[1] - (1 if cls_is_a_word else 2))

    def project(params, name, x):
        return heads.run(head[name], params["image_head"][name], {}, x, train=False)[0]

    def init(key, batch):
        params, state = towers.init(key)
        widths = {"global": encoder.width, "local": encoder.region_width}
        params["image_head"] = {
            name: heads.start(head[name], rng.fold(key, f"image_head/{name}"), width)[0]
            for name, width in widths.items()
        }
        return params, state

    def image_vectors(params, state, features):
        pooled, patches = project(params, "global", features["pooled"]), project(params, "local", features["regions"])
        return normalise(pooled), normalise(patches)

    def text_vectors(params, state, ids, text_mask, word_index):
        report, words, mask = read(params, state, ids, text_mask, word_index, cls_is_a_word=False)
        return normalise(report), normalise(words), mask

    joint, parts = towers.joint(image_vectors, text_vectors), Parts(prepare, embed, loss_of)
    functions = reader, init, joined(parts), keep_state, towers.encode
    look = towers.look(joint, prepare)
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)
