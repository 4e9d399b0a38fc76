"""Memory and time of listing SA-1B's 11 million images, whose names a made source gives page by page.

python tests/benchmarks/bench_listing.py [--images 11000000]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.sources.sa1b import Sa1b

BOUND = 2048  # MiB of resident memory, with Python and Arrow.


@dataclass(frozen=True)
class MadeNames:
    """The files of SA-1B in a thousand folders."""

    images: int
    path: str = "s3://bucket/sa1b"
    neighbours: Sequence[str] = ()

    def walk(self) -> Iterator[str]:
        # The worst order: no file comes near that which it belongs to, and ids are not sorted.
        for ending in ("jpg", "json"):
            for number in range(self.images, 0, -1):
                yield f"sa_{number % 1000:06d}/sa_{number}.{ending}"

    def glob(self, pattern: str) -> list[str]:
        return []

    def exists(self, name: str) -> bool:
        return False

    def read(self, name: str) -> bytes:
        raise FileNotFoundError(name)


def resident() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=11_000_000)
    images = parser.parse_args().images
    before, started = resident(), time.monotonic()
    counts = []
    for index in Sa1b().indexes(MadeNames(images), ("train", "val")):
        counts.append(len(index.entries))
        print(
            f"  {len(index.entries)} entries, {len(index.rejected)} rejected after {time.monotonic() - started:.0f} s"
        )
        for start in range(0, len(index.entries), 512):
            index.entries[start : start + 512]
    assert sum(counts) == images
    print(f"{images} images, both splits: {time.monotonic() - started:.0f} s, {resident()} MiB ({before} before)")
    if resident() > BOUND:
        sys.exit(f"more than {BOUND} MiB")


if __name__ == "__main__":
    main()
