"""Random views of videos for training: one crop, mirroring and colour change for all frames of a video."""

from dataclasses import dataclass

import numpy as np

from hf_clipplus.models.video_processing import ClipView


@dataclass(frozen=True)
class ViewSampler:
    """Draws how a video is shown.

    Args:
        mirror: probability of exchanging left and right (never where classes say left and right, as in SSv2).
        colour: strength of brightness, contrast and saturation changes, factors in 1 +- colour.
        hue: strength of hue changes, at most 0.5.
        grey: probability of showing it without colour.
    """

    mirror: float = 0.0
    colour: float = 0.0
    hue: float = 0.0
    grey: float = 0.0

    def __call__(self, generator: np.random.Generator) -> ClipView:
        place = (float(generator.random()), float(generator.random()))
        mirror, grey = bool(generator.random() < self.mirror), bool(generator.random() < self.grey)
        changes = []
        if self.colour:
            low = max(0.0, 1 - self.colour)
            changes += [
                (kind, float(generator.uniform(low, 1 + self.colour)))
                for kind in ("brightness", "contrast", "saturation")
            ]
        if self.hue:
            changes.append(("hue", float(generator.uniform(-self.hue, self.hue))))
        order = generator.permutation(len(changes))
        return ClipView(place, mirror, grey, tuple(changes[place] for place in order))


# published: a random crop everywhere; colours and mirroring on Kinetics only, and there on query videos only
CROP_ONLY = ViewSampler()
KINETICS_QUERIES = ViewSampler(mirror=0.5, colour=0.5, hue=0.25, grey=0.3)
