"""The commonest mistakes on the command line: each ends in one sentence that names the key, the value and the remedy.

Every command runs in this process, and ends before anything is compiled.
"""

import shlex
import sys

import numpy as np
import pytest
from absl import flags

import cxrjax.train  # noqa: F401 - readers of records define flags of their own, once
from cxrjax import command, embed, export, main, prepare
from cxrjax.datasets import schema, writer
from cxrjax.imaging import pixels
from tests import runs

SPCL = "main --config=configs/spcl.py:smoke --workdir={tmp}/run --config.data.sets=clinic"
SPCL += " --config.evals.phantom_probe.set=clinic --config.evals.phantom_knn.set=clinic"
TUNE = "main --config=configs/finetune.py:smoke --workdir={tmp}/run --config.data.sets=clinic --config.labels=Mass"
PROBE = "main --config=configs/eval_probe.py:smoke --config.evals.phantom_probe.set=clinic"
FOLDER = "prepare folder --raw {tmp}/pictures --name mine --table {tmp}/pictures/table.csv --map file=name"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data folder with the set "clinic", a run "spcl" of six steps, and a folder of pictures with a table."""
    tmp, rng = tmp_path_factory.mktemp("mistakes"), np.random.default_rng(0)

    def records(split):
        for i in range(16):
            record = {"image_id": f"{split}{i}", "patient_id": f"{split}{i}", "study_id": f"{split}{i}", "view": "PA"}
            record |= {"image": pixels.encode(rng.integers(0, 255, (40, 40), np.uint8), "png")}
            yield f"{split}{i}", schema.complete({**record, "labels": np.array([i % 2, i % 3 > 0], np.int8)})

    labels = ("Mass", "Effusion")
    writer.write(
        tmp / "data",
        "clinic",
        features=schema.features(labels, image_format="png"),
        examples={split: lambda split=split: records(split) for split in schema.SPLITS},
        metadata={"label_names": list(labels)},
        description="Noise.",
    )
    runs.write(tmp / "spcl", runs.config())
    (tmp / "pictures").mkdir()
    (tmp / "pictures" / "table.csv").write_text(
        "name,finding,Mass\na.png,Mass;Effusion,1\nb.png,Mass,1\nc.png,Effusion,0\n"
    )
    for name in "abc":
        noise = rng.integers(0, 255, (40, 40), np.uint8)
        (tmp / "pictures" / f"{name}.png").write_bytes(pixels.encode(noise, "png"))
    return tmp


MISTAKES = [
    # of what is trained
    ("main", "no config given; say --config=NAME, one of ark, barlow_twins, "),
    ("main --config=configs/spc1.py", "no config 'configs/spc1.py'; Did you mean spcl?"),
    ("main --config=configs/spcl.py:smokey", "knows no 'smokey' after the colon; Did you mean 'smoke'?"),
    ("main --config=configs/spcl.py smoke", "unexpected arguments ['smoke']: everything is said as --flag=value"),
    ("main --config=configs/spcl.py --workdr=runs/x", "Unknown command line flag 'workdr'; Did you mean: workdir ?"),
    (f"{SPCL} --config.optim.lrr=1", "'lrr'; Did you mean \"lr\""),
    (f"{SPCL} --config.batch_size=many", "--config.batch_size=many: the value must be a whole number"),
    (f"{SPCL} --config.data.exclude_overlap=maybe", "exclude_overlap=maybe: the value must be True or False"),
    ("main --config=configs/spcl.py:smoke --config.evals=", "--config.evals=: give a dictionary"),
    (f"{SPCL} --config.optim.lr=fast", "--config.optim.lr=fast: the value must be a number"),
    (f"{SPCL} --config.optim.wd=-1", "optim.wd = -1.0: it must be a number in [0, inf)"),
    (f"{SPCL} --config.data.fraction=10", "data.fraction = 10.0: it must be a number in (0, 1]"),
    (f"{SPCL} --config.data.sets=clinc", "data (sets='clinc'; Did you mean 'clinic'?; cxrjax.prepare clinc --raw DIR"),
    (f"{SPCL} --config.data.sets=None", "data.sets cannot be None: it needs a value, such as 'phantom'"),
    (f"{SPCL} --config.data.split=trian", "split='trian'; it has train (16), val (16), test (16)"),
    (f"{SPCL} --config.data.projections=PB", "projections='PB'; must be a list of UNKNOWN, PA, AP, LATERAL"),
    (f"{SPCL} --config.data.projections=LATERAL", "projections='LATERAL'; Its projections: PA 16"),
    (f"{SPCL} --config.method=spcll", "no method 'spcll'; Did you mean 'spcl'?"),
    (f"{SPCL} --config.batch_size=12", "batch_size = 12:; it must be a multiple of 8; use 8 or 16"),
    (
        f"{SPCL} --config.model.image_px=30",
        "Pictures of 30 px; each side, model.image_px, must be a multiple",
    ),
    (f"{SPCL} --config.model.variant=XL", "no encoder 'XL'; ViTs: test, mini"),
    (f"{SPCL} --config.model.dtype=fp16", "model.dtype = 'fp16': it must be float32 or bfloat16"),
    (f"{SPCL} --config.optim.name=adam", "optim.name; 'adam' is not known; there are ['adamw'"),
    (f"{SPCL} --config.optim.warmup_steps=600", "a warm-up of 600 steps; shorten the warm-up (optim.warmup_steps"),
    (f"{SPCL} --config.duration.total_epochs=2 --config.duration.total_steps=5", "'total_epochs': 2.0; exactly one of"),
    (f"{SPCL} --config.grid=optim.l=1,2", "grid: there is no setting 'optim.l' to vary. Did you mean 'optim.lr'?"),
    (
        f"{SPCL} --config.init_from={{tmp}}/spc",
        "init_from='{tmp}/spc': there is no such folder; Did you mean '{tmp}/spcl'?",
    ),
    ("main --config=configs/report.py --workdir=gs://bucket/run", "gs://bucket/run is an address; mount the bucket"),
    (f"{SPCL} --workdir=/dev/null/run", "Not a directory: /dev/null/run"),
    (f"{SPCL} --workdir=http://host/run", "http://host/run is an address, and"),
    (f"{TUNE} --config.labels=Mas", "'Mas'; Mass, Effusion"),
    (f"{TUNE} --config.encoder=forzen", "'forzen'; frozen"),
    # of what is judged, exported and embedded
    (
        "main --config=configs/eval_probe.py",
        "config.checkpoint is not given; --config.checkpoint=runs/…; --workdir=DIR",
    ),
    (f"{PROBE} --config.checkpoint={{tmp}}/spc", "no folder {tmp}/spc; Did you mean '{tmp}/spcl'?"),
    (f"{PROBE} --config.checkpoint={{tmp}}/spcl --config.step=7", "no step 7 in; there are [6], 'latest' and 'best'"),
    (f"{PROBE} --config.checkpoint={{tmp}}/spcl --config.references=pixel", "references: 'pixel'; choose of 'pixels'"),
    ("main --config=configs/report.py", "a results page needs runs: --config.runs=name=runs/…"),
    ("export --checkpoint {tmp}/spcl --output {tmp}/out --step best", "no best checkpoint; give 'latest' or one of"),
    ("export --checkpoint {tmp}/spcl --output {tmp}/out --step lastest", "'lastest' is no step; give a number, latest"),
    ("export --checkpoint {tmp}/spcl --output {tmp}/data", "{tmp}/data is there already; give another --output"),
    # of what is prepared
    ("prepare chestxray41 --raw {tmp}", "chestxray41; chestxray14"),
    ("prepare chestxray14 --raw {tmp}/nowhere", "{tmp}/nowhere"),
    (f"{FOLDER} labels=findng", "'findng'; finding"),
    (f"{FOLDER} labels=Mass", "column 'Mass' of table.csv holds 0, 1; give label_columns=Mass"),
    (f"{FOLDER} labels=finding", "separator '|' is in no cell of the column 'finding'; give --separator ';'"),
]


def answer(line, capsys):
    """The exit code of a command, and all that it said at its end."""
    program, *argv = shlex.split(line)
    before = set(flags.FLAGS)
    try:
        if program == "main":
            sys.argv = [program, *argv]
            code = command.run(main.main, main.__doc__, main._define_flags)
        else:
            code = {"embed": embed, "export": export, "prepare": prepare}[program].main(argv)
    except SystemExit as error:
        code = error.code
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line[-45:] for line, _ in MISTAKES])
def test_a_mistake_ends_in_a_sentence(line, words, place, capsys, monkeypatch):
    """words: parts of the sentence, with "; " between them. Nothing is left of a run that was refused."""
    monkeypatch.setenv("CXRJAX_DATA", str(place / "data"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, said = answer(line.format(tmp=place), capsys)
    assert code == 2 and "Traceback" not in said
    assert all(part in said for part in words.format(tmp=place).split("; ")), said
    assert not (place / "run").exists() and not (place / "out").exists()
