"""A small BERT that learned a set's own reports, for when no pre-trained text encoder is at hand.

    encoder = folder(open_set("phantom"))           a Hugging Face folder beside the set, made when first asked for
    vectors = embed(encoder, texts)                 n d; any other folder of a BERT with its vocab.txt serves as well

It learns to predict hidden words, and to tell a report with some words hidden from the others of the batch by the mean
of its tokens: without the second, the means of so small a network say less than those of its noise before training.
It is trained on the reports of the train split alone, from noise, in one to two minutes on two CPU cores. It knows how
these reports are worded, not what their words mean elsewhere: give Bio_ClinicalBERT or CXR-BERT where you have them.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxrjax import rng
from cxrjax.datasets import writer
from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.source import select
from cxrjax.input.studies import studies
from cxrjax.interop import torch_bert
from cxrjax.losses import contrastive, masked
from cxrjax.models.bert import VARIANTS, Bert
from cxrjax.models.transformer import NORMAL, Linear, gelu
from cxrjax.models.vit import Size
from cxrjax.text import folder_tokenizer, masking, reports, tokenizer

FOLDER = "report_encoder"
SIZE = VARIANTS["mini"]
STEPS = 300
BATCH = 16  # reports; each is read twice, with other words hidden
LENGTH = 256  # tokens of a report that are read; the rest is cut off
MOST_REPORTS = 20_000  # of a large set: more than the steps go through
TEMPERATURE = 0.1  # of the contrast between reports
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.01))
HIDDEN_SHARE = 0.3  # of the words; more than BERT's 0.15 teaches faster at so few steps (Wettig et al., EACL 2023)


class Encoder(NamedTuple):
    """A text encoder and the words it reads; head: of the masked words, None for a folder's; losses: of
    the masked words at each step, in nats; projection: of [CLS], see `torch_bert.projection`, {} for none."""

    model: Bert
    params: Any
    tokenizer: Any
    head: Any = None
    losses: tuple[float, ...] = ()
    projection: Any = MappingProxyType({})


def folder(converted_set: ConvertedSet, seed: int = 0) -> Path:
    """The report encoder of a converted set as a Hugging Face folder; trained and put beside the set if absent.

    It appears whole or not at all, and of two processes that ask at a time the second waits for the first. A set that
    is converted anew loses it.
    Raises ValueError for a set without reports, and where the set's folder cannot be written.
    """
    target = converted_set.directory / (FOLDER if seed == 0 else f"{FOLDER}-{seed}")
    if target.exists():
        return target
    try:
        with writer.alone(converted_set.directory / f".{FOLDER}.lock"):
            if not target.exists():
                _make(converted_set, target, seed)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror or error}), so {converted_set.name!r} gets no report encoder "
            "of its own: make the folder writable, or give the folder of a pre-trained BERT."
        ) from None
    return target


def train(
    texts: Sequence[str],
    words: tokenizer.Tokenizer,
    *,
    size: Size = SIZE,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = BATCH,
    length: int = LENGTH,
    lr: float = 1e-3,
    progress: bool = False,
) -> Encoder:
    """Trains a BERT from noise on texts; the same arguments give the same encoder.

    size: width, layers, heads. batch: texts of a step. progress: shows a bar with the loss of the masked words.
    The loss is theirs (whole-word BERT) plus InfoNCE between two readings of each text (SimCSE, Gao et al., EMNLP 2021,
    with hidden words instead of dropout). The recipe, AdamW at `lr` with a tenth of the steps of warm-up and a cosine,
    is our choice. Raises ValueError where there is no text.
    """
    if not texts:
        raise ValueError("A report encoder needs reports to be trained on; none was given.")
    ids, word_index, _ = _tokens(texts, words, length)
    model = Bert(words.vocab_size, *size, max_length=length, remat="none")
    key, head = jax.random.key(seed), Head(words.vocab_size)
    encoder = jax.jit(model.init)(rng.fold(key, "encoder"), ids[:1], ids[:1] > 0)["params"]
    vocabulary = encoder["embeddings"]["word"]
    head = jax.jit(head.init)(rng.fold(key, "head"), jnp.zeros((1, size.width)), vocabulary)["params"]
    tables, losses = {"encoder": encoder, "head": head}, []
    moments = OPTIMIZER.init(tables)
    rate = optax.warmup_cosine_decay_schedule(0.0, lr, max(steps // 10, 1), max(steps, 2))
    with writer.progress_bar(steps, "report encoder: reading reports", "step", progress) as bar:
        for number, chosen in zip(range(steps), _batches(ids, batch, seed), strict=False):
            drawn = rng.fold(key, "mask", number)
            given = _cut(ids[chosen], word_index[chosen])
            tables, moments, loss = _step(model, words.mask_id, tables, moments, rate(number), drawn, *given)
            losses.append(loss)
            bar.update()
            if progress and number % 20 == 0:
                bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
    tables, losses = jax.device_get((tables, losses))
    return Encoder(model, tables["encoder"], words, tables["head"], tuple(map(float, losses)))


def masked_loss(encoder: Encoder, texts: Sequence[str], *, seed: int = 0) -> float:
    """Mean cross-entropy of an encoder's hidden words over the texts, in nats: for reports it was not trained on."""
    ids, word_index, _ = _cut(*_tokens(texts, encoder.tokenizer, encoder.model.max_length))
    tables = {"encoder": encoder.params, "head": encoder.head}
    predict = jax.jit(_predict, static_argnums=(1, 2))
    slices = [slice(start, start + 2 * BATCH) for start in range(0, len(ids), 2 * BATCH)]
    keys = [rng.fold(jax.random.key(seed), "held_out", number) for number in range(len(slices))]
    values = [
        predict(tables, encoder.model, encoder.tokenizer.mask_id, key, ids[part], word_index[part])[0]
        for key, part in zip(keys, slices, strict=True)
    ]
    return float(np.average(values, weights=[len(ids[part]) for part in slices]))


