"""From one set to another: a head on frozen features, fitted on each of several parts and tested on all of them.

    python -m cxrjax.main --config=configs/eval_transfer.py --config.checkpoint=runs/…    phantom, PA and AP
    python -m cxrjax.main --config=configs/eval_transfer.py:sets --config.checkpoint=runs/…    four public sets
    python -m cxrjax.main --config=configs/eval_transfer.py:views --config.checkpoint=runs/…    ChestX-ray14, PA and AP
    python -m cxrjax.main --config=configs/eval_transfer.py:children --config.checkpoint=runs/…    adults and children
    python -m cxrjax.main --config=configs/eval_transfer.py --config.checkpoint=runs/… \\
        --config.evals.transfer.parts="chexpert; brax; clinic age=18-64 sex=F"

AUROC of every head on every part's test patients, the drop to the part's own head with an interval of paired resamples,
and sensitivity and specificity at thresholds that were fixed at home (cxrjax/evals/transfer.py). Labels are taken under
common names, see `python -m cxrjax.prepare --findings`. Published beside: from adults (AUROC 0.88) to children 0.57 for
the best of the zero-shot models of 2505.16027; sensitivity falls by 25.2 points for RAD-DINO between AP and PA on RSNA
and by 22.3 on ChestX-ray14 (medRxiv 2026.01.25.26344809). Those are other protocols: compare sizes, not digits.
Children are those of VinDr-PCXR, whose labels are other readers' than VinDr-CXR's. Cost: one pass over each set.
"""

from cxrjax import config as shared
from cxrjax import recipes

PARTS = {
    "phantom": "phantom view=PA; phantom view=AP",
    "sets": "chestxray14; chexpert; padchest; vindr_cxr",
    "views": "chestxray14 view=PA; chestxray14 view=AP",
    "children": "vindr_cxr; vindr_pcxr",
}
WORDS = (*PARTS, "smoke")


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    config = shared.evaluation(references="random,pixels")
    parts = next((word for word in words if word in PARTS), "phantom")
    config.evals.transfer = {
        "judge": "transfer",
        "parts": PARTS[parts],
        "findings": "",
        "policy": "U-Ignore",
        "projections": "PA,AP" if parts != "children" else "",
    }
    entry = config.evals.transfer
    # Derived, so that other parts of the command line have their own first set.
    entry.set = entry.get_ref("parts")._apply_op(lambda text: text.split()[0].rstrip(";") if text.split() else "")
    if "smoke" in words:
        entry.parts = "phantom_smoke; phantom_smoke view=PA+AP"
        recipes.smoke_evals(config)
    return config
