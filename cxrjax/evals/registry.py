"""All judges by name.

To add a judge, write one file `cxrjax/evals/<name>.py` and put its name into NAMES. The file ends with

    JUDGE = Judge("<name>", judge=_judge, splits=("val", "test"), keys={"own_key": 0.5}, …)

where `_judge` maps an encoder, a completed entry and an opened set to a `Result` (see `judge.Judge` for what else a
judge can declare). `run` completes entries, opens sets and writes results for all judges alike: nothing outside of the
file asks which judge it is. Test the judge itself in tests/evals/test_<name>.py; tests/evals/test_registry.py holds
every judge to its declaration.

A judge of your own is such a file anywhere: an entry's `judge` is its path, or the name that an installed package gives
it in the group of entry points "cxrjax.judges".
"""

import importlib

from cxrjax import named
from cxrjax.evals.judge import Judge

NAMES = (
    "probe",
    "attentive",
    "knn",
    "shuffled",
    "transfer",
    "zeroshot",
    "classify",
    "detect",
    "segment",
    "retrieve",
    "ground",
    "sentences",
)

JUDGES: dict[str, Judge] = {name: importlib.import_module(f"cxrjax.evals.{name}").JUDGE for name in NAMES}


def find(name: str) -> Judge:
    """The judge of that name, or of that file; raises ValueError naming those there are."""
    if name in JUDGES:
        return JUDGES[name]
    module = named.brought(name, named.JUDGES, "judge")
    if module is None:
        known = [*JUDGES, *named.plug_ins(named.JUDGES)]
        raise ValueError(f"judge {name!r} is not known; choose one of {known}, or give the file of one of your own")
    judge = getattr(module, "JUDGE", None)
    if not isinstance(judge, Judge):
        raise ValueError(f"{name} has no JUDGE = Judge(…), as the top of cxrjax/evals/registry.py shows it")
    return judge
