"""In-shop Clothes Retrieval (Liu et al. 2016, DeepFashion): a set of queries asks for the same items in a gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from locore.datasets._images import FileImages
from locore.datasets._metric_learning import check_counts, listed, missing
from locore.datasets.benchmark import Benchmark, Relevance, benchmarks
from locore.metrics.suites import MetricLearning

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
PARTS = {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)}
HEADER = 2  # lines before the first image: how many there are, and the names of the columns


@benchmarks.register("inshop")
def inshop(root: str, crop: bool = False, max_queries: int | None = None) -> Benchmark:
    """Retrieval of a query's item from the gallery.

    Args:
        root: the folder with `list_eval_partition.txt`, itself or in `Eval`, and `img`, itself or in `Img`.
        crop: cut every image to its bounding box (`list_bbox_inshop.txt`, itself or in `Anno`).
        max_queries: use a fixed random draw of so many queries; None = all.

    Raises:
        ValueError: a file is missing or a list is damaged.
    """
    folder = Path(root).expanduser()
    rows = _table(folder, "list_eval_partition.txt", ("Eval",), columns=3)
    images = folder / "Img" if (folder / "Img").is_dir() else folder
    boxes = {}
    if crop:
        table = _table(folder, "list_bbox_inshop.txt", ("Anno",), columns=7)
        boxes = {path: np.array(corners, dtype=float) for path, _, _, *corners in table}
    items = {item: number for number, item in enumerate(sorted({item for _, item, _ in rows}))}

    def part(name: str) -> FileImages:
        chosen = [(path, items[item]) for path, item, partition in rows if partition == name]
        if not chosen:
            raise ValueError(f"list_eval_partition.txt in '{folder}' has no image of the part '{name}'.")
        found = listed("inshop", images, [images / path for path, _ in chosen], [item for _, item in chosen], SOURCE)
        check_counts("inshop", name, found, *PARTS[name])
        if not crop:
            return found
        unknown = next((path for path, _ in chosen if path not in boxes), None)
        if unknown:
            raise ValueError(f"list_bbox_inshop.txt in '{folder}' has no box of '{unknown}'.")
        return found.cut(np.stack([boxes[path] for path, _ in chosen]))

    train, queries, gallery = (part(name) for name in PARTS)
    drawn = np.random.default_rng(0).permutation(len(queries))[:max_queries]
    asked = queries.subset(np.sort(drawn))
    answers = Relevance.from_labels(asked.labels, gallery.labels)
    suite = MetricLearning((1, 10, 20, 30), as_published=True)
    return Benchmark("inshop", train, asked, gallery, {"all": answers}, suite=suite)


def _table(root: Path, name: str, folders: tuple[str, ...], columns: int) -> list[list[str]]:
    """Read the rows of one of the data set's lists, wherever below root it was unpacked."""
    path = next((p for p in (root / name, *(root / f / name for f in folders)) if p.is_file()), None)
    if path is None:
        raise missing("inshop", root / folders[0] / name, root, SOURCE)
    rows = []
    for number, line in enumerate(path.read_text().splitlines()[HEADER:], start=1 + HEADER):
        row = line.split()
        if row and (len(row) != columns or (columns == 7 and not "".join(row[3:]).isdigit())):
            raise ValueError(
                f"'{path}', line {number}, does not have the {columns} columns of the published list; unpack it again."
            )
        rows += [row] if row else []
    return rows
