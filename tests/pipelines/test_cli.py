"""One grammar for files and flags, and one message for a mistake."""

import os
import pickle
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from helpers import ROOT

from pipelines import cli
from pipelines.errors import UserError, first_line
from pipelines.pretrain.config import PretrainConfig

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested."""

    RENAMED_FLAGS: ClassVar = {"learning_speed": "rate"}

    rate: float = 0.1
    """A number."""
    kind: Literal["slow", "fast"] = "slow"
    """A choice."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Whole."""

    size: int = 1
    """A number."""
    name: str | None = None
    """Maybe a text."""
    kinds: tuple[Literal["red", "green"], ...] = ("red",)
    """Several choices."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("size: 5\nname: null\nkinds: [green, red]\ninner: {rate: 1e-3, kind: fast}\n")
    expected = Outer(size=7, kinds=("green", "red"), inner=Inner(rate=0.001, kind="fast"))
    assert cli.parse(Outer, ["--config", str(file), "--size", "7"]) == expected
    assert cli.parse(Outer, ["--size", "7", "--config", str(file)]) == expected
    assert cli.parse(Outer, [f"--config={file}", "--size=7"]) == expected
    assert cli.parse(Outer, ["--name=a=b"]).name == "a=b"
    repeated = ["--kinds", "green", "--size", "7", "--kinds", "red"]
    assert cli.parse(Outer, repeated).kinds == ("green", "red")
    assert cli.parse(Outer, []) == Outer()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--inner.kind", "fsat"], "must be one of slow, fast; did you mean 'fast'?"),
        (["--kinds", "red", "gren"], "did you mean 'green'?"),
        (["--sise", "3"], "there is no flag --sise; did you mean --size?"),
        (["--rate", "3"], "there is no flag --rate; did you mean --inner.rate?"),
        (["--size", "three"], "three"),
        (["--config"], "--config needs a YAML file"),
        (["--inner.kind=fsat"], "did you mean 'fast'?"),
        (["--config=/nowhere.yaml"], "/nowhere.yaml"),
        (["--config", str(QUICKSTART), "--config", "b.yaml"], "--config is given twice"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(Outer, argv)
    assert stopped.value.code == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown


@dataclass(frozen=True, kw_only=True)
class Needing:
    """With a flag that has to be given."""

    source: str
    """A place."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    HIDDEN_FLAGS: ClassVar[tuple[str, ...]] = ("inner.kind",)


