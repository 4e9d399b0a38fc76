"""Everything that a cluster makes piece by piece: shards of datasets, masks of photos, evaluations."""

from __future__ import annotations

import pkgutil

# A dataset of one's own may lie elsewhere on PYTHONPATH (see `pipelines.sources`).
__path__ = pkgutil.extend_path(__path__, __name__)
