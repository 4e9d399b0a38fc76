"""The readers of the datasets' own release layouts.

A dataset is one file here with a `SOURCE` in it, its vocabulary in `pipelines/categories/`, and a row in
`semsam.losses.router`.  Both files may lie in another place on PYTHONPATH, in folders `pipelines/sources/` and
`pipelines/categories/` of one's own.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from pipelines.sources.source import Source
from semsam.setting_kinds import did_you_mean

__path__ = pkgutil.extend_path(__path__, __name__)


def find_sources() -> dict[str, Source]:
    """The source of each dataset, by name."""
    modules = (import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__))
    found: list[Source] = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    return {source.dataset: source for source in sorted(found, key=lambda source: source.dataset)}


SOURCES = find_sources()


def check_datasets(setting: str, names: Iterable[str]) -> None:
    """Raise `ValueError`, beginning with the setting, for names that are no dataset's."""
    unknown = sorted(set(names) - set(SOURCES))
    if unknown:
        raise ValueError(f"{setting}: {unknown} not among {list(SOURCES)}{did_you_mean(unknown[0], SOURCES)}")
