"""What the configs of all methods share: the keys of the encoders, where a method trains, and how it is judged.

    vit(variant, image_px, patch_px)  config.model of a ViT; the defaults are what a laptop CPU trains in minutes
    resnet(variant, image_px)         config.model of a ResNet
    standardise(mean, std)            config.standardise: one mean and deviation of all pictures, or of each its own
    regions()                         config.regions of a method that compares words with regions of the picture
    of_run()                          config.model of a head: the encoder of the run that it starts from
    text(variant)                     config.text of a BERT and of what it reads
    radiograph_pair(config)           two views that a small encoder can tell to be of one radiograph
    photograph_pair(config, augment)  two views as the papers on photographs have them
    phantom_probe(config)             linear probe and k-NN on the phantom: what a config's default ends with
    phantom_reports(config)           the same for methods that learn from studies with reports, and their learning rate
    vit_as_moco_v3(config)            ViT-B/16 at 224 px, with the optimizer that MoCo v3's paper has for it
    as_mgca(config)                   sizes and optimizer of MGCA's released code
    chestxray14(config)               trains and probes on ChestX-ray14
    mimic_cxr(config)                 trains on studies of MIMIC-CXR with a BERT of twelve layers, as MGCA prepares them
    five_sets(config)                 the five small public sets of configs/sets, a model for a CPU, 150 epochs
    smoke(config)                     seconds: shrinks model, batch, duration, warm-up and evals of any config
    smoke_evals(config)               the same for a config that only judges

A config sets its own keys first, then calls these, then sets what is its method's own: batch and optimizer of a recipe,
heads and crops of its smoke run.
"""

from typing import Any

from ml_collections import config_dict

from cxrjax import sizes, tasks
from cxrjax.config import ConfigDict
from cxrjax.input import device
from cxrjax.input.augment import PAIR, Augment

SMALLEST = ("test", "resnet_test")
"""The encoders of `:smoke`, which nobody trains for their features."""
MATRICES = ((r"(^|/)(bias|scale)$", 0.0), ("", 1.0))
"""Rules of weight decay for all but biases and the scales of norms: positions and [CLS] as well, unlike by default."""


def vit(variant: str = "mini", image_px: sizes.Px = 64, patch_px: int = 8) -> dict[str, Any]:
    return {
        "variant": variant,
        "image_px": sizes.setting(image_px),  # of a square, or height and width, such as 448,384
        "patch_px": patch_px,
        "channels": 1,
        "pool": "cls",  # the picture's vector; or mean, of the patches
        "positions": "sincos",  # or learned
        "dtype": "float32",  # of the computation; bfloat16 on accelerators
        "remat": "dots",  # or none (fastest where memory allows), full (smallest)
        "unroll": False,
    }


def resnet(variant: str = "resnet50", image_px: sizes.Px = 224) -> dict[str, Any]:
    return {
        "variant": variant,
        "image_px": sizes.setting(image_px),  # of a square, or height and width, such as 448,384
        "channels": 1,
        "dtype": "float32",  # of the computation; bfloat16 on accelerators
        "remat": "dots",  # or none (fastest where memory allows), full (smallest)
    }


def standardise(mean: float = device.MEAN, std: float = device.STD) -> dict[str, Any]:
    """Of grey values in [0, 1]; by default the mean and deviation of radiographs."""
    return {"mode": "fixed", "mean": mean, "std": std}  # or per_image: each picture by its own


def regions() -> dict[str, Any]:
    return {
        "layer": 3,  # of a ResNet, whose map words are compared with; a ViT has its patches
        "enlarge_px": 0,  # short side that a ResNet sees pictures at; 0 as they are
    }


def of_run() -> dict[str, Any]:
    """What is not given comes from the run at config.init_from, see `initial.of_run`."""
    return {
        "variant": "",
        "image_px": sizes.setting(),
        "patch_px": config_dict.placeholder(int),  # of a ViT
        "drop_path": 0.0,  # of a ViT
        "pool": "",  # of a ViT: cls, mean or without_cls
        "dtype": "",
        "remat": "",
    }


def text(variant: str = "mini") -> dict[str, Any]:
    return {
        "variant": variant,
        "vocab_size": config_dict.placeholder(int),  # rows of the embedding; by default the pieces of the vocabulary
        "tokenizer": "",  # folder with vocab.txt; "" for that of init_from, or else of the first set
        "length": 80,  # tokens, [CLS] and [SEP] among them
        "sections": "impression,findings",  # in the order in which they are read
        "cleaning": "none",  # or mgca: lower-case words, no punctuation
        "one_sentence": False,  # a random one of the report
        "pool": "mean",  # or cls, max: what stands for the whole text
        "init_from": "reports",  # a BERT trained on the set's own; or a Hugging Face folder, or "" for noise
        "frozen_layers": 0,  # embeddings and this many lower layers stay as they start
        "dtype": "float32",
    }


def radiograph_pair(config: ConfigDict) -> None:
    """Half the area or more, mild changes of grey values, no flip, which would move the heart. Our choice.

    Radiographs are more alike than photographs: under `photograph_pair` a small encoder does not match the views at all
    in the few hundred steps of a run on a CPU (SimCLR, 150 steps on phantoms: finds 2 % of 128, with these 23 %).
    """
    config.views = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.0, "rotation_degrees": 0.0}
    config.augment = Augment(jitter=0.8, brightness=0.2, contrast=0.2)._asdict()


def photograph_pair(config: ConfigDict, augment: Augment = PAIR) -> None:
    """`views.flip=0` leaves out what moves the heart to the other side."""
    config.views.update({"scale": (0.08, 1.0), "flip": 0.5})
    config.augment = augment._asdict()


