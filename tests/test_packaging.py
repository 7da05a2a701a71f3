"""What is installed works without a checkout: the jobs, the default gates, the types."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from promotion_helpers import PSNR, log_run, make_home

from pipelines.errors import UserError
from pipelines.promotion.gates import default_gates, read_gates

JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[!_]*.py"))


def run_pipelines(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_jobs_are_listed_without_being_run(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()  # a folder of the user's that happens to have the name
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit('not this one')")
    done = run_pipelines(folder=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert listed == JOBS


def test_a_misspelt_job_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = run_pipelines("pretrian", folder=tmp_path)
    assert done.returncode == 2
    assert "there is no job 'pretrian'; did you mean 'pretrain'?" in done.stderr


def test_the_help_of_a_job_shows_the_command_that_was_given(tmp_path: Path) -> None:
    done = run_pipelines("export", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m pipelines export ")


def test_the_default_gates_do_not_depend_on_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    gates = read_gates(None)
    monkeypatch.chdir(tmp_path)
    assert read_gates(None) == gates == read_gates(str(ROOT / "configs" / "gates.yaml"))


def test_gates_changed_where_the_default_ones_used_to_be_are_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gates.yaml").write_text("min_seeds: 3\n")
    with pytest.raises(UserError, match=r"configs/gates.yaml in this folder differs .* say which"):
        default_gates()
    assert read_gates("configs/gates.yaml").min_seeds == 3


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(source)], check=True)
    changed = subprocess.run(
        ["git", "diff", "HEAD", "--binary"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    if changed:
        subprocess.run(["git", "apply"], cwd=source, input=changed, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_data_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pipelines/promotion/gates.yaml", "pipelines/py.typed", "ce_model/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_the_installed_wheel_prepares_and_judges_in_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    """Our dependencies come from the environment of the tests, our code from the wheel alone."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(site), str(wheel)], check=True)
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(ours + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(home / "bin" / "python"), *words],
            cwd=empty, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    where = python("-c", "import pipelines; print(pipelines.__path__[0])")
    assert where.stdout.strip() == str(site / "pipelines"), where.stderr
    shown = python("-m", "pipelines", "prepare", "--help")
    assert shown.returncode == 0 and "--source" in shown.stdout, shown.stderr
    store = tmp_path / "store"
    home_of_runs = make_home(f"sqlite:///{store}/mlflow.db", store)
    run_id = log_run(home_of_runs, "arm", 0, psnr=5.0)
    judged = python("-m", "pipelines", "promote", "--run", run_id, "--store", str(store))
    assert judged.returncode == 3, judged.stderr
    assert f"FAILED  better than Telea on {PSNR}: not measured for Telea" in judged.stderr
