"""What the Open Clip Art rows say: names without uploaders' stamps, classes, and pseudo-captions from templates."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# Trailing tokens of the file stems that say nothing about the drawing and that no author field explains.
STAMPS = frozenset({"bw", "bn", "alt", "amp", "ff77", "ganson", "ganso", "gan", "md", "openclipart", "svg", "v0"})
DANGLING = frozenset(
    {"a", "an", "and", "by", "con", "da", "de", "del", "di", "e", "en", "et", "for", "from", "in"}
) | {*("la", "le", "of", "on", "the", "to", "with")}
NO_KEYWORDS = frozenset({"clip art", "clipart", "image", "picture", "svg", "png", "unsorted"})

# Folder of the library -> the noun of one drawing in it; folders that say nothing about their drawings are absent.
CATEGORY_NOUNS = {
    "animals": "animal",
    "animals/birds": "bird",
    "animals/bugs": "insect",
    "animals/dinosaurs": "dinosaur",
    "animals/fantasy": "fantasy creature",
    "animals/fish": "fish",
    "animals/mammals": "mammal",
    "animals/mammals/bears": "bear",
    "animals/mammals/big_cats": "big cat",
    "animals/mammals/dogs": "dog",
    "animals/mammals/horses": "horse",
    "animals/mammals/housecats": "house cat",
    "buildings": "building",
    "buildings/furniture": "piece of furniture",
    "buildings/homes": "home",
    "buttons": "button",
    "computer": "computer symbol",
    "computer/connectors": "connector",
    "computer/folders": "computer folder",
    "computer/games": "game",
    "computer/hardware": "computer part",
    "containers": "container",
    "decorations": "decoration",
    "education/books": "book",
    "electronics": "electronic device",
    "electronics/battery": "battery",
    "electronics/bulb": "light bulb",
    "food": "food",
    "food/beverages": "drink",
    "food/breads_and_carbs": "bread or side dish",
    "food/dairy": "dairy product",
    "food/desserts": "dessert",
    "food/fruit": "fruit",
    "food/meats_and_eggs": "savoury dish",
    "food/vegetables": "vegetable",
    "geography": "geography symbol",
    "geography/astronomy": "celestial body",
    "logos": "logo",
    "office": "office item",
    "office/telephone": "telephone",
    "people/bodypart": "body part",
    "people/clothing": "piece of clothing",
    "people/clothing/hats": "hat",
    "people/clothing/pantyhose": "piece of clothing",
    "people/smilies": "smiley",
    "people/stickmen": "stick figure",
    "plants": "plant",
    "plants/flowers": "flower",
    "plants/trees": "tree",
    "plants/trees/evergreen": "evergreen tree",
    "recreation/holiday": "holiday drawing",
    "recreation/holiday/valentines": "valentine",
    "recreation/music": "music drawing",
    "recreation/party": "party item",
    "recreation/sports": "sports drawing",
    "recreation/toys": "toy",
    "science": "science drawing",
    "science/astronomy": "celestial body",
    "science/medicine": "medical item",
    "signs_and_symbols": "sign or symbol",
    "signs_and_symbols/awards": "award",
    "signs_and_symbols/clocks": "clock",
    "signs_and_symbols/hazard": "hazard sign",
    "signs_and_symbols/money": "money symbol",
    "signs_and_symbols/weather": "weather symbol",
    "tools": "tool",
    "transportation": "transport drawing",
    "transportation/boating": "boating drawing",
    "transportation/roadsigns": "road sign",
    "transportation/vehicles": "vehicle",
    "transportation/vehicles/hummers": "off-road vehicle",
}

# (class, folders, words): a drawing takes the first class one of whose folders is its own and one of whose words (any,
# where the set is empty) is among its keywords or in its name. Each class has >= 8 train and >= 3 test drawings.
_CLASS_RULES: tuple[tuple[str | None, str, str], ...] = (
    (None, "transportation/boating", "knot"),
    ("road sign", "transportation/roadsigns", ""),
    ("road sign", "transportation", "roadsign sign"),
    (
        "safety sign",
        "signs_and_symbols signs_and_symbols/hazard",
        "warning caution hazard danger protection obligatoire interdiction interdite temperature magnetic secours "
        "civiere",
    ),
    ("boat", "transportation/boating", "boat sailing sailboat"),
    ("vehicle", "transportation/vehicles transportation/vehicles/hummers", ""),
    (
        "vehicle",
        "transportation recreation/holiday",
        "vehicle car sportcar truck bus hummer motorcycle autos roadtravel",
    ),
    ("bird", "animals/birds", ""),
    ("bird", "animals unsorted", "bird penguin pinguino anatra papera"),
    ("insect", "animals/bugs", ""),
    ("dinosaur", "animals/dinosaurs", ""),
    ("cat", "animals/mammals/big_cats animals/mammals/housecats", ""),
    ("cat", "animals/mammals", "cat kitten"),
    ("mammal", "animals/mammals animals/mammals/bears animals/mammals/dogs animals/mammals/horses", ""),
    ("mammal", "animals", "mammal seal bat"),
    ("dessert", "food/desserts", ""),
    ("dessert", "food recreation/party food/fruit", "icecream cake pie dessert cone gateau"),
    ("fruit", "food/fruit", ""),
    ("savoury dish", "food", "protein burger hamburger pizza sandwich sausage spaghetti lasagna"),
    ("savoury dish", "food/meats_and_eggs", ""),
    ("book", "education education/books office", "book books"),
    ("celestial body", "geography/astronomy science/astronomy", ""),
    ("celestial body", "geography signs_and_symbols/weather", "moon eclipse globe planet"),
    ("map", "geography", "map states coastline"),
    ("body part", "people/bodypart", ""),
    ("piece of clothing", "people/clothing people/clothing/hats", ""),
    ("flower", "plants/flowers", ""),
    ("flower", "plants unsorted", "flower flowers rose rosa daffodil magnolia"),
    ("musical item", "recreation/music", ""),
    ("computer device", "computer/hardware", ""),
    ("computer device", "computer", "hardware networksym server printer monitor"),
    ("tool", "tools", ""),
    ("building", "buildings buildings/homes", ""),
    ("building", "computer unsorted", "house igloo fattoria"),
    ("sports item", "recreation/sports", ""),
    (
        "person",
        "unsorted recreation recreation/party people/smilies people/stickmen",
        "man woman girl boy person people runner dancer carpentiere traslocatore ragazza ragazzo donna signorina "
        "signorinafoulard signorinacappello stickyman couple",
    ),
)
_CLASS_TABLE = tuple(
    (name, frozenset(folders.split()), frozenset(words.split())) for name, folders, words in _CLASS_RULES
)
CLASS_NAMES: tuple[str, ...] = tuple(sorted({name for name, _, _ in _CLASS_RULES if name}))


def class_of(category: str, words: Iterable[str] = ()) -> str | None:
    """The natural class of a drawing, or None.

    Args:
        category: the library's folder, e.g. "animals/mammals/big_cats".
        words: the drawing's keywords and the words of its name; only coarse folders ("transportation") need them.

    Returns:
        One of `CLASS_NAMES`, or None for a drawing outside the classes.
    """
    words = set(words)
    for name, folders, wanted in _CLASS_TABLE:
        if category in folders and (not wanted or wanted & words):
            return name
    return None


def _words(text: str) -> list[str]:
    """The words in lower case, without accents (file stems have none, authors and titles do) and without "'s"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"[^\W_]+", plain.replace("'s", ""))


