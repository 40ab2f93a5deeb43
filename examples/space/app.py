"""A page to try the zoo's models on pictures and clips: zero-shot names, segments, heat maps, few-shot classes.

    python examples/space/prepare.py && python examples/space/app.py     # or: make space

The same folder is a Space of the Hub; README.md beside this file says how it gets there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import actions
import gradio as gr
from models import DEMO, TABS, Shelf, SorryError

from hf_clipplus.training import parse_arguments

HERE = Path(__file__).resolve().parent
OUTPUTS = HERE.parents[1] / "outputs" if len(HERE.parents) > 1 else HERE / "outputs"
FOLDER = HERE if (HERE / "models").is_dir() else OUTPUTS / "space"
GROUPS = 3
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
HEADER = """
<header>
<h1>Pictures meet words</h1>
<p>Give a picture and some words, and see what a model that learned from captions makes of them. The models of this
demo are tiny and have seen 1,722 drawings and nothing else: they are often wrong, and most of all on photos.</p>
</header>
"""
WORDS = "tiger, boat, flower, house, truck, bird, fruit"
# sample -> words that go with it
SCENE_WORDS = {
    10: ("tiger, planet", "tiger"),
    3: ("cat, computer", "cat"),
    6: ("flower, bird, woman", "rose"),
    1: ("insect, fruit, bus, shoe", "insect"),
    9: ("cake, shoe", "shoe"),
}


@dataclass
class AppArguments:
    """What is served, and where."""

    folder: str = field(default=str(FOLDER), metadata={"help": "Has models/ and samples/; prepare.py makes it."})
    port: int = field(default=7860, metadata={"help": "Port of the page; 0 takes a free one."})
    host: str = field(default="127.0.0.1", metadata={"help": "0.0.0.0 lets other machines in."})


class AnyFile(gr.Image):
    """A picture's file as it was given, so that what is no picture is refused in words."""

    is_template = True

    def preprocess(self, payload):
        return None if payload is None else payload.path


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
                self.pictures_tab()
                self.videos_tab()
            with gr.Accordion("Use another model", open=False):
                self.model_list()

    # tabs

    def name_tab(self) -> None:
        with gr.Tab("Name", id="name"):
            self.lead("name", "Which of your words fits the picture best?")
            picture, words = self.picture(), self.words("Words, with commas between them", WORDS)
            files = sorted((self.samples / "name").glob("*.png"))
            samples = self.examples([[str(file), WORDS] for file in files], [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    go = self.button("name", "Find the word")
                with gr.Column():
                    shown = gr.Label(label="How well each word fits", num_top_classes=8, elem_classes="result")
                    caption = self.caption()
            run = self.answer("name", actions.name_picture)
            self.on((go, samples), run, [picture, words], [shown, caption])

    def segment_tab(self) -> None:
        with gr.Tab("Segment", id="segment"):
            self.lead("segment", "Which part of the picture is what?")
            picture, words = self.picture(), self.words("Things, with commas between them", "tiger, planet")
            samples = self.examples(self.scenes(0), [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    sureness = gr.Slider(0, 1, 0.5, step=0.05, label="Colour only what fits at least this well")
                    go = self.button("segment", "Colour the parts")
                with gr.Column():
                    shown, caption = self.drawing("The parts in colours"), self.caption()
            run = self.answer("segment", actions.segment_picture)
            self.on((go, samples), run, [picture, words, sureness], [shown, caption])

    def find_tab(self) -> None:
        with gr.Tab("Find", id="find"):
            self.lead("find", "Where in the picture is it?")
            picture, words = self.picture(), self.words("What to find", "tiger", lines=1)
            samples = self.examples(self.scenes(1), [picture, words])
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture.render(), words.render()
                    go = self.button("find", "Find it")
                with gr.Column():
                    shown, caption = self.drawing("Where it looks most like it"), self.caption()
            run = self.answer("find", actions.find_in_picture)
            self.on((go, samples), run, [picture, words], [shown, caption])

    def pictures_tab(self) -> None:
        with gr.Tab("Teach", id="pictures"):
            self.lead("pictures", "Show a few pictures of each kind, then ask about a new one.")
            fill = gr.Button("Fill in an example", variant="secondary", size="sm", elem_classes="fill")
            names, groups = self.groups("picture", "image")
            with gr.Row(equal_height=False):
                with gr.Column():
                    picture = self.picture("The new picture").render()
                    go = self.button("pictures", "Which kind is it?")
                with gr.Column():
                    shown = gr.Label(label="How well each kind fits", elem_classes="result")
                    caption = self.caption()
            run = self.answer("pictures", self.grouped(actions.learn_from_pictures))
            self.on((go,), run, [*names, *groups, picture], [shown, caption])
            fill.click(partial(self.taught, "pictures", "*.png"), None, [*names, *groups, picture]).success(
                run, [self.chosen, *names, *groups, picture], [shown, caption], **ONE_AT_A_TIME
            )

    def videos_tab(self) -> None:
        with gr.Tab("Videos", id="videos"):
            self.lead("videos", "Show a few clips of each kind, then ask about a new one.")
            fill = gr.Button("Fill in an example", variant="secondary", size="sm", elem_classes="fill")
            names, groups = self.groups("clip", "video")
            with gr.Row(equal_height=False):
                with gr.Column():
                    video = gr.Video(label="The new clip", sources=["upload"], height=260)
                    go = self.button("videos", "Which kind is it?")
                with gr.Column():
                    shown = gr.Label(label="How well each kind fits", elem_classes="result")
                    drawn, caption = self.drawing("Which moments match", height=360), self.caption()
            run = self.answer("videos", self.grouped(actions.learn_from_videos))
            self.on((go,), run, [*names, *groups, video], [shown, drawn, caption])
            fill.click(partial(self.taught, "videos", "*.mp4"), None, [*names, *groups, video]).success(
                run, [self.chosen, *names, *groups, video], [shown, drawn, caption], **ONE_AT_A_TIME
            )

    def model_list(self) -> None:
        """The list of models, and what the tabs say when another is chosen."""
        wish = gr.Dropdown(
            self.shelf.choices(),
            value=DEMO,
            allow_custom_value=True,
            label="Model",
            info="Choose one, or write the name of a repository on the Hub (owner/name) or a folder, and press Use it.",
        )
        use = gr.Button("Use it", size="sm", elem_classes="fill")
        said = gr.Markdown(elem_id="model-said")
        outputs = [self.chosen, said, *self.notes.values(), *self.buttons.values()]
        use.click(self.choose, wish, outputs, **ONE_AT_A_TIME)

    # parts of tabs

    def lead(self, tab: str, question: str) -> None:
        gr.Markdown(f"### {question}")
        self.notes[tab] = gr.Markdown(self.note(DEMO, tab)[0], elem_classes="note")

    def picture(self, label: str = "Picture") -> gr.Image:
        return AnyFile(
            label=label, type="filepath", image_mode=None, sources=["upload"], height=260, render=False
        )

    def words(self, label: str, value: str, lines: int = 2) -> gr.Textbox:
        return gr.Textbox(value, label=label, lines=lines, render=False)

    def examples(self, rows: list[list[str]], inputs: list) -> gr.Examples:
        """Pictures to click; their words are filled in too."""
        return gr.Examples(rows, inputs, visible_columns=[0], label="Click a drawing, or add a picture of your own")

    def button(self, tab: str, label: str) -> gr.Button:
        self.buttons[tab] = gr.Button(label, variant="primary", interactive=self.note(DEMO, tab)[1])
        return self.buttons[tab]

    def drawing(self, label: str, height: int | None = None) -> gr.Image:
        return gr.Image(label=label, interactive=False, height=height, buttons=["download"], elem_classes="result")

    def caption(self) -> gr.Markdown:
        return gr.Markdown("The answer appears here.", elem_classes="caption")

    def groups(self, what: str, kind: str) -> tuple[list[gr.Textbox], list[gr.Gallery]]:
        """Names and files of the classes that a visitor teaches."""
        names, files = [], []
        with gr.Row(equal_height=False):
            for number in range(1, GROUPS + 1):
                optional = " (optional)" if number > 2 else ""
                with gr.Column(min_width=220, variant="panel"):
                    names.append(gr.Textbox(label=f"Group {number}{optional}", placeholder=f"What do these {what}s show?"))
                    files.append(
                        gr.Gallery(
                            label=f"{what.capitalize()}s of group {number}",
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
        files = ((self.samples / "scenes" / f"{number}.png", words[column]) for number, words in SCENE_WORDS.items())
        return [[str(file), words] for file, words in files if file.is_file()]

    def taught(self, folder: str, pattern: str) -> list[Any]:
        """An example for a tab that learns: names, files and the new one."""
        teach, ask = self.samples / folder / "teach", self.samples / folder / "ask"
        names = [path.name for path in sorted(teach.iterdir())]
        files = [[str(file) for file in sorted((teach / name).glob(pattern))] for name in names]
        left = GROUPS - len(names)
        return [*names, *[""] * left, *files, *[None] * left, str(next((ask / names[-1]).glob(pattern)))]

    # what happens

    def on(self, triggers: tuple, run: Callable, inputs: list, outputs: list) -> None:
        """Run when a button is pressed, and when an example has been filled in."""
        for trigger in triggers:
            listen = trigger.click if isinstance(trigger, gr.Button) else trigger.load_input_event.success
            listen(run, [self.chosen, *inputs], outputs, **ONE_AT_A_TIME)

    def answer(self, tab: str, action: Callable) -> Callable:
        """The action of a tab with the model that serves it; what the visitor should mend comes up as a message."""

        def run(progress=gr.Progress(), *given):
            choice, *given = given
            try:
                progress(0, desc="Getting the model")
                loaded = self.shelf.of_tab(choice, tab)
                progress(0.2, desc="Looking")
                return action(loaded, *given, *([progress] if tab in ("pictures", "videos") else []))
            except SorryError as error:
                raise gr.Error(str(error), title="One thing first", duration=12, print_exception=False) from error

        return run

    @staticmethod
    def grouped(action: Callable) -> Callable:
        """The action with its flat inputs put into names and groups of files."""

        def run(loaded, *given):
            names, groups, (asked, progress) = given[:GROUPS], given[GROUPS : 2 * GROUPS], given[2 * GROUPS :]
            files = [[file for file, _ in group or ()] for group in groups]
            return action(loaded, names, files, asked, lambda share, what: progress(share, desc=what))

        return run

    def note(self, choice: str, tab: str) -> tuple[str, bool]:
        """What a tab says of its model, and whether the model serves it."""
        try:
            found = self.shelf.of_tab(choice, tab)
        except SorryError as error:
            return f"**Not with this model.** {error}", False
        return f"Model: {found.title}{found.trained and f', {found.trained}'}.", True

    def choose(self, wish: str):
        """Take a model for all tabs."""
        choice = wish or DEMO
        try:
            title = "For each tab its own model" if choice == DEMO else self.shelf.load(choice).title
        except SorryError as error:
            raise gr.Error(str(error), title="No model", duration=15, print_exception=False) from error
        notes = {tab: self.note(choice, tab) for tab in TABS}
        usable = [tab for tab in TABS if notes[tab][1]]
        said = f"{title}: {len(usable)} of {len(TABS)} tabs work with it."
        return [
            choice,
            said,
            *(notes[tab][0] for tab in self.notes),
            *(gr.Button(interactive=notes[tab][1]) for tab in self.buttons),
        ]


def theme() -> gr.themes.Base:
    """Colours, and fonts that every machine has: nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=SYSTEM_FONTS, font_mono=SYSTEM_FONTS
    ).set(
        block_label_background_fill="white",
        block_label_text_color="*body_text_color",
        block_label_shadow="none",
        block_title_background_fill="transparent",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_shadow="none",
        body_background_fill="white",
        body_text_color_subdued="*neutral_600",
    )


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((AppArguments,), __doc__, argv)
    folder = Path(args.folder)
    if not (folder / "models").is_dir():
        raise SystemExit(f"{folder} has no models: run examples/space/prepare.py first, or say --folder.")
    page = Page(Shelf(folder, OUTPUTS), folder / "samples")
    page.blocks.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", args.host),
        server_port=args.port or None,
        theme=theme(),
        css_paths=HERE / "style.css",
        allowed_paths=[str(folder / "samples")],
        max_file_size="50mb",
        footer_links=[],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
