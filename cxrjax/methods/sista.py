"""SISTA: contrast of radiographs and reports that knows which reports are alike, and of patches with relevant words.

    u_i = h(f(x_i)),  w_i = k(g(t_i))                    picture and report of study i, unit length
    v_ip = h_l(f_l(x_i)),  t_il = k_l(word l)            patches of i, and words: sums of their pieces; unit length
    S_ij = cos(e_i, e_j)                                 e: a frozen text encoder's, centred over the corpus
    Y, K from S by `loss.mode`; ℓ_ij = u_i·w_j / τ
    SIA  = −1/(2M) Σ_ij Y_ij [log softmax_k∈K_i(ℓ_ik)_j + log softmax_k∈K_i(ℓ_ki)_j]
    a_il = sparse(t_il·v_ip over p; σ),  c_il = normalise(Σ_p a_ilp v_ip)                the patches of word l
    STA  = mean over reports i, words l of −½ [log softmax_k(c_il·t_ik / τ_l)_l + log softmax_k(t_il·c_ik / τ_l)_l]
    loss = λ_SIA SIA + λ_STA STA

symbol     here                            meaning                                            default; with mimic_cxr
f f_l      model, regions                  image encoder, its map that words see              small ViT; ViT-B/16
g          text                            BERT                                               small; six layers
h k        image_head, text_head .global   Linear–BN–ReLU–Linear–BN, the last without affine  512, 128; 2048, 128
h_l k_l    image_head, text_head .local    the same for each patch and each word              512, 128; 2048, 128
e          similarity.encoder              what S is read from                                the set's own BERT
Y K        loss.mode                       targets, what is chosen from: losses/alignment.py  soft
τ_s θ      target_temperature, threshold   of soft targets; of the other modes                0.1; 0.95
τ τ_l      temperature, token_temperature  of pictures and reports; of words                  0.07; 0.1
σ          sparsity                        least share of the best patch's lead that counts   1 / patches

A RECONSTRUCTION FROM THE ABSTRACT of Bui, Nguyen, Bum, Le, Choo, Representation Learning with Semantic-aware Instance
and Sparse Token Alignments, arXiv 2601.08165: nothing else of the paper is public to us, and no code. What the abstract
states are three things: contrastive learning of image–report pairs; inter-report similarity is brought into it, so that
unpaired samples which mean the same are no false negatives; patches are aligned with relevant word tokens, sparsely as
the title has it. None of the formulas above, no value and no result is the authors'.

Our choice, with the method that it is taken from: soft targets (MedCLIP) rather than masks (`mask`), several positives
(FaNe: `multi_positive`) or three kinds of pairs (SAT: `triage`); centred vectors of mean-pooled BERT tokens; STA as in
SPARC, σ included; encoders, heads, widths, τ, weights, optimizer and preparation of data as in MGCA's released code. It
adds the two directions (`direction = "sum"`), takes negatives from one device's rows (`groups`), and counts padding in
the BatchNorm of words (`bn_include_pad`): named switches. loss.mode = "info_nce" with sta_weight = 0 is the baseline.

What we saw where the truth is known (tests/methods/test_sista_ideas.py): with paraphrases among the reports, soft
targets and several positives keep the meaning of groups far better than InfoNCE, masks a little; STA falls to 0 without
words attending to what they name, as any patches that differ can stand for the few words of one report.
"""

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.config import names
from cxrjax.input import converted_sets, paired
from cxrjax.losses import alignment
from cxrjax.losses.pairs import normalise
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.towers import Towers
from cxrjax.models import bert, heads, regions, text_tower
from cxrjax.report_encoders import report_encoder, similarity