def _unnumbered(word: str) -> str:
    """Turns "tigre05" into "tigre"; "8ball" and "b2" stay."""
    return re.sub(r"(?<=[^\W\d_]{2})\d+$", "", word)


def _is_stamp(token: str, author: list[str], known: set[str]) -> bool:
    """Whether a trailing token of a file stem is the uploader's mark: a stem of the name, initials, a size."""
    if token in STAMPS or re.fullmatch(r"\d+[a-z]{0,2}", token) or len(token) == 1:
        return True
    marks = [*author, "".join(author), "".join(word[0] for word in author)]
    return token not in known and any(mark.startswith(token) for mark in marks)


def _complete(tokens: list[str], title: list[str]) -> list[str]:
    """Finish a stem that the library cut after some 22 letters with the words of the title it was cut from."""
    for place, word in enumerate(title):
        if title[max(0, place - 1) : place] != tokens[-2:-1]:
            continue
        if word != tokens[-1] and word.startswith(tokens[-1]):
            return [*tokens[:-1], *title[place : place + max(1, 7 - len(tokens))]]
    return tokens


def clean_name(name: str, *, title: str, author: str, keywords: Sequence[str] = (), category: str = "") -> str:
    """The drawing's name without file numbers, cut words and the uploader's stamps; never empty.

    Args:
        name: the stem as the data set has it, e.g. "stylized teddy bear gera".
        title: the title as uploaded; it tells stamps from cut words.
        author: as uploaded, e.g. "Gerald G.".
        keywords, category: what is left to name a drawing whose stem and title are blank.

    Returns:
        lower-case words, e.g. "stylized teddy bear".
    """
    authors = _words(author.split("(")[0].split("@")[0])
    titles = [_unnumbered(word) for word in _words(title) if not word.isdigit() and word not in authors]
    tokens = [_unnumbered(token) for token in _words(name)]
    tokens = (
        [token for token in tokens if token not in ("svg", "architetto")]
        or titles[:6]
        or _words(" ".join(keywords[:1]))
    )
    if tokens and tokens[-1] not in titles:
        tokens = _complete(tokens, titles)
    while len(tokens) > 1 and _is_stamp(tokens[-1], authors, set(titles)):
        tokens.pop()
    while len(tokens) > 1 and tokens[-1] in DANGLING:
        tokens.pop()
    return " ".join(tokens) or CATEGORY_NOUNS.get(category, "drawing")


