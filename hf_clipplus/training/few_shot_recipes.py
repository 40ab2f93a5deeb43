"""Published settings of APE, APE-T and Tip-Adapter for their 11 data sets (CLIP ResNet-50, D = 1024)."""

from dataclasses import dataclass

from hf_clipplus.models.ape import SearchGrid
from hf_clipplus.models.ape.heads_ape import default_channels

from .few_shot_compare import HeadSettings

IMAGENET_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True)
class Recipe:
    """One data set's settings.

    Args:
        templates: prompts beside the written sentences.
        ape_channels, ape_t_channels: Q of 1024 channels.
        ape_weights: (w0, w1) of APE's criterion; APE-T's is (0.2, 0.8) everywhere.
        scale, steps: of the search over beta, alpha, gamma.
        alpha: first value, fixed while APE-T is trained; beta is 1, gamma 0.1 everywhere.
        learning_rate, epsilon, epochs: of APE-T.
        tip_scale: of Tip-Adapter's search over beta, alpha, in 200 and 20 steps.
        tip_alpha: first value.
        tip_f_epochs: of Tip-Adapter-F.
    """

    templates: tuple[str, ...]
    ape_channels: int
    ape_t_channels: int
    ape_weights: tuple[float, float]
    scale: tuple[float, float, float]
    alpha: float
    learning_rate: float
    epsilon: float
    epochs: int
    tip_scale: tuple[float, float]
    tip_alpha: float
    steps: tuple[int, int, int] = (200, 20, 20)
    tip_f_epochs: int = 20

    def channels(self, dim: int, *, trained: bool = False) -> int:
        """Q for D = `dim`: floor(Q D / 1024)."""
        return default_channels(dim, self.ape_t_channels if trained else self.ape_channels)

    def grid(self, *, tip: bool = False) -> SearchGrid:
        """The published grid of APE, or of Tip-Adapter."""
        return SearchGrid.published(self.tip_scale, (200, 20)) if tip else SearchGrid.published(self.scale, self.steps)


_PHOTO = ("a photo of a {}.",)
RECIPES = {
    "caltech101": Recipe(_PHOTO, 800, 900, (0.5, 0.5), (7, 7, 1), 1, 1e-3, 0.001, 30, (12, 5), 3),
    "dtd": Recipe(("{} texture.",), 400, 700, (0.5, 0.5), (7, 7, 1), 3, 1e-3, 0.001, 20, (13, 13), 2),
    "eurosat": Recipe(
        ("a centered satellite photo of {}.",),
        700,
        900,
        (0.9, 0.1),
        (30, 5, 1.5),
        1,
        1e-3,
        0.001,
        200,
        (12, 10),
        2,
        tip_f_epochs=100,
    ),
    "fgvc_aircraft": Recipe(
        ("a photo of a {}, a type of aircraft.",),
        800,
        900,
        (0.1, 0.9),
        (20, 10, 1),
        5,
        1e-3,
        0.001,
        30,
        (30, 30),
        5,
    ),
    # with 1 and 2 shots the published epsilon is 0.01
    "food101": Recipe(
        ("a photo of {}, a type of food.",), 700, 900, (0.3, 0.7), (7, 7, 1), 0.8, 1e-4, 0.001, 30, (10, 10), 1.17
    ),
    "imagenet": Recipe(
        IMAGENET_TEMPLATES,
        500,
        500,
        (0.7, 0.3),
        (7, 7, 0.5),
        2,
        1e-4,
        0.001,
        20,
        (7, 3),
        1.17,
        steps=(200, 20, 5),
    ),
    "oxford_flowers": Recipe(
        ("a photo of a {}, a type of flower.",), 700, 800, (0.4, 0.6), (7, 7, 1), 3, 1e-3, 0.001, 60, (50, 50), 10
    ),
    # the authors say that they chose Q for each number of shots among 600 to 900 here
    "oxford_pets": Recipe(
        ("a photo of a {}, a type of pet.",), 800, 800, (0.7, 0.3), (7, 7, 1), 2, 1e-4, 0.002, 30, (7, 3), 1.17
    ),
    "stanford_cars": Recipe(_PHOTO, 500, 800, (0.6, 0.4), (10, 7, 1), 1, 1e-3, 0.005, 30, (20, 10), 3),
    "sun397": Recipe(_PHOTO, 800, 800, (0.7, 0.3), (10, 7, 1), 1, 1e-4, 0.001, 30, (12, 10), 1.17),
    "ucf101": Recipe(
        ("a photo of a person doing {}.",), 700, 800, (0.3, 0.7), (10, 7, 1.5), 2, 1e-3, 0.002, 30, (7, 3), 3
    ),
}


def settings_of(recipe: Recipe | None, dim: int, seed: int) -> HeadSettings:
    """A data set's published settings for features of width `dim`; the general ones without a recipe."""
    if recipe is None:
        return HeadSettings(seed=seed)
    return HeadSettings(
        num_channels=recipe.channels(dim),
        ape_t_channels=recipe.channels(dim, trained=True),
        channel_weights=recipe.ape_weights,
        tip_alpha=recipe.tip_alpha,
        ape_alpha=recipe.alpha,
        tip_epochs=recipe.tip_f_epochs,
        ape_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        epsilon=recipe.epsilon,
        seed=seed,
    )