def load(path: str | Path) -> Encoder:
    """An encoder from a Hugging Face folder of a BERT or RoBERTa, with its vocab.txt or tokenizer.json; raises
    ValueError."""
    pretrained = torch_bert.read(path)
    model = Bert(**torch_bert.fields(pretrained.config), remat="none")
    found = torch_bert.from_huggingface(pretrained)
    if not (Path(path) / tokenizer.VOCABULARY).is_file() and (Path(path) / folder_tokenizer.FILE).is_file():
        reader = folder_tokenizer.FolderTokenizer(path, model.vocab_size)
        return Encoder(model, found, reader, projection=pretrained.projection)
    words = tokenizer.load(path)
    if words.vocab_size > model.vocab_size:
        raise ValueError(
            f"{path} has {words.vocab_size} pieces in vocab.txt but embeddings of {model.vocab_size} words."
        )
    return Encoder(model, found, words, projection=pretrained.projection)


def embed(encoder: Encoder | str | Path, texts: Sequence[str], batch: int = 64) -> np.ndarray:
    """The mean over its tokens, [CLS] and [SEP] included, of each text: float32 n d, not normalised.

    Of CXR-BERT it is the projection of [CLS], which was trained to tell texts apart, n 128.
    encoder: what `train` or `load` returned, or a folder. De-identification marks are taken out of the texts, as in
    training; what exceeds the encoder's positions is cut off. Equal texts get equal vectors, bit for bit.
    Raises ValueError for a folder that holds no BERT.
    """
    encoder = encoder if isinstance(encoder, Encoder) else load(encoder)
    if not len(texts):
        return np.zeros((0, encoder.model.width), np.float32)
    ids, _, masks = _tokens(texts, encoder.tokenizer, encoder.model.max_length)
    # Each different text once, those of like length together, so that little is spent on padding.
    _, first, which = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    order = first[np.argsort(masks[first].sum(1), kind="stable")]
    vectors = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        full = np.resize(part, batch)  # one shape to compile: the last batch is filled up with texts that it has
        longest = _longest(masks[full])
        given = ids[full, :longest], masks[full, :longest]
        found = np.asarray(_pooled(encoder.model, encoder.params, dict(encoder.projection), *given))
        vectors |= zip(part.tolist(), found, strict=False)
    return np.stack([vectors[row] for row in first[which.reshape(-1)].tolist()])