def make(config: Config) -> Method:
    """config: model, regions, text, similarity, head, loss, views, standardise; see configs/sista.py for every key."""
    settings.one_of(config, "loss.mode", alignment.MODES)
    settings.one_of(config, "loss.direction", alignment.DIRECTIONS)
    settings.one_of(config, "loss.average", alignment.AVERAGES)
    settings.counts(config, "head.hidden", "head.out")
    settings.positive(config, "loss.temperature", "loss.target_temperature", "loss.token_temperature")
    settings.weights(config, "loss.sia_weight", "loss.sta_weight", "loss.intra_modal_weight")
    settings.shares(config, "loss.sparsity")
    settings.slices(config, "loss.groups")
    if config.loss.mode == "triage" and config.loss.neutral > config.loss.threshold:
        raise ValueError(
            f"loss.mode = 'triage' needs loss.neutral ≤ loss.threshold, got {config.loss.neutral} and "
            f"{config.loss.threshold}"
        )
    encoder, reader = regions.make(config.model, **config.regions), StudyReader(config)
    towers = Towers(encoder, text_tower.make(config.text), reader, config.standardise)
    sizes, dtype = (config.head.hidden, config.head.out), jnp.dtype(config.model.dtype)
    # No biases: the BatchNorm after them takes them off again.
    head = heads.MLP(sizes, last_norm=True, last_affine="none", bias=False, last_bias=False, dtype=dtype)
    of_reports = {
        k: config.loss[k] for k in ("mode", "target_temperature", "threshold", "neutral", "direction", "groups")
    }
    of_words = {k: config.loss[k] for k in ("sparsity", "average", "both_ways")} | {
        "temperature": config.loss.token_temperature
    }

    # Without STA only the global heads are learned; they then stand in for patches and words in `joint`, as ConVIRT's.
    kinds = ("global", "local") if config.loss.sta_weight else ("global",)

    def prepare(batch, key):
        return towers.prepare(batch, key)

    def embed(params, state, prepared):
        out, stats = towers.see(params, state, prepared)
        text, words, mask = read(params, state, *(prepared[name] for name in ("ids", "text_mask", "word_index")))
        features = {"picture": out["pooled"], "text": text}
        if config.loss.sta_weight:
            features |= {"regions": rearrange(out["regions"], "b p q r -> b (p q) r"), "words": words, "mask": mask}
        return features, stats

    def loss_of(params, state, features, prepared, step):
        stats, terms = state["batch_stats"], {}
        moved = {"encoder": stats["encoder"], "image_head": {}, "text_head": {}}

        def project(name, kind, x, counted=None):
            x, moved[name][kind] = run_head(params, stats, name, kind, x, counted, train=True)
            return x

        u = project("image_head", "global", features["picture"])  # b d
        w = project("text_head", "global", features["text"])
        e, tau = prepared["report_embedding"], temperature(params)
        sia, of_sia = alignment.sia(u, w, e, temperature=tau, **of_reports)
        terms["sia"], watched = config.loss.sia_weight * sia, monitors.embedding(u, w) | of_sia
        if config.loss.sta_weight:
            mask = features["mask"]
            v = project("image_head", "local", features["regions"])
            t = project("text_head", "local", features["words"], None if config.head.bn_include_pad else mask)
            number = prepared.get("word_number")
            equal = None if number is None else number[:, :, None] == number[:, None, :]
            sta, of_sta = alignment.sta(t, v, mask, equal=equal, **of_words)
            terms["sta"], watched = config.loss.sta_weight * sta, watched | of_sta
        if config.loss.intra_modal_weight:
            intra = alignment.intra_modal(u, e, temperature=tau, target_temperature=config.loss.target_temperature)
            terms["intra_modal"] = config.loss.intra_modal_weight * intra
        watched |= {"retrieval_top1_of_text": monitors.retrieval_top1(w, u), "temperature": jnp.asarray(tau)}
        watched["report_twins"] = monitors.twins(prepared["report"])
        return total(terms), Aux({**state, "batch_stats": moved}, terms, watched)

    def temperature(params):
        if not config.loss.learned:
            return config.loss.temperature
        return jnp.clip(jnp.exp(params["log_temperature"]), 0.01, 0.5)

    def read(params, state, ids, text_mask, word_index):
        """Report b d; words b w d and which there are, b w: of l tokens two are [CLS] and [SEP]."""
        out = towers.read(params, state, ids, text_mask)
        return out["pooled"], *bert.words(out["tokens"], word_index, ids.shape[1] - 2)

    def run_head(params, stats, name, kind, x, counted=None, *, train):
        """Unit vectors, and the statistics of that head; counted: rows that are no padding."""
        y, moved = heads.run(head, params[name][kind], stats[name][kind], x, train=train, mask=counted)
        return normalise(y), moved

    def init(key, batch):
        params, state = towers.init(key)
        text_width = towers.text.width
        widths = {"image_head": (encoder.width, encoder.region_width), "text_head": (text_width, text_width)}
        for name, of_kinds in widths.items():
            starts = {
                kind: heads.start(head, rng.fold(key, f"{name}/{kind}"), width)
                for kind, width in zip(kinds, of_kinds, strict=False)
            }
            params[name], state["batch_stats"][name] = ({k: s[i] for k, s in starts.items()} for i in range(2))
        if config.loss.learned:
            params["log_temperature"] = jnp.log(jnp.asarray(config.loss.temperature))
        return params, state

    def image_vectors(params, state, features):
        parts = ("global", features["pooled"]), (kinds[-1], features["regions" if kinds[1:] else "patches"])
        return (run_head(params, state["batch_stats"], "image_head", *part, train=False)[0] for part in parts)

    def text_vectors(params, state, ids, text_mask, word_index):
        pooled, words, mask = read(params, state, ids, text_mask, word_index)
        parts = ("global", pooled), (kinds[-1], words)
        w, t = (run_head(params, state["batch_stats"], "text_head", *part, train=False)[0] for part in parts)
        return w, t, mask

    joint, parts = towers.joint(image_vectors, text_vectors), Parts(prepare, embed, loss_of)
    functions = reader, init, joined(parts), keep_state, towers.encode
    look = towers.look(joint, prepare)
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)


class StudyReader(paired.StudyReader):
    """As `paired.StudyReader`, with the vector that a report's likeness is read from: report_embedding float32 e.

    With loss.mask_equal_words also word_number int32 w, equal for words of a report that are spelt alike. The vectors
    are made when the first example is seen (see report_encoders/similarity.py).
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.sets, self.split, self.encoder = names(config.data.sets), config.data.split, config.similarity.encoder
        self.mask_equal_words = config.loss.mask_equal_words

    def __call__(self, study: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        found = super().__call__(study, rng)
        # A study of no set, as tests and `methods.blank_batch` have it, is like no other.
        vector = np.zeros(1, np.float32)
        if study["set"]:
            vector = similarity.load(self.tables[study["set"]]).find(study["patient_id"], study["study_id"])
        found["report_embedding"] = vector
        if self.mask_equal_words:
            ids, index = found["ids"], found["word_index"]
            spelt = [zlib.crc32(ids[index == word].tobytes()) for word in range(len(index) - 2)]
            found["word_number"] = np.array(spelt, np.uint32).astype(np.int32)
        return found

    @functools.cached_property
    def tables(self) -> dict[str, Path]:
        """Where the vectors of each set lie. One encoder serves all sets: that of the first, where none is given."""
        sets = [converted_sets.open_set(name) for name in self.sets]
        encoder = self.encoder or report_encoder.folder(sets[0])
        return {one.name: similarity.made(one, self, encoder, self.split) for one in sets}
