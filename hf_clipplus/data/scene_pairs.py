"""The embedded scenes as image-caption pairs with the nouns that their captions tell, for training GroupViT."""

from typing import Any

from torch.utils.data import Dataset

from .clipart_canvas import BACKGROUND_NAMES
from .clipart_scenes import SceneWorld
from .clipart_text import with_article


def scene_background(colour: str) -> str:
    """What a caption calls the background of a scene: "white background"."""
    return f"{colour} background"


SCENE_BACKGROUNDS = tuple(scene_background(colour) for colour in BACKGROUND_NAMES)


class ScenePairs(Dataset):
    """Rows of a `SceneWorld`: `image`, `caption` (what there is, in one sentence), `nouns` and `image_id`.

    The nouns are the classes of the objects and the background ("white background"); masks are left behind: nothing of
    them is trained on.

    Args:
        world: the scenes.
    """

    def __init__(self, world: SceneWorld):
        self.world = world

    def set_epoch(self, epoch: int) -> None:
        self.world.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.world[index]
        background = scene_background(row["background"])
        return {
            "image": row["image"],
            "caption": f"{row['sentences'][0].removesuffix('.')} on {with_article(background)}.",
            "nouns": [*row["class_names"], background],
            "image_id": row["image_id"],
        }
