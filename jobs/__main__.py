"""One entry to all jobs: `semsam <job> ...`, or `python -m jobs <job> ...`, is `python -m jobs.<job> ...`.

semsam train jobs/configs/seven_swin_tiny.yaml data.root=/data/shards
semsam train --help
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

from semsam.setting_kinds import did_you_mean


def jobs() -> dict[str, str]:
    """What each job does, by its name, read from its file: nothing of it is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        is_job = any(isinstance(one, ast.FunctionDef) and one.name == "main" for one in tree.body)
        if is_job and path.stem != "__main__":
            found[path.stem] = re.split(r"[:.]? *`python", (ast.get_docstring(tree) or "").splitlines()[0])[0].rstrip(
                "."
            )
    return found


def overview() -> str:
    """The jobs, a line each."""
    known = jobs()
    lines = [f"  {name:<12}{about}" for name, about in known.items()]
    return "\n".join(["semsam <job> [<config.yaml>] [section.field=value ...]", "", *lines, "", "semsam <job> --help"])


def entry() -> None:
    """Run the job that the command line names, as `python -m` would."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    name, known = arguments[0], jobs()
    if name not in known:
        sys.exit(f"error: no job {name!r}, one of {', '.join(known)}{did_you_mean(name, known)}")
    sys.argv[:] = [name, *arguments[1:]]
    runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    entry()
