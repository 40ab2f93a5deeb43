"""What the page shows, and what happens when something on it is pressed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import actions
import gradio as gr
from models import DEMO, TABS, Shelf, SorryError

GROUPS = 3
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
PROGRESS = gr.Progress()
HEADER = """
<header>
<h1>Pictures meet words</h1>
<p>Give a picture and some words, and see what a model that learned from captions makes of them. The models of this
demo are tiny and have seen 1,722 drawings and nothing else: they are often wrong, and most of all on photos.</p>
</header>
"""
WAITING = "The answer appears here."
WORDS = "tiger, boat, flower, house, truck, bird, fruit"
# sample -> words that go with it: things to colour, a thing to find
SCENE_WORDS = {
    10: ("tiger, planet, blue background", "planet"),
    9: ("cake, shoe, green background", "cake"),
    12: ("headphones, sign, pink background", "headphones"),
    6: ("flower, bird, woman, blue background", "rose"),
    1: ("fruit, insect, bus, shoe, green background", "fruit"),
}


class Page:
    """The page's parts and what happens between them.

    Args:
        shelf: the models.
        samples: folder that prepare.py wrote.
    """

    def __init__(self, shelf: Shelf, samples: Path):
        self.shelf, self.samples = shelf, samples
        self.notes: dict[str, gr.Markdown] = {}
        self.buttons: dict[str, gr.Button] = {}
        with gr.Blocks(title="Pictures meet words", analytics_enabled=False) as self.blocks:
            gr.HTML(HEADER, padding=False, elem_classes="top")
            self.chosen = gr.State(DEMO)
            with gr.Tabs():
                self.name_tab()
                self.segment_tab()
                self.find_tab()
                self.teach_tab("pictures", "Teach", "picture", "*.png", actions.learn_from_pictures)
                self.teach_tab("videos", "Videos", "clip", "*.mp4", actions.learn_from_videos)
            with gr.Accordion("Use another model", open=False):
                self.model_list()

    # tabs

    def name_tab(self) -> None:
        with gr.Tab("Name", id="name"):
            self.lead("name", "Which of your words fits the picture best?")
            files = sorted((self.samples / "name").glob("*.png"))
            picture, words = self.picture(), self.words("Words, with commas between them", WORDS)
            samples = self.examples([[str(file), WORDS] for file in files], [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    go = self.button("name", "Find the word")
                with gr.Column():
                    shown, caption = gr.Label(label="How well each word fits", num_top_classes=8), self.caption()
            self.on("name", (go, samples), actions.name_picture, [picture, words], [shown, caption])

    def segment_tab(self) -> None:
        with gr.Tab("Segment", id="segment"):
            self.lead("segment", "Which part of the picture is what?")
            picture, words = self.picture(), self.words("Things, with commas between them", self.scenes(0)[0][1])
            samples = self.examples(self.scenes(0), [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    sureness = gr.Slider(0, 1, 0.4, step=0.05, label="Colour only what fits at least this well")
                    go = self.button("segment", "Colour the parts")
                with gr.Column():
                    shown, caption = self.drawing("The parts in colours"), self.caption()
            self.on("segment", (go, samples), actions.segment_picture, [picture, words, sureness], [shown, caption])

    def find_tab(self) -> None:
        with gr.Tab("Find", id="find"):
            self.lead("find", "Where in the picture is it?")
            picture, words = self.picture(), self.words("What to find", self.scenes(1)[0][1], lines=1)
            samples = self.examples(self.scenes(1), [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    go = self.button("find", "Find it")
                with gr.Column():
                    shown, caption = self.drawing("Where it looks most like it"), self.caption()
            self.on("find", (go, samples), actions.find_in_picture, [picture, words], [shown, caption])

    def teach_tab(self, tab: str, title: str, what: str, pattern: str, action: Callable) -> None:
        """A tab that learns from a few pictures or clips, in groups that the visitor names."""
        of_clips = what == "clip"
        with gr.Tab(title, id=tab):
            self.lead(tab, f"Show a few {what}s of each kind, then ask about a new one.")
            fill = gr.Button("Fill in an example", variant="secondary", size="sm", elem_classes="small")
            names, groups = self.groups(what, "video" if of_clips else "image")
            with gr.Row(equal_height=False):
                with gr.Column():
                    if of_clips:
                        new = gr.Video(label="The new clip", sources=["upload"], height=260)
                    else:
                        new = self.picture("The new picture").render()
                    go = self.button(tab, "Which kind is it?")
                with gr.Column():
                    shown = [gr.Label(label="How well each kind fits")]
                    shown += [self.drawing("Which moments match", height=360)] if of_clips else []
                    shown.append(self.caption())

            def run(loaded, *given):
                *flat, asked, tell = given
                files = [[file for file, _ in group or ()] for group in flat[GROUPS:]]
                return action(loaded, flat[:GROUPS], files, asked, tell)

            inputs = [*names, *groups, new]
            filled = fill.click(lambda: self.taught(tab, pattern), None, inputs)
            self.on(tab, (go, filled), run, inputs, shown)

    def model_list(self) -> None:
        """The list of models, and what the tabs say when another is chosen."""
        wish = gr.Dropdown(
            self.shelf.choices(),
            value=DEMO,
            allow_custom_value=True,
            label="Model",
            info="Choose one, or write the name of a repository on the Hub (owner/name) or a folder.",
        )
        use = gr.Button("Use it", size="sm", elem_classes="small")
        said = gr.Markdown(elem_classes="said")
        outputs = [self.chosen, said, *self.notes.values(), *self.buttons.values()]
        use.click(self.choose, wish, outputs, **ONE_AT_A_TIME)

    # parts of tabs

    def lead(self, tab: str, question: str) -> None:
        gr.Markdown(f"### {question}")
        self.notes[tab] = gr.Markdown(self.note(DEMO, tab)[0], elem_classes="note")

    def picture(self, label: str = "Picture") -> gr.Image:
        """A picture's file as it was given, so that what is no picture is refused in words."""
        found = gr.Image(label=label, type="filepath", sources=["upload"], height=260, render=False)
        found.preprocess = lambda payload: None if payload is None else payload.path
        return found

    def words(self, label: str, value: str, lines: int = 2) -> gr.Textbox:
        return gr.Textbox(value, label=label, lines=lines, render=False)

    def examples(self, rows: list[list[str]], inputs: list) -> Any:
        """Pictures to click, whose words are filled in too; gives the event after that."""
        label = "Click a drawing, or add a picture of your own"
        return gr.Examples(rows, inputs, visible_columns=[0], label=label).load_input_event

    def button(self, tab: str, label: str) -> gr.Button:
        self.buttons[tab] = gr.Button(label, variant="primary", interactive=self.note(DEMO, tab)[1])
        return self.buttons[tab]

    def drawing(self, label: str, height: int | None = None) -> gr.Image:
        return gr.Image(label=label, interactive=False, height=height, buttons=["download"])

    def caption(self) -> gr.Markdown:
        return gr.Markdown(WAITING, elem_classes="caption")

    def groups(self, what: str, kind: str) -> tuple[list[gr.Textbox], list[gr.Gallery]]:
        """Names and files of the kinds that a visitor teaches."""
        names, files = [], []
        with gr.Row(equal_height=False):
            for number in range(1, GROUPS + 1):
                label = f"Kind {number}{' (optional)' if number > 2 else ''}"
                with gr.Column(min_width=220, variant="panel"):
                    names.append(gr.Textbox(label=label, placeholder=f"What do these {what}s show?"))
                    files.append(
                        gr.Gallery(
                            label=f"{what.capitalize()}s of kind {number}",
                            show_label=False,
                            file_types=[kind],
                            columns=3,
                            height=150,
                            interactive=True,
                            allow_preview=False,
                            sources=["upload"],
                            elem_classes="taught",
                        )
                    )
        return names, files

    def scenes(self, column: int) -> list[list[str]]:
        return [
            [str(self.samples / "scenes" / f"{number}.png"), words[column]] for number, words in SCENE_WORDS.items()
        ]

    def taught(self, folder: str, pattern: str) -> list[Any]:
        """An example for a tab that learns: names, files and the new one."""
        teach, ask = self.samples / folder / "teach", self.samples / folder / "ask"
        names = [path.name for path in sorted(teach.iterdir())]
        files = [[str(file) for file in sorted((teach / name).glob(pattern))] for name in names]
        left = GROUPS - len(names)
        return [*names, *[""] * left, *files, *[None] * left, str(next((ask / names[-1]).glob(pattern)))]

    # what happens

    def warm_up(self) -> None:
        """Name a picture before anybody waits for it: the models are loaded, the first pass is the slowest."""
        for picture in sorted((self.samples / "name").glob("*.png"))[:1]:
            actions.name_picture(self.shelf.of_tab(DEMO, "name"), str(picture), WORDS)

    def on(self, tab: str, triggers: tuple, action: Callable, inputs: list, outputs: list) -> None:
        """Run a tab's action with its model when its button is pressed, and after an example has been filled in."""

        def run(progress=PROGRESS, *given):
            choice, *given = given
            try:
                progress(0, desc="Getting the model")
                loaded = self.shelf.of_tab(choice, tab)
                progress(0.2, desc="Looking")
                tell = [lambda share, what: progress(share, desc=what)] if tab in ("pictures", "videos") else []
                return action(loaded, *given, *tell)
            except SorryError as error:
                raise gr.Error(str(error), title="One thing first", duration=12, print_exception=False) from error

        for trigger in triggers:
            listen = trigger.click if isinstance(trigger, gr.Button) else trigger.success
            listen(run, [self.chosen, *inputs], outputs, show_progress_on=outputs[0], **ONE_AT_A_TIME)

    def note(self, choice: str, tab: str) -> tuple[str, bool]:
        """What a tab says of its model, and whether the model serves it."""
        try:
            found = self.shelf.of_tab(choice, tab)
        except SorryError as error:
            return f"**Not with this model.** {error}", False
        return f"Model: {found.title}{found.trained and f', {found.trained}'}.", True

    def choose(self, wish: str):
        """Take a model for all tabs."""
        choice = (wish or DEMO).strip()
        try:
            title = "For each tab its own model" if choice == DEMO else self.shelf.load(choice).title
        except SorryError as error:
            raise gr.Error(str(error), title="No such model", duration=15, print_exception=False) from error
        notes = {tab: self.note(choice, tab) for tab in TABS}
        usable = sum(works for _, works in notes.values())
        return [
            choice,
            f"{title}: {usable} of {len(TABS)} tabs work with it.",
            *(notes[tab][0] for tab in self.notes),
            *(gr.Button(interactive=notes[tab][1]) for tab in self.buttons),
        ]
