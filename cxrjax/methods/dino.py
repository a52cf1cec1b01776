"""DINO: self-distillation with no labels. Caron et al., ICCV 2021, arXiv 2104.14294.

    V = {x₁ᵍ, x₂ᵍ, local crops},  the teacher sees x₁ᵍ and x₂ᵍ, the student all of V
    g = h(f(x)),  h(y) = W̄ᵀ z/‖z‖,  z = MLP(y)               y: [CLS]; the K columns of W̄ have length 1
    P_s = softmax(g_s / τ_s),  P_t = softmax((g_t − c) / τ_t)                          eq. 1; no gradient to P_t
    loss = mean over x ∈ {x₁ᵍ, x₂ᵍ}, x' ∈ V, x' ≠ x of H(P_t(x), P_s(x'))              eq. 3, H(a, b) = −a log b
    c ← m c + (1 − m) · mean of g_t over both crops of all pictures                    eq. 4; for the next step
    θ_s ← optimizer,  θ_t ← λ θ_t + (1 − λ) θ_s,  λ = 1 − (1 − λ₀)·(cos(π k/T) + 1)/2  step k of T

symbol  here                      meaning                                         default; with chestxray14
K       prototypes                length of g                                     1024; 65536
τ_s     loss.temperature          temperature of the student                      0.1
τ_t     loss.teacher_temperature  of the teacher, linear from teacher_temperature_start over the first
                                  loss.warmup_share of the run                    0.02; 0.07 from 0.04
m       loss.centre_momentum      momentum of the centre c                        0.9
λ₀      momentum                  momentum of the teacher at step 0               0.99; 0.996
MLP     projector                 layers, hidden, output width; GELU, no norm     3, 512, 128; 3, 2048, 256

The paper states the above, except that its eq. 3 is a sum; its algorithm 1 takes the mean. It also states: two global
views at 224 px and local ones at 96 px, augmented as in BYOL; learned positions, resized bicubically for local crops;
AdamW with a rate of 5e-4 · B/256, 10 epochs of warm-up, weight decay from 0.04 to 0.4 along a cosine. Without c,
`loss.assignment = "sinkhorn"` balances the prototypes over the batch, as SwAV and DINOv2 do. This is the default,
except with chestxray14.

From the authors' code: the areas of the crops, 8 local crops, stochastic depth of 0.1 for the student, gradients
clipped to 3 in every tensor, prototypes that stay as they start for the first epoch (`freeze_share` of the run), and
columns of length 1 (its norm_last_layer; off for its best ViT-S). It raises τ_t once an epoch; here τ_t rises at every
step. Its optimizer skips frozen prototypes; here their gradient is 0. Weight decay still shortens their columns, which
changes no output, since columns are scaled to length 1. Adam's first steps afterwards are up to 6.6 times larger. Its
decay covers [CLS] and positions, and so does that of the config's recipe.

Crops of one size go through a network together, which matters only for the BatchNorm of a ResNet. The teacher
normalises by its batch too, and keeps the running statistics. Our choice: jitter of grey values without hue and
saturation, patch embedding without bias at the start. The teacher is evaluated, as in the paper.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, optim, rng
from cxrjax.input import device
from cxrjax.losses import distill
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, frozen_at_first, joined, progress, ramp, target_of
from cxrjax.methods.trunk import multi_crop, pooled_crops
from cxrjax.models import backbone, heads, linen
from cxrjax.models.prototypes import Prototypes

TEMPERATURES = ("temperature", "teacher_temperature_start", "teacher_temperature")


def make(config: Config) -> Method:
    """config: model, projector, prototypes, freeze_share, momentum, loss, views, local_views, augment, augment_local,
    standardise; see configs/dino.py for every key."""
    settings.one_of(config, "loss.assignment", ("centre", "sinkhorn"))
    settings.counts(config, "prototypes", "projector.layers", "projector.hidden", "projector.out", "loss.iterations")
    settings.counts(config, "local_views.count", least=0)
    settings.counts(config, "local_views.px")
    settings.positive(config, *(f"loss.{name}" for name in TEMPERATURES))
    settings.shares(config, "momentum", "loss.centre_momentum", "loss.warmup_share", "freeze_share")
    dtype, head = jnp.dtype(config.model.dtype), config.projector
    student, teacher = backbone.make(config.model), backbone.make({**config.model, "drop_path": 0.0})
    sizes = (*[head.hidden] * (head.layers - 1), head.out)
    projector = heads.MLP(sizes, norm="none", activation="gelu", initial="normal", dtype=dtype)
    prototypes = Prototypes(config.prototypes, dtype)
    momentum, done = ramp(config, config.momentum), progress(config)
    hold = frozen_at_first(config, config.freeze_share)
    crops = multi_crop(config, student)

    def embed(params, state, prepared):
        stats = state["batch_stats"]["encoder"]
        of_student, _ = pooled_crops(student, params["encoder"], stats, prepared)  # b v d
        whole = {"image": {**prepared["image"], "paths": None}}
        of_teacher, stats = pooled_crops(teacher, state["target"]["encoder"], stats, whole)  # b 2 d
        return {"student": of_student, "teacher": of_teacher}, stats

    def loss_of(params, state, features, prepared, step):
        held = {**params, "prototypes": hold(params["prototypes"], step)}
        logits = head_of(held, features["student"])  # b v k
        of_teacher = head_of(state["target"], features["teacher"])  # b 2 k
        targets, state = assign(of_teacher, state, temperature(step))
        value = distill.dino(logits, targets, config.loss.temperature)
        watched = monitors.embedding(*rearrange(features["teacher"], "b v d -> v b d")) | {
            "target_entropy": distill.entropy(targets).mean(),
            "mean_target_entropy": distill.entropy(targets.mean(axis=(0, 1))),
            "teacher_temperature": temperature(step),
            "momentum": momentum(step),
        }
        # How far the student is from the targets. Near 0 while an entropy is near 0 or log K: training has collapsed.
        watched["divergence"] = value - watched["target_entropy"]
        return value, Aux(state, {"distillation": value}, watched)

    def head_of(params, y):
        """Logits b v k of vectors y b v d."""
        z, _ = heads.run(projector, params["projector"], {}, y, train=True)
        return linen.apply(prototypes, params["prototypes"], z)

    def temperature(step):
        start, end, share = (
            config.loss[k] for k in ("teacher_temperature_start", "teacher_temperature", "warmup_share")
        )
        return start + (end - start) * (jnp.minimum(done(step) / share, 1.0) if share else 1.0)

    def assign(logits, state, temperature):
        """P_t of both crops, b 2 k, by the centre of the steps before; and the state with the centre of the next."""
        if config.loss.assignment == "sinkhorn":
            return distill.sinkhorn(logits, temperature, config.loss.iterations), state
        moved = optim.ema(state["centre"], logits.mean(axis=(0, 1)), config.loss.centre_momentum)
        return distill.centred(logits, state["centre"], temperature), {**state, "centre": moved}

    def init(key, batch):
        params = {}
        params["encoder"], stats = student.init(rng.fold(key, "encoder"))
        params["projector"], _ = heads.start(projector, rng.fold(key, "projector"), student.width)
        params["prototypes"] = linen.init(prototypes, rng.fold(key, "prototypes"), jnp.zeros((1, head.out)))
        state = {"target": jax.tree.map(jnp.copy, params), "batch_stats": {"encoder": stats}}
        return params, state | ({"centre": jnp.zeros(config.prototypes)} if config.loss.assignment == "centre" else {})

    def after(params, state, step):
        return {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step))}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return teacher.apply(state["target"]["encoder"], state["batch_stats"]["encoder"], images, train=False)[0]

    def encoder(params, state):
        return state["target"]["encoder"]

    parts = Parts(crops.prepare, embed, loss_of)
    functions = crops.views, init, joined(parts), after, encode
    return Method(*functions, config.model.image_px, parts=parts, encoder=encoder, look=crops.look)
