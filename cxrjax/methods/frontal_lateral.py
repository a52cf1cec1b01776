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
Prototypes stay as they start for a first share of the run, as MGCA's. Words are hidden whole, named findings oftener.
The released Swin has seen CheXpert and ChestX-ray14, which a comparison must say; ours can be trained, and is where it
has no weights. Our ViT differs from CLIP's in its GELU and first LayerNorm. Evaluated is the frontal encoder.
"""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import monitors, rng
from cxrjax.input import device, paired
from cxrjax.input.studies import pick
from cxrjax.losses import contrastive, distill, masked, prototypes
from cxrjax.losses.views import counted_info_nce, word_alignment
from cxrjax.methods.base import Aux, Joint, Method, frozen_at_first
from cxrjax.models import backbone, bert, selection, swin, text_tower
from cxrjax.models.cross_decoder import CrossDecoder, WordHead
from cxrjax.models.prototypes import Prototypes
from cxrjax.text import entities, masking

# What stands for a lateral token that there is not with missing_laterals_stay: the code's 1e-8 has the direction of
# (1, …, 1) too, but would be lost beside the constant under our square roots.
FILL = 1e-4


def make(config) -> Method:
    """config: model, lateral, text, width, decoder, selection, masking, prototypes, loss, defects, views, standardise;
    see configs/frontal_lateral.py for every key. Raises ValueError for a frozen Swin without weights."""
    wrong, dtype, width = config.defects, jnp.dtype(config.model.dtype), config.width
    encoder, tower = backbone.make(config.model), text_tower.make(config.text)
    drop_path = 0.1 if wrong.lateral_stochastic_depth else 0.0
    lateral = swin.Swin(config.lateral.variant, drop_path=drop_path, dtype=dtype, remat=config.model.remat)
    learned = is_learned(config.lateral)
    adapter = selection.Adapter(width, wrong.lateral_token_softmax, dtype)
    decoder = partial(CrossDecoder, heads=config.decoder.heads, **config.decoder.reading, dtype=dtype)
    mlm_decoder, view_decoder = decoder(config.decoder.mlm_depth), decoder(config.decoder.view_depth)
    words, clusters = WordHead(config.text.vocab_size, dtype), Prototypes(config.prototypes.count)
    see, hold = paired.StudyReader(config), frozen_at_first(config, config.prototypes.freeze_share)
    listed = set(config.masking.entities.split())
    nce = partial(counted_info_nce, temperature=config.loss.temperature, groups=config.loss.groups)
    scales = [config.standardise, config.lateral.standardise]
    if wrong.no_standardisation:
        scales = 2 * [{"mode": "fixed", "mean": 0.0, "std": 1.0}]

    def loss(params, state, batch, key, step):
        x_f, g_f, x_l, stats = look(params, state, batch["image"], rng.fold(key, "look"))  # b n d, b d, b m d
        there = batch["has_lateral"] | wrong.missing_laterals_stay  # b: what counts as a lateral picture
        x_l = jnp.where(batch["has_lateral"][:, None, None], x_l, FILL if wrong.missing_laterals_stay else 0.0)
        g_l = x_l.mean(axis=1)
        hidden, labels = hide(rng.fold(key, "mask"), batch)
        t, g_t, t_hidden = read_both(params, state, batch["ids"], hidden, batch["text_mask"])  # b l d, b d, b l d
        counted = batch["text_mask"] | wrong.padding_counts
        s = select(params, x_f, x_l, there, t, counted)
        heard = mlm_decoder.apply({"params": params["mlm_decoder"]}, t_hidden, s, counted.sum(axis=1))
        logits = words.apply({"params": params["mlm_head"]}, heard)  # b l v
        terms = {"mlm": masked.masked_tokens(logits, labels)}
        terms["fla"] = align(params, t, x_f, x_l, batch["word_index"], there)
        g_fl = jnp.concatenate([g_f, jnp.where(there[:, None], g_l, params.get("absent", 0.0))], axis=1)
        g_fl = g_fl @ params["projector"]["kernel"] + params["projector"]["bias"]
        everyone = jnp.ones_like(there)
        terms["itc"] = (nce(g_f, g_t, everyone) + nce(g_l, g_t, there)) / 2 + nce(g_fl, g_t, everyone)
        terms["proto"], codes = cluster(hold(params["prototypes"], step), g_f, g_l, g_t, there)
        terms = {name: config.loss.weights[name] * value for name, value in terms.items()}
        report = monitors.embedding(g_f, g_t) | {
            "lateral_top1": own_report_first(g_l, g_t, batch["report"], batch["has_lateral"]),
            "mlm_accuracy": jnp.sum((logits.argmax(-1) == labels) & (labels > 0)) / jnp.maximum((labels > 0).sum(), 1),
            "prototypes_used": jnp.sum(jax.nn.one_hot(codes.argmax(axis=1), codes.shape[1]).any(axis=0)),
            "code_entropy": distill.entropy(codes).mean(),
        }
        return sum(terms.values()), Aux({**state, "batch_stats": {"encoder": stats}}, terms, report)

    def look(params, state, images, key):
        """X_F b n d, g_F b d, X_L b m d of images b v h w 1, and the encoder's statistics."""
        x_f, x_l = (device.standardise(images[:, v], **scale) for v, scale in enumerate(scales))
        stats = state["batch_stats"]["encoder"]
        out, stats = encoder.apply(params["encoder"], stats, x_f, train=True, key=rng.fold(key, "encoder"))
        patches = rearrange(out["patches"], "b p q d -> b (p q) d")
        known = params["lateral"] if learned else state["frozen"]["lateral"]
        found = lateral.apply({"params": known}, x_l, key=rng.fold(key, "lateral"))["patches"]
        to_joint = params["image_head"]
        return patches @ to_joint, out["pooled"] @ to_joint, adapter.apply({"params": params["adapter"]}, found), stats

    def read(params, state, ids, mask):
        """T b l d, g_T b d."""
        out = tower.apply(params["text"], state["frozen"]["text"], ids, mask)
        return tuple(out[name] @ params["text_head"] for name in ("tokens", "pooled"))

    def read_both(params, state, ids, hidden, mask):
        """T and g_T of the report, and T of it with words hidden: in one pass, or as one and the same."""
        if wrong.shared_masked_text:
            t, g_t = read(params, state, hidden, mask)
            return t, g_t, t
        both = rearrange(jnp.stack([ids, hidden], axis=1), "b s l -> (b s) l")
        t, g_t = read(params, state, both, jnp.repeat(mask, 2, axis=0))
        return t[::2], g_t[::2], t[1::2]

    def hide(key, batch):
        share, named = config.masking, batch["entity"]
        chance = jnp.where(named.any(axis=1, keepdims=True), share.beside, share.without)
        chance = jnp.where(named, share.entity, chance)
        known = jnp.where(batch["ids"] == see.tokenizer.unk_id, -1, batch["word_index"])  # [UNK] is no word to guess
        inputs = key, batch["ids"], known, chance, see.tokenizer.mask_id
        return masking.mask_words(*inputs, whole_words=not wrong.piece_masking)

    def gather(n, m):
        """The module that draws together what is kept of n frontal and m lateral tokens."""
        _, count = selection.sizes(n + m, config.selection.keep_ratio, config.selection.gather_ratio)
        if wrong.aggregate_more:  # the code counts the tokens of two ViTs, and rounds once
            ratios = (Fraction(str(config.selection[name])) for name in ("keep_ratio", "gather_ratio"))
            count = int(2 * n * math.prod(ratios))
        return selection.Gather(count, dtype)

    def select(params, x_f, x_l, there, t, counted):
        """S: b k d."""
        if wrong.last_caption_selects:
            t, counted = (of_last(x, config.loss.groups) for x in (t, counted))
        if not wrong.unequal_scales:
            x_f, x_l = (jax.nn.standardize(x, axis=-1, epsilon=1e-5) for x in (x_f, x_l))
        tokens, n = jnp.concatenate([x_f, x_l], axis=1), x_f.shape[1]
        exists = jnp.arange(tokens.shape[1]) < jnp.where(there, tokens.shape[1], n)[:, None]
        draw = partial(gather(n, x_l.shape[1]).apply, {"params": params["selection"]})
        return selection.select(draw, tokens, exists, t, counted, config.selection.keep_ratio)

    def align(params, t, x_f, x_l, word_index, there):
        asked = (word_index[:, 1:] >= 0) | wrong.padding_counts  # the words stand first after [CLS]
        lengths = asked.sum(axis=1)
        u_f, u_l = (view_decoder.apply({"params": params["view_decoder"]}, t[:, 1:], x, lengths) for x in (x_f, x_l))
        return word_alignment(u_f, u_l, asked, temperature=config.loss.word_temperature, studies=there)

    def cluster(known, g_f, g_l, g_t, there):
        """L_proto, and the codes of the reports b k."""
        vectors = {"F": g_f, "L": g_l, "T": g_t}
        scores = {name: clusters.apply({"params": known}, g) for name, g in vectors.items()}  # b k, cosines
        if wrong.raw_prototypes:
            scores = {name: z * length(vectors[name]) for name, z in scores.items()}
        pairs = [("F", "T"), ("L", "T"), ("T", "F"), ("T", "L")][: 2 if wrong.one_way_prototypes else 4]
        options = {"epsilon": config.prototypes.epsilon, "temperature": config.loss.prototype_temperature}
        options |= {"valid": {"L": there}, "shift": not wrong.raw_prototypes}
        value, codes = prototypes.swapped(scores, pairs, **options)
        return value, codes["T"]

    def init(key, batch):
        def normal(name, rows, columns):
            return rows**-0.5 * jax.random.normal(rng.fold(key, name), (rows, columns))

        def start(name, module, *inputs):
            params[name] = module.init(rng.fold(key, name), *inputs)["params"]

        params, frozen, px = {}, {}, config.model.image_px
        params["encoder"], stats = encoder.init(rng.fold(key, "encoder"))
        params["text"], frozen["text"] = tower.init(rng.fold(key, "text"))
        known = lateral.init(rng.fold(key, "lateral"), jnp.zeros((1, px, px, 1)))["params"]
        (params if learned else frozen)["lateral"] = known
        params["image_head"] = normal("image_head", encoder.width, width)
        params["text_head"] = normal("text_head", tower.width, width)
        if not wrong.missing_laterals_stay:
            params["absent"] = 0.02 * normal("absent", 1, width)[0]
        params["projector"] = {"kernel": normal("projector", 2 * width, width), "bias": jnp.zeros(width)}
        token = jnp.zeros((1, 1, width))
        start("adapter", adapter, jnp.zeros((1, 1, lateral.width)))
        start("mlm_decoder", mlm_decoder, token, token)
        start("view_decoder", view_decoder, token, token)
        start("mlm_head", words, token)
        start("prototypes", clusters, token[0])
        state = {"batch_stats": {"encoder": stats}, "frozen": frozen}
        images = jnp.zeros((1, 2, px, px, 1), jnp.uint8)
        x_f, _, x_l, _ = jax.eval_shape(look, params, state, images, key)
        start("selection", gather(x_f.shape[1], x_l.shape[1]), token, jnp.ones((1, 1), bool))
        return params, state

    def make_views(study, generator):
        found, picture = see(study, generator), pick(study["laterals"], generator)
        second = np.zeros_like(found["image"]) if picture is None else see.picture(picture, generator)[None]
        found["image"] = np.concatenate([found["image"], second])
        named = found["text_mask"]
        if named.any():
            inputs = (see.tokenizer, found["ids"], found["word_index"], listed)
            named = entities.named(*inputs, whole_words=not wrong.piece_masking)
        return found | {"has_lateral": np.bool_(picture is not None), "entity": named}

    def encode(params, state, images):
        images = device.standardise(images, **scales[0])
        return encoder.apply(params["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    def joint_image(params, state, images):
        out = encode(params, state, images)
        return {name: contrastive.normalise(out[name] @ params["image_head"]) for name in ("pooled", "patches")}

    def joint_text(params, state, ids, mask, word_index):
        t, g_t = read(params, state, ids, mask)
        summed, word_mask = bert.words(t, word_index, ids.shape[1])
        vectors = {"pooled": g_t, "words": summed}
        return {name: contrastive.normalise(x) for name, x in vectors.items()} | {"word_mask": word_mask}

    joint = Joint(joint_image, joint_text, see.tokens, see.text)
    return Method(make_views, init, loss, lambda params, state, step: state, encode, config.model.image_px, joint=joint)


def is_learned(lateral) -> bool:
    """Whether the lateral encoder is trained: as `train` says, by default where it has no weights to start from.

    Raises ValueError where it would stay as it was drawn.
    """
    train = not lateral.init_from if lateral.train is None else lateral.train
    if not train and not lateral.init_from:
        raise ValueError(
            "lateral.train=False without lateral.init_from would keep a random Swin for the whole run: give the folder "
            "of a Hugging Face Swin as lateral.init_from, or train it with lateral.train=True"
        )
    return train


def length(x: jax.Array) -> jax.Array:
    """b d → b 1; its gradient is finite at 0 too, the vector of a report without words."""
    return jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def of_last(x: jax.Array, groups: int) -> jax.Array:
    """b … → b …, every row replaced by the last of its group of consecutive rows."""
    return jnp.repeat(rearrange(x, "(g b) ... -> g b ...", g=groups)[:, -1], len(x) // groups, axis=0)


def own_report_first(g: jax.Array, g_t: jax.Array, report: jax.Array, counted: jax.Array) -> jax.Array:
    """Share of the counted (b bool) rows of g whose most similar report has the words of their own (report: b int)."""
    g, g_t = (contrastive.normalise(jax.lax.stop_gradient(x)) for x in (g, g_t))
    found = report[jnp.argmax(contrastive.pairwise(g, g_t), axis=1)] == report
    return jnp.sum(found & counted) / jnp.maximum(counted.sum(), 1)
