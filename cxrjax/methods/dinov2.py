"""DINOv2: self-distillation of whole pictures and of hidden patches. Oquab, Darcet, Moutakanni et al., TMLR 2024.

    teacher: two large crops; student: the same with patches hidden, and local crops          arXiv 2304.07193
    g = h(f(x)) of [CLS],  h(y) = γ ⊙ W̄ᵀ z/‖z‖,  z = MLP(y);   g' = h'(f(x)) of patches     h' = h, or a head of its own
    P = balanced softmax(g_t / τ_t) over both crops of all pictures, q the same over all hidden patches; no gradient
    L_DINO = mean over pairs of different crops, of which the teacher sees one, of H(P, softmax(g_s / τ_s))
    L_iBOT = 1/2b Σ_crops 1/|m| Σ_{j ∈ m} H(q_j, softmax(g'_j / τ_s))                        m: hidden patches of a crop
    KoLeo(X) = −1/b Σ_i log ‖x̂_i − nearest other x̂‖                                          X: [CLS] of one large crop
    loss = w_d L_DINO + w_i L_iBOT + w_k Σ_{large crops} KoLeo
           + w_g mean over large crops of ‖X̂ X̂ᵀ − X̂_G X̂_Gᵀ‖² / n²        X: their n patches; G: an earlier teacher
    θ_s ← optimizer,  θ_t ← λ θ_t + (1 − λ) θ_s,  λ from λ₀ to 1 along a cosine

symbol     here                     meaning                                               default; with chestxray14
w          loss.*_weight            dino, ibot, koleo, gram                               1, 1, 0.1, 0
K          head.prototypes          length of g; of g' in ibot_head                       1024; 65536
τ_s τ_t    loss.*temperature*       0.1; linear over loss.warmup_share of the run         0.04 to 0.07
m          masking                  rectangles, 10 to 50 % of a crop, in one crop of two  14 × 14 and more patches
λ₀         momentum                                                                       0.99; 0.994
f          model                    ViT; LayerScale, registers, SwiGLU as model.* says

Losses, heads, masks and every number of the recipe are those of the released code (its ViT-L). The published ViT-S, B
and L are distilled from a ViT-g, so what a ViT-S or B needs from scratch is our choice: fewer dropped paths, one head.
Balanced is Sinkhorn–Knopp, of both large recipes; `loss.assignment="centre"` subtracts running means, as in DINO.

Slips of that code, each a switch; configs/dinov2.py:released sets them:
    augment.blur                  it blurs with 1 − p: the first crop never, the second nearly always
    loss.koleo_itself             a row whose others are all opposite takes itself for its neighbour
    loss.koleo_groups             neighbours are those of one device
    loss.ibot_average="masked"    off as released: crops without a mask count in the mean of L_iBOT, which halves it
    head.learn_length             on there: γ is learned. Here γ = 1, as in DINO
    model.drop_path_subset        a fixed number of pictures keeps a branch, which at small batches is another rate
There masks are drawn for half of all crops of a batch; here for one crop of each picture, and with a ratio of its own.
τ_t reaches its end one step later than there. The last layer is held by a learning rate of 0, as there (`optim.held`).

w_g is Gram anchoring, of DINOv3 (2508.10104): G starts as the encoder that the run starts from, and is replaced by θ_t
every loss.gram_refresh_steps; configs/dinov2.py:gram has the paper's 2 and 10 000. It looks at hidden patches too, as
the released code does. G sees the same crops here, where the paper's best variant gives it twice their size.

RAD-DINO (2401.10815) goes on from DINOv2's ViT-B/14 at 518 px; its rate, steps and crops are not public. CheXFound
(2502.05142) is `configs/dinov2.py:chexfound`. Our choice: grey jitter, no flip, no negative. The teacher is evaluated.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, optim, rng, sizes
from cxrjax.drawing.panels import Panel
from cxrjax.input import block_masks, device
from cxrjax.losses import distill, prototypes
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, progress, ramp, target_of, total
from cxrjax.methods.trunk import multi_crop
from cxrjax.models import backbone, heads, linen
from cxrjax.models.prototypes import Prototypes
from cxrjax.models.transformer import gather

WEIGHTS = ("dino_weight", "ibot_weight", "koleo_weight", "gram_weight")


def make(config: Config) -> Method:
    """config: model, head, ibot_head, masking, momentum, loss, views, local_views, augment, augment_local, standardise;
    see configs/dinov2.py for every key."""
    settings.one_of(config, "loss.assignment", ("centre", "sinkhorn"))
    settings.one_of(config, "loss.ibot_average", ("all", "masked"))
    settings.counts(config, "head.hidden", "head.out", "head.prototypes", "masking.crops", "local_views.px")
    settings.counts(config, "local_views.count", "masking.most", least=0)
    settings.positive(config, *(f"loss.{name}" for name in ("temperature", "teacher_temperature", "start_temperature")))
    settings.weights(config, *(f"loss.{name}" for name in WEIGHTS))
    settings.shares(config, "momentum", "loss.centre_momentum", "loss.warmup_share", "masking.ratio")
    settings.counts(config, "loss.gram_refresh_steps")
    settings.slices(config, "loss.koleo_groups")
    whole, student = backbone.make_vit({**config.model, "mask_token": True})
    _, teacher = backbone.make_vit({**config.model, "mask_token": True, "drop_path": 0.0})
    crops, loss, dtype = multi_crop(config, whole), config.loss, student.dtype
    grid = sizes.grid(config.model.image_px, config.model.patch_px)
    rectangles = block_masks.Rectangles(**config.masking)
    networks = {"head": _head(config.head, dtype)}
    if config.ibot_head.separate:
        own = {name: config.ibot_head[name] for name in ("out", "prototypes")}
        networks["ibot_head"] = _head({**config.head, **own}, dtype)
    of_patches = "ibot_head" if config.ibot_head.separate else "head"
    momentum, done = ramp(config, config.momentum), progress(config)

    def prepare(batch, key):
        masks = {name: batch[name] for name in ("hidden", "hidden_ids", "hidden_count")}
        return {"crops": crops.prepare(batch, key), **masks}

    def embed(params, state, prepared):
        large, *local = prepared["crops"].values()
        of_student, seen = see(student, params["encoder"], large, prepared["hidden"])
        tokens = picked(seen, prepared["hidden_ids"])  # b c d
        for of_one_size in local:
            of_student = jnp.concatenate([of_student, see(student, params["encoder"], of_one_size)[0]], axis=1)
        of_teacher, patches = see(teacher, state["target"]["encoder"], {**large, "paths": None})
        features = {"student": of_student, "teacher": of_teacher, "student_tokens": tokens}  # b v d, b 2 d, b c d
        features["teacher_tokens"] = picked(patches, prepared["hidden_ids"])
        if loss.gram_weight:
            _, anchor = see(teacher, state["gram"]["encoder"], {**large, "paths": None})
            features["gram"] = distill.gram(seen, anchor)  # b v
        return features, state["batch_stats"]["encoder"]

    def loss_of(params, state, features, prepared, step):
        tau = temperature(step)
        there, weights = token_weights(prepared["hidden_count"], prepared["hidden_ids"].shape[1])  # b c
        logits = head_of("head", params, features["student"])  # b v k
        tokens = head_of(of_patches, params, features["student_tokens"])  # b c k
        whole_picture = head_of("head", state["target"], features["teacher"])  # b 2 k
        seen = head_of(of_patches, state["target"], features["teacher_tokens"])  # b c k
        targets, centre = assign(whole_picture, state, "centre", tau, jnp.ones(whole_picture.shape[:2], bool))
        codes, ibot_centre = assign(seen, state, "ibot_centre", tau, there)
        options = {"groups": loss.koleo_groups, "itself": loss.koleo_itself}
        apart = [distill.koleo(features["student"][:, v], **options) for v in range(2)]
        dino = distill.dino(logits, targets, loss.temperature)
        ibot = distill.ibot(tokens, codes, weights, loss.temperature)
        terms = {
            "dino": loss.dino_weight * dino,
            "ibot": loss.ibot_weight * ibot,
            "koleo": loss.koleo_weight * sum(value for value, _ in apart),
        }
        if loss.gram_weight:
            terms["gram"] = loss.gram_weight * features["gram"].mean()
        watched = monitors.embedding(*rearrange(features["teacher"], "b v d -> v b d")) | {
            "target_entropy": distill.entropy(targets).mean(),
            "mean_target_entropy": distill.entropy(targets.mean(axis=(0, 1))),
            "teacher_temperature": tau,
            "momentum": momentum(step),
            "koleo_min_distance": jnp.minimum(apart[0][1], apart[1][1]),
        }
        watched["divergence"] = jax.lax.stop_gradient(dino) - watched["target_entropy"]
        return total(terms), Aux({**state, **centre, **ibot_centre}, terms, watched)

    def see(network, params, of_one_size, mask=None):
        """[CLS] b v d and patches b v n d of crops of one size, some of whose patches are hidden."""
        images = of_one_size["images"]
        b, grey = len(images), rearrange(images, "b v h w c -> (b v) h w c")
        grey = jnp.broadcast_to(grey, (*grey.shape[:3], network.channels))
        paths = of_one_size["paths"]
        backbone.check_paths(network, True, paths)
        paths = None if paths is None else rearrange(paths, "b v l r -> (b v) l r")
        mask = None if mask is None else rearrange(mask, "b v n -> (b v) n")
        out = linen.apply(network, params, grey, paths=paths, mask=mask)
        return tuple(rearrange(out[name], "(b v) ... -> b v ...", b=b) for name in ("cls", "patches"))

    def head_of(name, params, y):
        """Logits … k of vectors y … d."""
        projector, last = networks[name]
        z, _ = heads.run(projector, params[name]["projector"], {}, y, train=True)
        return linen.apply(last, params[name]["prototypes"], z)

    def temperature(step):
        share = jnp.minimum(done(step) / loss.warmup_share, 1.0) if loss.warmup_share else 1.0
        return loss.start_temperature + (loss.teacher_temperature - loss.start_temperature) * share

    def assign(logits, state, name, tau, there):
        """The teacher's probabilities b r k for rows that are there, by the centre of the past; and the next centre."""
        rows = logits.reshape(-1, logits.shape[-1])
        if loss.assignment == "sinkhorn":
            options = {"epsilon": tau, "iterations": loss.iterations, "valid": there.reshape(-1)}
            return prototypes.codes(rows, **options).reshape(logits.shape), {}
        mean = jnp.sum(rows, axis=0, where=there.reshape(-1, 1)) / jnp.maximum(there.sum(), 1)
        moved = optim.ema(state[name], jax.lax.stop_gradient(mean), loss.centre_momentum)
        return distill.centred(logits, state[name], tau), {name: moved}

    def token_weights(count, capacity):
        """Which of the hidden patches of every picture are there, b c bool, and what each weighs in L_iBOT."""
        ends = jnp.cumsum(count, axis=1)  # b v
        place = jnp.arange(capacity)
        crop = jnp.sum(place >= ends[:, :, None], axis=1)  # b c: of which crop
        there = place < ends[:, -1:]
        own = jnp.take_along_axis(count, jnp.minimum(crop, count.shape[1] - 1), axis=1)
        crops_counted = count.size if loss.ibot_average == "all" else jnp.maximum((count > 0).sum(), 1)
        return there, jnp.where(there, 1 / jnp.maximum(own, 1), 0.0) / crops_counted

    def init(key, batch):
        params = {}
        params["encoder"], stats = whole.init(rng.fold(key, "encoder"))
        for name, (projector, last) in networks.items():
            first = heads.start(projector, rng.fold(key, name), student.size.width)[0]
            rows = linen.init(last, rng.fold(key, f"{name}_prototypes"), jnp.zeros((1, projector.sizes[-1])))
            params[name] = {"projector": first, "prototypes": rows}
        state = {"target": jax.tree.map(jnp.copy, params), "batch_stats": {"encoder": stats}}
        if loss.gram_weight:
            state["gram"] = {"encoder": jax.tree.map(jnp.copy, params["encoder"])}
        if loss.assignment == "centre":
            state["centre"] = jnp.zeros(config.head.prototypes)
            state["ibot_centre"] = jnp.zeros(networks[of_patches][1].count)
        return params, state

    def make_views(example, rng):
        return {**crops.views(example, rng), **rectangles.draw(rng, 2, grid)}

    def look(params, state, batch, key):
        found = crops.look(params, state, batch, key)
        for v in range(2):
            hidden = rearrange(batch["hidden"][:, v], "b (p q) -> b p q", p=grid[0])
            label = f"large crop {v + 1}, with what the student is not given"
            found[v] = Panel(label, found[v].images, hidden=hidden)
        return found

    def after(params, state, step):
        moved = {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step))}
        if loss.gram_weight and loss.gram_refresh_steps:
            now, latest = (step + 1) % loss.gram_refresh_steps == 0, {"encoder": moved["target"]["encoder"]}
            moved["gram"] = jax.tree.map(lambda new, old: jnp.where(now, new, old), latest, state["gram"])
        return moved

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return whole.apply(state["target"]["encoder"], {}, images, train=False)[0]

    def encoder(params, state):
        return state["target"]["encoder"]

    parts = Parts(prepare, embed, loss_of)
    functions = make_views, init, joined(parts), after, encode
    return Method(*functions, config.model.image_px, parts=parts, encoder=encoder, look=look)


def picked(patches: jax.Array, ids: jax.Array) -> jax.Array:
    """patches b v n d, ids b c that count through the views → b c d."""
    return gather(rearrange(patches, "b v n d -> b (v n) d"), ids)


def _head(head: Config, dtype: jnp.dtype) -> tuple[heads.MLP, Prototypes]:
    widths = (head["hidden"], head["hidden"], head["out"])
    projector = heads.MLP(widths, norm="none", activation="gelu", initial="normal", dtype=dtype)
    return projector, Prototypes(head["prototypes"], dtype, head["learn_length"])