class Head(nn.Module):
    """BERT's masked-language head: n d → n v, its last layer the word embeddings themselves."""

    vocab_size: int

    @nn.compact
    def __call__(self, x: jax.Array, vocabulary: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        x = nn.LayerNorm(epsilon=1e-12, name="norm")(gelu(Linear(x.shape[-1], kernel_init=NORMAL, name="dense")(x)))
        return x @ vocabulary.T + bias


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(model, mask_id, tables, moments, rate, key, ids, word_index):
    (_, loss), gradient = jax.value_and_grad(_loss, has_aux=True)(tables, model, mask_id, key, ids, word_index)
    updates, moments = OPTIMIZER.update(gradient, moments, tables)
    return jax.tree.map(lambda x, update: x - rate * update, tables, updates), moments, loss


def _loss(tables, model, mask_id, key, ids, word_index):
    """The whole loss, and that of the masked words."""
    same = (ids[:, None] == ids).all(-1) & ~jnp.eye(len(ids), dtype=bool)  # equal reports are not told apart
    ids, word_index = (jnp.concatenate([x, x]) for x in (ids, word_index))
    words, tokens = _predict(tables, model, mask_id, key, ids, word_index)
    one, other = jnp.split(_mean(tokens, ids > 0), 2)
    return words + contrastive.info_nce(one, other, temperature=TEMPERATURE, exclude=same), words


def _predict(tables, model, mask_id, key, ids, word_index):
    """The loss of the masked words, and the tokens b l d that they are predicted from."""
    hidden, labels = masking.mask_words(key, ids, word_index, HIDDEN_SHARE, mask_id)
    found: Any = model.apply({"params": tables["encoder"]}, hidden, ids > 0)
    tokens = found["tokens"]
    # Words are predicted where they are hidden only; [CLS] of the first text, without label, fills the rest up.
    places = jnp.nonzero(labels.reshape(-1), size=max(ids.size * 2 // 5, len(ids)), fill_value=0)[0]
    rows, labels = tokens.reshape(-1, tokens.shape[-1])[places], labels.reshape(-1)[places]
    vocabulary = tables["encoder"]["embeddings"]["word"]
    logits: Any = Head(model.vocab_size).apply({"params": tables["head"]}, rows, vocabulary)
    return masked.masked_tokens(logits[None], labels[None]), tokens


@functools.partial(jax.jit, static_argnums=0)
def _pooled(model: Bert, params: Any, projection: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    found: Any = model.apply({"params": params}, ids, mask)
    if not projection:
        return _mean(found["tokens"], mask)
    hidden = gelu(found["cls"] @ projection["hidden"]["kernel"] + projection["hidden"]["bias"])
    hidden = nn.LayerNorm(epsilon=1e-12, use_fast_variance=False).apply({"params": projection["norm"]}, hidden)
    return hidden @ projection["output"]["kernel"] + projection["output"]["bias"]


def _mean(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    mask = mask[..., None]
    return jnp.where(mask, tokens, 0).sum(1) / mask.sum(1)


def _tokens(texts: Sequence[str], words: Any, length: int) -> list[np.ndarray]:
    """ids and word_index, int32 n l, and mask, bool n l."""
    encoded = [words.encode(reports.without_marks(text), length) for text in texts]
    return [np.stack([getattr(tokens, name) for tokens in encoded]) for name in ("ids", "word_index", "mask")]


def _cut(ids: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Texts without the padding that none of them needs."""
    longest = _longest(ids > 0)
    return [array[:, :longest] for array in (ids, *others)]


def _longest(masks: np.ndarray) -> int:
    """Tokens of the longest text, rounded up to few different lengths, for each is compiled."""
    return -(-int(masks.sum(1).max()) // 64) * 64


def _batches(ids: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length without end; each number comes once before any comes again."""
    generator, lengths, waiting = np.random.default_rng(seed), (ids > 0).sum(1), np.zeros(0, int)
    while True:
        while len(waiting) < 16 * batch:
            waiting = np.concatenate([waiting, generator.permutation(len(ids))])
        drawn, waiting = waiting[: 16 * batch], waiting[16 * batch :]
        by_length = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(16, batch)
        yield from generator.permutation(by_length)


def _make(converted_set: ConvertedSet, target: Path, seed: int) -> None:
    texts = _reports(converted_set, seed)
    encoder = train(texts, tokenizer.load(converted_set.directory), seed=seed, progress=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    torch_bert.write(unfinished, encoder.params, encoder.tokenizer, heads=encoder.model.heads)
    first, last = (float(np.mean(part)) for part in (encoder.losses[:20], encoder.losses[-20:]))
    said = {"reports": len(texts), "steps": len(encoder.losses), "seed": seed, "first_loss": first, "last_loss": last}
    (unfinished / "training.json").write_text(json.dumps(said, indent=2) + "\n")
    os.replace(unfinished, target)


def _reports(converted_set: ConvertedSet, seed: int) -> list[str]:
    """Findings and impression, or else the text, of the train split's studies that have any."""
    whole = studies(select(converted_set, "train"))
    chosen = np.random.default_rng(seed).permutation(len(whole))[:MOST_REPORTS]
    found = (whole[item]["report"] for item in sorted(chosen))
    texts = [" ".join(filter(None, (one["findings"], one["impression"]))) or one["text"] for one in found]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(
            f"{converted_set.name!r} has no reports in its train split, so no report encoder can be trained on them; "
            "give the folder of a pre-trained BERT."
        )
    return texts
