"""F-L: multi-view chest X-ray vision–language pre-training. Qiao, Gong, … Lei, IEEE TMI, 10.1109/TMI.2026.3700856.

    X_F = f(x_F) W_F, g_F its [CLS];   X_L = A(s(x_L)), g_L its mean;   T = t(report) W_T, g_T of the whole
    L_mlm    masked words of the report, read by a decoder from the study's key patches S = select([X_F; X_L], T)
    L_fla    U_F = D(T, X_F), U_L = D(T, X_L); word i of U_F against the report's words of U_L, and back, τ_w
    L_itc    ½ (NCE(g_F, g_T) + NCE(g_L, g_T)) + NCE(g_FL, g_T),   g_FL = P [g_F; g_L] + b,   temperature τ
    L_proto  codes q = Sinkhorn(C ḡ / ε), balanced over the batch; mean over F ↔ T, L ↔ T of −Σ q log softmax(C ḡ / τ_p)
    loss = L_itc + L_mlm + L_fla + L_proto

symbol   here                      meaning                                            released
f s t    model, lateral, text      ViT, frozen Swin, BERT                             B/16, T, Bio_ClinicalBERT
A        adapter                   Linear → tanh → Linear → LayerNorm                 768 → 512
D        view_decoder, mlm_decoder one cross-attention, N blocks; for both views one  N = 2, 4
S        selection                 see models/selection.py                            0.8, 0.7
C ε τ_p  prototypes, loss          unit rows, code and prediction temperature         500, 0.07, 0.1
τ τ_w    loss                      temperatures                                       0.1, 0.07

Only abstract, figure and code are open to us. They state the three parts, two streams of the report and arrows both
ways at the prototypes; every number is the released code's, the rest our choice. Each defect of that code that changes
values is a switch of config.defects, described in configs/frontal_lateral.py. A study without a lateral picture counts
in no mean that needs one, and a learned vector stands for its g_L in g_FL. Negatives are all studies of the global
batch, as everywhere here, so that the number of devices changes nothing; the code has the 32 of one (`loss.groups`).
Prototypes stay as they start for a first share of the run, as MGCA's. Words are hidden whole, findings more often.
The released Swin has seen CheXpert and ChestX-ray14, which a comparison must say. Here a Swin without weights to start
from is trained. Codes balance over what is there: with one lateral in a batch the codes of "L" are uniform and teach
nothing. A larger batch helps, or studies with both views alone (`data.require=frontal,lateral,report`). Our ViT differs
from CLIP's in its GELU and first LayerNorm. Evaluated is the frontal encoder.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, rng
from cxrjax.drawing.panels import Panel
from cxrjax.input import device, paired
from cxrjax.input.studies import pick
from cxrjax.losses import distill, masked, prototypes
from cxrjax.losses.pairs import mean_where, normalise
from cxrjax.losses.views import counted_info_nce, word_errors
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, frozen_at_first, joined, keep_state, total
from cxrjax.methods.towers import Towers
from cxrjax.models import bert
from cxrjax.models.frontal_lateral import Networks
from cxrjax.text import entities, masking
from cxrjax.text.tokenizer import Tokenizer

# What stands for a lateral token that there is not with missing_laterals_stay: the code's 1e-8 has the direction of
# (1, …, 1) too, but would be lost beside the constant under our square roots.
FILL = 1e-4
TEMPERATURES = ("temperature", "word_temperature", "prototype_temperature")
RATES = ("entity", "beside", "without")


def make(config: Config) -> Method:
    """config: model, lateral, text, width, decoder, selection, masking, prototypes, loss, defects, views, standardise;
    see configs/frontal_lateral.py for every key. Raises ValueError for a frozen Swin without weights."""
    settings.one_of(config, "lateral.standardise.mode", device.MODES)
    settings.counts(config, "width", "decoder.heads", "decoder.mlm_depth", "decoder.view_depth", "prototypes.count")
    settings.positive(config, "prototypes.epsilon", *(f"loss.{name}" for name in TEMPERATURES))
    settings.weights(config, *(f"loss.weights.{name}" for name in ("mlm", "fla", "itc", "proto")))
    settings.shares(config, "prototypes.freeze_share", *(f"masking.{name}" for name in RATES))
    settings.slices(config, "loss.groups", "loss.chunks")
    net, reader, wrong = Networks(config), StudyReader(config), config.defects
    scales = [config.standardise, config.lateral.standardise]
    if wrong.no_standardisation:
        scales = 2 * [{"mode": "fixed", "mean": 0.0, "std": 1.0}]
    rates = {name: config.masking[name] for name in RATES}
    hold = frozen_at_first(config, config.prototypes.freeze_share)

    def prepare(batch, key):
        frontal, lateral = (device.standardise(batch["image"][:, v], **scale) for v, scale in enumerate(scales))
        hidden, labels = hide(rng.fold(key, "mask"), batch, rates, reader.tokenizer, not wrong.piece_masking)
        paths = net.paths(rng.fold(key, "look"), len(frontal))
        return {**batch, "pictures": (frontal, lateral), "hidden": hidden, "labels": labels, "paths": paths}

    def embed(params, state, prepared):
        """Vectors of every study; of the local losses, which are within one, what they are the means of."""
        there, ids, hidden, text_mask = (prepared[name] for name in ("has_lateral", "ids", "hidden", "text_mask"))
        frontal, lateral = prepared["pictures"]
        x_f, g_f, x_l, stats = net.embed_pictures(params, state, frontal, lateral, prepared["paths"])
        has_lateral = there | wrong.missing_laterals_stay  # b: what counts as a lateral picture
        x_l = jnp.where(there[:, None, None], x_l, FILL if wrong.missing_laterals_stay else 0.0)
        g_l = x_l.mean(axis=1)
        t, g_t, t_hidden = net.embed_both_reports(params, state, ids, hidden, text_mask)

        counted = text_mask | wrong.padding_counts
        s = net.key_patches(params, x_f, x_l, has_lateral, t, counted)
        logits = net.guess_words(params, t_hidden, s, counted.sum(axis=1))  # b l v
        mlm = masked.token_errors(logits, prepared["labels"])

        asked = (prepared["word_index"][:, 1:] >= 0) | wrong.padding_counts  # the words stand first after [CLS]
        lengths = asked.sum(axis=1)
        u_f, u_l = (net.read_view(params, t[:, 1:], x, lengths) for x in (x_f, x_l))
        fla = word_errors(u_f, u_l, asked, temperature=config.loss.word_temperature, studies=has_lateral)
        features = {"vectors": (g_f, g_l, g_t), "mlm": mlm, "fla": fla, "guesses": logits.argmax(-1)}
        return features, stats

    def loss_of(params, state, features, prepared, step):
        g_f, g_l, g_t = features["vectors"]  # b d
        mlm, fla = masked.quotient(*features["mlm"]), mean_where(*features["fla"])
        has_lateral = prepared["has_lateral"] | wrong.missing_laterals_stay
        g_fl = net.join_views(params, g_f, g_l, has_lateral)
        options = {name: config.loss[name] for name in ("temperature", "groups", "chunks")}
        itc = contrast(g_f, g_l, g_fl, g_t, has_lateral, **options)

        z = net.scores(hold(params["prototypes"], step), {"F": g_f, "L": g_l, "T": g_t})  # b k each
        proto, codes = swapped(
            z,
            has_lateral,
            one_way=wrong.one_way_prototypes,
            epsilon=config.prototypes.epsilon,
            temperature=config.loss.prototype_temperature,
            shift=not wrong.raw_prototypes,
        )
        terms = {"mlm": mlm, "fla": fla, "itc": itc, "proto": proto}
        terms = {name: config.loss.weights[name] * value for name, value in terms.items()}
        watched = monitors.embedding(g_f, g_t) | {
            "lateral_top1": monitors.own_report_first(g_l, g_t, prepared["report"], prepared["has_lateral"]),
            "mlm_accuracy": monitors.token_accuracy(features["guesses"], prepared["labels"]),
            "prototypes_used": monitors.first_choices(codes["T"]),
            "code_entropy": distill.entropy(codes["T"]).mean(),
        }
        return total(terms), Aux(state, terms, watched)

    def init(key, batch):
        return net.init(key)

    def image_vectors(params, state, features):
        pooled, patches = (features[name] @ params["image_head"] for name in ("pooled", "patches"))
        return normalise(pooled), normalise(patches)

    def text_vectors(params, state, ids, text_mask, word_index):
        t, g_t = net.embed_report(params, state, ids, text_mask)
        words, word_mask = bert.words(t, word_index, ids.shape[1])
        return normalise(g_t), normalise(words), word_mask

    def look(params, state, batch, key):
        prepared = prepare(batch, key)
        guesses = embed(params, state, prepared)[0]["guesses"]
        known = jnp.where(guesses < reader.tokenizer.vocab_size, guesses, reader.tokenizer.unk_id)
        guessed = jnp.where(prepared["labels"] != masking.IGNORED, known, masking.IGNORED)
        words = {"report as the network reads it": "hidden", "words that were hidden": "labels"}
        views = "frontal picture", "lateral picture, black where there is none"
        rows = [Panel(label, batch["image"][:, v, ..., 0]) for v, label in enumerate(views)]
        rows += [Panel(label, ids=prepared[name], spell=towers.spell) for label, name in words.items()]
        rows.append(Panel("words that it guesses for them", ids=guessed, spell=towers.spell))
        return rows

    towers = Towers(net.frontal, net.text, reader, scales[0])
    joint, whole = towers.joint(image_vectors, text_vectors), Parts(prepare, embed, loss_of)
    functions, parts = (reader, init, joined(whole), keep_state, towers.encode), whole
    if wrong.last_caption_selects:
        parts = "with defects.last_caption_selects the last report of the batch chooses the patches of all studies"
    return Method(*functions, config.model.image_px, parts=parts, joint=joint, look=look)


def contrast(
    g_f: jax.Array,
    g_l: jax.Array,
    g_fl: jax.Array,
    g_t: jax.Array,
    has_lateral: jax.Array,
    **options: Any,
) -> jax.Array:
    """L_itc of vectors b d, any length. has_lateral: b bool, whose g_L counts. options: of `counted_info_nce`."""
    nce = partial(counted_info_nce, **options)
    everyone = jnp.ones_like(has_lateral)
    return (nce(g_f, g_t, everyone) + nce(g_l, g_t, has_lateral)) / 2 + nce(g_fl, g_t, everyone)


def swapped(
    scores: Mapping[str, jax.Array], has_lateral: jax.Array, *, one_way: bool = False, **options: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_proto, and the codes b k by name.

    scores: C ḡ, b k each, of "F", "L" and "T". has_lateral: b bool, whose "L" counts. one_way: pictures predict the
    codes of reports, and reports nothing. options: epsilon, temperature and shift of `prototypes.swapped`.
    """
    pairs = [("F", "T"), ("L", "T"), ("T", "F"), ("T", "L")][: 2 if one_way else 4]  # who predicts, whose codes
    return prototypes.swapped(scores, pairs, valid={"L": has_lateral}, **options)


