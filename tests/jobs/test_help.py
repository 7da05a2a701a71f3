"""Help and mistakes on the command line are answered before anything heavy is imported."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, in_fresh_process

JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[!_]*.py"))
HEAVY = ("torch", "mlflow", "ray", "pandas")

# Runs each job with each command line in one process: argv, exit code and what was imported so far.
PROGRAM = """
import contextlib, io, json, runpy, sys

sys.argv = ["job"]
answers = []
for job, args in json.loads({asked!r}):
    sys.argv = [job, *args]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            runpy.run_path("{jobs}/" + job + ".py", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    heavy = [name for name in {heavy!r} if name in sys.modules]
    answers.append([job, args, code, text.getvalue(), heavy])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[str], int, str]]:
    folder = tmp_path_factory.mktemp("help")
    broken = folder / "broken.yaml"
    broken.write_text("{")
    lines = (["--help"], ["--sotre", "x"], ["--config", str(broken)])
    asked = json.dumps([(job, line) for job in JOBS for line in lines])
    program = PROGRAM.format(asked=asked, jobs=ROOT / "jobs", heavy=HEAVY)
    found = json.loads(in_fresh_process(program, folder).stdout)
    for job, args, _, _, heavy in found:
        assert not heavy, f"jobs/{job}.py {' '.join(args)} imports {', '.join(heavy)}"
    return [(job, args, code, text) for job, args, code, text, _ in found]


@pytest.mark.parametrize("job", JOBS)
def test_help_and_mistakes_are_answered_without_heavy_imports(
    job: str, answers: list[tuple[str, list[str], int, str]]
) -> None:
    help_text, typo, broken = ((code, text) for name, _, code, text in answers if name == job)
    assert help_text[0] == 0 and "usage:" in help_text[1]
    assert typo[0] == 2 and "there is no flag --sotre" in typo[1]
    assert broken[0] == 2 and "cannot be read as YAML" in broken[1]


def test_help_ends_in_silence_with_a_reader_that_has_seen_enough() -> None:
    command = [sys.executable, ROOT / "jobs/promote.py", "--help"]
    asked = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert asked.stdout is not None and asked.stderr is not None
    asked.stdout.close()  # as `| head` does
    assert asked.stderr.read() == b""
    assert asked.wait() != 0
    asked.stderr.close()
