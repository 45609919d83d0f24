"""How long `prectr plan` takes for a table of 10^10 rows x 64 (and two of 10^9) on 64 and 128 GPUs, the whole command.

python benchmarks/plan.py [--gpus 8 64 128] [--rounds 3]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

from common import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 128], help="of the job, in hosts of 8")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe("torch", "torchrec"))
    for gpus in arguments.gpus:
        options = ["--config", "billion_ids", "--gpus", str(gpus), "--gpus-per-host", "8", "--hbm", "80GB", "--ddr", "2TB"]
        wall, cpu = [], []
        for _ in range(arguments.rounds):
            since, used = time.perf_counter(), cpu_of_children()
            done = subprocess.run([sys.executable, "-m", "prectr_torchrec.cli", "plan", *options], capture_output=True, text=True)
            wall.append(time.perf_counter() - since)
            cpu.append(cpu_of_children() - used)
            assert done.returncode in (0, 1), done.stderr
        outcome = (done.stdout.splitlines() or [""])[-1 if done.returncode == 0 else 0]
        times = f"{min(wall):.1f} to {max(wall):.1f} s, of the processor {min(cpu):.1f} to {max(cpu):.1f} s"
        print(f"{gpus:>4} GPUs  {times}  {outcome}")


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
