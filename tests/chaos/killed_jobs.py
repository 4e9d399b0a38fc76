"""Kills workers, machines, drivers, heads, the S3 server and whole jobs, and looks whether all ends as if undisturbed.

    python tests/chaos/killed_jobs.py [--seeds 40] [--first 0] [--kind node] [--job train]

Each seed picks what is killed, in which job (prepare, train, evaluate, generate), and when.  A job
must survive the death of a worker, a machine and the S3 server; after that of its driver, of the head or of all of it,
the same command must end it.  What must be alike in the end: the bytes of all shards, masks and items, the loss of
every step and the weights, the numbers; and no finished part, nor more steps than a checkpoint's worth, is done again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    from tests.chaos.cluster import KINDS, Cluster
    from tests.chaos.soak import HEADER, Chaos, Outcome, Plan, table
    from tests.chaos.world import JOBS, World
    from tests.s3_server import s3_server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="how many kills")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", choices=KINDS, help="kill that alone")
    parser.add_argument("--job", choices=JOBS, help="in that job alone")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Leaves no cluster behind.
    outcomes: list[Outcome] = []
    failed: list[int] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        cluster = Cluster(server)
        try:
            chaos = Chaos(World(server.bucket, server.uri).write(), cluster)
            print(HEADER, flush=True)
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                try:
                    outcome = chaos.disturb(Plan.of(seed, arguments.kind, arguments.job))
                except Exception:
                    traceback.print_exc()
                    failed.append(seed)
                    cluster.close()
                    continue
                outcomes.append(outcome)
                print(outcome, flush=True)
                if outcome.broken:
                    failed.append(seed)
                    print(outcome.said, file=sys.stderr, flush=True)
        finally:
            cluster.close()
    print(f"\n{table(outcomes)}\n\n{(time.monotonic() - started) / 60:.0f} minutes")
    if failed:
        sys.exit(f"promises broken after the kills of seeds {failed}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
