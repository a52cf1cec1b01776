"""One report of the saved evaluations of any number of runs: a page for the browser, Markdown and JSON.

    python -m cxrjax.main --config=configs/report.py --config.runs=runs/spcl,runs/simclr --workdir=runs/report
    python -m cxrjax.main --config=configs/report.py --config.runs="S-PCL=runs/spcl,SimCLR=runs/simclr"
    python -m cxrjax.main --config=configs/report.py --config.runs="ours=runs/grid-ours,theirs=runs/grid-theirs"

A folder may hold one run, or many (a grid of seeds, folds and shares of the labels): runs whose settings differ in
nothing else are one subject, with the mean over its runs. Every table compares subjects on the same pictures and the
same resamples of patients. No checkpoint is read and nothing is judged again; pictures and subgroups are shown where
the converted set is at hand. Over up to four pictures of a kind lies the attention of [CLS], where that is what was
judged (cxrjax/evals/attention.py). Without --workdir the report goes to runs/report-….

Cost: seconds for small sets; for 25,000 pictures with 14 labels about a minute and a half per subject.
"""

from cxrjax import config as shared
from cxrjax.config import ConfigDict


def get_config(arg: str = ""):
    shared.words(arg, ())
    return ConfigDict(
        {
            "job": "report",
            "title": "Evaluations of chest X-ray encoders",
            "runs": "",  # folders, or name=folder, comma-separated
            "reference": "",  # the subject that the others are compared with; "" is the first
            "resamples": 1000,  # of the test patients
            "seed": 0,
            "threshold": 0.5,  # of the operating points
            "examples": 2,  # best, median and worst pictures of each subject; 0 shows none
            "attributes": "",  # a table with a column image_id; its other columns (hospital, scanner) form groups too
            "data_dir": "",  # of the converted sets; "" is $CXRJAX_DATA
        }
    )