def hide(
    key: jax.Array,
    batch: Mapping[str, jax.Array],
    rates: Mapping[str, float],
    tokenizer: Tokenizer,
    whole_words: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The reports with words hidden, and their labels: int b l each, see `masking.mask_words`."""
    chances = hiding_rates(batch["entity"], **rates)
    known = jnp.where(batch["ids"] == tokenizer.unk_id, -1, batch["word_index"])  # [UNK] is no word to guess
    return masking.mask_words(key, batch["ids"], known, chances, tokenizer.mask_id, whole_words=whole_words)


def hiding_rates(named: jax.Array, *, entity: float, beside: float, without: float) -> jax.Array:
    """How often each piece is hidden, b l. named: b l bool, whether its word is one of the listed findings.

    entity: a listed word; beside: another word of a report that has a listed one; without: a word of other reports.
    """
    others = jnp.where(named.any(axis=1, keepdims=True), beside, without)
    return jnp.where(named, entity, others)


class StudyReader(paired.StudyReader):
    """As `paired.StudyReader`, with a lateral picture: image 2 h w 1, the second black where the study has none.

    Adds has_lateral bool, and entity bool l, the pieces of listed findings.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.entities, self.whole_words = set(config.masking.entities.split()), not config.defects.piece_masking

    def __call__(self, study: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        found, lateral = super().__call__(study, rng), pick(study["laterals"], rng)
        second = np.zeros_like(found["image"]) if lateral is None else self.picture(lateral, rng)[None]
        found["image"] = np.concatenate([found["image"], second])
        named = found["text_mask"]
        if named.any():
            words = self.tokenizer, found["ids"], found["word_index"], self.entities
            named = entities.named(*words, whole_words=self.whole_words)
        return found | {"has_lateral": np.bool_(lateral is not None), "entity": named}
