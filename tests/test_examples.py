"""The examples run, one after the other in one store, with a training of a few steps. Slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

EXAMPLES = ROOT / "examples"
SMALL = ["--steps", "2", "--batch-size", "16"]


def cells(notebook: Path) -> list[str]:
    """The code of a notebook."""
    content = json.loads(notebook.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def run(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_holds_no_output_and_compiles() -> None:
    content = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in content["cells"])
    for number, code in enumerate(cells(EXAMPLES / "quickstart.ipynb")):
        compile(code, f"cell {number}", "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_do_what_they_say(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "fill_photograph.py"), *SMALL, folder=tmp_path)
    assert "<Model " in output
    with Image.open(tmp_path / "filled.png") as opened:
        original, holes, filled = np.split(np.asarray(opened), 3, axis=1)
    changed = (holes != original).any(axis=2)
    assert changed.any() and (filled[~changed] == original[~changed]).all()
    assert (filled[changed] != 255).any()

    (stage,) = (tmp_path / "store" / "pretrain").iterdir()
    samples = tmp_path / "store" / "samples-1" / "pictures" / "val"
    query = samples / "coffee" / "0003.jpg"
    output = run(
        str(EXAMPLES / "find_similar.py"), "--model", str(stage), "--folder", str(samples),
        "--query", str(query), folder=tmp_path,
    )  # fmt: skip
    assert output.splitlines()[0].split() == ["1.000", str(query)]

    code = "\n".join(cells(EXAMPLES / "quickstart.ipynb"))
    small = code.replace("steps=100, batch_size=64", "steps=2, batch_size=16")
    assert small != code
    small += "\nassert np.array_equal(again.embed(photographs, normalize=True), features)\n"
    (tmp_path / "notebook.py").write_text(small)
    output = run("notebook.py", folder=tmp_path)
    assert "(4, " in output and " float32" in output
