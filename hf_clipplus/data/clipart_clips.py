"""`ClipWorld`: short clips of one moving drawing, whose action only the order of the frames tells."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from . import clipart_canvas as canvas
from .clipart import Drawing, SeededWorld
from .clipart_scenes import scene_drawings
from .clipart_text import with_article

SIZE = (0.34, 0.46)  # longest side of the drawing over the picture's
TRAVEL = (0.7, 1.0)  # how much of the free room a straight move crosses
MIN_TURN_CHANGE = 12.0  # mean change of a drawing under a quarter turn, 0..255: a disc cannot be seen turning

# The orders in which an action shows the frames of its family; each is a permutation of 0 .. frames - 1. "around" is
# "backward" for a closed path: it starts where "forward" does.
ORDERS: dict[str, Callable[[int], list[int]]] = {
    "forward": lambda n: list(range(n)),
    "backward": lambda n: list(range(n))[::-1],
    "there and back": lambda n: [*range(0, n, 2), *[k for k in range(n) if k % 2][::-1]],
    "back and there": lambda n: [n - 1 - k for k in ORDERS["there and back"](n)],
    "around": lambda n: [0, *range(1, n)[::-1]],
    "calming": lambda n: [k // 2 if k % 2 == 0 else n - 1 - k // 2 for k in range(n)],
    "rousing": lambda n: ORDERS["calming"](n)[::-1],
}


@dataclass(frozen=True)
class Action:
    """One action; but for the "rousing" ones, which start in the middle, each shares its first frame with another.

    Attributes:
        family: actions of a family show the same frames in different orders.
        phrase: what the drawing does, e.g. "moves to the left".
        order: a key of `ORDERS`.
    """

    family: str
    phrase: str
    order: str


ACTIONS: dict[str, Action] = {
    "rise": Action("vertical", "rises", "forward"),
    "fall": Action("vertical", "falls", "backward"),
    "hop": Action("vertical", "rises and falls back", "there and back"),
    "dip": Action("vertical", "falls and rises again", "back and there"),
    "bounce_calming": Action("vertical", "bounces lower and lower", "calming"),
    "bounce_rousing": Action("vertical", "bounces higher and higher", "rousing"),
    "move_right": Action("horizontal", "moves to the right", "forward"),
    "move_left": Action("horizontal", "moves to the left", "backward"),
    "right_and_back": Action("horizontal", "goes right and comes back", "there and back"),
    "left_and_back": Action("horizontal", "goes left and comes back", "back and there"),
    "shake_calming": Action("horizontal", "shakes and calms down", "calming"),
    "shake_rousing": Action("horizontal", "shakes more and more", "rousing"),
    "up_right": Action("rising_diagonal", "moves up to the right", "forward"),
    "down_left": Action("rising_diagonal", "moves down to the left", "backward"),
    "up_right_and_back": Action("rising_diagonal", "goes up to the right and comes back", "there and back"),
    "down_left_and_back": Action("rising_diagonal", "goes down to the left and comes back", "back and there"),
    "up_left": Action("falling_diagonal", "moves up to the left", "forward"),
    "down_right": Action("falling_diagonal", "moves down to the right", "backward"),
    "up_left_and_back": Action("falling_diagonal", "goes up to the left and comes back", "there and back"),
    "down_right_and_back": Action("falling_diagonal", "goes down to the right and comes back", "back and there"),
    "grow": Action("size", "grows", "forward"),
    "shrink": Action("size", "shrinks", "backward"),
    "grow_and_shrink": Action("size", "grows and shrinks back", "there and back"),
    "shrink_and_grow": Action("size", "shrinks and grows back", "back and there"),
    "turn_clockwise": Action("turn", "turns clockwise", "forward"),
    "turn_counterclockwise": Action("turn", "turns counterclockwise", "around"),
    "fade_in": Action("fade", "fades in", "forward"),
    "fade_out": Action("fade", "fades out", "backward"),
    "flash": Action("fade", "fades in and out again", "there and back"),
    "blink": Action("fade", "fades out and in again", "back and there"),
    "zigzag_up": Action("zigzag", "zigzags upwards", "forward"),
    "zigzag_down": Action("zigzag", "zigzags downwards", "backward"),
    "zigzag_up_and_back": Action("zigzag", "zigzags upwards and back down", "there and back"),
    "zigzag_down_and_back": Action("zigzag", "zigzags downwards and back up", "back and there"),
    "circle_clockwise": Action("circle", "circles clockwise", "forward"),
    "circle_counterclockwise": Action("circle", "circles counterclockwise", "around"),
    "spiral_out": Action("spiral", "spirals outwards", "forward"),
    "spiral_in": Action("spiral", "spirals inwards", "backward"),
    "spiral_out_and_back": Action("spiral", "spirals outwards and back in", "there and back"),
    "spiral_in_and_back": Action("spiral", "spirals inwards and back out", "back and there"),
    "roll_right": Action("roll", "rolls to the right", "forward"),
    "roll_left": Action("roll", "rolls to the left", "backward"),
    "roll_right_and_back": Action("roll", "rolls right and comes back", "there and back"),
    "roll_left_and_back": Action("roll", "rolls left and comes back", "back and there"),
    "fly_away": Action("flight", "flies away upwards", "forward"),
    "come_near": Action("flight", "comes down and near", "backward"),
    "fly_away_and_back": Action("flight", "flies away and comes near again", "there and back"),
    "come_near_and_leave": Action("flight", "comes near and flies away again", "back and there"),
}


@dataclass(frozen=True)
class State:
    """How one frame shows the drawing: centre as shares of the free room, 0..1, size, degrees clockwise, opacity."""

    x: float = 0.5
    y: float = 0.5
    size: float = 1.0
    turn: float = 0.0
    opacity: float = 1.0


def family_states(family: str, frames: int, rng: np.random.Generator) -> list[State]:
    """The states of a family's frames in the order "forward", with random place, travel and phase.

    Args:
        family: of an `Action`.
        frames: how many, >= 4.
        rng: of the clip.
    """
    travel = rng.uniform(*TRAVEL)
    start, across, phase = rng.uniform(0, 1 - travel), rng.random(), rng.random()
    steps = np.linspace(start, start + travel, frames)
    share = np.linspace(0, 1, frames)
    cycle = 2 * math.pi * (phase + np.arange(frames) / frames)
    if family == "vertical":
        return [State(x=across, y=1 - s) for s in steps]
    if family == "horizontal":
        return [State(x=s, y=across) for s in steps]
    if family == "rising_diagonal":
        return [State(x=s, y=1 - s) for s in steps]
    if family == "falling_diagonal":
        return [State(x=1 - s, y=1 - s) for s in steps]
    if family == "size":
        return [State(x=across, y=phase, size=0.6 + 1.2 * s * travel) for s in share]
    if family == "turn":
        return [State(x=across, y=start / (1 - travel), turn=math.degrees(c)) for c in cycle]
    if family == "fade":
        return [State(x=across, y=phase, opacity=0.12 + 0.88 * s) for s in share]
    if family == "zigzag":
        return [State(x=0.25 + 0.5 * (k // 2 % 2), y=1 - s) for k, s in enumerate(steps)]
    if family == "circle":
        return [State(x=0.5 + 0.5 * travel * math.sin(c), y=0.5 - 0.5 * travel * math.cos(c)) for c in cycle]
    if family == "spiral":
        return [
            State(x=0.5 + 0.5 * s * travel * math.sin(1.5 * c), y=0.5 - 0.5 * s * travel * math.cos(1.5 * c))
            for s, c in zip(share, cycle, strict=True)
        ]
    if family == "roll":
        return [State(x=s, y=0.5 + across / 2, turn=360 * (phase + t)) for s, t in zip(steps, share, strict=True)]
    if family == "flight":
        return [State(x=across, y=1 - s, size=1.4 - t) for s, t in zip(steps, share, strict=True)]
    raise ValueError(f"family: expected one of {sorted({a.family for a in ACTIONS.values()})}, got {family!r}")


def turns_visibly(drawing: Drawing) -> bool:
    """Whether a quarter turn changes the drawing."""
    small = np.zeros((24, 24, 4), dtype=np.int64)
    sprite = canvas.scaled(drawing.mips, 24)
    top, left = (24 - sprite.shape[0]) // 2, (24 - sprite.shape[1]) // 2
    small[top : top + sprite.shape[0], left : left + sprite.shape[1]] = sprite
    return np.abs(small - np.rot90(small)).mean() >= MIN_TURN_CHANGE


class ClipWorld(SeededWorld):
    """Clips of one drawing that moves, grows, turns or fades; row i shows `actions[i % len(actions)]`.

    Everything but the action (drawing, size, place, phase, background) is drawn from (seed, epoch, i) alone, so that
    two actions of one family show the very same frames, and a frame alone does not tell them apart.

    Args:
        split: a split of `load_drawings`, or the drawings themselves; drawings without class or area, and those that
            look the same when turned, are not used.
        frames: frames of a clip, >= 4.
        image_size: side of a frame, pixels.
        actions: keys of `ACTIONS`, all of them if left out; a label is a place in this list.
        length: rows of an epoch.
        seed, train, folder: see `SeededWorld`.

    Returns (per row):
        `frames` (uint8 [T, H, W, 3]), `action`, `label`, `caption` ("a tiger moves to the left"), `name`, `image_id`.

    Raises:
        ValueError: on an unknown action, or fewer than 4 frames.
    """

    def __init__(
        self,
        split: str | Sequence[Drawing],
        *,
        frames: int = 8,
        image_size: int = 64,
        actions: Sequence[str] | None = None,
        length: int = 2000,
        seed: int = 0,
        train: bool = True,
        folder: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(split, seed=seed, train=train, folder=folder)
        self.actions = tuple(ACTIONS if actions is None else actions)
        unknown = [name for name in self.actions if name not in ACTIONS]
        if unknown or not self.actions:
            raise ValueError(f"actions: expected keys of ACTIONS ({', '.join(ACTIONS)}), got {unknown or 'none'}")
        if frames < 4:
            raise ValueError(f"frames: expected at least 4, fewer do not tell the actions apart, got {frames}")
        self.frames = frames
        self.image_size = image_size
        self.length = length
        self.drawings = [drawing for drawing in scene_drawings(self.drawings) if turns_visibly(drawing)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        rng = self._generator(index)
        label = index % len(self.actions)
        action = ACTIONS[self.actions[label]]
        drawing = self.drawings[int(rng.integers(len(self.drawings)))]
        background = canvas.BACKGROUND_RGB[int(rng.choice(drawing.backgrounds))]
        longest = self.image_size * rng.uniform(*SIZE)
        states = family_states(action.family, self.frames, rng)
        shown = np.stack([self._frame(drawing, background, longest, state) for state in states])
        subject = with_article(drawing.name)
        if subject == drawing.name and subject.split()[0] not in ("a", "an", "the"):
            subject = f"a drawing of {subject}"
        return {
            "frames": shown[ORDERS[action.order](self.frames)],
            "action": self.actions[label],
            "label": label,
            "caption": f"{subject} {action.phrase}",
            "name": drawing.name,
            "image_id": self._image_id(index),
        }

    def _frame(self, drawing: Drawing, background: np.ndarray, longest: float, state: State) -> np.ndarray:
        size = self.image_size
        sprite = canvas.scaled(drawing.mips, max(1, round(longest * state.size)))
        if state.turn:
            turned = Image.fromarray(sprite, "RGBa").rotate(-state.turn, Image.Resampling.BILINEAR, expand=True)
            sprite = np.asarray(turned)
        if state.opacity < 1:
            sprite = (sprite * state.opacity).astype(np.uint8)
        room = size - longest
        left = round(longest / 2 + room * state.x - sprite.shape[1] / 2)
        top = round(longest / 2 + room * state.y - sprite.shape[0] / 2)
        picture = canvas.plain(size, background)
        canvas.paste(picture, sprite, left, top)
        return picture
