"""Starting a run from encoders that exist already: Hugging Face folders, or a workdir of ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import checkpoint, recipes, trained
from cxrjax.config import ConfigDict, names
from cxrjax.input import converted_sets, paired
from cxrjax.interop import huggingface, torch_bert, torch_resnet, torch_swin, torch_vit
from cxrjax.methods.base import encoder_params
from cxrjax.models import bert, posemb, resnet, vit
from cxrjax.report_encoders import report_encoder
from cxrjax.runtime import hosts

PLACES = ("encoder", "text", "lateral")


def of_run(config: ConfigDict) -> ConfigDict:
    """The config with the whole model that it trains: what config.model does not give (None or "") is filled in.

    With the model of the run at config.init_from, so that a head meets the features that were trained; and then
    `standardise` is the run's too. What is given, such as image_px, drop_path, dtype or remat, stays. Without a
    run, or with another variant than its, by `recipes.vit` or `recipes.resnet`. A config that gives everything is
    returned as it is. Raises ValueError for a Hugging Face folder without a variant.
    """
    given = {key: value for key, value in config.model.items() if value not in (None, "")}
    if len(given) == len(config.model):
        return config
    config, folder, run = config.copy_and_resolve_references(), config.init_from, run_of(config)
    if run is None and folder and "variant" not in given:
        raise ValueError(
            f"init_from={folder!r} is a Hugging Face folder: name the variant that it holds, for example "
            f"--config.model.variant=B; ViTs: {', '.join(vit.VARIANTS)}; ResNets: {', '.join(resnet.VARIANTS)}"
        )
    if run is not None and given.get("variant", run.model.variant) == run.model.variant:
        found = run.model.to_dict()
        config.standardise = run.standardise
    else:
        found = recipes.resnet() if given.get("variant") in resnet.VARIANTS else recipes.vit()
    with config.unlocked():
        config.model = {**found, **given}
    return config


def run_of(config: ConfigDict) -> ConfigDict | None:
    """The config of the run at config.init_from; None where that is a Hugging Face folder or ""."""
    folder = config.init_from
    return None if not folder or _is_huggingface(folder) else trained.settings(folder)[-1]


def initialise(config: ConfigDict, train_state: Any, abstract: Any) -> Any:
    """Replaces encoders in a fresh train state by those that the config names; what it names none for stays as it is.

    config.init_from: a Hugging Face folder (has model.safetensors) of a ViT or a ResNet, or a workdir, its checkpoints
    or one step's folder (its latest step; the method may differ, the encoder must fit). Of a run it is the network that
    `Method.encoder` names, which for DINO is the teacher. Copies of the encoder in `state`, such as a momentum encoder,
    are replaced as well, so that they start equal; so are a ResNet's statistics.
    config.text.init_from: a Hugging Face folder of a BERT, or "reports" for the one that is trained on the reports of
    the first set (`report_encoders.report_encoder`). It may know fewer words than text.vocab_size.
    config.lateral.init_from: a Hugging Face folder of a Swin, for the second encoder of frontal_lateral.
    abstract: the train state's shapes and shardings. Raises ValueError where the encoders do not fit.
    """
    by_path = dict(_leaves(_named_encoders(config, abstract)))
    if not by_path:
        return train_state
    hosts.agree({"the encoders to start from": lambda: hosts.local_digest(by_path)}, "give all hosts the same files")

    def replace(keys, leaf, target):
        # From the last name of an encoder on: state/target/encoder/… starts as params/encoder/… does.
        parts = _path(keys).split("/")
        tails = ["/".join(parts[start:]) for start in reversed(range(len(parts))) if parts[start] in PLACES]
        if not tails or tails[0] not in by_path:
            return leaf
        value = np.asarray(by_path[tails[0]]).astype(leaf.dtype)
        if value.shape != leaf.shape:  # fewer words or positions: those that no text has stay as they were drawn
            return jax.jit(lambda rows: rows.at[: len(value)].set(value), out_shardings=target.sharding)(leaf)
        return jax.make_array_from_callback(leaf.shape, target.sharding, lambda index: value[index])

    def filled(tree, targets):
        return jax.tree.map_with_path(replace, tree, targets)

    return train_state._replace(
        params=filled(train_state.params, abstract.params), state=filled(train_state.state, abstract.state)
    )


def _named_encoders(config: ConfigDict, abstract: Any) -> dict[str, dict[str, Any]]:
    """{place: tree of what is known of it}: parameters, and the encoder's running statistics among them."""
    found = {}
    if folder := config.init_from:
        wanted = encoder_params(abstract.params, abstract.state)
        if _is_huggingface(folder):
            encoder, statistics = _from_huggingface(config, folder, wanted)
        else:
            encoder, statistics = _from_run(config.model, folder, wanted, _statistics(abstract.state))
        found["encoder"] = _merged(encoder, statistics)
    if "text" in config and config.text.init_from:
        found["text"] = _text(config, _whole("text", abstract))
    if "lateral" in config and config.lateral.init_from:
        lateral = config.lateral
        if lateral.standardise.mode != "fixed":
            raise ValueError(
                f"lateral.init_from needs lateral.standardise.mode='fixed', got {lateral.standardise.mode!r}"
            )
        pretrained = huggingface.read(lateral.init_from, torch_swin.MODEL_TYPES)
        mean, std = _scale(config, lateral.standardise, pretrained)
        found["lateral"] = torch_swin.from_huggingface(pretrained, lateral.variant, mean=mean, std=std)
    return found


