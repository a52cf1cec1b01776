"""CXR-LT 2024, task 1: 40 findings from common to rare, macro average precision of a linear probe on frozen features.

    python -m cxrjax.main --config=configs/eval_cxr_lt_2024.py --config.checkpoint=runs/…
    python -m cxrjax.main --config=configs/eval_cxr_lt_2024.py:attentive --config.checkpoint=runs/…    on patches

The challenge (bionlplab.github.io/2024_MICCAI_CXRLT) ranks by mean average precision over the findings, which is
`auprc` here. Its tables are in physionet.org/content/cxr-lt-iccv-workshop-cvamd/2.0.0; their names, columns and labels
are those that the code of an entrant reads (github.com/UoS-HDS/cxr-lt-diss). No published number could be read here. To
convert, put the tables together,

    names = {"train_labeled": "train", "development_labeled_task1": "val", "test_labeled_task1": "test"}
    table = pandas.concat([pandas.read_csv(f"{a}.csv").assign(split=b) for a, b in names.items()])
    table["patient"] = table["fpath"].str.extract("/p([0-9]+)/s", expand=False)
    table["dicom"] = table["fpath"].str.extract("([^/]+)[.]jpg$", expand=False)
    table.to_csv("cxr-lt-2024.csv", index=False)

and name the table and the folder of MIMIC-CXR-JPG that holds `files/`:

    python -m cxrjax.prepare folder --raw DIR --table cxr-lt-2024.csv --mapping configs/sets/cxr_lt_2024.json

Ours: a head on frozen features, where entrants train whole networks; strengths chosen on the development part; and the
groups, `auprc_head` of findings that a tenth of the training pictures have, `auprc_tail` of those that fewer than a
hundredth have, `auprc_medium` of the rest.
"""

from cxrjax import config as shared
from cxrjax import recipes
from cxrjax.evals import certainty, tail

WORDS = ("attentive", "smoke")
LABELS = (
    "Adenopathy",
    "Atelectasis",
    "Azygos Lobe",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Clavicle Fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fissure",
    "Fracture",
    "Granuloma",
    "Hernia",
    "Hydropneumothorax",
    "Infarction",
    "Infiltration",
    "Kyphosis",
    "Lobar Atelectasis",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "Nodule",
    "Normal",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Pulmonary Embolism",
    "Pulmonary Hypertension",
    "Rib Fracture",
    "Round(ed) Atelectasis",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
    "Tuberculosis",
)


def get_config(arg: str = ""):
    words = shared.words(arg, WORDS)
    attentive = "attentive" in words
    config = shared.evaluation(references="random" if attentive else "random,pixels")
    config.evals.cxr_lt_2024 = {
        "judge": "attentive" if attentive else "probe",
        "set": "cxr_lt_2024",
        "task": {"kind": "multilabel", "labels": ",".join(LABELS), "name": "task1"},
        **certainty.KEYS,
        **({} if attentive else tail.KEYS | {"long_tail": (0.1, 0.01)}),
    }
    if "smoke" in words:
        entry = config.evals.cxr_lt_2024
        entry.set, entry.projections = "phantom", "PA,AP"
        entry.task.labels = "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion"
        recipes.smoke_evals(config)
    return config
