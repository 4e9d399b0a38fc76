"""What each dataset calls the things, parts and stuff of a scene; what is not listed it does not annotate.

Names are the native ones; ids are looked up in `pipelines/categories`.
"""

from __future__ import annotations

from pipelines.sources.categories import load_categories

OBJECTS: dict[str, dict[str, str]] = {
    "coco_panoptic": {
        "car": "car",
        "dog": "dog",
        "bird": "bird",
        "bottle": "bottle",
        "chair": "chair",
        "bicycle": "bicycle",
        "boat": "boat",
        "aeroplane": "airplane",
    },
    "objects365": {
        "car": "Car",
        "dog": "Dog",
        "bird": "Wild Bird",
        "bottle": "Bottle",
        "chair": "Chair",
        "bicycle": "Bicycle",
        "boat": "Sailboat",
        "aeroplane": "Airplane",
    },
    "ade20k": {
        "car": "car",
        "dog": "animal",
        "bird": "animal",
        "bottle": "bottle",
        "chair": "chair",
        "bicycle": "bicycle",
        "boat": "boat",
        "aeroplane": "plane",
        "pole": "pole",
    },
    "pascal_part": {
        "car": "car",
        "dog": "dog",
        "bird": "bird",
        "bottle": "bottle",
        "chair": "chair",
        "bicycle": "bicycle",
        "boat": "boat",
        "aeroplane": "aeroplane",
    },
    "paco": {"car": "car_(automobile)", "dog": "dog", "bottle": "bottle", "chair": "chair", "bicycle": "bicycle"},
    "partimagenet": {
        "car": "Car",
        "dog": "Quadruped",
        "bird": "Bird",
        "bottle": "Bottle",
        "bicycle": "Bicycle",
        "boat": "Boat",
        "aeroplane": "Aeroplane",
    },
}

STUFF: dict[str, dict[str, str]] = {
    "coco_panoptic": {
        "sky": "sky-other-merged",
        "grass": "grass-merged",
        "road": "road",
        "wall": "wall-other-merged",
        "floor": "floor-other-merged",
        "sea": "sea",
    },
    "ade20k": {"sky": "sky", "grass": "grass", "road": "road, route", "wall": "wall", "floor": "floor", "sea": "sea"},
}

Parts = tuple[tuple[str, tuple[str, ...]], ...]

# The parts of a kind in the order in which they are annotated: native name, and the slots that it is made of.  A name
# may come twice: two wheels are two rows.
PARTS: dict[str, dict[str, Parts]] = {
    "pascal_part": {
        "car": (
            ("door_1", ("door",)),
            ("wheel_1", ("wheel_1",)),
            ("wheel_2", ("wheel_2",)),
            ("headlight_1", ("headlight",)),
            ("window_1", ("window_1",)),
            ("window_2", ("window_2",)),
        ),
        "dog": (
            ("head", ("head", "ear")),
            ("lear", ("ear",)),
            ("torso", ("torso",)),
            ("lfleg", ("leg_1",)),
            ("rfleg", ("leg_2",)),
            ("lbleg", ("leg_3",)),
            ("rbleg", ("leg_4",)),
            ("tail", ("tail",)),
        ),
        "bird": (
            ("head", ("head", "beak")),
            ("beak", ("beak",)),
            ("torso", ("torso",)),
            ("lwing", ("wing",)),
            ("lleg", ("leg_1",)),
            ("rleg", ("leg_2",)),
            ("tail", ("tail",)),
        ),
        "bottle": (("cap", ("cap",)), ("body", ("body", "neck", "label"))),
        "bicycle": (
            ("fwheel", ("wheel_2",)),
            ("bwheel", ("wheel_1",)),
            ("saddle", ("saddle",)),
            ("handlebar", ("handlebar",)),
        ),
        "aeroplane": (
            ("body", ("body", "head")),
            ("lwing", ("wing_1",)),
            ("rwing", ("wing_2",)),
            ("tail", ("tail",)),
            ("engine_1", ("engine",)),  # In the .mat files, but not among the 93 pairs that have a category.
        ),
    },
    "paco": {
        "car": (
            ("headlight", ("headlight",)),
            ("wheel", ("wheel_1",)),
            ("wheel", ("wheel_2",)),
            ("window", ("window_1",)),
            ("window", ("window_2",)),
        ),
        "dog": (
            ("body", ("torso",)),
            ("ear", ("ear",)),
            ("head", ("head", "ear")),
            ("leg", ("leg_1",)),
            ("leg", ("leg_2",)),
            ("leg", ("leg_3",)),
            ("leg", ("leg_4",)),
            ("tail", ("tail",)),
        ),
        "bottle": (
            ("body", ("body", "label")),
            ("cap", ("cap",)),
            ("label", ("label",)),
            ("neck", ("neck",)),
        ),
        "chair": (("back", ("back",)), ("leg", ("leg_3",)), ("leg", ("leg_4",)), ("seat", ("seat",))),
        "bicycle": (
            ("handlebar", ("handlebar",)),
            ("saddle", ("saddle",)),
            ("wheel", ("wheel_1",)),
            ("wheel", ("wheel_2",)),
        ),
    },
    "partimagenet": {
        "car": (
            ("Body", ("body", "door", "window_1", "window_2", "headlight")),
            ("Tier", ("wheel_1",)),
            ("Tier", ("wheel_2",)),
        ),
        "dog": (
            ("Head", ("head", "ear")),
            ("Body", ("torso",)),
            ("Foot", ("leg_1",)),
            ("Foot", ("leg_2",)),
            ("Foot", ("leg_3",)),
            ("Foot", ("leg_4",)),
            ("Tail", ("tail",)),
        ),
        "bird": (
            ("Head", ("head", "beak")),
            ("Body", ("torso",)),
            ("Wing", ("wing",)),
            ("Foot", ("leg_1", "leg_2")),
            ("Tail", ("tail",)),
        ),
        "bottle": (("Mouth", ("cap",)), ("Body", ("body", "neck", "label"))),
        "bicycle": (
            ("Body", ("frame",)),
            ("Head", ("handlebar",)),
            ("Seat", ("saddle",)),
            ("Tier", ("wheel_1",)),
            ("Tier", ("wheel_2",)),
        ),
        "boat": (("Body", ("hull", "mast")), ("Sail", ("sail_1",)), ("Sail", ("sail_2",))),
        "aeroplane": (
            ("Head", ("head",)),
            ("Body", ("body",)),
            ("Engine", ("engine",)),
            ("Wing", ("wing_1",)),
            ("Wing", ("wing_2",)),
            ("Tail", ("tail",)),
        ),
    },
}


def native_categories(dataset: str) -> list[tuple[int, str]]:
    """Native ids and names as a json of the dataset lists them: objects (unless it has none), then parts."""
    document = load_categories(dataset).document
    # PartImageNet's json lists parts alone, numbered from 0 as the toy's vocabulary numbers its objects.
    objects = [] if dataset == "partimagenet" else document["objects"]
    return [(row["id"], row.get("native", row.get("name"))) for row in [*objects, *document["object_parts"]]]


def native_ids(dataset: str) -> dict[str, int]:
    """The id of each native name, and of each corrected one."""
    document = load_categories(dataset).document
    ids = {row["name"]: row["id"] for row in document["objects"]}
    return ids | {name: i for i, name in native_categories(dataset)}
