"""FaNe: reports that mean the same are positives, and each sentence sees its own part of the picture.

    v, x                          picture and report, unit length;  x: attention pool of the report's sentences
    p_n, e_k                      patches, and sentences: the mean of their tokens
    Ŝ = (cos(r_i, r_j) − o) / (1 − o),  m_ij = +1 where Ŝ > θ or i = j, else −1      r: a frozen encoder's of reports
    o ← 0.05 · mean cos(r_i, mean r) + 0.95 o                                         the first batch's own at first
    L_mp  = 1/b Σ_ij −log σ(m_ij (s v_i·x_j + β))
    L_hn  = 1/b Σ_i ½ Σ_{pictures, reports} Σ_{j: m_ij = −1} w_ij l_ij,   l = cos / τ, w = softmax_j(l_ij / τ)
    c_k   = LN(W_o Σ_n σ(q_k·k_n G_kn / √d) u_n),   G = σ(MLP([q; k]))                what sentence k sees
    L_t2i = mean over reports of ½ [CE(e cᵀ / τ) + CE(c eᵀ / τ)] among the sentences of one report
    L_spa = mean of G
    loss  = λ_mp L_mp + λ_hn L_hn + λ_t2i L_t2i + λ_spa L_spa

symbol  here                        meaning                                          default; with mimic_cxr
θ       loss.threshold              likeness from which reports mean the same        0.95
s β     log_scale, bias             learned, from 10 and −10                         as SigLIP
τ       loss.temperature                                                             0.07
d       width                       of v, x, p and e                                 64; 128
r       similarity.pool             of a copy of the text encoder that never learns  mean
λ       loss.*_weight               mp, hn, t2i, spa                                 1

Zhang, Lai, Chen, Wu, Kong, AAAI 2026 (arXiv 2511.12215). The paper's text was not readable to us: equations and numbers
are the released code's. Two summaries say that the paper has a loss from pictures to sentences as well, whose form is
not public, and call L_hn contrastive; the code's, above, is the logit of the hardest negative.

Slips of that code, each a switch; configs/fane.py:released sets them:
    loss.released_scale    s = t / 0.1 with t learned from ln(1/0.07) and never exponentiated
    loss.bias              +10 in SigLIP's sign: at the start every negative costs 10 and more, and no positive anything
    loss.count_single      a report of one sentence counts as one with a loss of 0
    similarity.shuffled    r is read from the sentences in the order of the day, so that it changes every epoch
There o and all negatives are those of one device, and o is forgotten at every resumption; here both are global and o
is in the state. r is the pooler's output there, which our BERTs do not have. Our choice: tokens find their sentence as
they are made; a text without sentences of its own, such as a prompt, is one; no mirror images, which belie a report.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import monitors, optim, rng
from cxrjax.input import paired
from cxrjax.losses import contrastive, mining
from cxrjax.losses.pairs import normalise
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.towers import Towers
from cxrjax.models import backbone, bert, linen, sentences, text_tower
from cxrjax.models.transformer import Linear
from cxrjax.text import reports

RELEASED_SCALE = 0.1
MOVES = 0.95
UNSET = -1.0  # the offset before the first batch; a mean cosine with the mean is never below 0


def make(config: Config) -> Method:
    """config: model, text, width, sentences, similarity, loss, views, standardise; see configs/fane.py."""
    settings.one_of(config, "similarity.pool", text_tower.POOLS)
    settings.counts(config, "width", "sentences.most", "sentences.heads")
    settings.positive(config, "loss.temperature")
    settings.weights(config, *(f"loss.{name}_weight" for name in ("mp", "hn", "t2i", "spa")))
    reader, dtype = StudyReader(config), jnp.dtype(config.model.dtype)
    towers = Towers(backbone.make(config.model), text_tower.make(config.text), reader, config.standardise)
    start = jax.nn.initializers.normal(towers.image.width**-0.5)
    heads = {name: Linear(config.width, dtype, start) for name in ("image_head", "patch_head", "text_head")}
    pool, see = sentences.SentencePool(config.sentences.heads, dtype), sentences.GatedAttention(dtype)

    def prepare(batch, key):
        return towers.prepare(batch, key)

    def embed(params, state, prepared):
        out, stats = towers.see(params, state, prepared)
        report = read(params, state, *(prepared[k] for k in ("ids", "text_mask", "sentence_index", "sentence_count")))
        order = "" if config.similarity.shuffled else "_as_written"
        asked, mask = (prepared[name + order] for name in ("ids", "text_mask"))
        frozen = linen.apply(towers.text.module, state["reports"]["text"], asked, mask)
        r = text_tower.pool(config.similarity.pool, frozen, mask[..., None])
        patches = rearrange(out["patches"], "b p q d -> b (p q) d")
        return {"picture": out["pooled"], "patches": patches, "r": jax.lax.stop_gradient(r), **report}, stats

    def loss_of(params, state, features, prepared, step):
        v, x = project(params, "image_head", features["picture"]), features["pooled"]  # b d
        e, count = features["sentences"], prepared["sentence_count"]
        seen, gate = linen.apply(see, params["see"], e, project(params, "patch_head", features["patches"]))
        of_batch = mining.centroid_cosine(features["r"])
        offset = jnp.where(state["offset"] < 0, of_batch, optim.ema(state["offset"], of_batch, MOVES))
        same, tau = mining.same_meaning(features["r"], offset, config.loss.threshold), config.loss.temperature
        hard = (mining.hard_negatives(v, same, tau) + mining.hard_negatives(x, same, tau)) / 2
        terms = {
            "mp": contrastive.sigmoid(v, x, scale=scale(params), bias=params["bias"], positives=same),
            "hn": hard,
            "t2i": mining.own_sentence(e, seen, count, tau, config.loss.count_single),
            "spa": mining.mean_of_pairs(gate, count),
        }
        terms = {name: config.loss[f"{name}_weight"] * value for name, value in terms.items()}
        watched = monitors.embedding(v, x) | {
            "report_twins": monitors.twins(prepared["report"]),
            "positives": same.sum() / len(same),
            "offset": offset,
            "scale": scale(params),
        }
        return total(terms), Aux({**state, "offset": offset}, terms, watched)

    def scale(params):
        return params["scale"] / RELEASED_SCALE if config.loss.released_scale else jnp.exp(params["scale"])

    def project(params, name, y):
        return linen.apply(heads[name], params[name], y).astype(jnp.float32)

    def read(params, state, ids, text_mask, index, count):
        """ "pooled" b d of reports, "sentences" b s d, and "tokens" b l d."""
        tokens = project(params, "text_head", towers.read(params, state, ids, text_mask)["tokens"])
        summed, _ = bert.words(tokens, index, config.sentences.most)
        pieces = jnp.sum(index[:, None, :] == jnp.arange(config.sentences.most)[:, None], axis=2)
        e = summed / jnp.maximum(pieces, 1)[..., None]
        return {"pooled": linen.apply(pool, params["pool"], e, count), "sentences": e, "tokens": tokens}

    def init(key, batch):
        params, state = towers.init(key)
        for name, head in heads.items():
            width = towers.text.width if name == "text_head" else towers.image.width
            params[name] = linen.init(head, rng.fold(key, name), jnp.zeros((1, width)))
        one = jnp.zeros((1, 1, config.width))
        params["pool"] = linen.init(pool, rng.fold(key, "pool"), one, jnp.ones(1, jnp.int32))
        params["see"] = linen.init(see, rng.fold(key, "see"), one, one)
        params["scale"] = jnp.log(1 / 0.07) if config.loss.released_scale else jnp.log(10.0)
        params["bias"] = jnp.asarray(config.loss.bias)
        copy = jax.tree.map(jnp.copy, {**params["text"], **state["frozen"]["text"]})
        return params, {**state, "reports": {"text": copy}, "offset": jnp.asarray(UNSET)}

    def image_vectors(params, state, features):
        vectors = (("image_head", features["pooled"]), ("patch_head", features["patches"]))
        return (normalise(project(params, *each)) for each in vectors)

    def text_vectors(params, state, ids, text_mask, word_index):
        index = jnp.where(word_index >= 0, 0, -1)
        report = read(params, state, ids, text_mask, index, jnp.any(index == 0, axis=1).astype(jnp.int32))
        words, word_mask = bert.words(report["tokens"], word_index, ids.shape[1] - 2)
        return normalise(report["pooled"]), normalise(words), word_mask

    joint, parts = towers.joint(image_vectors, text_vectors), Parts(prepare, embed, loss_of)
    functions = reader, init, joined(parts), keep_state, towers.encode
    look = towers.look(joint, prepare)
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)


class StudyReader(paired.StudyReader):
    """As `paired.StudyReader`, with the sentences in random order: sentence_index int l, −1 for what is none.

    Adds sentence_count, of those that are there, and the tokens in the order of the report as ids_as_written and
    text_mask_as_written.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.most = config.sentences.most

    def __call__(self, study: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        found = super().__call__(study, rng)
        written = self.sentences(study["report"])
        if self.cleaning != "mgca":
            written = [sentence for text in written for sentence in reports.sentences(text)]
        order = rng.permutation(len(written))
        shuffled = self.tokens(" ".join(written[i] for i in order))
        index, start = np.full(self.length, -1, np.int32), 1  # behind [CLS]
        last = int(shuffled["text_mask"].sum()) - 1  # [SEP]
        for number, i in enumerate(order[: self.most]):
            pieces = int(self.tokens(written[i])["text_mask"].sum()) - 2
            index[start : min(start + pieces, last)] = number
            start += pieces
        before = {f"{name}_as_written": found[name] for name in ("ids", "text_mask")}
        return {**found, **shuffled, **before, "sentence_index": index, "sentence_count": np.int32(index.max() + 1)}
