"""`ClipWorld`: the order of the frames, and nothing else, tells the action."""

import numpy as np
import pytest
import torch

from hf_clipplus.data.clipart import load_drawings
from hf_clipplus.data.clipart_clips import ACTIONS, ORDERS, ClipWorld, State, family_states
from hf_clipplus.data.seeding import item_generator

FRAMES = 8
FAMILIES = {}
for _name, _action in ACTIONS.items():
    FAMILIES.setdefault(_action.family, []).append(_name)


def clip(action, index=5, **options):
    return ClipWorld("validation", actions=[action], image_size=48, frames=FRAMES, **options)[index]["frames"]


def first(rows):
    return rows[0]


def frame_bytes(frames):
    return [frame.tobytes() for frame in frames]


def test_enough_actions_in_families_with_orders_and_phrases_of_their_own():
    assert len(ACTIONS) >= 16
    assert all(len(members) >= 2 for members in FAMILIES.values())
    assert len({action.phrase for action in ACTIONS.values()}) == len(ACTIONS)
    for members in FAMILIES.values():
        assert len({ACTIONS[name].order for name in members}) == len(members)
    for frames in (4, 7, 8, 16):
        orders = [tuple(order(frames)) for order in ORDERS.values()]
        assert all(sorted(order) == list(range(frames)) for order in orders)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_shows_the_same_frames_in_other_orders(family):
    clips = [frame_bytes(clip(name)) for name in FAMILIES[family]]
    assert len(set(clips[0])) > FRAMES // 2  # something moves
    assert all(sorted(other) == sorted(clips[0]) for other in clips)
    assert len({tuple(other) for other in clips}) == len(clips)
    orders = {ACTIONS[name].order for name in FAMILIES[family]}
    assert {"forward", "backward"} <= orders or {"forward", "around"} <= orders  # the time-reversed partner


def test_neither_the_first_frame_nor_any_other_alone_gives_an_action_away():
    for members in FAMILIES.values():
        starts = {}
        for name in members:
            starts.setdefault(ORDERS[ACTIONS[name].order](FRAMES)[0], []).append(name)
        lonely = [names for names in starts.values() if len(names) == 1]
        assert all(ACTIONS[name].order == "rousing" for names in lonely for name in names)
    # Closed paths: the phase is uniform, so that where a clip starts and ends says nothing about its direction.
    for family, value in (("circle", lambda s: s.x), ("turn", lambda s: s.turn % 360)):
        ends = {name: [] for name in FAMILIES[family]}
        for index in range(300):
            states = family_states(family, FRAMES, item_generator(0, 0, index))
            for name in ends:
                ends[name].append(value(states[ORDERS[ACTIONS[name].order](FRAMES)[-1]]))
        one, other = (np.sort(values) for values in ends.values())
        assert np.abs(one - other).mean() < 0.08 * np.ptp(one)


def test_motions_are_what_the_phrases_say():
    def path(action):
        states = family_states(ACTIONS[action].family, FRAMES, item_generator(3, 0, 1))
        return [states[k] for k in ORDERS[ACTIONS[action].order](FRAMES)]

    def steps(action, field):
        return np.diff([getattr(state, field) for state in path(action)])

    assert (steps("rise", "y") < 0).all()
    assert (steps("fall", "y") > 0).all()
    assert (steps("move_left", "x") < 0).all()
    assert (steps("down_right", "x") > 0).all()
    assert (steps("down_right", "y") > 0).all()
    assert (steps("grow", "size") > 0).all()
    assert (steps("fade_out", "opacity") < 0).all()
    assert (steps("roll_left", "turn") < 0).all()
    assert (steps("roll_left", "x") < 0).all()
    hop = steps("hop", "y")
    assert (hop[:4] < 0).all()
    assert (hop[4:] > 0).all()
    swings = np.abs(steps("shake_calming", "x"))
    assert (np.diff(swings) < 0).all()
    turn = [state.turn for state in path("turn_clockwise")]
    assert np.allclose(np.diff(turn), 360 / FRAMES)
    circle = path("circle_clockwise")
    x, y = (np.array([getattr(state, axis) for state in circle]) - 0.5 for axis in "xy")
    assert (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()  # clockwise, with y downwards


def test_turning_clockwise_turns_the_pixels_clockwise():
    arrow = np.zeros((40, 40, 4), dtype=np.uint8)
    arrow[:20, 15:25] = (255, 0, 0, 255)  # points up from the middle
    world = ClipWorld("validation", image_size=48)
    source = type(world.drawings[0])(
        index=0, id="", image=arrow, alt_text="", name="arrow", keywords=(), category="", author="", class_name=None
    )
    frame = world._frame(source, np.array([255, 255, 255], dtype=np.uint8), 30, State(turn=90))
    columns = np.nonzero((frame[..., 1] < 128).any(0))[0]
    assert columns.min() >= 22  # the arrow now points to the right


def test_rows():
    world = ClipWorld("validation", actions=["rise", "grow", "hop"], length=9, frames=6, image_size=40)
    rows = [world[i] for i in range(9)]
    assert [row["label"] for row in rows] == [0, 1, 2] * 3
    assert rows[4]["action"] == "grow"
    assert rows[0]["caption"].endswith(f"{rows[0]['name']} rises")
    assert rows[0]["frames"].shape == (6, 40, 40, 3)
    assert rows[0]["frames"].dtype == np.uint8
    assert len({row["image_id"] for row in rows}) == 9


def test_clips_depend_on_seed_epoch_and_index_only_and_use_their_split():
    world = ClipWorld("train", length=12, image_size=32)
    want = [world[i]["frames"] for i in range(12)]
    loader = torch.utils.data.DataLoader(ClipWorld("train", length=12, image_size=32), num_workers=2, collate_fn=first)
    assert all((row["frames"] == kept).all() for row, kept in zip(loader, want, strict=True))
    world.set_epoch(1)
    assert all((world[i]["frames"] != want[i]).any() for i in range(12))
    fixed = ClipWorld("test", length=12, image_size=32, train=False)
    before = fixed[2]["frames"]
    fixed.set_epoch(1)
    assert (fixed[2]["frames"] == before).all()
    test = {d.index for d in load_drawings("test")}
    assert not test & {d.index for d in world.drawings}
    assert {d.index for d in fixed.drawings} <= test


def test_errors():
    with pytest.raises(ValueError, match=r"expected keys of ACTIONS .* got \['jump'\]"):
        ClipWorld("test", actions=["jump"])
    with pytest.raises(ValueError, match="at least 4"):
        ClipWorld("test", frames=3)
