"""What a job asks of a checkpoint before it starts anything."""

from __future__ import annotations

from semsam.config import parse_config, parse_yaml
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import CONFIG_FILE
from semsam.storage import Folder, NoSuchFileError


def model_settings(checkpoint: str) -> ModelSettings:
    """The settings of the checkpoint's model.  Raises `ValueError` where there is none."""
    folder, where = Folder(checkpoint), f"checkpoint: {checkpoint}/{CONFIG_FILE}"
    try:
        sections = parse_yaml(folder.read(CONFIG_FILE), where)
    except NoSuchFileError:
        inside = [name for name in folder.folders() if name.startswith("checkpoint-")]
        hint = f"; did you mean {checkpoint}/{inside[-1]}?" if inside else ""
        raise ValueError(f"{where}: no such file, so that this is no checkpoint{hint}") from None
    if not isinstance(sections, dict) or not isinstance(sections.get("model"), dict):
        raise ValueError(f"{where}: no section model")
    return parse_config(ModelSettings, sections["model"], f"{where}, model")
