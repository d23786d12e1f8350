"""Real handwritten digits on cluttered 32x32 canvases, from easy to hard: a data set that needs no download.

The 1,797 digits (8x8, grey) are scikit-learn's copy of the UCI set "Optical Recognition of Handwritten Digits". Each is
drawn several times, at a difficulty that is uniform in [0, 1]: an easy image shows a large upright digit on a plain
ground, a hard one a small, turned, low-contrast digit among texture, strokes, blobs, pieces of other digits and noise.
Source digits, those in the clutter included, never cross from one split into another.

Only uniform numbers are drawn and all geometry is in double precision, so that machines should agree on the pixels.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.data import IMAGE_SIZE, SPLITS, Dataset, Split, channel_statistics, load_dataset, stratified_parts
from backbone.torch_state import default_torch_state

SEED = 2020
GLYPHS_PER_SPLIT = {"train": 1200, "validation": 300, "test": 297}
IMAGES_PER_SPLIT = {"train": 10_000, "validation": 2_000, "test": 2_000}
MOST_SHAPES, MOST_FRAGMENTS = 3, 2  # pieces of clutter per image
DRAWN_AT_ONCE = 100  # images: fits the processor's cache


def load_digits(folder: str | Path | None = None, dial: float | None = None) -> Dataset:
    """Draw the data set: 10,000 / 2,000 / 2,000 images.

    Args:
        folder: not used; every loader takes one.
        dial: in [0, 1], how different the images' difficulties are, see `difficulty`; None for uniform ones. Networks
            that were trained without it serve: images are normalised as theirs.

    Raises:
        ValueError: an impossible `dial`.
    """
    if dial is not None and not (isinstance(dial, int | float) and 0 <= dial <= 1):
        raise ValueError(f"dial {dial!r} of digits must be a number in [0, 1]")
    from sklearn import datasets  # here, because it takes a second that the other data sets need not wait for

    raw = datasets.load_digits()
    glyphs = torch.from_numpy(raw.images / 16.0)[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    parts = stratified_parts(raw.target, list(GLYPHS_PER_SPLIT.values()), SEED)
    splits = {}
    for name, part in zip(SPLITS, parts, strict=True):
        source = torch.from_numpy(part)
        with default_torch_state():  # thousands of small operations, on which several threads mostly wait
            images = draw_images(glyphs[source], difficulty(name, dial), SEED + 1 + SPLITS.index(name))
        splits[name] = Split(images, labels[source[torch.arange(IMAGES_PER_SPLIT[name]) % len(source)]])
    if dial is None:
        name, (mean, std) = "digits", channel_statistics(splits["train"].images)
    else:  # for networks that were trained on all difficulties
        trained_on = load_dataset("digits", folder)
        name, mean, std = f"digits(dial={dial:g})", trained_on.mean, trained_on.std
    return Dataset(name, 10, mean, std, splits["train"], splits["validation"], splits["test"], flip=False, pad=2)


def difficulty(split: str, dial: float | None = None) -> Tensor:
    """Difficulty of each image of a split, float64 `[N]` in [0, 1], in the split's order.

    Uniform, or by a dial: one half of the images as easy as (1 - dial) / 2, the other as hard as (1 + dial) / 2. At 0
    all images are equally hard, so that deciding by difficulty gains nothing; at 1 half of them are as easy as can be.
    """
    drawn = torch.from_numpy(np.random.default_rng([SEED, SPLITS.index(split)]).random(IMAGES_PER_SPLIT[split]))
    return drawn if dial is None else (1 - dial) / 2 + dial * (drawn >= 0.5)


def draw_images(glyphs: Tensor, hardness: Tensor, seed: int) -> Tensor:
    """Draw image n with glyph `n % S` at `hardness[n]`.

    Args:
        glyphs: float64 `[S, 1, 8, 8]` in [0, 1]; the clutter is made of them too.
        hardness: float64 `[N]` in [0, 1].
        seed: of all other random choices.

    Returns:
        uint8 `[N, 3, 32, 32]`.
    """
    rng = np.random.default_rng(seed)
    smooth = F.interpolate(glyphs, scale_factor=3, mode="bicubic", align_corners=False).clamp(0, 1)
    chosen = torch.arange(len(hardness)) % len(glyphs)
    chunks = zip(chosen.split(DRAWN_AT_ONCE), hardness.split(DRAWN_AT_ONCE), strict=True)
    return torch.cat([_draw(smooth, index, hard.view(-1, 1), rng) for index, hard in chunks])


def _draw(glyphs: Tensor, chosen: Tensor, hard: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw one chunk, back to front. Here and below `hard` is `[N, 1]` and canvas coordinates span [-1, 1]."""
    ground, ink = _colours(hard, rng)
    half = _between(hard, 0.85, 0.52) * _uniform(rng, 0.92, 1.08, len(hard), 1)
    centre = _uniform(rng, -1, 1, len(hard), 2) * (1 - 1.1 * half).clamp(min=0)
    angle = _uniform(rng, -1, 1, len(hard), 1) * _between(hard, 0.05, 0.7)
    canvas = ground[:, :, None, None] + _texture(hard, rng)
    for _ in range(MOST_SHAPES):
        canvas = _paint(canvas, _shape(hard, rng), _clutter_colour(ground, ink, rng))
    for _ in range(MOST_FRAGMENTS):
        canvas = _paint(canvas, _fragment(glyphs, hard, centre, half, rng), _clutter_colour(ground, ink, rng))
    canvas = _paint(canvas, _place(glyphs[chosen], centre, half, angle)[0], ink)
    noise = _uniform(rng, -0.1, 0.1, len(hard), 3, IMAGE_SIZE, IMAGE_SIZE) * hard[:, :, None, None]
    return ((canvas + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _colours(hard: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Ground and ink `[N, 3]`, either of them the brighter; the contrast falls with difficulty."""
    contrast = _between(hard, 0.8, 0.45)
    middle = 0.5 + _uniform(rng, -0.5, 0.5, len(hard), 1) * (1 - contrast)
    step = torch.where(_uniform(rng, -1, 1, len(hard), 1) < 0, -0.5, 0.5) * contrast
    tints = _uniform(rng, -0.12, 0.12, 2, len(hard), 3)
    return (middle - step + tints[0]).clamp(0, 1), (middle + step + tints[1]).clamp(0, 1)


def _texture(hard: Tensor, rng: np.random.Generator) -> Tensor:
    """Coloured clouds and a grey grating, `[N, 3, 32, 32]` around zero; none at difficulty 0."""
    clouds = F.interpolate(
        _uniform(rng, -1, 1, len(hard), 3, 6, 6), size=IMAGE_SIZE, mode="bilinear", align_corners=False
    )
    across, phase = _uniform(rng, -12, 12, len(hard), 2), _uniform(rng, 0, 2 * math.pi, len(hard), 1)
    y, x = _canvas()
    grating = torch.sin(across[:, :1, None] * x + across[:, 1:, None] * y + phase[:, :, None])
    return hard[:, :, None, None] * (0.15 * clouds + 0.05 * grating[:, None])


def _shape(hard: Tensor, rng: np.random.Generator) -> Tensor:
    """Mask `[N, 1, 32, 32]` of an ellipse anywhere: a stroke where it is thin, a blob where it is round."""
    centre, angle = _uniform(rng, -1, 1, len(hard), 2), _uniform(rng, 0, math.pi, len(hard), 1)
    length = _uniform(rng, 0.15, 0.6, len(hard), 1)
    width = _uniform(rng, 0.07, 0.2, len(hard), 1)
    along, aside = _local(centre, angle)
    along, aside = along / length[:, :, None], aside / width[:, :, None]
    mask = (3 * (1 - along.square() - aside.square())).clamp(0, 1)
    return (mask * _present(hard, rng)[:, :, None])[:, None]


def _fragment(glyphs: Tensor, hard: Tensor, centre: Tensor, half: Tensor, rng: np.random.Generator) -> Tensor:
    """Mask `[N, 1, 32, 32]` of half a glyph, next to the digit at `centre`."""
    chosen = torch.from_numpy((rng.random(len(hard)) * len(glyphs)).astype(np.int64))
    bearing, angle = _uniform(rng, 0, 2 * math.pi, 2, len(hard), 1)
    away = torch.cat([bearing.cos(), bearing.sin()], 1) * half * _uniform(rng, 1.2, 1.7, len(hard), 1)
    mask, x = _place(glyphs[chosen], centre + away, half * _uniform(rng, 0.7, 1.1, len(hard), 1), angle)
    return mask * (x[:, None] > 0) * _present(hard, rng)[:, :, None, None]


def _place(glyphs: Tensor, centre: Tensor, half: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Draw glyphs `[N, 1, h, w]` turned by `angle`, `2 * half` wide.

    Returns:
        Masks `[N, 1, 32, 32]`, and the glyph's own x of each pixel, `[N, 32, 32]`.
    """
    x, y = (line / half[:, :, None] for line in _local(centre, angle))
    grid = torch.stack([x, y], -1)
    return F.grid_sample(glyphs, grid, mode="bilinear", padding_mode="zeros", align_corners=False), x


def _local(centre: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's offsets from `centre` `[N, 2]` along axes turned by `angle` `[N, 1]`: two tensors `[N, 32, 32]`."""
    y, x = _canvas()
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    x, y = x - centre[:, :1, None], y - centre[:, 1:, None]
    return x * cos + y * sin, y * cos - x * sin


def _clutter_colour(ground: Tensor, ink: Tensor, rng: np.random.Generator) -> Tensor:
    """A colour `[N, 3]` between the ground's and the ink's, never quite either."""
    return ground + (ink - ground) * _uniform(rng, 0.2, 0.9, len(ink), 1)


def _paint(canvas: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    return torch.lerp(canvas, colour[:, :, None, None], mask)


def _present(hard: Tensor, rng: np.random.Generator) -> Tensor:
    return (_uniform(rng, 0, 1, len(hard), 1) < 0.6 * hard).double()


def _canvas() -> tuple[Tensor, Tensor]:
    """Coordinates y `[32, 1]` and x `[1, 32]` of the pixel centres."""
    line = (torch.arange(IMAGE_SIZE, dtype=torch.float64) + 0.5) * (2 / IMAGE_SIZE) - 1
    return line[:, None], line[None, :]


def _between(hard: Tensor, easiest: float, hardest: float) -> Tensor:
    return easiest + (hardest - easiest) * hard


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.from_numpy(low + (high - low) * rng.random(shape))
