"""`Trainer` that pushes: the model, its card and its numbers go up by one commit, the state of the training stays."""

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from .adapter_base import ADAPTER_CONFIG, FOLDER, base_id, publish_adapter
from .publish import publish
from .trainer_card import RESULTS_FILE, write_card

# Trainer uploads all of output_dir: training_args.bin (a pickle that nothing reads), logs, whatever else lies there
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    RESULTS_FILE,
)


class PushingTrainer(Trainer):
    """`Trainer` that uploads what `from_pretrained` reads and a card, nothing else; an adapter's base before it.

    With `hub_strategy="checkpoint"` or `"all_checkpoints"` the whole checkpoints go up too, pickles included: resuming
    needs them.
    """

    def create_model_card(self, model_name: str | None = None, dataset: str | None = None, **kwargs) -> None:
        """Write `README.md` and `results.json` in `output_dir` from what the trainer saw.

        Args:
            model_name: title of the card; the name of `output_dir` when None.
            dataset: Hub id, or another name, of the training data.
            kwargs: `license`, `language`, `tags` and other metadata of the card.
        """
        if self._base_folder() is not None:
            kwargs = {"base_model": base_id(self.hub_model_id or ""), "base_model_relation": "adapter"} | kwargs
        if self.is_world_process_zero():
            write_card(self, model_name or Path(self.args.output_dir).absolute().name, dataset, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """As `Trainer.push_to_hub`; `kwargs` are of `create_model_card`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token or self.args.hub_token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        options = {"token": token, "revision": revision}
        return self._publish(commit_message, **options) if blocking else self._publish_later(commit_message, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END or (busy and not self.args.hub_always_push):
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        patterns = self._model_files()
        for file in Path(checkpoint_folder).iterdir():  # copied first: the checkpoint may be rotated away meanwhile
            if any(fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copy(file, self.args.output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._publish_later(message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            jobs.append(
                hf_api().upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint_folder,
                    path_in_repo=name,
                    commit_message=f"{message}, checkpoint",
                    token=self.args.hub_token,
                    revision=self.args.hub_revision,
                    run_as_future=True,
                )
            )
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _publish_later(self, message: str, **options):
        return hf_api().run_as_future(self._publish, message, **options)

    def _publish(self, message: str, *, token: str | None = None, revision: str | None = None):
        patterns = self._model_files()
        files = {
            file.name: file
            for file in Path(self.args.output_dir).iterdir()
            if any(fnmatch(file.name, pattern) for pattern in patterns)
        }
        options = {"message": message, "token": token or self.args.hub_token}
        options["revision"] = revision or self.args.hub_revision
        if (base := self._base_folder()) is not None and ADAPTER_CONFIG in files:
            return publish_adapter(self.hub_model_id, files, base, **options)
        return publish(self.hub_model_id, files, **options)

    def _base_folder(self) -> Path | None:
        """Where the base of an adapter was saved (`adapter_base.save_base`), if it was."""
        folder = Path(self.args.output_dir) / FOLDER
        return folder if folder.is_dir() else None

    def _model_files(self) -> list[str]:
        if self.processing_class is None:
            return list(MODEL_FILES)
        with TemporaryDirectory() as folder:  # only the processor knows which files it writes
            self.processing_class.save_pretrained(folder)
            return [*MODEL_FILES, *os.listdir(folder)]
