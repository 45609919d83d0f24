"""Bad input over real HTTP: no answer of 500, none late, and every refused field named. Or files damaged at random.

    python benchmarks/fuzz.py --model EXPORTED [--cases 10000] [--examples 60]
    python benchmarks/fuzz.py --damaged runs configs samples raw pairs scores exports [--tries 1000] [--seed 1] [--first 0]

A server is started on the model. Hypothesis sends it bodies made up from the served schema with wrong values here and there, cut
or damaged JSON, and bytes of any kind; a tenth as many requests have bytes changed at random, those of the headers too; then
schemathesis does as it sees fit with the whole OpenAPI. At the end the server must still rank, with no traceback in its log.

With `--damaged` one file of a small run, log, ... is damaged in each try and read by what the commands call: see `damage.py`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
from common import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from damaged_requests import send_damaged
from request_fuzz import bodies, complaint

DEADLINE = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--damaged", nargs="+", default=[], metavar="KIND", help="files to damage, in place of requests")
    parser.add_argument("--tries", type=int, default=1_000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=60, help="of schemathesis, for each operation and phase; 0: without it")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.damaged:
        sys.exit(damage_files(arguments))
    print(describe("torch", "fastapi", "uvicorn", "hypothesis", *["schemathesis"] * (arguments.examples > 0)))
    command = [
        sys.executable,
        "-m",
        "prectr_torchrec.cli",
        "serve",
        "--model",
        str(arguments.model),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}  # the log is kept short by the server
    server = subprocess.Popen([*command, "--deadline", str(DEADLINE)], **pipes, text=True)
    try:
        assert server.stdout is not None and server.stderr is not None
        url = server.stdout.readline().split()[-1]
        send(url, arguments.cases, arguments.seed)
        host, port = url.removeprefix("http://").split(":")
        damaged = send_damaged(host, int(port), seed=arguments.seed, tries=max(arguments.cases // 10, 1))
        print(f"{damaged.total():,} damaged requests: {_counted_lines(damaged)}")
        if arguments.examples:
            print(schemathesis(url, arguments.seed, arguments.examples))
        assert server.poll() is None, "the server died"
        body = json.dumps({"query": "red", "candidates": [{"item_id": 1}]}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/rank", body)) as answer:
            assert answer.status == 200
        print("the server still ranks")
        server.terminate()
        assert "Traceback" not in server.stderr.read()
    finally:
        server.terminate()
        server.wait(60)


def damage_files(arguments: argparse.Namespace) -> int:
    """Returns 1 where a try went wrong."""
    from damage import run
    from damaged_files import MATERIALS

    print(describe("torch", "pyarrow", "duckdb"))
    options = {"seed": arguments.seed, "first": arguments.first, "tries": arguments.tries}
    return int(any([run(kind, MATERIALS[kind], **options) for kind in arguments.damaged]))


def send(url: str, cases: int, seed: int) -> None:
    """Sends bodies and complains of the first answer that is not as it should be, with the smallest body that gets one."""
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        described = json.load(answer)["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=4 * DEADLINE)
    statuses: Counter[int] = Counter()
    slowest = 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(bodies(described))
    def run(body: bytes) -> None:
        nonlocal slowest
        start = time.perf_counter()
        connection.request("POST", "/v1/rank", body)
        answer = connection.getresponse()
        text = answer.read()
        slowest = max(slowest, time.perf_counter() - start)
        statuses[answer.status] += 1
        assert not (found := complaint(answer.status, _json(text))), f"{found}: {body!r}"

    run()
    print(f"{statuses.total():,} bodies of hypothesis: {_counted_lines(statuses)}; slowest answer {slowest:.2f} s")


def schemathesis(url: str, seed: int, examples: int) -> str:
    """The end of what it says."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--seed", str(seed)]
    command += ["--max-examples", str(examples), "--request-timeout", str(2 * DEADLINE), "--continue-on-failure"]
    command += ["--exclude-checks", "positive_data_acceptance"]  # a JSON Schema cannot say that lists are of equal length
    return subprocess.run(command, capture_output=True, text=True).stdout[-2500:]


def _counted_lines(statuses: Counter[Any]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))


def _json(text: bytes) -> Any:
    return json.loads(text) if text.startswith(b"{") else None


if __name__ == "__main__":
    main()
