"""What a training leaves on the disk: checkpoints that can be used, models that can be read."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import save_small_model

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective
from pipelines.errors import UserError
from pipelines.models import checkpoint, files

SMALL = NetworkConfig(bottleneck=8)
LOSSES = Objective(fill=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(("keep", "kept"), [(1, [300]), (2, [250, 300])])
def test_a_damaged_checkpoint_does_not_push_out_good_ones(
    keep: int, kept: list[int], tmp_path: Path
) -> None:
    stage, tensors = str(tmp_path), {"weight": torch.zeros(4)}
    damaged = checkpoint.save(stage, 400, tensors, {})
    Path(damaged, checkpoint.TENSORS).write_bytes(b"cut")
    assert checkpoint.passed_over(stage, None) == ["step-00000400"]
    for step in (200, 250, 300):
        checkpoint.save(stage, step, tensors, {})
        checkpoint.prune(stage, step, keep)
        found = checkpoint.latest(stage)
        assert found is not None and found.step == step
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in kept]


def test_a_process_that_is_late_removes_no_later_checkpoint_that_can_be_used(
    tmp_path: Path,
) -> None:
    stage, tensors = str(tmp_path), {"weight": torch.zeros(4)}
    for step in (300, 200):
        checkpoint.save(stage, step, tensors, {})
        checkpoint.prune(stage, step, 1)
    found = checkpoint.latest(stage)
    assert found is not None and found.step == 300
    assert checkpoint.passed_over(stage, found) == []


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((4,), float(step))}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (checkpoint.TENSORS, lambda data: data[:-1]),
        (checkpoint.TENSORS, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (checkpoint.TENSORS, lambda data: b""),
        (checkpoint.TENSORS, None),
        (checkpoint.STATE, lambda data: data[: len(data) // 2]),
        (checkpoint.STATE, lambda data: b""),
        (checkpoint.STATE, lambda data: b"[]"),
        (checkpoint.STATE, lambda data: b"{}"),
        (checkpoint.STATE, None),
    ],
)
def test_the_one_before_a_damaged_checkpoint_is_used_and_told(
    name: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path
) -> None:
    stage = str(tmp_path)
    for step in (16, 24):
        checkpoint.save(stage, step, tensors_of(step), {})
    found = checkpoint.latest(stage)
    assert found is not None and found.step == 24
    file = Path(found.uri, name)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    found = checkpoint.latest(stage)
    assert found is not None and found.step == 16
    assert torch.equal(found.tensors()["weight"], tensors_of(16)["weight"])
    assert checkpoint.passed_over(stage, found) == ["step-00000024"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("fault", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("before", [True, False])
def test_a_death_or_a_full_disk_at_any_call_of_a_save_leaves_one_that_loads(
    fault: BaseException, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th call of the system fails, or is the last one, for every k there is."""
    calls = 0
    fatal = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if before and calls == fatal:
                raise fault
            found = call(*args, **more)
            if calls == fatal:
                raise fault
            return found

        return one

    def save(stage: str, step: int) -> None:
        checkpoint.save(stage, step, tensors_of(step), {})
        checkpoint.prune(stage, step, 1)

    def latest(stage: str) -> checkpoint.Checkpoint:
        with pytest.MonkeyPatch.context() as whole:
            for name, call in system.items():
                whole.setattr(os, name, call)
            found = checkpoint.latest(stage)
        assert found is not None
        assert torch.equal(found.tensors()["weight"], tensors_of(found.step)["weight"])
        return found

    system = {name: getattr(os, name) for name in ("replace", "fsync", "unlink", "mkdir", "rmdir")}
    save(str(tmp_path / "warm"), 1)  # what is looked up once
    for name, call in system.items():
        monkeypatch.setattr(os, name, failing(call))
    while True:
        fatal += 1
        stage = str(tmp_path / str(fatal))
        calls = 10**6  # nothing fails
        save(stage, 1)
        calls = 0
        try:
            save(stage, 2)
        except type(fault):
            assert latest(stage).step in (1, 2)
            calls = 10**6
            save(stage, 3)  # the same program goes on, or a new one
            assert latest(stage).step == 3
        else:  # some faults do not matter, such as of a folder that is there all the same
            assert latest(stage).step == 2
            if calls < fatal:
                break
    assert fatal > 4  # both files: made durable, then named


@pytest.mark.parametrize("text", [b"", b'{"format_version": 1', b"[]", b"\xff"])
def test_a_model_description_that_is_no_json_object_is_one_message(
    text: bytes, tmp_path: Path
) -> None:
    (tmp_path / files.WEIGHTS).write_bytes(b"")
    (tmp_path / files.MODEL).write_bytes(text)
    with pytest.raises(UserError, match=r"model\.json in '.*' is no JSON object"):
        files.load_model(str(tmp_path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    generator = build_generator(SMALL, generator=torch.Generator().manual_seed(3))
    files.save_model(str(folder), generator, SMALL, LOSSES, {"steps": 7})
    return folder


def test_a_model_is_read_as_it_was_written_and_evaluates(model: Path) -> None:
    loaded = files.load_model(str(model))
    assert (loaded.network, loaded.objective, loaded.side) == (SMALL, LOSSES, 128)
    assert loaded.info["steps"] == 7
    written = build_generator(SMALL, generator=torch.Generator().manual_seed(3)).state_dict()
    for name, tensor in loaded.generator.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    assert not any(module.training for module in loaded.generator.modules())


def test_an_altered_or_foreign_model_is_one_message(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    data = (folder / files.WEIGHTS).read_bytes()
    (folder / files.WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"have sha256 .*: they were altered or cut"):
        files.load_model(str(folder))
    (folder / files.WEIGHTS).write_bytes(data)
    text = (folder / files.MODEL).read_text()
    for old, new, message in (
        ('"format_version": 1', '"format_version": 2', "has model format 2; this program reads 1"),
        ('"bottleneck": 8', '"bottleneck": 9', "do not fit the network: .* other shapes .'decoder"),
    ):
        assert old in text
        (folder / files.MODEL).write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            files.load_model(str(folder))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_has_the_rights_that_the_umask_gives(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        checkpoint.save(str(tmp_path), 1, {"a": torch.zeros(2)}, {"history": []})
        save_small_model(tmp_path / "model")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 4
    assert {path.stat().st_mode & 0o777 for path in written} == {mode}
