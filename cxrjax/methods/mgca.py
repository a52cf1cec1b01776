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

import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.input import paired
from cxrjax.losses import contrastive, local, prototypes
from cxrjax.losses.pairs import normalise
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, frozen_at_first, joined, keep_state, total
from cxrjax.methods.towers import Towers
from cxrjax.models import bert, heads, linen, regions, text_attention
from cxrjax.models.prototypes import Prototypes

TEMPERATURES = ("temperature", "local_temperature", "prototype_temperature")
HEADS = ("image_head", "region_head", "text_head", "word_head")


def make(config: Config) -> Method:
    """config: model, regions, text, head, prototypes, loss, views, standardise; see configs/mgca.py for every key."""
    settings.one_of(config, "loss.weights", ("cls", "uniform"))
    settings.counts(config, "head.hidden", "head.out", "prototypes.count", "prototypes.iterations")
    settings.positive(config, "prototypes.epsilon", *(f"loss.{name}" for name in TEMPERATURES))
    settings.weights(config, "loss.ita_weight", "loss.cta_weight", "loss.cpa_weight")
    settings.shares(config, "prototypes.freeze_share")
    settings.slices(config, "loss.groups", "loss.chunks")
    by_cls, padding_counts = config.loss.weights == "cls", config.loss.padding_counts
    encoder, reader = regions.make(config.model, **config.regions, attention=by_cls), paired.StudyReader(config)
    towers = Towers(encoder, text_attention.make(config.text), reader, config.standardise)
    dtype, hold = jnp.dtype(config.model.dtype), frozen_at_first(config, config.prototypes.freeze_share)
    sizes = (config.head.hidden, config.head.out)
    # A BatchNorm takes away again what a bias before it adds.
    head = heads.MLP(sizes, last_norm=True, last_affine="none", bias=False, last_bias=False, dtype=dtype)
    directions = Prototypes(config.prototypes.count)

    def prepare(batch, key):
        return towers.prepare(batch, key)

    def embed(params, state, prepared):
        out, stats = towers.see(params, state, prepared)
        features = {name: out[name] for name in ("pooled", "regions", "attention")}
        texts = (prepared[name] for name in ("ids", "text_mask", "word_index"))
        return {**features, "report": read(params, state, *texts)}, stats

    def loss_of(params, state, features, prepared, step):
        v, v_n, stats = embed_picture(params, state["batch_stats"], features, train=True)
        mask, word_weights = (features["report"][name] for name in ("mask", "weights"))
        r, t_l, stats = embed_report(params, stats, features["report"], train=True)
        seen = features["attention"]
        region_weights = None if seen is None else local.clipped(seen, jnp.ones(seen.shape, bool))
        of_words, of_regions = local.token_alignment(
            rearrange(v_n, "b p q d -> b (p q) d"),
            t_l,
            mask,
            temperature=config.loss.local_temperature,
            region_weights=region_weights,
            word_weights=word_weights,
            raw_seen_words=config.loss.raw_seen_words,
            padding_is_negative=padding_counts,
        )
        learned = hold(params["prototypes"], step)
        cpa, codes = prototypes.swapped(
            {name: linen.apply(directions, learned, x) for name, x in {"v": v, "r": r}.items()},
            [("r", "v"), ("v", "r")],  # who predicts, whose codes
            epsilon=config.prototypes.epsilon,
            iterations=config.prototypes.iterations,
            temperature=config.loss.prototype_temperature,
        )
        options = {name: config.loss[name] for name in ("temperature", "groups", "chunks")}
        terms = {
            # Both directions added, not their mean.
            "ita": 2 * contrastive.info_nce(v, r, **options),
            "cta": of_words + of_regions,
            "cpa": cpa,
        }
        terms = {name: config.loss[f"{name}_weight"] * value for name, value in terms.items()}
        watched = monitors.embedding(v, r) | {
            "report_twins": monitors.twins(prepared["report"]),
            "cta_words": of_words,
            "prototypes_used": monitors.first_choices(codes["v"]) / config.prototypes.count,
        }
        return total(terms), Aux({**state, "batch_stats": stats}, terms, watched)

    def embed_picture(params, stats, features, *, train):
        """Picture b d and regions b p q d, of unit length; and running statistics."""
        pooled, stats = project("image_head", params, stats, features["pooled"], train)
        tokens, stats = project("region_head", params, stats, features["regions"], train)
        return pooled, tokens, stats

    def read(params, state, ids, text_mask, word_index):
        """The text encoder's "pooled" b d, "words" b w d, their "mask" b w, and "weights" b w or None."""
        out, count = towers.read(params, state, ids, text_mask), ids.shape[1] - 2  # two tokens are [CLS] and [SEP]
        words, mask = bert.words(out["tokens"], word_index, count)
        weights = None
        if by_cls:
            seen = out["attention"][..., None]  # b l 1
            if config.loss.shifted_attention:
                seen = jnp.pad(seen[:, 1:], ((0, 0), (0, 1), (0, 0)))
            seen, _ = bert.words(seen, word_index, count)
            weights = local.clipped(seen[..., 0], mask)
        return {"pooled": out["pooled"], "words": words, "mask": mask, "weights": weights}

    def embed_report(params, stats, report, *, train):
        """Report b d and words b w d, of unit length; and running statistics."""
        counted = None if padding_counts else report["mask"]
        pooled, stats = project("text_head", params, stats, report["pooled"], train)
        words, stats = project("word_head", params, stats, report["words"], train, counted)
        return pooled, words, stats

    def project(name, params, stats, x, train, mask=None):
        y, moved = heads.run(head, params[name], stats[name], x, train=train, mask=mask)
        return normalise(y), {**stats, name: moved}

    def init(key, batch):
        params, state = towers.init(key)
        widths = (encoder.width, encoder.region_width, towers.text.width, towers.text.width)
        for name, width in zip(HEADS, widths, strict=True):
            params[name], state["batch_stats"][name] = heads.start(head, rng.fold(key, name), width)
        direction = jnp.zeros((1, config.head.out))
        params["prototypes"] = linen.init(directions, rng.fold(key, "prototypes"), direction)
        return params, state

    def image_vectors(params, state, features):
        pooled, patches, _ = embed_picture(params, state["batch_stats"], features, train=False)
        return pooled, patches

    def text_vectors(params, state, *texts):
        report = read(params, state, *texts)
        pooled, words, _ = embed_report(params, state["batch_stats"], report, train=False)
        return pooled, words, report["mask"]

    joint, parts = towers.joint(image_vectors, text_vectors), Parts(prepare, embed, loss_of)
    functions = reader, init, joined(parts), keep_state, towers.encode
    look = towers.look(joint, prepare)
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)
