"""Fine-tunes a run's encoder on labels, or trains a linear head on it, and judges the answers.

    python -m cxrjax.main --config=configs/finetune.py --config.init_from=runs/…              phantom findings: minutes
    python -m cxrjax.main --config=configs/finetune.py:tb --config.init_from=runs/…           tuberculosis, small set
    python -m cxrjax.main --config=configs/finetune.py:chestxray14 --config.init_from=runs/…  14 findings
    python -m cxrjax.main --config=configs/finetune.py:tb,grid --config.init_from=runs/…      1, 10, 100 % × 3 seeds
    python -m cxrjax.main --config=configs/finetune.py:frozen --config.init_from=runs/…       a linear head alone

The model is the run's; without init_from a small one starts from noise. A grid trains one run per combination, each in
a folder of its own, goes on where it was stopped, and writes a table: mean over the seeds, with a 95 % interval over
patients resampled for all seeds together. The step that is best on the validation patients is kept and tabulated.

Partial fine-tuning: --config.optim.frozen="('encoder/patch_embed', 'encoder/blocks')" for the encoder's parts by name;
rates that fall towards the input: --config.optim.layer_decay=0.65. Adapters of low rank on a ViT that stays as it is:
--config.lora.rank=8 (cxrjax/models/lora.py). The recipe is our choice, after that of MAE (He et al. 2022, table 9):
AdamW, layer decay, stochastic depth; published protocols are in configs/eval_*.py.
"""

from cxrjax import config as shared
from cxrjax import protocols
from cxrjax.datasets import chestxray14
from cxrjax.phantom import findings

WORDS = ("phantom", "tb", "chestxray14", "frozen", "grid", "smoke")
CHESTXRAY14 = ",".join(chestxray14.FINDINGS)


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = protocols.finetune()
    config.labels = ",".join(findings.FINDINGS)
    config.policy = "U-Ignore"
    config.model.drop_path = 0.1
    config.batch_size = 64
    config.duration.total_steps = 300
    config.optim.update({"lr": 1e-3, "betas": (0.9, 0.999), "warmup_steps": 30})
    protocols.classify(config, {"kind": "multilabel"}, every_steps=100)

    if "tb" in words:
        config.data.sets = "tb_lung_masks"
        config.task = "multiclass"
        config.labels = "Normal,Tuberculosis"
        config.policy = ""
        config.duration.total_steps = 800  # of every fraction alike
        config.batch_size = 32
        config.optim.update({"lr": 5e-4, "warmup_steps": 80})
        task = {"kind": "binary", "positive": "Tuberculosis", "negative": "Normal", "name": "tb"}
        protocols.classify(config, task, every_steps=100)
    if "chestxray14" in words:
        config.data.sets = "chestxray14"
        config.labels = CHESTXRAY14
        config.duration.update({"total_steps": None, "total_epochs": 50.0})
        config.batch_size = 1024
        config.optim.update({"lr": None, "base_lr": 2.5e-4, "warmup_steps": None, "warmup_epochs": 5.0})
        config.optim.layer_decay = 0.75
        protocols.classify(config, {"kind": "multilabel"}, every_steps=500)
    if "frozen" in words:
        config.encoder = "frozen"
        config.model.drop_path = 0.0
        config.optim.update({"wd": 1e-6, "layer_decay": None})
    if "grid" in words:
        config.grid = protocols.SHARES
    if "smoke" in words:
        protocols.smoke(config)
    return config
