"""The numbers of each protocol that stand in a table's cells; all others are there to look closer."""

from __future__ import annotations

HEADLINES = {
    "one_click": ("miou_max", "miou_oracle"),
    "random_click": ("miou_max", "miou_oracle"),
    "granularity": ("miou_all",),
    "box_prompt": ("miou", "object_top1"),
    "classes": ("object_top1", "part_top1"),
    "open_vocabulary": (
        *("object_top1_new", "object_top1_shuffled", "part_top1_new", "part_top1_shuffled"),
        *("pair_top1_new", "pair_top1_trained"),
    ),
    "iou_calibration": ("ece", "rank_correlation"),
    "panoptic": ("pq", "sq", "rq"),
    "semantic": ("miou",),
    **dict.fromkeys(("boxes", "masks", "boxes_federated", "masks_federated"), ("ap",)),
    **dict.fromkeys(("parts_of_objects_federated", "parts_by_name_federated"), ("ap",)),
    **dict.fromkeys(("boundary", "parts_of_objects", "parts_by_name"), ("ap",)),
}


def is_headline(metric: str) -> bool:
    """Whether `<protocol>/<dataset>/<number>` is one of them; what a baseline made is none."""
    protocol, _, rest = metric.partition("/")
    return rest.rpartition("/")[2] in HEADLINES.get(protocol, ())
