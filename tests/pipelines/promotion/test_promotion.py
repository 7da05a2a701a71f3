"""The champion changes on evidence alone, once, and can be put back. Against a real MLflow."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
import safetensors.torch
from helpers import ROOT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from promotion_helpers import GATES, PSNR, Home, aliases, ask, log_report, log_run, make_home

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective
from pipelines import cli, storage
from pipelines.errors import UserError
from pipelines.models.files import MODEL, WEIGHTS, save_model
from pipelines.promotion import gates, run_files
from pipelines.promotion.candidate import may_run
from pipelines.promotion.config import PromoteConfig
from pipelines.promotion.explain import explain
from pipelines.promotion.gates import read_gates
from pipelines.promotion.run import Decision, roll_back, run_promotion
from pipelines.storage import lease
from pipelines.storage.lease import Claim
from pipelines.tracking import client, recorder, registry
from pipelines.workflow.config import WorkflowConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    store = tmp_path_factory.mktemp("store")
    return make_home(client.tracking_uri(None, str(store)), store)


@pytest.fixture(scope="module")
def good(home: Home) -> str:
    log_run(home, "good", 1, 15.1)
    return log_run(home, "good", 0, 15.0)


@pytest.fixture(scope="module")
def better(home: Home) -> str:
    log_run(home, "better", 1, 16.1)
    return log_run(home, "better", 0, 16.0)


@pytest.fixture(scope="module")
def worse(home: Home) -> str:
    log_run(home, "worse", 1, 13.1)
    return log_run(home, "worse", 0, 13.0)


def failed(decision: Decision) -> list[str]:
    return [verdict.gate for verdict in decision.verdicts if not verdict.passed]


def test_promotion_refusal_and_rollback(home: Home, good: str, better: str, worse: str) -> None:
    name = "context-encoder"
    first = ask(home, good, name)
    assert first.promoted, first.text
    assert aliases(home, name) == {"champion": "1"}
    server = client.client(home.uri)
    assert "`champion` is the version" in server.get_registered_model(name).description
    first_version = server.get_model_version(name, "1")
    assert first_version.description == "Of good."
    assert (
        server.get_logged_model(first_version.source.removeprefix("models:/")).name == "good-small"
    )
    again = ask(home, good, name)
    assert again.promoted and "already" in again.text
    assert len(registry.versions_of_run(home.uri, name, good)) == 1

    assert ask(home, better, name).promoted
    assert aliases(home, name) == {"champion": "2", "previous": "1"}
    refused = ask(home, worse, name)
    assert not refused.promoted
    assert failed(refused) == [f"not worse than the champion on {PSNR}"]
    assert "13.05" in refused.text and "16.05" in refused.text  # both numbers
    assert aliases(home, name) == {"candidate": "3", "champion": "2", "previous": "1"}
    tags = registry.by_number(home.uri, name, "3").tags  # type: ignore[union-attr]
    assert tags["promotion.result"] == "refused" and "16.05" in tags["promotion.reason"]

    roll_back(home.uri, name, str(home.store))
    assert aliases(home, name) == {"candidate": "3", "champion": "1"}
    with pytest.raises(UserError, match="no previous champion"):
        roll_back(home.uri, name, str(home.store))
    tags = registry.by_number(home.uri, name, "2").tags  # type: ignore[union-attr]
    assert tags["promotion.result"] == "rolled back" and "promotion.by" in tags

    text = explain(home.uri, f"models:/{name}@champion")
    for known in (good, "f" * 64, "c" * 40, home.sha256, "2 restarts", f"{PSNR} = 15",
                  "jobs/pretrain.py --preset inpaint --seed 0 --steps 10"):  # fmt: skip
        assert known in text


def test_a_served_champion_gives_features_and_filled_images(home: Home, good: str) -> None:
    """The three lines of the README, in a process of their own that allows no pickle.

    The code is the model's own, one file of few: each is a request to an artifact server.
    """
    assert ask(home, good, "served").promoted
    program = (
        "import mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model('models:/served@champion')\n"
        "image = np.full((2, 128, 128, 3), 90, np.uint8)\n"
        "mask = np.zeros((2, 128, 128), np.uint8)\n"
        "mask[:, 32:96, 32:96] = 1\n"
        "found = model.predict({'image': image, 'mask': mask})\n"
        "assert found['features'].shape == (2, 8), found['features'].shape\n"
        "kept = mask == 0\n"
        "assert (found['filled'][kept] == image[kept]).all()\n"
        "import ce_model, pipelines\n"
        "from pathlib import Path\n"
        "from mlflow.artifacts import download_artifacts\n"
        "folder = Path(download_artifacts('models:/served@champion'))\n"
        "names = [path for path in folder.rglob('*') if path.is_file()]\n"
        "assert len(names) < 12, names\n"
        "for package in ce_model, pipelines:\n"
        "    assert '/code/context_encoder.zip/' in package.__file__, package.__file__\n"
    )
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": home.uri,
        "MLFLOW_REGISTRY_URI": home.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_model_of_another_input_needs_a_name_of_its_own(home: Home, good: str) -> None:
    """Whoever loads the champion may give it masks that the other cannot fill."""
    name = "one-input"
    assert ask(home, good, name).promoted
    network = NetworkConfig(preset="inpaint", output="full", bottleneck=8)
    folder = home.store / "other"
    sha256 = save_model(str(folder), build_generator(network), network, Objective(), {"seed": 0})
    other = log_run(replace(home, folder=folder, sha256=sha256), "other", 0, 20.0)
    demanded = replace(GATES, min_seeds=1)
    with pytest.raises(UserError, match=r"output center.*output full.* --name one-input-inpaint"):
        ask(home, other, name, demanded)
    assert len(registry.versions_of_run(home.uri, name, other)) == 0
    assert ask(home, other, "one-input-full", demanded).promoted


def test_two_promotions_at_once_change_the_alias_once(home: Home, good: str) -> None:
    name = "raced"
    decisions: list[Decision] = []
    threads = [
        threading.Thread(target=lambda: decisions.append(ask(home, good, name))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [decision.promoted for decision in decisions] == [True, True]
    assert sum("already" in decision.text for decision in decisions) == 1
    assert len(registry.versions_of_run(home.uri, name, good)) == 1
    assert aliases(home, name) == {"champion": "1"}


def test_a_champion_that_came_while_a_model_was_judged_is_not_replaced(
    home: Home, good: str, better: str, worse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, each with a store of its own: no lease keeps them apart."""
    name = "overtaken"
    assert ask(home, worse, name).promoted
    judge = gates.quality

    def slow(*arguments: Any) -> list[gates.Verdict]:
        monkeypatch.setattr(gates, "quality", judge)
        assert ask(replace(home, store=home.store / "other machine"), better, name).promoted
        return judge(*arguments)

    monkeypatch.setattr(gates, "quality", slow)
    with pytest.raises(UserError, match="version 1 before, 3 now"):
        ask(home, good, name)
    assert aliases(home, name)["champion"] == "3"
    assert failed(ask(home, good, name)) == [f"not worse than the champion on {PSNR}"]


