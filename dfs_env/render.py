"""One image's episode as a picture or as a line of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RENDER_MODES = ["rgb_array", "ansi"]

WIDTH, HEIGHT, SIDE = 640, 240, 192
SKIPPED, UNDECIDED, INK, PAPER = (206, 206, 206), (255, 255, 255), (40, 40, 40), (250, 250, 248)
ACCEPTED, ENTERED, SPENT = (150, 205, 160), (240, 190, 120), (120, 150, 190)


def limit(budget: float, hard: bool) -> str:
    """The budget in words: on every image if it is `hard`, else on the mean."""
    return f"{'' if hard else 'mean '}budget {budget:g}"


@dataclass(frozen=True)
class Picture:
    """Everything that is shown of one image."""

    image: np.ndarray[Any, Any]
    """uint8 [h, w, 3]."""
    label: int
    """The correct class."""
    route: tuple[int, ...]
    """Bitwidths of the blocks decided so far; at accept decisions 0 if the prediction was accepted."""
    num_layers: int
    """L."""
    bitwidths: tuple[int, ...]
    """The choices at each block."""
    cost: float
    """Spent so far, a fraction of full execution."""
    budget: float
    """The budget, likewise."""
    scores: np.ndarray[Any, Any] | None
    """[num_classes] probabilities, or None before the end."""
    accepts: tuple[int, ...] = ()
    """Indices of the accept decisions of a cascade."""
    hard_budget: bool = False
    """Whether the budget holds for every image; otherwise it is on the mean cost, and an image may cost more."""

    @property
    def spending(self) -> str:
        """The cost so far, and what the budget is on."""
        return f"cost {self.cost:.3f}, {limit(self.budget, self.hard_budget)}"

    def mark(self, layer: int) -> str:
        """The sign of a decision: bits, "-" for a skipped block, "=" for an accepted prediction, ">" for one that is
        not, "." for none yet."""
        if layer >= len(self.route):
            return "."
        if layer in self.accepts:
            return ">" if self.route[layer] else "="
        return str(self.route[layer] or "-")


def bit_colour(bits: int, bitwidths: tuple[int, ...]) -> tuple[int, int, int]:
    """Grey for skip, then light blue to dark blue from the narrowest bitwidth to the widest."""
    if bits == 0:
        return SKIPPED
    used = [b for b in bitwidths if b]
    share = (used.index(bits) + 1) / len(used)
    return tuple(
        round(light + (dark - light) * share) for light, dark in zip((214, 230, 245), (20, 70, 150), strict=True)
    )  # type: ignore[return-value]


def line(picture: Picture) -> str:
    """One line: label, each decision's `Picture.mark`, cost, budget and prediction."""
    blocks = [picture.mark(layer) for layer in range(picture.num_layers)]
    prediction = "?" if picture.scores is None else f"{int(picture.scores.argmax())} ({picture.scores.max():.2f})"
    return f"label {picture.label}  [{' '.join(blocks)}]  {picture.spending}  prediction {prediction}"


def draw(picture: Picture) -> np.ndarray[Any, Any]:
    """The image, its route as coloured bits per block, the spent cost and the class scores: uint8 [240, 640, 3]."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(canvas)
    canvas.paste(Image.fromarray(picture.image).resize((SIDE, SIDE), Image.Resampling.NEAREST), (16, 24))
    _draw_route(pen, picture, left=232, top=24, width=392)
    _draw_cost(pen, picture, left=232, top=92, width=392)
    _draw_scores(pen, picture, left=232, top=140, width=392)
    return np.asarray(canvas).copy()


def _text(
    pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, fill: Any = INK, anchor: str = "la"
) -> None:
    pen.text(position, text, fill=fill, font=ImageFont.load_default(12), anchor=anchor)


def _draw_route(pen: ImageDraw.ImageDraw, picture: Picture, left: int, top: int, width: int) -> None:
    about = ", = accepted, > next stage" if picture.accepts else ""
    _text(pen, (left, top - 16), f"bits per block (- skipped{about})")
    step = width / picture.num_layers
    for block in range(picture.num_layers):
        decided = block < len(picture.route)
        bits = picture.route[block] if decided else 0
        fill = bit_colour(bits, picture.bitwidths) if decided else UNDECIDED
        if decided and block in picture.accepts:
            fill = ENTERED if bits else ACCEPTED
        box = (left + block * step + 1, top, left + (block + 1) * step - 1, top + 36)
        pen.rectangle(box, fill=fill, outline=INK)
        if decided and step >= 14:
            light = sum(fill) > 380
            middle = (box[0] + box[2]) / 2, top + 18
            _text(pen, middle, picture.mark(block), fill=INK if light else PAPER, anchor="mm")


def _draw_cost(pen: ImageDraw.ImageDraw, picture: Picture, left: int, top: int, width: int) -> None:
    _text(pen, (left, top - 16), picture.spending)
    pen.rectangle((left, top, left + width, top + 14), fill=UNDECIDED, outline=INK)
    pen.rectangle((left, top, left + width * min(picture.cost, 1), top + 14), fill=SPENT)
    mark = left + width * picture.budget
    pen.line((mark, top - 3, mark, top + 17), fill=INK, width=2)


def _draw_scores(pen: ImageDraw.ImageDraw, picture: Picture, left: int, top: int, width: int) -> None:
    if picture.scores is None:
        _text(pen, (left, top), f"class scores: after the last block (label {picture.label})")
        return
    _text(pen, (left, top - 16), f"class scores (label {picture.label}, prediction {int(picture.scores.argmax())})")
    step, base = width / len(picture.scores), top + 76
    for label, score in enumerate(picture.scores):
        right = (70, 150, 90) if label == picture.label else (150, 150, 150)
        x = left + label * step
        pen.rectangle((x + 1, base - 64 * float(score), x + step - 1, base), fill=right)
        if step >= 12:
            _text(pen, (x + step / 2, base + 2), str(label), anchor="ma")
