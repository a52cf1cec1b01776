"""What is released: a wheel and a source archive, one version everywhere, and the start page followed with the wheel.

The wheel is installed into an environment of its own, without the repository. That environment finds the packages that
cxrjax needs among those of the environment which runs the tests, so that nothing is fetched.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import cxrjax
from tests import dicom_files, radiographs, test_readme

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")
SMALL = ((r"\btrain spcl(?!:)", "train spcl:smoke"), (r"\beval probe\b", "eval probe:smoke"))
"""What the start page says of `:smoke`, done to its commands."""
BUILD = "from setuptools import build_meta as b; print(b.build_sdist('dist'), b.build_wheel('dist'))"


def test_the_version_is_the_same_everywhere():
    said = f"\n## {cxrjax.__version__}"
    assert said in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md has no heading {said.strip()!r}"
    assert f"\nversion: {cxrjax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and a source archive, made from a copy of the repository."""
    copy = tmp_path_factory.mktemp("source") / "cxrjax"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs a bash script where the wheel is installed, and returns what it says."""
    place = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    venv.create(place / "venv", symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": place / "venv", "platbase": place / "venv"}))
    (own / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # their .pth files are not read
    pip = [sys.executable, "-m", "pip", f"--python={place / 'venv/bin/python'}"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    # As the tests compile, but on one device.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept["XLA_FLAGS"] = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    kept |= {"PATH": f"{place / 'venv/bin'}:{os.environ['PATH']}", "CXRJAX_DATA": str(place / "data")}

    def run(script):
        done = subprocess.run(["bash", "-euc", script], cwd=place, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.place = place
    return run


@pytest.mark.slow
def test_the_source_archive_is_whole(built):
    (archive,) = built.glob("*.tar.gz")
    held = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    given = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    missing = {name for name in given if not name.startswith(".")} - held
    assert not missing, f"MANIFEST.in leaves out {missing}"
    assert {"LICENSE", "NOTICE", "CITATION.cff", "CHANGELOG.md"} <= held


@pytest.mark.slow
def test_the_wheel_has_configs_and_notices(built):
    (wheel,) = built.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    configs = [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.*") if path.parent.name != "__pycache__"]
    assert {f"cxrjax/{path}" for path in configs} <= set(held)
    assert not [name for name in held if "__pycache__" in name]
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in held}
    assert wheel.name.startswith(f"cxrjax-{cxrjax.__version__}-")


@pytest.mark.slow
def test_the_start_page_can_be_followed_with_the_wheel_alone(installed):
    where = installed("python -c 'import cxrjax, sys; print(cxrjax.__file__, *sys.path)'")
    assert where.startswith(str(installed.place)) and str(ROOT) not in where.replace(str(installed.place), "")
    folder = installed.place / "DIR"
    folder.mkdir()
    rows = ["path,PatientID,Findings,View"]
    for number in range(60):
        pixels = 4095 - 16 * radiographs.radiograph(number, 72, 80).astype("uint16")
        file = dicom_files.write(folder / f"{number}.dcm", pixels, photometric="MONOCHROME1", bits_stored=12)
        rows.append(f"{file.name},p{number},{'Effusion' if number % 2 else ''},PA")
    (folder / "list.csv").write_text("\n".join(rows))
    for info, body in test_readme.blocks((ROOT / "docs" / "start.md").read_text()):
        if info == "python installed":
            installed(f"python -c {shlex.quote(body)}")
        if info == "sh installed":
            for full, small in SMALL:
                body = re.sub(full, small, body)
            installed(body)
    runs = installed.place / "runs"
    for written in ("first/views.png", "report/report.html", "clinic/evals/phantom_probe", "clinic_report/report.html"):
        assert (runs / written).exists(), written
    assert (installed.place / "encoder" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_method_of_a_page_is_trained_with_the_wheel_alone(installed):
    page = (ROOT / "docs" / "add" / "method.md").read_text()
    for name, body in test_readme.files(page).items():
        (installed.place / name).write_text(body)
    for body in (body for info, body in test_readme.blocks(page) if info == "sh run"):
        installed(body)
    assert (installed.place / "runs" / "turns" / "views.png").is_file()
