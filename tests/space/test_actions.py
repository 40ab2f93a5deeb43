"""What the tabs of the Space do, without a page: answers, sentences, and what is refused in plain words."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hf_clipplus.models.fff import FFFModel, FFFProcessor


@pytest.fixture(scope="module")
def shelf(made):
    from models import Shelf

    return Shelf(made)


@pytest.fixture(scope="module")
def rose(made):
    return str(made / "samples" / "name" / "58.png")


def quiet(share, what):
    assert 0 <= share <= 1
    assert what


def taught(made, kind, pattern):
    teach = made / "samples" / kind / "teach"
    names = sorted(path.name for path in teach.iterdir())
    asked = str(next((made / "samples" / kind / "ask" / "vehicle").glob(pattern)))
    return names, [sorted(map(str, (teach / name).glob(pattern))) for name in names], asked


def test_naming(shelf, rose):
    from actions import name_picture

    found, said = name_picture(shelf.of_tab("demo", "name"), rose, "flower, a truck\n flower ;vehicle")
    assert list(found) == sorted(found, key=found.get, reverse=True)
    assert found.keys() == {"flower", "a truck", "vehicle"}
    assert sum(found.values()) == pytest.approx(1, abs=0.01)  # the pipeline rounds
    assert "**flower** fits best of your 3 words" in said


def test_segments_and_heat_have_the_size_of_the_picture(shelf, made):
    from actions import find_in_picture, segment_picture

    scene = made / "samples" / "scenes" / "9.png"
    wide = Image.open(scene).resize((300, 200))
    wide.save(made / "wide.png")
    loaded = shelf.of_tab("demo", "segment")
    drawn, said = segment_picture(loaded, str(made / "wide.png"), "cake, shoe", 0.0)
    assert (drawn.width, drawn.height > 200) == (300, True), "the legend is below the picture"
    assert "of the picture" in said
    assert "Nothing looks enough" in segment_picture(loaded, str(scene), "cake, shoe", 1.0)[1]
    heat, said = find_in_picture(shelf.of_tab("demo", "find"), str(made / "wide.png"), "a cake, cut open")
    assert heat.size == (300, 200)
    assert "“**a cake, cut open**”" in said


def test_learning_from_pictures(shelf, made):
    from actions import learn_from_pictures

    names, files, asked = taught(made, "pictures", "*.png")
    loaded = shelf.of_tab("demo", "pictures")
    found, said = learn_from_pictures(loaded, [*names, ""], [*files, None], asked, quiet)
    assert max(found, key=found.get) == "vehicle"
    assert "your 9 pictures" in said
    swapped = learn_from_pictures(loaded, names, files[::-1], asked, quiet)[0]
    assert swapped["vehicle"] < found["vehicle"], "the pictures teach, not the names alone"


def test_learning_from_clips_leaves_the_model_as_it_was(shelf, made):
    from actions import learn_from_videos

    names, files, asked = taught(made, "videos", "*.mp4")
    loaded = shelf.of_tab("demo", "videos")
    found, drawn, said = learn_from_videos(loaded, names, files, asked, quiet)
    assert max(found, key=found.get) == "vehicle"
    assert drawn.width > 300
    assert "“vehicle” from left to right" in said
    assert loaded.model.support is None


@pytest.mark.parametrize(
    ("words", "at_least", "said"),
    [
        ("", 2, "Write some words"),
        (" , ;\n", 2, "Write some words"),
        ("tiger", 2, "“tiger” alone leaves nothing to choose from"),
        ("tiger,Tiger ,tiger", 3, "Write at least 3"),
        (None, 1, "Write at least one word"),
        (",".join(map(str, range(300))), 2, "At most 256 words"),
        ("a" * 2000 + ",b", 2, "of 1000 letters"),
    ],
)
def test_words_that_are_refused(words, at_least, said):
    from actions import SorryError, read_words

    with pytest.raises(SorryError, match=said):
        read_words(words, at_least=at_least)


def test_pictures_that_are_refused(made, rose):
    from actions import SorryError, read_picture

    with pytest.raises(SorryError, match="Add a picture first"):
        read_picture(None)
    for name, content in (("cut.png", Path(rose).read_bytes()[:900]), ("note.jpg", b"not a picture"), ("no.png", b"")):
        (made / name).write_bytes(content)
        with pytest.raises(SorryError, match=f"{name} is damaged or no picture"):
            read_picture(str(made / name))
    Image.new("1", (8000, 8000)).save(made / "vast.png")
    with pytest.raises(SorryError, match="64 megapixels; at most 40"):
        read_picture(str(made / "vast.png"))
    assert max(read_picture(rose).size) == 320


@pytest.mark.parametrize(
    ("names", "files", "said"),
    [
        (["", "", ""], [None, None, None], "at least two kinds"),
        (["cat", "", ""], [["a"], None, None], "at least two kinds"),
        (["cat", "", ""], [["a"], ["b"], None], "Kind 2 has no name"),
        (["cat", "dog", ""], [["a"], [], None], "“dog” has no picture yet"),
        (["cat", " cat", ""], [["a"], ["b"], None], "Two kinds are called “cat”"),
        (["cat", "dog", ""], [["a"] * 21, ["b"], None], "at most 20"),
    ],
)
def test_groups_that_are_refused(names, files, said):
    from actions import SorryError, taught_classes

    with pytest.raises(SorryError, match=said):
        taught_classes(names, files, "picture")


def test_a_damaged_clip_is_refused(shelf, made):
    from actions import SorryError, learn_from_videos

    names, files, asked = taught(made, "videos", "*.mp4")
    loaded = shelf.of_tab("demo", "videos")
    (made / "cut.mp4").write_bytes(Path(asked).read_bytes()[:300])
    with pytest.raises(SorryError, match="cannot be played"):
        learn_from_videos(loaded, names, files, str(made / "cut.mp4"), quiet)
    with pytest.raises(SorryError, match="Add the clip that you ask about"):
        learn_from_videos(loaded, names, files, None, quiet)


def test_models_by_folder_and_what_they_cannot_do(made, tmp_path, monkeypatch):
    from models import Shelf, SorryError

    source = made / "models" / "clipart-clip"
    model, processor = FFFModel.from_pretrained(source), FFFProcessor.from_pretrained(source)
    model.save_pretrained(tmp_path / "mine"), processor.save_pretrained(tmp_path / "mine")
    shelf = Shelf(made)
    found = shelf.of_tab(str(tmp_path / "mine"), "name")
    assert (found.title, found.trained) == ("FFF (mine)", "")
    assert found.tabs == {"name", "pictures"}
    with pytest.raises(SorryError, match=r"FFF \(mine\) cannot do this: the tab needs a model that .* \(DreamLIP\)"):
        shelf.of_tab(str(tmp_path / "mine"), "find")
    with pytest.raises(SorryError, match="could not be loaded"):
        shelf.load(str(tmp_path))
    monkeypatch.setenv("SPACE_ID", "me/space")
    with pytest.raises(SorryError, match="only models of the Hub"):
        shelf.load(str(tmp_path))
    shutil.rmtree(tmp_path / "mine")


def test_models_of_other_commands_win(made, tmp_path):
    from models import Shelf

    shutil.copytree(made / "models" / "clipart-clip", tmp_path / "demo" / "fff-0")
    shelf = Shelf(made, tmp_path)
    assert shelf.of_tab("demo", "name").title == "FFF (fff-0)"
    assert shelf.of_tab("demo", "pictures").title == "FFF (clipart-clip)"


def test_the_space_is_whole(made):
    hub = made.parent / "hub"
    there = {path.name for path in hub.iterdir()}
    assert {"README.md", "app.py", "requirements.txt", "style.css", "hf_clipplus", "models", "samples"} <= there
    facts = yaml.safe_load((hub / "README.md").read_text().split("---\n")[1])
    assert (facts["sdk"], facts["app_file"]) == ("gradio", "app.py")
    required = (hub / "requirements.txt").read_text().splitlines()
    assert f"gradio=={facts['sdk_version']}" in required
    assert not list(hub.rglob("*.part"))
    assert not list(hub.rglob("training_args.bin"))
