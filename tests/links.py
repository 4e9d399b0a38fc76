"""Looks whether what the documents of this repository name is there: `python -m tests.links`, part of `make check`.

Of every Markdown file: the targets of links and pictures, and the names of files, and of folders with a / at their end,
that begin with a folder of the repository.  Addresses of other machines are not asked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A file or folder/ from the repository's root; Kubernetes' labels (semsam/pool) look alike, but have no such end.
NAMED = re.compile(
    r"(?<![\w/:.~<>$-])((?:\.github|infra|jobs|pipelines|semsam|tests)/(?:[\w./-]*\w\.\w+|[\w./-]+/))(?![\w<{*-])"
)
ELSEWHERE = re.compile(r"[a-z]+:")


def documents() -> list[Path]:
    """The Markdown files that git knows, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def missing(text: str, place: Path) -> Iterator[str]:
    """What a document at `place` names and is not there."""
    for target in LINK.findall(FENCED.sub("", text)):
        path, _, heading = target.partition("#")
        if ELSEWHERE.match(target):
            continue
        there = (place.parent / path).resolve() if path else place
        if not there.exists() or (heading and heading not in _headings(there.read_text())):
            yield target
    for name in NAMED.findall(text):
        if not (ROOT / name).exists():
            yield name


def _headings(text: str) -> set[str]:
    """What links call the headings of a document."""
    found = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def main() -> None:
    """Name whatever is missing, and exit with 1 if anything is."""
    found = [f"{path.relative_to(ROOT)}: {name}" for path in documents() for name in missing(path.read_text(), path)]
    if found:
        sys.exit("named, but not there:\n  " + "\n  ".join(found))
    print(f"{len(documents())} documents name what is there")


if __name__ == "__main__":
    main()
