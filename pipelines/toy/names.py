"""What each dataset calls the toy's objects, parts and stuff; what is not listed there is not annotated."""

from __future__ import annotations

# Toy object -> the dataset's name (as in pipelines/categories).
OBJECT_NAMES: dict[str, dict[str, str]] = {
    "coco_panoptic": {
        "car": "car",
        "dog": "dog",
        "bird": "bird",
        "bottle": "bottle",
        "aeroplane": "airplane",
        "chair": "chair",
        "boat": "boat",
    },
    "objects365": {
        "car": "Car",
        "dog": "Dog",
        "bird": "Wild Bird",
        "bottle": "Bottle",
        "aeroplane": "Airplane",
        "chair": "Chair",
        "boat": "Boat",
    },
    "ade20k": {
        "car": "car",
        "dog": "animal",
        "bird": "animal",
        "bottle": "bottle",
        "aeroplane": "plane",
        "chair": "chair",
        "boat": "boat",
    },
    "pascal_part": {
        "car": "car",
        "dog": "dog",
        "bird": "bird",
        "bottle": "bottle",
        "aeroplane": "aeroplane",
        "chair": "chair",
        "boat": "boat",
    },
    "paco": {"car": "car", "dog": "dog", "bottle": "bottle", "chair": "chair"},
    "partimagenet": {
        "car": "car",
        "dog": "quadruped",
        "bird": "bird",
        "bottle": "bottle",
        "aeroplane": "aeroplane",
        "boat": "boat",
    },
}

STUFF_NAMES = {
    "coco_panoptic": {"sky": "sky-other-merged", "grass": "grass-merged", "road": "road", "sea": "sea"},
    "ade20k": {"sky": "sky", "grass": "grass", "road": "road, route", "sea": "sea"},
}

# (toy object, toy part) -> the dataset's part name.  PASCAL-Part's are the raw ones of its .mat files.
PART_NAMES: dict[str, dict[tuple[str, str], str]] = {
    "pascal_part": {
        ("car", "wheel"): "wheel",
        ("car", "window"): "window",
        ("car", "door"): "door",
        ("dog", "torso"): "torso",
        ("dog", "head"): "head",
        ("dog", "leg"): "lfleg",
        ("dog", "tail"): "tail",
        ("bird", "torso"): "torso",
        ("bird", "head"): "head",
        ("bird", "wing"): "lwing",
        ("bird", "tail"): "tail",
        ("bottle", "body"): "body",
        ("bottle", "cap"): "cap",
        ("aeroplane", "body"): "body",
        ("aeroplane", "wing"): "rwing",
        ("aeroplane", "tail"): "tail",
    },
    "paco": {
        ("car", "wheel"): "wheel",
        ("car", "window"): "window",
        ("dog", "torso"): "body",
        ("dog", "head"): "head",
        ("dog", "leg"): "leg",
        ("dog", "tail"): "tail",
        ("bottle", "body"): "body",
        ("bottle", "cap"): "cap",
        ("chair", "back"): "back",
        ("chair", "seat"): "seat",
        ("chair", "leg"): "leg",
    },
    "partimagenet": {
        ("car", "body"): "body",
        ("car", "wheel"): "tire",
        ("dog", "torso"): "body",
        ("dog", "head"): "head",
        ("dog", "leg"): "foot",
        ("dog", "tail"): "tail",
        ("bird", "torso"): "body",
        ("bird", "head"): "head",
        ("bird", "wing"): "wing",
        ("bird", "tail"): "tail",
        ("bottle", "body"): "body",
        ("bottle", "cap"): "mouth",
        ("aeroplane", "body"): "body",
        ("aeroplane", "wing"): "wing",
        ("aeroplane", "tail"): "tail",
        ("boat", "hull"): "body",
        ("boat", "sail"): "sail",
    },
}