def shown_by(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(Needing, argv)
    shown = capsys.readouterr()
    return stopped.value.code, " ".join((shown.out + shown.err).replace("│", " ").split())


def test_a_misspelt_flag_is_told_before_the_missing_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown = shown_by(["--sorce", "x"], capsys)
    assert (code, shown) == (2, "error: there is no flag --sorce; did you mean --source?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sorce: x\n", "where there is no setting 'sorce'; did you mean --source?"),
        ("source: x\ninner: {rate: much}\n", "--inner.rate much"),
        ("source: x\ninner: {kind: fsat}\n", "did you mean 'fast'?"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    code, shown = shown_by(["--config", str(file)], capsys)
    assert code == 2 and str(file) in shown and message in shown


def test_help_leaves_out_the_flags_that_are_refused_anyway(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown = shown_by(["--help"], capsys)
    assert not code
    assert "--source STR A place. (required)" in shown and "--inner.rate FLOAT A number." in shown
    assert "--inner.kind" not in shown
    parsed = cli.parse(Needing, ["--source", "x", "--inner.kind", "fast"])
    assert parsed == Needing(source="x", inner=Inner(kind="fast"))


def test_a_merged_name_may_be_given_again(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("inner: &a {rate: 1, kind: fast}\nother: {<<: *a, rate: 2}\n")
    assert cli.read_yaml(str(file))["other"] == {"rate": 2, "kind": "fast"}


def test_the_former_name_of_a_flag_works_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("inner: {learning_speed: 0.5}\n")
    for argv in (["--config", str(file)], ["--inner.learning-speed", "0.5"],
                 ["--inner.learning_speed=0.5"]):  # fmt: skip
        assert cli.parse(Outer, argv) == Outer(inner=Inner(rate=0.5))
        assert "is called --inner.rate now" in capsys.readouterr().err
    assert cli.parse(Outer, ["--name", "learning-speed"]).name == "learning-speed"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flag", ["--config", "--gates"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", "which cannot be read as YAML: 'utf-8' codec can't decode byte 0xe9"),
        (b"day: 2026-02-30\n", "which cannot be read as YAML: day"),
        (b"1: 2\n", "the name 1 in it must be a text: put it in quotes"),
        (b"thresholds: {yes: 2}\n", "the name True in it must be a text"),
        (b"size: 1\nname: a\nsize: 2\n", "which cannot be read as YAML: line 3 gives size again"),
        (b"inner:\n  rate: 1\n  rate: 2\n", "line 3 gives rate again"),
        (b"inner: &a {rate: *a}\n", "where an alias (*) stands inside of what it names"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(
    flag: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        cli.read_yaml(str(file), flag)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {flag} is '{file}'") and message in shown


def test_an_unknown_strategy_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(PretrainConfig, ["--strategy", "random_blocks"])
    assert stopped.value.code == 2
    assert "did you mean 'random_block'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("size is 1; it must be 2"), "error: size is 1; it must be 2"),
        (
            OSError(28, "No space left on device", "/d/x"),
            "error: [Errno 28] No space left on device: '/d/x'",
        ),
    ],
)
def test_what_lies_outside_is_one_line_without_a_traceback(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Outer) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["job"])
    with pytest.raises(SystemExit) as stopped:
        cli.main(run, Outer)
    assert stopped.value.code == message


def test_a_user_error_keeps_its_message_when_ray_data_adds_to_its_arguments() -> None:
    error = UserError("x is 3")
    error.args = ("x is 3\nTo change retry attempts, configure ...",)
    again = pickle.loads(pickle.dumps(error))
    assert (str(error), str(again)) == ("x is 3", "x is 3")


def test_of_an_error_the_first_line_is_told_or_its_class() -> None:
    assert first_line(OSError("no route\nto the host")) == "no route"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_the_quickstart_trains_with_the_joint_loss() -> None:
    config = cli.parse(PretrainConfig, ["--config", str(QUICKSTART)])
    assert config.preset == "unet"
    assert config.adversarial and config.feature_matching
    assert config.source is None


class Gone(UserError):
    code = 4


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (Gone("http://a:b@host is gone"), 4, "error: http://host is gone\n"),
        (KeyboardInterrupt(), 130, "interrupted: rerun the same command, and it resumes from "
         "what is finished\n"),
    ],
)  # fmt: skip
def test_how_a_job_ends_is_told_in_one_line(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(_: Outer) -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.main(run, Outer)
    assert (stopped.value.code, capsys.readouterr().err) == (code, f"starting job\n{said}")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_first_second_ends_a_job_as_ctrl_c_does(
    sent: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(sent, signal.SIG_DFL)
    monkeypatch.setattr(sys, "argv", ["job.py"])
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main(lambda _: os.kill(os.getpid(), sent), Outer)
        signal.signal(sent, signal.SIG_IGN)
        cli.main(lambda _: os.kill(os.getpid(), sent), Outer)  # as under `nohup`
    finally:
        signal.signal(sent, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.startswith("starting job\ninterrupted: ")


def test_a_defect_is_a_traceback_without_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Outer) -> None:
        raise RuntimeError("at http://alice:s3cr3t-PW@host/x")

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.main(run, Outer)
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said.startswith("starting job\nTraceback") and "RuntimeError: at http://host/x" in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize(
    ("result", "code"), [({"delivered": False}, 5), ({"delivered": True}, 0), (None, 0)]
)
def test_what_mlflow_lacks_has_an_exit_code(
    result: object, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py"])
    if code:
        with pytest.raises(SystemExit) as stopped:
            cli.main(lambda _: result, Outer)
        assert stopped.value.code == code
    else:
        cli.main(lambda _: result, Outer)
