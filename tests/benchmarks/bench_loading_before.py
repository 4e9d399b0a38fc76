"""What loading costs beside an earlier commit: the same samples by both, in interleaved rounds.

    python tests/benchmarks/bench_loading_before.py [--commit 1eee2bd] [--rounds 9]

Each commit's code runs in a process of its own, from `git archive`, over shards that it wrote itself from the same
records.  The figure is CPU seconds of one thread, and the bound that this commit takes at most 3% more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[2]
BOUND = 1.03
# Both commits have this benchmark's neighbour, which makes records and reads them without threads.
CHILD = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, "tests/benchmarks")
import bench_reader
with tempfile.TemporaryDirectory() as folder:
    records = [bench_reader.synthetic_record(i, 768, 1024, 100) for i in range(12)]
    split = bench_reader.write_split(Path(folder) / "sa1b" / "train", records, rows_per_shard=4)
    plan = bench_reader.make_plan(split, num_steps=6)
    bench_reader.read_inline(split, plan)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        bench_reader.read_inline(split, plan)
        print((time.process_time() - started) / plan.num_steps / plan.global_batch, flush=True)
"""


def start(tree: Path) -> subprocess.Popen[str]:
    """A process that loads once for each line that it is sent."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=tree,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str], question: str = "") -> str:
    """The next line of a process."""
    assert process.stdin
    assert process.stdout
    if question:
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="1eee2bd")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", options.commit], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            print(f"  no {options.commit} in this clone: nothing to compare with")
            return
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        processes = {"before": start(Path(folder)), "now": start(ROOT)}
        for process in processes.values():
            assert answer(process) == "ready"
        times: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(options.rounds):
            for name, process in processes.items():
                times[name].append(float(answer(process, "go")))
        for process in processes.values():
            process.communicate()
    ratios = [now / before for before, now in zip(times["before"], times["now"], strict=True)]
    ratio = statistics.median(ratios)
    for name, some in times.items():
        print(f"  {name:<8} {statistics.median(some) * 1000:6.2f} ms of CPU a sample")
    print(f"  now / before, median of {len(ratios)} pairs: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"  bound {BOUND}")
    if ratio > BOUND:
        sys.exit("loading costs more than it did")


if __name__ == "__main__":
    main()
