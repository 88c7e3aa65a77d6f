"""Landmarks without a download: a landmark is a wall full of posters, an image a camera's view of a part of it.

The renderer knows which part of a wall each view shows, so what two views have in common is known and not labelled.
Views of one wall that have nothing in common can still be linked by others that overlap with both: these are the
positives of the protocol `transitive`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, features

from backbones.registry import suggest
from locore.datasets._walls import HEIGHT, WIDTH, style, wall
from locore.datasets.benchmark import JUNK, RIGHT, WRONG, Benchmark, ImageSet, Relevance, benchmarks
from locore.metrics.suites import Revisited

PIXELS = 128  # side of a view
CELL = 8  # pixels of a wall: overlaps are counted in cells
RENDERER = 3  # to be raised when a pixel changes
EASY, HARD, LINK = 0.5, 0.1, 0.3  # shares of the smaller view that two views have in common
JUDGED = {"right": RIGHT, "wrong": WRONG, "ignored": JUNK}
HIDDEN = 0.4  # a view of which less can be seen is junk
CLUTTER = 10**6  # numbers of walls from there on show up as clutter only, so that it gives no wall away


class Posters(ImageSet):
    """Views of walls.

    Args:
        seed: of all walls and views.
        walls: (N,) number of each view's wall.
        views: (N,) number of each view of its wall.
        linked: how a view is judged that shows another part of the wall, to which views in between lead.
        unlinked: how every other view of the wall is judged that has too little in common.
    """

    suite = Revisited()

    def __init__(self, seed: int, walls: np.ndarray, views: np.ndarray, linked: int = JUNK, unlinked: int = JUNK):
        self.linked, self.unlinked = linked, unlinked
        self.seed, self.walls, self.views, self.labels = seed, walls, views, walls
        self.names = [f"wall {w}, view {v}" for w, v in zip(walls, views, strict=True)]
        versions = [RENDERER, seed, walls.tolist(), views.tolist(), PIL.__version__, features.version("freetype2")]
        self.fingerprint = hashlib.sha256(repr(versions).encode()).hexdigest()

    def image(self, index: int) -> Image.Image:
        return self.camera(index).render()

    def judged(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Judge as `medium` does; see `ImageSet`."""
        common, parts, shown = self._within
        own = self.walls[others] == self.walls[rows][:, None]
        linked = parts[others] == parts[rows][:, None]
        right = (common[rows[:, None], others] >= HARD) & (shown[others] >= HIDDEN)
        judged = np.where(right, RIGHT, np.where(linked, self.linked, self.unlinked))
        return np.where(own, judged, WRONG).astype(np.int8)

    @cached_property
    def _within(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What views have in common (N, N), the group of linked views of each (N,), and its share not hidden (N,)."""
        common, _, shown = overlaps(self, self)
        parts = np.arange(len(common))
        while True:  # every view takes the lowest number among those that it overlaps with
            lower = np.where(common >= LINK, parts, len(parts)).min(axis=1)
            if (lower == parts).all():
                return common, parts, shown
            parts = lower

    def seen(self) -> np.ndarray:
        """Return (N, cells) bool, which cells of its wall each view shows."""
        return np.stack([view.seen() for view in self.cameras()])

    def camera(self, index: int) -> Camera:
        """Return the camera of one view."""
        return Camera(self.seed, int(self.walls[index]), int(self.views[index]))

    def cameras(self) -> Iterator[Camera]:
        """Yield the camera of each view."""
        return (self.camera(index) for index in range(len(self.walls)))


class Camera:
    """Position, light and occluder of a view, all drawn from its numbers.

    Args:
        seed: of all walls and views.
        wall_: number of the wall.
        view: number of the view.
    """

    def __init__(self, seed: int, wall_: int, view: int):
        self.seed, self.wall, self.random = seed, wall_, np.random.default_rng((seed, wall_, view))
        side = self.random.uniform(0.55, 0.95) * HEIGHT
        centre = np.array(
            [self.random.uniform(side / 2, WIDTH - side / 2), self.random.uniform(side / 2, HEIGHT - side / 2)]
        )
        angle = self.random.normal(0, 0.08)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2
        # Corners that move apart and together make a view from the side.
        self.corners = centre + square @ turn.T + self.random.uniform(-0.12, 0.12, (4, 2)) * side
        hidden = self.random.choice([0.0, 0.25, 0.8], p=[0.5, 0.42, 0.08])  # share that something stands before
        width = np.sqrt(hidden) * self.random.uniform(0.8, 1.2) * PIXELS
        left, top = self.random.uniform(0, PIXELS - min(width, PIXELS - 1), 2)
        self.occluder = (left, top, left + width, top + width) if hidden else None

    @property
    def homography(self) -> np.ndarray:
        """(3, 3): from a pixel of the view to a pixel of the wall."""
        image = np.array([[0, 0], [PIXELS, 0], [PIXELS, PIXELS], [0, PIXELS]], dtype=float)
        rows = []
        for (x, y), (u, v) in zip(image, self.corners, strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        return np.append(np.linalg.solve(np.array(rows), self.corners.ravel()), 1).reshape(3, 3)

    def seen(self) -> np.ndarray:
        """Return (cells,) bool, the cells of the wall whose centre is in the picture and not occluded."""
        x, y = np.meshgrid(np.arange(CELL / 2, WIDTH, CELL), np.arange(CELL / 2, HEIGHT, CELL))
        return self.sees(np.column_stack([x.ravel(), y.ravel()]))

    def sees(self, points: np.ndarray) -> np.ndarray:
        """Return (M,) bool, which points (M, 2) of the wall are in the picture and not occluded."""
        u, v = _mapped(np.linalg.inv(self.homography), points).T
        seen = (u >= 0) & (u < PIXELS) & (v >= 0) & (v < PIXELS)
        if self.occluder:
            left, top, right, bottom = self.occluder
            seen &= ~((u >= left) & (u < right) & (v >= top) & (v < bottom))
        return seen

    def on_wall(self, positions: np.ndarray) -> np.ndarray:
        """Map positions (M, 2) in the picture, x and y in [0, 1], to points (M, 2) of the wall."""
        return _mapped(self.homography, positions * PIXELS)

    @property
    def shown(self) -> float:
        """Share of the picture in which the wall is seen."""
        if not self.occluder:
            return 1.0
        left, top, right, bottom = np.clip(self.occluder, 0, PIXELS)
        return 1 - (right - left) * (bottom - top) / PIXELS**2

    def render(self) -> Image.Image:
        """Render the picture, RGB."""
        random = self.random
        twice = np.diag([0.5, 0.5, 1.0])  # drawn at twice the size, and made smaller: no jagged letters
        image = wall(self.seed, self.wall).transform(
            (2 * PIXELS, 2 * PIXELS),
            Image.Transform.PERSPECTIVE,
            (self.homography @ twice).ravel()[:8].tolist(),
            Image.Resampling.BILINEAR,
        )
        image = image.resize((PIXELS, PIXELS), Image.Resampling.BOX)
        if self.occluder:
            left, top, right, bottom = (round(x) for x in self.occluder)
            piece = _clutter(self.seed, int(random.integers(64))).resize((right - left, bottom - top))
            image.paste(piece, (left, top))
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline="black")
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.75, 1.15))
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.8, 1.15))
        image = ImageEnhance.Color(image).enhance(random.uniform(0.8, 1.15))
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.9)))


@lru_cache(maxsize=64)
def _clutter(seed: int, number: int) -> Image.Image:
    """Return a piece of a wall that no query shows."""
    random = np.random.default_rng((seed, CLUTTER, number))
    left, top = int(random.integers(WIDTH - 200)), int(random.integers(HEIGHT - 200))
    return wall(seed, CLUTTER + number // 8).crop((left, top, left + 200, top + 200))


class Transitive:
    """Answers in which views of the query's wall are positive that share nothing with it but are linked to it on the
    shortlist, from one view to another that has at least `LINK` in common with it.

    Args:
        common: (Q, N) share of the smaller view that a query and a gallery view have in common.
        links: (N, N) bool, gallery views that are linked.
        own: (Q, N) bool, views of the query's wall.
        counted: (Q, N) bool, views that can be right, can link, and can be wrong; all others are junk.
    """

    def __init__(self, common: np.ndarray, links: np.ndarray, own: np.ndarray, counted: np.ndarray):
        self.common, self.links, self.own, self.counted = common, links, own, counted

    def __call__(self, shortlists: np.ndarray) -> Relevance:
        """Return the answers for shortlists (Q, K) of gallery indices; other views of the wall do not count."""
        positive, junk = [], []
        for row, listed in enumerate(shortlists):
            own = listed[self.own[row, listed] & self.counted[row, listed]]
            reached = self.common[row, own] >= LINK
            while True:
                further = reached | self.links[np.ix_(own, own[reached])].any(axis=1)
                if (further == reached).all():
                    break
                reached = further
            right = own[reached & (self.common[row, own] == 0)]
            positive.append(np.sort(right))
            junk.append(np.setdiff1d(np.flatnonzero(self.own[row] | ~self.counted[row]), right))
        return Relevance(positive, junk, [np.empty(0, dtype=np.int64)] * len(shortlists))


@benchmarks.register("posters")
def posters(
    seed: int = 0,
    walls: int = 240,
    views: int = 16,
    queries: int = 720,
    distractors: int = 200,
    linked: str = "ignored",
    unlinked: str = "ignored",
) -> Benchmark:
    """Walls seen in parts: two thirds of them train, views of the others are searched together with distractors.

    Protocols as in Revisited Oxford and Paris: easy views have half of the smaller view in common with the query or
    more, hard ones a tenth or more; a view that shows less of it, or another part of the wall, or is mostly hidden, is
    junk. The positives of `transitive` are other parts of the wall, among walls that are painted in the query's
    colours: views in other colours are junk there, since colours alone would tell them apart.

    Args:
        seed: of all walls and views.
        walls: number of walls that train or are searched for.
        views: of each wall.
        queries: number of query views, which are not in the gallery.
        distractors: number of views of other walls.
        linked: what counts in training for a view that shows too little of the query's part of the wall and is linked
            to it by views in between: it is "ignored", "right" or "wrong".
        unlinked: the same for a view that is not linked to it.

    Raises:
        ValueError: there are too few walls or views.
    """
    for name, value in (("linked", linked), ("unlinked", unlinked)):
        if value not in JUDGED:
            raise ValueError(f"Unknown posters.{name} '{value}'{suggest(value, JUDGED)}")
    if walls < 4 or views < 4 or queries < 1:
        raise ValueError("posters needs at least 4 walls, 4 views of each and one query.")
    trains = 2 * walls // 3
    of_others = JUDGED[linked], JUDGED[unlinked]
    train, searched = (
        Posters(seed, np.repeat(numbers, views), np.tile(np.arange(views), len(numbers)), *of_others)
        for numbers in (np.arange(trains), np.arange(trains, walls))
    )
    asking = _asking(seed, np.sort(trains + np.arange(queries) % (walls - trains)), views)
    alone = np.arange(walls, walls + distractors)
    gallery = Posters(
        seed, np.concatenate([searched.walls, alone]), np.concatenate([searched.views, np.zeros_like(alone)])
    )
    common, within, shown = overlaps(asking, gallery)
    own = asking.walls[:, None] == gallery.walls
    clear = own & (shown >= HIDDEN)
    easy, hard = clear & (common >= EASY), clear & (common >= HARD) & (common < EASY)
    junk = own & ~easy & ~hard
    colours, others = (np.array([style(seed, int(n)) for n in images.walls]) for images in (asking, gallery))
    counted = (colours[:, None] == others) & ~(own & (shown < HIDDEN))

    def rows(*tables: np.ndarray) -> list[np.ndarray]:
        return [np.flatnonzero(row) for row in np.logical_or.reduce(tables)]

    return Benchmark(
        name="posters",
        train=train,
        queries=asking,
        gallery=gallery,
        protocols={
            "medium": Relevance(rows(easy, hard), rows(junk), rows(junk)),
            "hard": Relevance(rows(hard), rows(junk, easy), rows(junk)),
            "hard*": Relevance(rows(hard), rows(junk, easy), rows(junk, easy)),
            "easy": Relevance(rows(easy), rows(junk, hard), rows(junk)),
            "transitive": Transitive(common, within >= LINK, own, counted),
        },
        suite=Revisited(),
    )


def _mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y, scale = homography @ np.column_stack([points, np.ones(len(points))]).T
    return np.column_stack([x / scale, y / scale])


def _asking(seed: int, walls: np.ndarray, first: int) -> Posters:
    """Choose for each of the walls (Q,) a view that is not mostly hidden, numbered from `first` on."""
    numbers: dict[int, int] = {}
    views = []
    for number in walls.tolist():
        view = numbers.get(number, first)
        while Camera(seed, number, view).shown < HIDDEN:
            view += 1
        views.append(view)
        numbers[number] = view + 1
    return Posters(seed, walls, np.array(views))


def overlaps(asking: Posters, gallery: Posters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (Q, N) and (N, N) common share of the smaller view, and (N,) share of each view that is not hidden."""
    ask, seen = asking.seen(), gallery.seen()
    common, within = (np.zeros((len(rows), len(seen)), dtype=np.float32) for rows in (ask, seen))
    for number in np.unique(gallery.walls):
        rows, columns = np.flatnonzero(asking.walls == number), np.flatnonzero(gallery.walls == number)
        common[np.ix_(rows, columns)] = _common(ask[rows], seen[columns])
        within[np.ix_(columns, columns)] = _common(seen[columns], seen[columns])
    return common, within, np.array([view.shown for view in gallery.cameras()])


def _common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return for cells (M, cells) and (N, cells) bool the common cells over those of the smaller view, (M, N)."""
    both = one.astype(np.float32) @ other.astype(np.float32).T
    return both / np.maximum(np.minimum(one.sum(axis=1)[:, None], other.sum(axis=1)), 1)
