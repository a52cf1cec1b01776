"""Linear probe, attentive probe or k-NN on a frozen checkpoint, beside untrained references.

    python -m cxrjax.main --config=configs/eval_probe.py --config.checkpoint=runs/…    phantom findings
    python -m cxrjax.main --config=configs/eval_probe.py:five_sets --config.checkpoint=runs/…    small sets
    python -m cxrjax.main --config=configs/eval_probe.py:knn --config.checkpoint=runs/…    k-NN
    python -m cxrjax.main --config=configs/eval_probe.py:attentive --config.checkpoint=runs/…    a query a label
    python -m cxrjax.main --config=configs/eval_probe.py:shortcuts --config.checkpoint=runs/…    what they explain
    python -m cxrjax.main --config=configs/eval_probe.py:five_sets --config.references=pixels --workdir=runs/pixels

The probe is a logistic regression on standardised features; its strength is chosen on the validation patients. Every
number comes with its 95 % interval over resampled test patients, and with the paired difference to each reference: the
same encoder before training, and a linear model of 32×32 pixels. `shortcuts` adds models that look at anything but the
findings (cxrjax/evals/shortcuts.py), a sentence on how much of the result they reach, and the probe on labels that
patients have exchanged. An entry's `scaled` is a temperature, and its `cover` asks for conformal sets of answers
(cxrjax/evals/certainty.py), and its `layers`, such as 4, takes the last blocks of a ViT side by side
(cxrjax/evals/layers.py), and with its `long_tail`, such as "(0.1, 0.01)", common and rare labels are judged apart
(cxrjax/evals/tail.py). `attentive` lets each label look for its patches (cxrjax/evals/attentive.py), which stay
in memory. Cost: one pass over each set, then seconds, with `attentive` minutes; with `shortcuts` five passes.
"""

from cxrjax import config as shared
from cxrjax import recipes, tasks
from cxrjax.evals import certainty, layers, tail
from cxrjax.evals.run import COMMON

WORDS = ("phantom", "five_sets", "knn", "attentive", "shortcuts", "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    judge = next((word for word in ("knn", "attentive") if word in words), "probe")
    config = shared.evaluation(references="random" if judge == "attentive" else "random,pixels")
    if "five_sets" in words:
        config.evals = dict(tasks.five_sets(judge))
    if "phantom" in words or not config.evals:
        config.evals[f"phantom_{judge}"] = {
            "judge": judge,
            "set": "phantom",
            "task": {"kind": "multilabel"},
            "projections": "PA,AP",
        }
    for entry in config.evals.values():  # there so that a flag can change them
        entry.update(certainty.KEYS if judge != "knn" else {})
        entry.update(layers.KEYS if judge != "attentive" else {})
        entry.update(tail.KEYS if judge == "probe" else {})
    if "shortcuts" in words:
        config.references += ",blur,without_lungs,lungs" + (",metadata" if judge != "attentive" else "")
        for name, entry in list(config.evals.items()):
            kept = {key: value for key, value in entry.items() if key in COMMON}
            config.evals[f"{name}_shuffled"] = {**kept, "judge": "shuffled"}
    if "smoke" in words:
        recipes.smoke_evals(config)
    return config
