"""The embedded scenes as image-caption pairs with the nouns that their captions tell, for training GroupViT."""

from typing import Any

from torch.utils.data import Dataset

from .clipart_scenes import SceneWorld


class ScenePairs(Dataset):
    """Rows of a `SceneWorld`: `image`, `caption` (what there is, in one sentence), `nouns` and `image_id`.

    The nouns are the classes and the names of the objects; masks are left behind: nothing of them is trained on.

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
        return {
            "image": row["image"],
            "caption": row["sentences"][0],
            "nouns": row["class_names"],
            "image_id": row["image_id"],
        }
