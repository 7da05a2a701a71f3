"""A setting in the environment is used, refused or overruled with a word."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from pipelines.errors import UserError
from pipelines.runtime import cluster, environment


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    environment.tell_once.cache_clear()
    yield
    environment.tell_once.cache_clear()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", r"client protocol.*HOST:6379.*ray job submit"),
        ("http://head:8265", r"dashboard.*ray job submit --address.*unset RAY_ADDRESS"),
        ("https://head", r"dashboard.*ray job submit --address.*unset RAY_ADDRESS"),
    ],
)
def test_addresses_of_other_protocols_are_refused_with_what_to_use(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS is '{address}', .*{message}"):
        with cluster.connect():
            pass


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("slurm_jobdir_" * 7)
    deep.mkdir(parents=True)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(name, str(deep))
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(deep))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"^{name} is .* too long .* set RAY_TMPDIR=/tmp"):
        with cluster.connect():
            pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    environment.require_temporary_folder()


def test_the_old_ray_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "false"):
        monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", value)
        with pytest.raises(UserError, match=f"RAY_TRAIN_V2_ENABLED is '{value}'.*unset it"):
            environment.require_train_v2()
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    environment.require_train_v2()


@pytest.mark.parametrize(
    ("flag", "value", "threads", "told"),
    [
        (None, None, None, False),
        (None, "3", 3, True),
        (2, "3", 2, False),
        (None, "0", None, False),
        (None, "", None, False),
        (None, "many", None, False),
    ],
)
def test_omp_num_threads_holds_for_training_unless_the_flag_says_otherwise(
    flag: int | None,
    value: str | None,
    threads: int | None,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert environment.threads_per_worker(flag) == threads
    assert environment.threads_per_worker(flag) == threads
    said = capsys.readouterr().err
    assert said.count("OMP_NUM_THREADS is 3") == int(told) and bool(said) == told


def test_nothing_is_left_in_the_copy_of_a_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1234"
    copy.mkdir(parents=True)
    environment.require_lasting("store", "store")
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match=r"^store is 'store', a relative path, .*--store s3://"):
        environment.require_lasting("store", "store")
    for lasting in ("/shared/store", "s3://bucket/store", "~/store"):
        environment.require_lasting("store", lasting)


@pytest.mark.parametrize("home", ["there", "absent"])
def test_a_home_that_cannot_be_written_costs_no_start(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "home" if home == "there" else tmp_path / "file" / "home"
    monkeypatch.setenv("HOME", str(place))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")  # so that what is set below is undone
        monkeypatch.delenv(name)
    environment.ensure_token()
    made = os.environ.get("RAY_AUTH_TOKEN", "")
    assert len(made) == (0 if home == "there" else 64)
    environment.ensure_token()
    assert os.environ.get("RAY_AUTH_TOKEN", "") == made


@pytest.mark.parametrize(("free_mb", "told"), [(100, True), (1000, False)])
def test_a_small_temporary_folder_is_told(
    free_mb: int, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    usage = SimpleNamespace(free=free_mb * 1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    environment.require_temporary_folder()
    assert ("has 100 MB free" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("value", "told"), [("", True), ("-1", True), ("0", False), (None, False)])
def test_gpus_that_a_variable_hides_are_told(
    value: str | None, told: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    environment.tell_hidden_gpus()
    assert ("no GPU of this machine is used" in capsys.readouterr().err) == told
