"""Published facts of GroupViT's zero-shot protocols: prompts, class names, background thresholds, image statistics."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Segmentation: long side <= 2048, short side <= 448; windows of 448 every 224
LONG_SIDE, SHORT_SIDE = 2048, 448
SEGMENTATION_TEMPLATES = ("a photo of a {}.",)
CLASSIFICATION_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# Of the published code; its paper says 0.9 for VOC and 0.5 for Context
BACKGROUND_THRESHOLDS = {"voc": 0.95, "context": 0.35, "coco": 0.95}
# Foreground classes: class i of a mask is entry i - 1, class 0 is the background
CLASS_NAMES = {
    "voc": (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog"),
        *("horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor"),
    ),
    "context": (
        *("airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building"),
        *("bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog"),
        *("door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike"),
        *("mountain", "mouse", "person", "plate", "platform", "plant", "road", "rock", "sheep", "shelves", "sidewalk"),
        *("sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "monitor", "wall", "water"),
        *("window", "wood"),
    ),
    "coco": (
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
        *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
        *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
        *("teddy bear", "hair drier", "toothbrush"),
    ),
}


def background_threshold(value: str | float | None) -> float | None:
    """The number behind a preset's name; a number and None stay what they are.

    Raises:
        ValueError: no such preset, or a number outside [0, 1].
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value not in BACKGROUND_THRESHOLDS:
            raise ValueError(
                f"background threshold {value!r} is unknown: choose {sorted(BACKGROUND_THRESHOLDS)} or a number."
            )
        return BACKGROUND_THRESHOLDS[value]
    if not 0 <= value <= 1:
        raise ValueError(f"a background threshold is an affinity in [0, 1], got {value}.")
    return float(value)


def class_prompts(class_names, templates) -> list[list[str]]:
    """The prompts of each class: `{}` (or `{c}`) of every template filled with the class name.

    Raises:
        ValueError: no class, a blank or repeated one, or a template without a place for the name.
        TypeError: one string instead of a list.
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise TypeError("class names and templates must be lists of strings, got one string.")
    names = [name.strip() for name in class_names]
    if not names or not all(names):
        raise ValueError(f"there must be at least one class, none of them blank; got {list(class_names)}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class names must differ, these appear more than once: {twice}; tell them apart in words.")
    wrong = [template for template in templates if "{}" not in template and "{c}" not in template]
    if wrong or not templates:
        raise ValueError(f"templates must hold {{}} or {{c}} for the class name, got {wrong or 'none at all'}.")
    return [[template.replace("{c}", name).replace("{}", name) for template in templates] for name in names]
