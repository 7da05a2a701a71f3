"""What probes, and a tracking server that fails, cost the steps of a training.

$ python -m benchmarks.beside_training --dataset store/prepare/KEY --steps 60

Each round trains the same steps as whole jobs, one after the other:

- plain: no probes, records in SQLite.
- probes: two of them, as Ray tasks on a free CPU.
- served: an MLflow server on loopback behind a relay that passes everything on.
- slow, errors, hangs, absent: the same where the relay waits 2 s before each answer, answers 503,
  never answers, or is not there.
- dies: served until the first points of a curve are there, then every connection is cut.

Rates are those of the steps, without validations. The aims: at least 0.97 of plain with probes,
0.95 of served with every fault.
"""

import argparse
import statistics
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.local_server import (
    free_port,
    mlflow_server_command,
    process,
    wait_until_serving,
)
from ce_model.network_config import Preset
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.run import pretrain_model
from pipelines.runtime import cluster

CASES = ("plain", "probes", "served", "slow", "errors", "hangs", "absent", "dies")
SLOW_S = 2.0
NOT_PASSED_ON = {"host", "connection", "transfer-encoding", "content-length", "date", "server"}


def main() -> None:
    """Print the rate of each case and its ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--preset", choices=["inpaint", "unet"], default="unet")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {case: [] for case in args.cases}
    for number in range(args.rounds):
        for case in args.cases:
            rates[case].append(_rate(case, args, seed=number))
            print(f"{case} {rates[case][-1]:.2f} images/s", flush=True)
    middle = {case: statistics.median(each) for case, each in rates.items()}
    for case, each in rates.items():
        base = "plain" if case in ("plain", "probes", "served") else "served"
        ratio = f", {middle[case] / middle[base]:.3f} of {base}" if base in middle else ""
        print(f"{case}: {middle[case]:.2f} images/s ({min(each):.2f} to {max(each):.2f}){ratio}")


def _rate(case: str, args: argparse.Namespace, seed: int) -> float:
    preset: Preset = args.preset
    third = max(1, args.steps // 3)
    with tempfile.TemporaryDirectory() as folder, _server(case, Path(folder)) as uri:
        config = PretrainConfig(
            store=f"{folder}/store",
            preset=preset,
            strategy="central" if preset == "inpaint" else "free_form",
            adversarial=0,
            steps=3 * third,
            batch_size=args.batch_size,
            num_workers=1,
            threads_per_worker=args.threads,
            log_every=5,
            checkpoint_every=third,
            validation_images=8,
            probe_every=third if case == "probes" else None,
            tracking_uri=uri,
            seed=seed,
        )
        with cluster.connect():
            summary = pretrain_model(config, args.dataset)
        return float(summary["images_per_second"])


@contextmanager
def _server(case: str, folder: Path) -> Iterator[str]:
    """The address that a job is given."""
    if case in ("plain", "probes"):
        yield f"sqlite:///{folder}/mlflow.db"
    elif case == "absent":
        yield f"http://127.0.0.1:{free_port()}"
    elif case in ("errors", "hangs"):
        with _relay(case, "") as uri:
            yield uri
    else:
        port, log = free_port(), folder / "server.log"
        inner = f"http://127.0.0.1:{port}"
        command = mlflow_server_command(folder, f"sqlite:///{folder}/server.db", port)
        with process(command, log) as server:
            wait_until_serving(f"{inner}/health", server, log)
            with _relay(case, inner) as uri:
                yield uri


@contextmanager
def _relay(case: str, inner: str) -> Iterator[str]:
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if case in ("hangs", "slow"):
                ended.wait(None if case == "hangs" else SLOW_S)
            if case in ("errors", "hangs"):
                self.send_error(503)
                return
            if dead.is_set():
                self.close_connection = True
                return
            if case == "dies" and self.path.endswith("/log-batch"):
                dead.set()
            status, headers, content = _passed_on(self, inner, body)
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in NOT_PASSED_ON:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    dead = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def _passed_on(
    asked: BaseHTTPRequestHandler, inner: str, body: bytes
) -> tuple[int, dict[str, str], bytes]:
    headers = {k: v for k, v in asked.headers.items() if k.lower() not in NOT_PASSED_ON}
    request = urllib.request.Request(
        inner + asked.path, body or None, headers, method=asked.command
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


if __name__ == "__main__":
    main()
