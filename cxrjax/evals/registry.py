"""All judges by name.

To add a judge, write one file `cxrjax/evals/<name>.py` and put its name into NAMES. The file ends with

    JUDGE = Judge("<name>", judge=_judge, splits=("val", "test"), keys={"own_key": 0.5}, …)

where `_judge` maps an encoder, a completed entry and an opened set to a `Result` (see `judge.Judge` for what else a
judge can declare). `run` completes entries, opens sets and writes results for all judges alike: nothing outside of the
file asks which judge it is. Test the judge itself in tests/evals/test_<name>.py; tests/evals/test_registry.py holds
every judge to its declaration.
"""

import importlib

from cxrjax.evals.judge import Judge

NAMES = ("probe", "knn", "shuffled", "zeroshot", "classify", "detect", "segment", "retrieve")

JUDGES: dict[str, Judge] = {name: importlib.import_module(f"cxrjax.evals.{name}").JUDGE for name in NAMES}
