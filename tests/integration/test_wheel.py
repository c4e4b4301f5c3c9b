"""The installed wheel, beside other projects and used from an empty folder: `tox -e wheel`."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support.project import ROOT, bare

pytestmark = pytest.mark.wheel

PACKAGES = {"alvo", "fonte", "fonte_alvo", "orchestration"}


def installed():
    """Return the content of site-packages, and the time of each file of the project, without bytecode."""
    site_packages = Path(str(distribution("fonte-alvo").locate_file("")))
    assert site_packages.name == "site-packages"
    files = (file for package in PACKAGES for file in (site_packages / package).rglob("*"))
    beside = {path for path in site_packages.iterdir() if path.name != "__pycache__"}
    return beside | {(file, file.stat().st_mtime_ns) for file in files if "__pycache__" not in file.parts}


def run(folder, *arguments):
    command = [sys.executable, *arguments]
    environment = bare(folder) | {"XDG_DATA_HOME": str(folder / "data")}
    del environment["FONTE_ALVO_HOME"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_wheel_has_only_the_four_packages():
    files = distribution("fonte-alvo").files
    tops = {file.parts[0] for file in files if not file.parts[0].endswith(".dist-info")}
    assert tops == PACKAGES
    names = {str(file) for file in files}
    for package in PACKAGES:
        missing = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        } - names
        assert missing == set()


def test_it_works_beside_trio_and_writes_only_to_the_users_data(tmp_path):
    before = installed()
    code = (
        "import trio, outcome, orchestration.day, alvo.load, fonte.client, alvo; print(outcome.__file__, alvo.__file__)"
    )
    printed = run(tmp_path, "-c", code)
    assert printed.count("site-packages") == 2
    assert "Alvo has" in run(tmp_path, "-m", "alvo.schema")
    assert (tmp_path / "data" / "fonte-alvo" / ".embedded" / "data").is_dir()
    assert installed() == before


def test_trio_is_imported_in_the_checkout_too():
    run_there = subprocess.run([sys.executable, "-c", "import trio"], cwd=ROOT, capture_output=True, check=False)
    assert run_there.returncode == 0
