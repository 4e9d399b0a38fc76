"""A model as a folder of the layout that the Hub's users expect: `config.json`, `model.safetensors`, `README.md`.

Nothing is uploaded or fetched.  A training's own folders are `SemanticSam.save` and `load`.
"""

from __future__ import annotations

from pathlib import Path

import orjson
import safetensors.torch

from semsam.config import ConfigError, config_values, parse_config
from semsam.model.model_card import model_card
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import WEIGHTS_FILE, SemanticSam
from semsam.model.weight_files import read_own_tensors
from semsam.storage import Folder, NoSuchFileError

CONFIG_JSON, CARD_FILE = "config.json", "README.md"
FOLDER_FILES = (CONFIG_JSON, WEIGHTS_FILE, CARD_FILE)
MODEL_TYPE = "semantic-sam"


def save_pretrained(model: SemanticSam, path_or_uri: str | Path, source: str = "not said") -> None:
    """Write the three files, locally or to `s3://`; `source` is what the card says the weights were made from.

    Raises `ValueError` where one of them is there already.
    """
    folder = Folder(path_or_uri)
    taken = [name for name in FOLDER_FILES if folder.exists(name)]
    if taken:
        raise ValueError(f"{folder.path} already holds {taken[0]!r}; choose another folder")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = {
        "model_type": MODEL_TYPE,
        "architectures": [SemanticSam.__name__],
        "settings": config_values(model.settings),
    }
    num_weights = sum(tensor.numel() for tensor in weights.values())
    folder.write(WEIGHTS_FILE, safetensors.torch.save(weights, {"format": "pt"}))
    folder.write(CARD_FILE, model_card(model.settings, num_weights, source).encode())
    folder.write(CONFIG_JSON, orjson.dumps(config, option=orjson.OPT_INDENT_2))


def from_pretrained(path_or_uri: str | Path) -> SemanticSam:
    """The model in such a folder, local or `s3://`, on the CPU, ready for inference.

    Raises `ValueError` for missing or broken files, for a model of another kind, and for weights that do not fit, with
    their names.
    """
    folder = Folder(path_or_uri)
    config = f"{folder.path}/{CONFIG_JSON}"
    try:
        values = orjson.loads(folder.read(CONFIG_JSON))
        weights = read_own_tensors(folder, WEIGHTS_FILE, None)
    except NoSuchFileError as error:
        raise ValueError(f"{error}; {folder.path} is not a folder of save_pretrained") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{config}: {error}") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != MODEL_TYPE or not isinstance(values.get("settings"), dict):
        raise ConfigError(f"{config}: model_type {kind!r}: not a model of this project ({MODEL_TYPE!r})")
    model = SemanticSam(parse_config(ModelSettings, values["settings"], f"{config}, settings"))
    model.load_weights(weights, f"{folder.path}/{WEIGHTS_FILE}")
    return model.eval()
