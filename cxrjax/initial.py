"""Starting a run from encoders that exist already, or teaching it by them: Hugging Face folders, workdirs of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import checkpoint, recipes, sizes, trained
from cxrjax.config import ConfigDict, names, nearest_folder
from cxrjax.input import converted_sets, paired
from cxrjax.interop import families, huggingface, torch_bert, torch_swin
from cxrjax.methods.base import encoder_params
from cxrjax.models import backbone, bert, posemb
from cxrjax.report_encoders import report_encoder
from cxrjax.runtime import hosts

PLACES = ("encoder", "text", "lateral", "teachers")


class Start(NamedTuple):
    """What is known of an encoder before it is read: of that at config.init_from, or of a teacher.

    model: keys of config.model. standardise: of the run that it is of; None for a Hugging Face folder. said: what it
    is, for messages.
    """

    model: dict[str, Any]
    standardise: ConfigDict | None
    said: str


def of_run(config: ConfigDict, resumed: bool = False, builds: bool = True) -> ConfigDict:
    """The config with what it leaves to what it starts from and reads; as it is where it leaves nothing.

    The model: what config.model does not give (None or "") is that of config.init_from, so that a head meets the
    features that were trained; and then `standardise` is the run's too. What is given, such as image_px, drop_path,
    dtype or remat, stays, but for the small encoder of `:smoke`, and for positions, which are part of what was trained.
    Without init_from it is filled by `recipes.vit` or `recipes.resnet`. text.vocab_size: as many as the vocabulary has.
    teachers.networks: the models of teachers.init_from. set_heads: one for each set, of all its labels.
    resumed: of a run that has a checkpoint, what it started from may be gone. builds: whether a phantom may be built to
    count its vocabulary; else that of a set which is not there stays open.
    Raises CheckpointNotFound (there is nothing at init_from) or ValueError (it does not fit), naming the keys to set.
    """
    _check_folders(config)
    if "lora" in config and config.lora.rank and not config.init_from:
        raise ValueError(
            f"lora.rank={config.lora.rank} adapts an encoder that was trained, and init_from names none: give "
            "--config.init_from=FOLDER, or lora.rank=0"
        )
    config = _with_heads(_with_teachers(config), builds)
    try:
        start = _start(config.init_from, "init_from") if config.init_from else None
    except checkpoint.CheckpointNotFound:
        if not resumed:
            raise
        start = None
    given = {key: value for key, value in config.model.items() if value not in (None, "")}
    there = builds or converted_sets.is_converted(names(config.data.sets)[0])
    counted = there and "text" in config and config.text.vocab_size is None
    if start is None and len(given) == len(config.model) and not counted:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if start is not None:
            _follow(config, given, start)
        elif len(given) < len(config.model):
            other = recipes.vit() if backbone.kind(given.get("variant") or "mini") == "ViT" else recipes.resnet()
            config.model = {**other, **given}
        if counted:
            config.text.vocab_size = paired.vocabulary_size(config)
    return config


def _follow(config: ConfigDict, given: dict[str, Any], start: Start) -> None:
    """Completes config.model by what the run starts from. Raises ValueError where what is given is another encoder."""
    shrunk = given.get("variant") in recipes.SMALLEST and given["variant"] != start.model["variant"]
    if shrunk:
        _say(f"init_from={config.init_from!r} is {start.said}: its encoder is used, and not the small one of :smoke")
        given = {key: value for key, value in given.items() if key not in start.model}
    if shrunk or len(given) < len(config.model):
        config.model = {**start.model, **given}
        config.standardise = start.standardise or config.standardise
    elif start.standardise is None:  # what arrays of a folder mean, such as their eps, where the config does not say
        config.model = {**{key: value for key, value in start.model.items() if key not in given}, **given}
    named = [key for key in ("variant", "patch_px") if key in start.model and key in config.model]
    if wrong := {key: start.model[key] for key in named if start.model[key] != config.model[key]}:
        ours = ", ".join(f"model.{key} is {config.model[key]!r}" for key in wrong)
        flags = " ".join(f"--config.model.{key}={value}" for key, value in wrong.items())
        raise ValueError(
            f"init_from={config.init_from!r} is {start.said}, but {ours}: give {flags}, or start from another"
        )
    theirs, ours = start.model.get("positions"), config.model.get("positions")
    # Positions that are learned have room for any table of a Hugging Face folder, which is read as one.
    tables = start.standardise is None and theirs in posemb.KINDS
    if theirs and ours not in (theirs, "learned" if tables else theirs):
        _say(f"init_from={config.init_from!r}: model.positions={theirs!r}, as there, and not {ours!r}")
        config.model.update({"positions": theirs})
    if not start.model.get("cls_token", True) and config.model["pool"] == "cls":
        _say(f"init_from={config.init_from!r}: model.pool={start.model['pool']!r}, as there, since it has no [CLS]")
        config.model.update({"pool": start.model["pool"]})


def _say(sentence: str) -> None:
    if hosts.is_first():
        print(sentence, flush=True)


def _check_folders(config: ConfigDict) -> None:
    """Raises ValueError for a folder of texts or lateral pictures to start from that is not there."""
    for section, words in (("text", (paired.OF_REPORTS,)), ("lateral", ())):
        folder = config[section].init_from if section in config else ""
        if folder and folder not in words and not Path(folder).is_dir():
            other = "".join(f", or {word!r} for one trained on the set's own" for word in words)
            raise ValueError(
                f"{section}.init_from={folder!r}: there is no such folder; give a local folder as `save_pretrained` "
                f"writes it{other}. Models on a hub are downloaded first{nearest_folder(folder)}"
            )


def _with_teachers(config: ConfigDict) -> ConfigDict:
    """The config with the model and the scale of each encoder at teachers.init_from, as teachers.networks by number."""
    folders = names(config.teachers.init_from) if "teachers" in config else ()
    if not folders:
        return config
    config, networks = config.copy_and_resolve_references(), {}
    given = {"dtype": config.model.dtype, "image_px": config.teachers.image_px}
    for number, folder in enumerate(folders):
        start = _start(folder, "teachers.init_from")
        model = start.model | {key: value for key, value in given.items() if value}
        if (
            start.standardise is None
            and model.get("positions") in posemb.KINDS
            and sizes.sides(model["image_px"]) != sizes.sides(start.model["image_px"])
        ):
            model["positions"] = "learned"  # the folder's, resized, are those of no table
        networks[str(number)] = {"model": model, "standardise": start.standardise or recipes.standardise()}
    with config.unlocked():
        config.teachers.networks = networks
    return config


def _with_heads(config: ConfigDict, builds: bool) -> ConfigDict:
    """The config with heads of the sets that are trained on and of no other, where its method has one for each set.

    A set whose head is not given gets one of all its labels, for which it must be there. builds: as of `of_run`; where
    nothing may be built and such a set is not there, the config stays as it is.
    """
    if "set_heads" not in config:
        return config
    heads = {name: config.set_heads[name] for name in names(config.data.sets) if name in config.set_heads}
    others = [name for name in names(config.data.sets) if name not in heads]
    if not builds and not all(converted_sets.is_converted(name) for name in others):
        return config
    config = config.copy_and_resolve_references()
    for converted in map(converted_sets.open_set, others):
        every = {"labels": ",".join(converted.label_names), "task": "multilabel"}
        heads[converted.name] = config.set_heads.get(converted.name, every)
    with config.unlocked():
        config.set_heads = heads
    return config


def _start(folder: str, key: str) -> Start:
    """What is in the folder that a key of the config names."""
    if not huggingface.is_model(folder):
        run = _run_at(folder, key)
        return Start(run.model.to_dict(), run.standardise, f"a run of {run.method}")
    pretrained = families.read(folder)
    found, kind = families.model_of(pretrained), families.family(pretrained).kind
    found.pop("mask_token", None)  # which whole pictures never meet
    model = (recipes.vit if backbone.kind(found["variant"]) == "ViT" else recipes.resnet)() | found
    return Start(model, None, f"a Hugging Face {kind}")


def run_of(config: ConfigDict) -> ConfigDict | None:
    """The config of the run at config.init_from; None where that is a Hugging Face folder or "".

    Raises CheckpointNotFound, naming the key and what comes close.
    """
    folder = config.init_from
    return None if not folder or huggingface.is_model(folder) else _run_at(folder, "init_from")


def _run_at(folder: str, key: str) -> ConfigDict:
    """The config of the run in the folder that a key of the config names; raises CheckpointNotFound naming the key."""
    try:
        return trained.settings(folder)[-1]
    except checkpoint.CheckpointNotFound as error:
        said = str(error) if Path(folder).is_dir() else "there is no such folder"
        raise checkpoint.CheckpointNotFound(
            f"{key}={folder!r}: {said}; give the work folder of a run, or a local folder of a Hugging Face ViT or "
            f"ResNet{nearest_folder(folder)}"
        ) from None


def encoders(config: ConfigDict, abstract: Any) -> dict[str, Any]:
    """Reads the arrays of the encoders that a run starts from, by path "encoder/blocks/…"; empty where it names none.

    config.init_from: a Hugging Face folder (has model.safetensors) of a ViT or a ResNet, or a workdir, its checkpoints
    or one step's folder (its latest step; the method may differ, the encoder must fit). Of a run it is the network that
    `Method.encoder` names, which for DINO is the teacher. Copies of the encoder in `state`, such as a momentum encoder,
    are replaced as well, so that they start equal; so are a ResNet's statistics.
    config.text.init_from: a Hugging Face folder of a BERT, or "reports" for the one that is trained on the reports of
    the first set (`report_encoders.report_encoder`). It may know fewer words than text.vocab_size.
    config.lateral.init_from: a Hugging Face folder of a Swin, for the second encoder of frontal_lateral.
    config.teachers.init_from: folders as of init_from, of the frozen encoders that distill learns from.
    abstract: the train state's shapes and shardings. Raises ValueError where the encoders do not fit.
    """
    found = dict(_leaves(_named_encoders(config, abstract)))
    if found:
        hosts.agree({"the encoders to start from": lambda: hosts.local_digest(found)}, "give all hosts the same files")
    return found


def initialise(by_path: Mapping[str, Any], train_state: Any, abstract: Any) -> Any:
    """Replaces encoders in a fresh train state; what there is none for stays as it is.

    by_path: of `encoders`. abstract: the train state's shapes and shardings.
    """
    if not by_path:
        return train_state

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
        found["encoder"] = _merged(*_encoder(config, folder, wanted, _statistics(abstract.state)))
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
    if "teachers" in config and config.teachers.init_from:
        found["teachers"] = {}
        for number, folder in enumerate(names(config.teachers.init_from)):
            network, wanted = config.teachers.networks[str(number)], abstract.state["frozen"]["teachers"][str(number)]
            read = _encoder(network, folder, wanted["params"], wanted["stats"])
            found["teachers"][str(number)] = dict(zip(("params", "stats"), read, strict=True))
    return found


def _encoder(config: ConfigDict, folder: str, wanted: Any, statistics: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the running statistics of an encoder of config.model, which sees config.standardise."""
    if huggingface.is_model(folder):
        return _from_huggingface(config, folder, wanted)
    return _from_run(config.model, folder, wanted, statistics)


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
    if pretrained.heads:
        _say(
            f"text.init_from={folder!r}: its encoder is read; not used are the arrays of {', '.join(pretrained.heads)}"
        )
    theirs = torch_bert.fields(pretrained.config)
    for name, key in (("word", "vocab_size"), ("position", "max_length")):
        rows = embeddings[name]
        fewer = min(theirs[key], rows.shape[0])
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
        old, new = (sizes.grid(one.image_px, one.patch_px) for one in (learned.config.model, model))
        encoder = {**encoder, "pos_embed": posemb.resize(encoder["pos_embed"], old, new)}
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


def _statistics(state: Any) -> Any:
    return state.get("batch_stats", {}).get("encoder", {})


def _from_huggingface(config: ConfigDict, folder: str, wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's parameters, and the running statistics that a ResNet has beside them."""
    if config.standardise.mode != "fixed":
        raise ValueError(
            f"init_from={folder!r} needs standardise.mode='fixed', got {config.standardise.mode!r}: only a fixed mean "
            "and deviation can be folded into the first layer."
        )
    pretrained = families.read(folder)
    kind = families.family(pretrained).kind
    if kind != backbone.kind(config.model.variant):
        raise ValueError(
            f"init_from={folder!r} holds a {kind}, and model.variant={config.model.variant!r} is none; give a variant "
            "of the same family, or start from another"
        )
    mean, std = _scale(config, config.standardise, pretrained)
    return families.family(pretrained).load(wanted, pretrained, config.model, mean, std)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)]


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
