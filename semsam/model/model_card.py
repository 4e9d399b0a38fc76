"""The README.md of a model folder: what the model is, how it is used, and what nobody has said of it."""

from __future__ import annotations

import yaml

from semsam.model.presets import PRESETS, ModelSettings

_CARD = """---
{head}---

# {title}

Masks, names and a predicted quality at up to {levels} granularities for a click or a box, and everything in an image
without either: the architecture of Semantic-SAM ([arXiv 2307.04767](https://arxiv.org/abs/2307.04767)).

| | |
|---|---|
| size | {size} |
| weights | {weights:,} numbers in `model.safetensors` |
| levels of a prompt | {levels} |
| prompts | {prompts} |
| text encoder | {text} |
| made from | {source} |

## Use

```python
from semsam.model.model_folder import from_pretrained
from semsam.predictor import Predictor

predictor = Predictor(from_pretrained("<this folder>"))
predictor.set_vocabulary(["car", "dog"], ["wheel", "leg"])
predictor.set_image("photo.jpg")
answer = predictor.predict(points_xy=[[40, 52]])
```

`semsam.sam_api.SamPredictor` takes the same model and speaks SAM's dialect.

## Not said here

What the model was trained on, how good it is and under which terms its weights may be used: whoever publishes this
folder adds that, with the numbers of `python -m jobs.evaluate`.
"""


def model_card(settings: ModelSettings, num_weights: int, source: str) -> str:
    """The card's text; `source` is what the weights were made from."""
    head = {"library_name": "semsam", "pipeline_tag": "mask-generation", "tags": ["semantic-sam", "segment-anything"]}
    sizes = [name for name, preset in PRESETS.items() if preset == settings]
    text = settings.text
    return _CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        title="Semantic-SAM" + "".join(f", {name}" for name in sizes),
        size=f"the preset `{sizes[0]}`" if sizes else "none of the presets: see `config.json`",
        weights=num_weights,
        levels=settings.num_levels,
        prompts="several clicks, a box, the last mask" if settings.further_clicks else "one click or one box",
        text=f"`{text.kind}`, {text.dim} numbers for a name",
        source=source,
    )
