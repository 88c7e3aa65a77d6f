"""Miniatures of the published data sets: their exact folders and lists, filled with real pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from small_inputs import glyphs

CLASSES, IMAGES = 12, 4  # of either half


def pictures():
    """Rendered characters, IMAGES of a class after IMAGES of another, far more than are needed."""
    rendered = glyphs()
    for label in np.unique(rendered.labels):
        for index in np.flatnonzero(rendered.labels == label)[:IMAGES]:
            yield rendered.image(int(index))


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def sop(root: Path) -> None:
    folder, source, number = root / "Stanford_Online_Products", pictures(), 0
    for part, first in (("train", 1), ("test", CLASSES + 1)):
        lines = ["image_id class_id super_class_id path"]
        for label in range(first, first + CLASSES):
            for view in range(IMAGES):
                number += 1
                path = f"bicycle_final/{110000000000 + label}_{view}.JPG"
                put(folder / path, next(source))
                lines.append(f"{number} {label} 1 {path}")
        (folder / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")


def cub(root: Path) -> None:
    folder, source, number = root / "CUB_200_2011", pictures(), 0
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "bounding_boxes": [], "train_test_split": []}
    for label in [*range(1, CLASSES + 1), *range(101, 101 + CLASSES)]:
        for view in range(IMAGES):
            number += 1
            path = f"{label:03}.Black_footed_Albatross/Black_Footed_Albatross_{view:04}_{number}.jpg"
            put(folder / "images" / path, next(source))
            lists["images"].append(f"{number} {path}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["bounding_boxes"].append(f"{number} 10.0 20.0 40.0 30.0")
            lists["train_test_split"].append(f"{number} {view % 2}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def cars196(root: Path) -> None:
    source = pictures()
    root.mkdir(parents=True, exist_ok=True)
    names = [f"Model/{number} Coupe" for number in range(1, 197)]
    (root / "names.csv").write_text("\n".join(names) + "\n")
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label in [*range(1, CLASSES + 1), *range(99, 99 + CLASSES)]:
        for view in range(IMAGES):
            part = "train" if view % 2 else "test"
            path = f"{label:03}{view:02}.jpg"
            put(root / "car_data" / "car_data" / part / names[label - 1].replace("/", "-") / path, next(source))
            lists[part].append(f"{path},1,2,30,40,{label}")
    for part, lines in lists.items():
        (root / f"anno_{part}.csv").write_text("\n".join(lines) + "\n")


def inshop(root: Path) -> None:
    source, rows, boxes = pictures(), [], []
    for item in range(1, 2 * CLASSES + 1):
        for view in range(IMAGES):
            path = f"img/WOMEN/Dresses/id_{item:08}/{view:02}_1_front.jpg"
            put(root / "Img" / path, next(source))
            part = "train" if item <= CLASSES else ("query" if view == 0 else "gallery")
            rows.append(f"{path} id_{item:08} {part}")
            boxes.append(f"{path} 1 1 010 020 050 050")
    for folder, name, header, lines in (
        ("Eval", "list_eval_partition.txt", "image_name item_id evaluation_status", rows),
        ("Anno", "list_bbox_inshop.txt", "image_name clothes_type pose_type x_1 y_1 x_2 y_2", boxes),
    ):
        (root / folder).mkdir()
        (root / folder / name).write_text("\n".join([str(len(lines)), header, *lines]) + "\n")


def groceries(root: Path) -> None:
    """The cloned repository: even classes train; two photographs of each class are of the shop's other visit."""
    source, lists = pictures(), {"train": [], "val": [], "test": []}
    for label in range(2 * CLASSES):
        for view, part in enumerate(("train", "val", "test", "test")):
            path = f"{part}/Packages/Milk/Milk-{label:02}/Milk_{view:03}.jpg"
            put(root / "dataset" / path, next(source))
            lists[part].append(f"{path}, {label}, {label // 2}")
    put(root / "dataset" / "iconic-images-and-descriptions" / "Milk_Iconic.jpg", next(source))
    for part, lines in lists.items():
        (root / "dataset" / f"{part}.txt").write_text("\n".join(lines) + "\n")


TREES: dict[str, Callable[[Path], None]] = {"sop": sop, "cub": cub, "cars196": cars196, "inshop": inshop}