def vit_as_moco_v3(config: ConfigDict) -> None:
    """For methods whose own papers train ResNets only; our choice."""
    config.model = vit("B", 224, 16)
    config.optim.update({"base_lr": 1.5e-4, "wd": 0.1, "betas": (0.9, 0.999), "warmup_epochs": 40.0})


def as_mgca(config: ConfigDict) -> None:
    """Batch 144, 50 epochs, of which 40 % warm up, and weight decay on everything."""
    config.standardise.update({"mean": 0.5, "std": 0.5})
    config.batch_size = 144
    config.duration.update({"total_steps": None, "total_epochs": 50.0})
    config.optim.update(
        {"lr": 2e-5, "lr_start": 1e-8, "lr_end": 1e-8, "wd": 0.05, "betas": (0.9, 0.999), "wd_mults": ((".*", 1.0),)}
    )
    config.optim.update({"warmup_steps": None, "warmup_epochs": 20.0})


def phantom_probe(config: ConfigDict) -> None:
    """The k-NN shows a collapse between two probes: 1 600 encoded pictures each time, under 4 % of a run's work."""
    config.references = "random,pixels"
    config.evals.phantom_probe = _probe("phantom", every_steps=300)
    config.evals.phantom_knn = tasks.online_knn("phantom", every_steps=150)


def phantom_reports(config: ConfigDict) -> None:
    """At 1e-3 ConVIRT's vectors fall together within 60 steps and take 60 more to part; our choice."""
    _of_studies(config)
    config.optim.update({"lr": 3e-4, "warmup_steps": 60, "grad_clip": 1.0})
    phantom_probe(config)


def mimic_cxr(config: ConfigDict) -> None:
    """The config sets model, batch, duration and optimizer, unclipped. Text as in MGCA, released code."""
    _of_studies(config)
    config.references = ""
    config.data.sets = "mimic_cxr"
    config.optim.grad_clip = None
    config.text.update({"variant": "base", "vocab_size": 28996, "length": 112, "cleaning": "mgca", "pool": "cls"})
    config.text.update({"init_from": "", "dtype": "bfloat16"})
    config.log_every_steps = 50
    config.evals = {
        "mimic_cxr_probe": _probe("mimic_cxr", every_steps=5000),
        "mimic_cxr_knn": tasks.online_knn("mimic_cxr", every_steps=1000),
    }


def chestxray14(config: ConfigDict) -> None:
    """The config sets model, batch, duration and optimizer. The k-NN is under 1 % of the work at batches from 256."""
    config.references = ""
    config.data.sets = "chestxray14"
    config.log_every_steps = 50
    config.evals = {
        "chestxray14_probe": _probe("chestxray14", every_steps=5000),
        "chestxray14_knn": tasks.online_knn("chestxray14", every_steps=1000),
    }


def five_sets(config: ConfigDict) -> None:
    """Leaves learning rate and views as they are; a ResNet becomes a ResNet-18."""
    config.references = ""
    config.data.sets = "chestxray14_subset,tb_lung_masks,pediatric_pneumonia,covid_chestxray,hannover_covid"
    _shrink(config.model, {"variant": "mini", "image_px": 128, "patch_px": 16}, "resnet18")
    config.batch_size = 256
    config.duration.update({"total_steps": None, "total_epochs": 150.0})
    config.optim.update({"warmup_steps": None, "warmup_epochs": 10.0})
    config.evals = {
        **{name: {**entry, "every_steps": 300} for name, entry in tasks.five_sets()},
        # The set of the five with the most labels; its 800 pictures are under 5 % of a run's work.
        "chestxray14_subset_knn": tasks.online_knn("chestxray14_subset", every_steps=100),
    }


def smoke(config: ConfigDict) -> None:
    """Six steps of 16 pictures at 32 px, on the small phantom set where the phantom was the set."""
    _shrink(config.model, {"variant": "test", "image_px": 32, "patch_px": 4, "dtype": "float32"}, "resnet_test")
    if "text" in config:
        config.text.update({"variant": "test", "length": 48, "frozen_layers": min(config.text.frozen_layers, 1)})
        config.text.update({"init_from": "", "dtype": "float32"})
    config.batch_size = 16
    config.duration.update({"total_steps": 6, "total_epochs": None})
    config.optim.update({"lr": 1e-3, "base_lr": None, "sqrt_lr": None, "warmup_steps": 2, "warmup_epochs": None})
    config.optim.warmup_examples = None
    config.log_every_steps = 2
    config.references = ""
    if config.data.sets == "phantom":
        config.data.sets = "phantom_smoke"
    smoke_evals(config)
    for entry in config.evals.values():
        entry.every_steps = 6


def smoke_evals(config: ConfigDict) -> None:
    """Fewer resamples, on the small phantom set where the phantom was the set."""
    for entry in config.evals.values():
        entry.bootstrap = 50
        if entry.set == "phantom":  # not where it follows the set that is trained on
            entry.set = "phantom_smoke"


def _shrink(model: ConfigDict, of_a_vit: dict, of_a_resnet: str) -> None:
    if model.variant.startswith("resnet"):
        of_a_vit = {key: value for key, value in of_a_vit.items() if key != "patch_px"} | {"variant": of_a_resnet}
    model.update(of_a_vit)


def _of_studies(config: ConfigDict) -> None:
    config.data.unit = "study"
    config.data.require = "frontal,report"


def _probe(name: str, every_steps: int) -> dict[str, Any]:
    task = {"kind": "multilabel"}
    return {"judge": "probe", "set": name, "task": task, "projections": "PA,AP", "every_steps": every_steps}