def test_whoever_lost_the_lease_changes_no_champion(
    home: Home, good: str, better: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "lost"
    held = lease.hold

    @contextmanager
    def lost(claim: Claim, *, lease_s: float) -> Iterator[Callable[[], bool]]:
        with held(claim, lease_s=lease_s):
            yield lambda: True

    assert ask(home, good, name).promoted
    monkeypatch.setattr(lease, "hold", lost)
    with pytest.raises(UserError, match="give the command again"):
        ask(home, better, name)
    assert aliases(home, name)["champion"] == "1"
    monkeypatch.setattr(lease, "hold", held)
    assert ask(home, better, name).promoted
    monkeypatch.setattr(lease, "hold", lost)
    with pytest.raises(UserError, match="give the command again"):
        roll_back(home.uri, name, str(home.store))
    assert aliases(home, name) == {"champion": "2", "previous": "1"}


def test_a_promotion_killed_halfway_can_be_rolled_back(
    home: Home, good: str, better: str, worse: str
) -> None:
    name = "halfway"
    for run_id in (worse, good):
        assert ask(home, run_id, name).promoted
    registry.set_alias(home.uri, name, "previous", "2")  # the next one got no further than this
    roll_back(home.uri, name, str(home.store))
    assert aliases(home, name) == {"champion": "1"}
    assert ask(home, better, name).promoted
    registry.set_alias(home.uri, name, "champion", "1")  # killed just before its last step
    with pytest.raises(UserError, match="no previous champion"):
        roll_back(home.uri, name, str(home.store))


def test_weights_altered_after_the_evaluation_are_refused(home: Home) -> None:
    log_run(home, "tampered", 1, 15.0)
    run_id = log_run(home, "tampered", 0, 15.0)
    (logged,) = (
        path
        for path in home.store.rglob("mlartifacts/models/*/artifacts/artifacts/*")
        if run_files.summary(home.uri, run_id)["model_uri"][-32:] in str(path)  # type: ignore[index]
    )
    tensors = safetensors.torch.load_file(logged / WEIGHTS)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-3
    safetensors.torch.save_file(tensors, logged / WEIGHTS)
    refused = ask(home, run_id, "tampered")
    assert failed(refused) == ["weights", "loads without pickle"]  # model.json disagrees as well
    description = storage.read_json(str(logged / MODEL))
    description["info"]["weights_sha256"] = storage.sha256_of(logged / WEIGHTS)
    (logged / MODEL).write_text(json.dumps(description))
    refused = ask(home, run_id, "tampered")  # now only the evaluation knows better
    assert "weights" in failed(refused) and "loads without pickle" not in failed(refused)
    assert refused.version is None and registry.versions_of_run(home.uri, "tampered", run_id) == []
    (logged.parent / "extra.pkl").write_bytes(b"\x80\x04.")
    assert "loads without pickle" in failed(ask(home, run_id, "tampered"))


@pytest.mark.parametrize(
    ("members", "runs"),
    [(["a.py", "b/c.py"], False), (["a.py", "data.pkl"], True), (["a.npy"], True)],
)
def test_an_archive_is_safe_if_it_holds_source_alone(
    members: list[str], runs: bool, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in members:
            archive.writestr(name, "x = 1")
    assert may_run(tmp_path / "a.zip") == runs
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.pt").write_bytes(whole)  # what is called a pickle is taken for one
    assert may_run(tmp_path / "cut.zip") and may_run(tmp_path / "a.pt")


def test_missing_evidence_and_alarms_are_refused(home: Home) -> None:
    unmeasured = log_run(home, "unmeasured", 0, None)
    refused = ask(home, unmeasured, "bare")
    assert "measured" in failed(refused) and refused.version is None
    assert registry.versions_of_run(home.uri, "bare", unmeasured) == []
    alone = log_run(home, "alone", 0, 20.0, tags={"alarm.collapse": "accuracy 0.999 for 200 steps"})
    assert failed(ask(home, alone, "bare")) == ["no collapse alarm", "seeds"]
    high = replace(GATES, min_seeds=1, thresholds={PSNR: {"min": 25.0}, "linear/x": {"max": 1.0}})
    assert failed(ask(home, alone, "bare", high))[1:] == [f"min {PSNR}", "max linear/x"]


def test_a_server_that_refuses_has_not_said_that_there_is_no_champion(
    home: Home, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.by_alias(home.uri, "never", "champion") is None
    assert registry.by_number(home.uri, "never", "1") is None

    def refusing(*_: Any) -> None:
        raise MlflowException("not for you", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(client.client(home.uri).__class__, "get_model_version_by_alias", refusing)
    with pytest.raises(UserError, match=r"PERMISSION_DENIED.*nothing was changed"):
        ask(home, good, "refused")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"refuses \(UNAUTHENTICATED: .*MLFLOW_TRACKING_USERNAME"),
        (403, r"refuses \(PERMISSION_DENIED: .*MLFLOW_TRACKING_USERNAME"),
        (503, "does not answer .*Max retries"),
        (404, "does not have; give the id"),
    ],
)
def test_a_run_that_a_server_does_not_show_is_not_one_that_it_does_not_have(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = status == 404

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}' if absent else b"no")

        do_PUT = do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        uri = f"http://127.0.0.1:{web.server_port}"
        with pytest.raises(UserError, match=said):
            registry.run_facts(uri, "a" * 32)
        if not absent:
            with pytest.raises(UserError, match=said):
                registry.set_alias(uri, "encoder", "champion", "1")
        web.shutdown()
        thread.join()


@dataclass(frozen=True)
class Fault:
    """A request that fails, and what the message names."""

    method: str
    of: str
    error: Exception
    named: str


REFUSED = MlflowException("not for you", error_code=PERMISSION_DENIED)
FAULTS = {
    "a server that refuses to list reports": Fault(
        "list_artifacts", "evaluation", REFUSED, r"the files of run .*not for you"
    ),
    "a store that fails to list": Fault(
        "list_artifacts", "evaluation/x", PermissionError("closed"), "PermissionError: closed"
    ),
    "a report that cannot be read": Fault(
        "download_artifacts", "report.json", REFUSED, r"evaluation/x/report\.json of run .*not for"
    ),
    "a store that is away": Fault(
        "download_artifacts", "report.json", OSError("timed out"), "OSError: timed out"
    ),
    "a summary that cannot be read": Fault(
        "download_artifacts", "summary.json", REFUSED, r"summary\.json of run .*not for you"
    ),
    "a server that does not tell the other seeds": Fault(
        "search_runs", "", REFUSED, "the runs of other seeds"
    ),
}


@contextmanager
def failing(fault: Fault, *run_ids: str) -> Iterator[None]:
    """Some requests of MLflow's client fail, about some runs only if they are named."""
    client = recorder.MlflowClient
    usual = getattr(client, fault.method)

    def requested(self: Any, *arguments: Any, **more: Any) -> Any:
        about = not run_ids or arguments[0] in run_ids
        if about and (not fault.of or str(arguments[1]).endswith(fault.of)):
            raise fault.error
        return usual(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, fault.method, requested)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_evidence_that_cannot_be_read_is_no_verdict(home: Home, good: str, name: str) -> None:
    fault = FAULTS[name]
    with failing(fault), pytest.raises(UserError, match=f"^could not read .*{fault.named}") as told:
        ask(home, good, "unread")
    assert "nothing was decided" in str(told.value) and len(str(told.value).splitlines()) == 1
    assert registry.versions_of_run(home.uri, "unread", good) == []
    assert "promotion.refused" not in registry.run_facts(home.uri, good).tags


@pytest.mark.parametrize("whose", ["the other seed", "the champion"])
def test_evidence_of_others_that_cannot_be_read_is_no_verdict(
    home: Home, good: str, better: str, whose: str
) -> None:
    name = f"unread {whose}"
    assert ask(home, good, name).promoted
    arm = registry.run_facts(home.uri, better)
    (other,) = {
        run_promotion.run_id
        for run_promotion in registry.runs_tagged(home.uri, arm.experiment_id, "arm", "better")
    } - {better}
    run_id = other if whose == "the other seed" else good
    with failing(FAULTS["a report that cannot be read"], run_id):
        with pytest.raises(UserError, match=f"could not read .* of run '{run_id}'"):
            ask(home, better, name)
    assert aliases(home, name)["champion"] == "1"
    assert ask(home, better, name).promoted


def test_a_model_that_cannot_be_read_is_no_verdict_and_one_that_is_gone_is(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_run(home, "model", 1, 15.0)
    run_id = log_run(home, "model", 0, 15.0)
    source = str(run_files.summary(home.uri, run_id)["model_uri"])  # type: ignore[index]

    download = mlflow.artifacts.download_artifacts

    def refusing(*arguments: Any, **more: Any) -> Any:
        if more.get("artifact_uri") == source or len(arguments) > 1:  # the latter a listing
            raise REFUSED
        return download(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.artifacts, "download_artifacts", refusing)
        with pytest.raises(UserError, match=f"^could not read {source}.*not for you"):
            ask(home, run_id, "unread model")
        patched.setattr(MlflowClient, "list_logged_model_artifacts", refusing)
        with pytest.raises(UserError, match=f"^could not read {source} from.*not for you"):
            ask(home, run_id, "unread model")
    client.client(home.uri).delete_logged_model(source.removeprefix("models:/"))
    assert failed(ask(home, run_id, "unread model")) == ["weights", "loads without pickle"]


def test_a_champion_whose_files_are_gone_has_not_measured_nothing(home: Home, better: str) -> None:
    log_run(home, "lost files", 1, 15.0)
    run_id = log_run(home, "lost files", 0, 15.0)
    assert ask(home, run_id, "lost files").promoted
    (files,) = home.store.rglob(f"{run_id}/artifacts")
    files.rename(files.with_name("elsewhere"))
    with pytest.raises(UserError, match=f"could not read the files of run '{run_id}'"):
        ask(home, better, "lost files")
    files.with_name("elsewhere").rename(files)
    assert ask(home, better, "lost files").promoted


def test_scores_of_other_settings_are_not_compared(home: Home, good: str) -> None:
    assert ask(home, good, "settings").promoted
    run_id = log_run(home, "few images", 0, None)
    log_report(home, run_id, 19.0, home.sha256, images=7)
    refused = ask(home, run_id, "settings", replace(GATES, min_seeds=1))
    assert failed(refused) == [f"not worse than the champion on {PSNR}"]
    assert "other settings" in refused.text


def promote_job(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> SystemExit | None:
    """What jobs/promote.py does with these arguments, and how it ends."""
    monkeypatch.setattr(sys, "argv", ["promote.py", *arguments])
    try:
        cli.main(run_promotion, PromoteConfig)
    except SystemExit as end:
        return end
    return None


def test_bad_input_is_one_message_and_registers_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("requird: [inpainting]\n")
    common = ["--name", "never", "--store", str(home.store)]
    (tmp_path / "broken.db").write_bytes(b"no database " * 500)
    cases = {
        "is no SQLite database (file is not a database)": [
            "--run", "0" * 32, "--tracking-uri", f"sqlite:///{tmp_path}/broken.db", *common
        ],
        "did you mean 'required'?": ["--run", "0" * 32, "--gates", str(gates), *common],
        f"run is '{'0' * 32}', which": ["--run", "0" * 32, *common],
        "which does not answer": [
            "--run", "0" * 32, "--tracking-uri", "http://127.0.0.1:9", *common
        ],
        "no previous champion": ["--rollback", *common],
    }  # fmt: skip
    for message, arguments in cases.items():
        end = promote_job(monkeypatch, *arguments)
        assert end is not None and message in str(end.code)
        assert len(str(end.code).splitlines()) == 1
    names = client.client(home.uri).search_registered_models()
    assert "never" not in [model.name for model in names]


def test_a_refusal_is_its_own_exit_code(
    home: Home, worse: str, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gates = tmp_path / "gates.yaml"
    gates.write_text(f"required: [inpainting]\nthresholds:\n  {PSNR}: {{min: 14}}\n")
    common = ["--name", "coded", "--store", str(home.store), "--gates", str(gates)]
    end = promote_job(monkeypatch, "--run", worse, *common)
    assert end is not None and end.code == 3
    assert f"FAILED  min {PSNR}: 13; wanted min 14" in capsys.readouterr().err
    assert promote_job(monkeypatch, "--run", good, *common) is None


def test_a_deleted_run_is_refused_and_a_champion_that_is_gone_can_be_replaced(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = log_run(home, "gone", 0, 15.0), log_run(home, "follows", 0, 15.1)
    gates = tmp_path / "gates.yaml"
    gates.write_text(f"required: [inpainting]\nmargins:\n  {PSNR}: 0.3\n")
    common = ["--name", 'bob\'s "own" model', "--store", str(home.store), "--gates", str(gates)]
    server = client.client(home.uri)
    server.delete_run(old)

    end = promote_job(monkeypatch, "--run", old, *common)
    _, said = capsys.readouterr().err.splitlines()
    assert end is not None and end.code == 4
    assert "was deleted" in said and f"mlflow runs restore --run-id {old}" in said
    server.restore_run(old)
    assert promote_job(monkeypatch, "--run", old, *common) is None

    server.delete_run(old)
    find = registry.find_facts
    monkeypatch.setattr(  # as after `mlflow gc`
        registry, "find_facts", lambda uri, run: None if run == old else find(uri, run)
    )
    capsys.readouterr()
    end = promote_job(monkeypatch, "--run", new, *common)
    _, said = capsys.readouterr().err.splitlines()
    assert end is not None and end.code == 4
    assert f"whose champion, version 1, was trained by run '{old}'" in said
    assert "--replace-missing-champion" in said
    assert aliases(home, common[1])["champion"] == "1"
    assert promote_job(monkeypatch, "--run", new, "--replace-missing-champion", *common) is None
    assert "champion: the run of version 1 is gone" in capsys.readouterr().err
    assert aliases(home, common[1])["champion"] == "2"


@pytest.mark.parametrize("name", ["team/ctx", "a:b", "a@b", "", " ", "..", "a%2Fb", "a\nb"])
def test_a_name_that_no_model_can_have_is_refused_before_anything_runs(name: str) -> None:
    for requested in (
        lambda: PromoteConfig(run="f" * 32, name=name),
        lambda: WorkflowConfig(name=name),
    ):
        with pytest.raises(UserError, match="a registered model is called by"):
            requested()


def test_the_gates_of_the_project_are_well_formed() -> None:
    assert "inpainting" in read_gates(str(ROOT / "configs" / "gates.yaml")).required


@pytest.mark.parametrize(
    "requested", [{"rollback": True}, {"explain": "models:/m@champion"}, {"run": "f" * 32}]
)
def test_a_store_without_records_is_told_and_not_made(
    requested: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "empty"
    with pytest.raises(FileNotFoundError, match="nothing was recorded in that store"):
        run_promotion(PromoteConfig(store=str(store), **requested))
    assert not store.exists()
