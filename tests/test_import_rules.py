"""Imports go one way, jobs -> pipelines -> ce_model; each package imports only this; no effects."""

import ast
import sys
from pathlib import Path

import pytest
from helpers import ROOT, in_fresh_process

ALLOWED = {
    "ce_model": "torch numpy",
    "pipelines": "ce_model torch numpy ray mlflow pyarrow fsspec tyro yaml cv2 simplejpeg PIL "
    "skimage sklearn scipy safetensors matplotlib rich psutil onnxruntime "
    "fastapi starlette prometheus_client transformers",
    "jobs": "pipelines",
}
# One seam per outside library.
ONLY_IN = {
    "mlflow": {
        "pipelines/tracking/client.py",
        "pipelines/tracking/environment.py",
        "pipelines/tracking/mlflow_internals.py",
        "pipelines/tracking/sqlite_file.py",
        "pipelines/tracking/runs.py",
        "pipelines/tracking/recorder.py",
        "pipelines/tracking/models.py",
        "pipelines/tracking/reports.py",
        "pipelines/tracking/registry.py",
        "pipelines/models/logged_model.py",
        "pipelines/models/pyfunc.py",
    },
    "fsspec": {"pipelines/storage/objects.py", "pipelines/storage/listing.py"},
    "fastapi": {"pipelines/serve/application.py", "pipelines/serve/routes.py"},
    "transformers": {"pipelines/models/encoder_names.py"},
    "tyro": {"pipelines/cli.py"},
    "yaml": {"pipelines/cli.py"},
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]
# Inside `pipelines`, a package imports only what stands in a line above its own.
FLOORS = (
    {"errors", "flags"},
    {"cli", "html_page"},
    {"storage", "runtime"},
    {"data"},
    {"tracking", "store_page"},
    {"models"},
    {"prepare"},
    {"pretrain", "evaluation", "inpaint", "serve", "export", "embed", "promotion"},
    {"workflow", "clean"},
    {"ablation"},
    {"api_settings", "api_images"},
    {"api", "closing"},
)
# Names that models logged before still ask for.
ALIASES = {"weights", "served_model"}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or path.relative_to(ROOT).parts[0]
            modules |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_its_package_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in imported_modules(path)}
    assert imported <= {package, *ALLOWED[package].split(), *sys.stdlib_module_names}
    for library, seams in ONLY_IN.items():
        assert library not in imported or path.relative_to(ROOT).as_posix() in seams


def floor_of(package: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if package in floor)


@pytest.mark.parametrize("package", sorted(set().union(*FLOORS)))
def test_packages_of_pipelines_import_only_from_lower_floors(package: str) -> None:
    home = ROOT / "pipelines"
    for path in [*sorted((home / package).rglob("*.py")), *home.glob(f"{package}.py")]:
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] != "pipelines" or len(parts) == 1 or parts[1] == package:
                continue
            assert floor_of(parts[1]) < floor_of(package), f"{path} imports {name}"


def test_every_package_of_pipelines_has_a_floor() -> None:
    found = {path.stem for path in (ROOT / "pipelines").iterdir() if path.suffix == ".py"}
    found |= {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert found - {"__init__", "__main__"} - ALIASES == set().union(*FLOORS)


def test_importing_everything_has_no_effect(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.name != "logged_model.py"  # MLflow runs it to get the model
    ]
    program = (
        "import os\n"
        "import cv2, mlflow, numpy, ray.train.torch, sklearn, skimage, torch, tyro\n"
        "import torch._dynamo\n"  # its cache's place becomes a variable: torch's, not ours
        "state = torch.get_rng_state(), numpy.random.get_state()[1].copy()\n"
        "environment = dict(os.environ)\n"
        f"for name in {modules!r}:\n"
        "    __import__(name)\n"
        "assert torch.equal(state[0], torch.get_rng_state())\n"
        "assert (state[1] == numpy.random.get_state()[1]).all()\n"
        "assert dict(os.environ) == environment\n"
        "assert not ray.is_initialized()\n"
        "assert mlflow.active_run() is None\n"
    )
    done = in_fresh_process(program, tmp_path)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_ce_model_needs_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'pyarrow', 'cv2', 'fsspec'):\n"
        "    sys.modules[name] = None\n"
        "import ce_model.training, ce_model.masks, ce_model.hole_metrics\n"
        "import ce_model.training.cuda_graph, ce_model.transfer.heads\n"
    )
    in_fresh_process(program, tmp_path)


@pytest.mark.parametrize("module", ["pipelines.prepare.run", "pipelines.data.stream"])
def test_data_tasks_start_without_torch_and_mlflow(module: str, tmp_path: Path) -> None:
    program = (
        f"import sys, {module}\n"
        "assert not {'torch', 'mlflow', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    in_fresh_process(program, tmp_path)


def test_training_processes_start_without_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys, pipelines.pretrain.fit, pipelines.pretrain.probe\n"
        "assert not {'mlflow', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    in_fresh_process(program, tmp_path)


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("ray", "pipelines/runtime/ray_internals.py"),
        ("mlflow", "pipelines/tracking/mlflow_internals.py"),
    ],
)
def test_private_interfaces_of_a_library_are_used_in_one_file(library: str, home: str) -> None:
    """An upgrade is one look: no other file names a module or a name that begins with `_`."""
    for path in FILES:
        if path.relative_to(ROOT).as_posix() == home:
            continue
        for name in imported_modules(path):
            parts = name.split(".")
            hidden = parts[0] == library and any(part.startswith("_") for part in parts[1:])
            assert not hidden, f"{path} imports {name}; {home} is the place"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                named = ast.unparse(node)
                assert not named.startswith(f"{library}."), f"{path} uses {named}"