def _scale(config: ConfigDict, standardise: Any, pretrained: huggingface.Pretrained) -> tuple[Any, Any]:
    """Mean and deviation that are folded into a first layer; theirs where a defect feeds pictures as they are."""
    if "defects" in config and config.defects.no_standardisation:
        return pretrained.mean, pretrained.std
    return standardise.mean, standardise.std


def _text(config: ConfigDict, wanted: Any) -> dict[str, Any]:
    folder = config.text.init_from
    if folder == paired.OF_REPORTS:
        folder = report_encoder.folder(converted_sets.open_set(names(config.data.sets)[0]))
    pretrained, embeddings = torch_bert.read(folder), dict(wanted["embeddings"])
    for name, key in (("word", "vocab_size"), ("position", "max_position_embeddings")):
        rows = embeddings[name]
        fewer = min(pretrained.config[key], rows.shape[0])
        embeddings[name] = jax.ShapeDtypeStruct((fewer, rows.shape[1]), rows.dtype)
    heads = bert.VARIANTS[config.text.variant].heads
    return torch_bert.load_into({**wanted, "embeddings": embeddings}, pretrained, heads=heads)


def _whole(place: str, abstract: Any) -> dict[str, Any]:
    """The parameters at a place, learned and frozen."""
    return {**abstract.params.get(place, {}), **abstract.state.get("frozen", {}).get(place, {})}


def _merged(one: Any, other: Any) -> Any:
    """Both trees as one; a ResNet's layer has its parameters and its statistics under different names."""
    if not isinstance(one, dict):
        return one
    return {key: _merged(one[key], other.get(key, {})) if key in one else other[key] for key in {**one, **other}}


def _from_run(model: Any, folder: str, wanted: Any, statistics: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the network that a run's method encodes with, and the running statistics beside them."""
    learned = trained.load(folder)
    encoder = learned.method.encoder(learned.params, learned.state)
    if "pos_embed" in encoder and "pos_embed" in wanted:
        old, new = (round(np.shape(table["pos_embed"])[0] ** 0.5) for table in (encoder, wanted))
        encoder = {**encoder, "pos_embed": posemb.resize(encoder["pos_embed"], (old, old), (new, new))}
    found = encoder, _statistics(learned.state)
    shapes = {path: np.shape(leaf) for tree in found for path, leaf in _leaves(tree)}
    expected = {path: leaf.shape for tree in (wanted, statistics) for path, leaf in _leaves(tree)}
    wrong = [
        f"{path}: {shapes.get(path, 'missing')}, expected {shape}"
        for path, shape in expected.items()
        if shapes.get(path) != shape
    ]
    if "gates" in learned.config and learned.config.gates.use and not learned.config.strip_gates:
        print(f"{folder}: its encoder starts without the context gates that it was trained with", flush=True)
    theirs = learned.config.model
    # What arrays of the same shapes mean: heads, which the variant names, and positions that are not among them.
    meaning = [
        f"{key} {theirs.get(key)!r}, expected {model[key]!r}"
        for key in ("variant", "positions")
        if key in model and theirs.get(key) != model[key]
    ]
    if wrong or meaning:
        raise ValueError(
            f"init_from={folder!r} holds another encoder: of {len(expected)} arrays {len(wrong)} do not fit "
            f"({'; '.join([*meaning, *wrong[:3]])}{' …' if wrong[3:] else ''}). Set model as in its config.json: "
            f"{dict(theirs)}"
        )
    return found


def _is_huggingface(folder: str) -> bool:
    return (Path(folder) / huggingface.CONFIG).is_file() and not checkpoint.steps(folder)


def _statistics(state: Any) -> Any:
    return state.get("batch_stats", {}).get("encoder", {})


def _from_huggingface(config: ConfigDict, folder: str, wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's parameters, and the running statistics that a ResNet has beside them."""
    if config.standardise.mode != "fixed":
        raise ValueError(
            f"init_from={folder!r} needs standardise.mode='fixed', got {config.standardise.mode!r}: only a fixed mean "
            "and deviation can be folded into the first layer."
        )
    model, of_resnet = config.model, config.model.variant in resnet.VARIANTS
    pretrained = huggingface.read(folder, (torch_resnet if of_resnet else torch_vit).MODEL_TYPES)
    mean, std = _scale(config, config.standardise, pretrained)
    if of_resnet:
        return torch_resnet.from_huggingface(pretrained, model.variant, mean=mean, std=std, channels=model.channels)
    size, grid = vit.VARIANTS[model.variant], model.image_px // model.patch_px
    encoder = torch_vit.load_into(
        wanted,
        pretrained,
        heads=size.heads,
        image_px=model.image_px,
        mean=mean,
        std=std,
        position_table=posemb.fixed(model.positions, (grid, grid), size.width),
    )
    return encoder, {}


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)]


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
