"""Are masks in a folder those that were written?"""

from __future__ import annotations

from collections.abc import Collection

from pipelines.generate.generate import MANIFEST_NAME, Generated
from semsam.data.sealed import unseal_as
from semsam.storage import Folder


def is_masks(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is what jobs.generate leaves."""
    return MANIFEST_NAME in names and any(name.startswith("masks-") for name in names)


def verify_masks(folder: Folder) -> str:
    """Read all masks and say how many there are; `ValueError` names the first file that is not as it was written."""
    path = f"{folder.path}/{MANIFEST_NAME}"
    generated = unseal_as(Generated, folder.read(MANIFEST_NAME), path, "the manifest of masks")
    sizes = folder.sizes()
    for file in generated.files:
        if sizes.get(file.name) != file.size:
            raise ValueError(
                f"{folder.path}/{file.name}: {sizes.get(file.name, 0)} bytes, the manifest says {file.size}"
            )
        if folder.sha256(file.name) != file.sha256:
            raise ValueError(f"{folder.path}/{file.name}: other bytes than the manifest says")
    return f"{generated.num_masks} masks of {generated.num_images} images in {len(generated.files)} files"
