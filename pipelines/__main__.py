"""Run a job where there is no checkout: `python -m pipelines JOB --flag ...`."""

import ast
import difflib
import sys
from pathlib import Path

JOBS = Path(__file__).parents[1] / "jobs"  # not what a folder of that name holds where we are


def main() -> None:
    """Hand the rest of the command line to `jobs/JOB.py`; without a job, list them."""
    jobs = {path.stem: path for path in sorted(JOBS.glob("[!_]*.py"))}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(_overview(jobs))
        return
    if name not in jobs:
        near = difflib.get_close_matches(name, jobs, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        sys.stderr.write(f"error: there is no job '{name}'; {hint}Jobs: {', '.join(jobs)}\n")
        sys.exit(2)
    sys.argv = [f"python -m pipelines {name}", *sys.argv[2:]]
    program = compile(jobs[name].read_text("utf-8"), str(jobs[name]), "exec")
    exec(program, {"__name__": "__main__"})  # runpy would show the path of the file as the usage


def _overview(jobs: dict[str, Path]) -> str:
    """Every job with the first line of its docstring, which is read and not run."""
    width = max(map(len, jobs))
    lines = ["usage: python -m pipelines JOB [--help] [--config FILE.yaml] [--flag VALUE ...]", ""]
    for name, path in jobs.items():
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        lines.append(f"  {name:{width}}  {text.partition(chr(10))[0]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