def clean_keywords(keywords: Iterable[str], *, author: str, name: str) -> tuple[str, ...]:
    """Distinct keywords as words: no underscores, numbers, uploaders' names, folder names, nor the name itself."""
    authors = " ".join(_words(author))
    kept: dict[str, None] = {}
    for keyword in keywords:
        text = " ".join(_words(keyword))
        if len(text) < 2 or text.isdigit() or text in NO_KEYWORDS or text == name or text.startswith("architetto"):
            continue
        if authors and (text in authors or authors in text):
            continue
        kept[text] = None
    return tuple(kept)


def _head(words: Sequence[str]) -> int:
    """The place of the noun that a phrase is about: the word before the first preposition, else the last."""
    return next((place - 1 for place in range(1, len(words)) if words[place] in DANGLING), len(words) - 1)


def with_article(noun: str) -> str:
    """Turns "tiger" into "a tiger", "apple" into "an apple"; plurals and names with an article stay as they are."""
    words = noun.split()
    if words[0] in ("a", "an", "the") or noun in ("food", "fruit"):
        return noun
    head = words[_head(words)]
    if head.endswith("s") and not head.endswith(("ss", "us", "is", "as", "os")):
        return noun
    vowel = noun[0] in "aeiou" and words[0] not in ("one", "us") and not noun.startswith(("eu", "uni"))
    return ("an " if vowel else "a ") + noun


def plural(noun: str) -> str:
    """Turns "tiger" into "tigers", "piece of clothing" into "pieces of clothing", plurals into "drawings of ..."."""
    words = noun.split()
    if words[0] in ("a", "an", "the") or with_article(noun) == noun != "fruit":
        return f"drawings of {noun}"
    head = _head(words)
    word = words[head]
    if word.endswith(("s", "x", "ch", "sh", "z")):
        word += "es"
    elif word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        word = word[:-1] + "ies"
    else:
        word += "s"
    return " ".join([*words[:head], word, *words[head + 1 :]])


def query_captions(drawing) -> list[str]:
    """The fixed, clean captions that evaluations ask with: the name alone, and all that is known of the drawing.

    No training caption has exactly the second form.

    Args:
        drawing: anything with `name`, `keywords` and `category`, e.g. a `Drawing`.

    Returns:
        "tiger" and "a big cat: tiger (stripes, zoo, wild)": the noun of the folder, the name, up to three keywords.
    """
    name, noun = drawing.name, CATEGORY_NOUNS.get(drawing.category)
    full = f"{with_article(noun)}: {name}" if noun and noun not in name else name
    if drawing.keywords:
        full += f" ({', '.join(drawing.keywords[:3])})"
    return [name, full]


def _candidates(drawing, rng: np.random.Generator | None) -> list[str]:
    """Every sentence the templates make for a drawing; the keywords in their order, or shuffled and cut by `rng`."""
    name, keywords, noun = drawing.name, list(drawing.keywords), CATEGORY_NOUNS.get(drawing.category)
    root = drawing.category.split("/")[0].replace("_", " ")
    if rng is not None:
        rng.shuffle(keywords)
        keywords = keywords[: int(rng.integers(1, 5))]
    a_name, listed = with_article(name), ", ".join(keywords[:4])
    made = [f"a drawing of {a_name}", name]
    if noun and noun not in name:
        made += [f"{name}, {with_article(noun)}", f"{with_article(noun)}: {name}"]
    if keywords:
        made += [
            f"clip art: {listed}",
            f"{name}: {listed}",
            f"{name} ({', '.join(keywords[:2])})",
        ]
    if root != "unsorted":
        made += [f"{root}: {name}"]
    made += [f"clip art of {a_name}", f"a picture of {a_name}", f"{with_article(drawing.colour)} drawing of {a_name}"]
    return list(dict.fromkeys(made))


def pseudo_captions(drawing, count: int, rng: np.random.Generator | None = None) -> list[str]:
    """Up to `count` distinct captions of a drawing, made from its name, keywords, folder and measured colour.

    Args:
        drawing: anything with `name`, `keywords`, `category` and `colour`.
        count: how many captions at most, >= 1.
        rng: draws the templates, their order and the keywords; None gives the fixed captions of an evaluation.

    Returns:
        1 to `count` distinct, non-empty strings.
    """
    made = _candidates(drawing, rng)
    if rng is not None:
        made = [made[place] for place in rng.permutation(len(made))]
    return made[:count]
