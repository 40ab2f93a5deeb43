"""EvaluatingTrainer: what the zoo's trainers add to Trainer whatever the loss is."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from hf_clipplus.data.report import DataReport

from .checkpoints import last_complete_checkpoint
from .push import PushingTrainer

logger = logging.get_logger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; names the step and the rows. The weights are those before the step."""


class EvaluatingTrainer(PushingTrainer):
    """`PushingTrainer` that runs evaluators, resumes from whole checkpoints only, and stops at a loss not finite.

    Args:
        evaluators: objects `(model, processor) -> dict` with a `name`, run at each evaluation; results are logged as
            `eval_<name>_<metric>`.
        report: what reading the data skipped; its summary is logged at the end.
        kwargs: of `Trainer`.

    Raises:
        ValueError: weights to be trained are float16: steps are lost in it, and activations overflow.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *trainer_args, evaluators: Sequence[Callable] = (), report: DataReport | None = None, **kwargs):
        if evaluators and kwargs.get("eval_dataset") is None:
            kwargs["eval_dataset"] = []  # Trainer wants one for any eval_strategy; the evaluators bring their own
        super().__init__(*trainer_args, **kwargs)
        half = [
            name for name, each in self.model.named_parameters() if each.requires_grad and each.dtype == torch.float16
        ]
        if half:
            raise ValueError(
                f"{len(half)} weights to be trained are float16 ({half[0]}, ...): load the model with "
                "dtype=torch.float32, and give bf16=True or fp16=True for mixed precision."
            )
        self.evaluators = list(evaluators)
        self._statistics: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.add_callback(_Rounds(self, report))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As `Trainer.train`; True resumes from the last checkpoint that was written to its end."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no whole checkpoint in {self.args.output_dir} to resume from.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        """As `Trainer.log`, with the means of what `_remember` was given since the last training record."""
        if "loss" in logs and self._statistics:
            # nan says that a batch had no such number
            logs |= {key: torch.stack(values).float().nanmean().item() for key, values in self._statistics.items()}
            self._statistics.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Loss on the evaluation set, if there is one, and every evaluator; all in one record of the log."""
        metrics = {}
        if eval_dataset or self.eval_dataset:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.evaluators:
            model = self.accelerator.unwrap_model(self.model)
            for evaluator in self.evaluators:
                found = evaluator(model, self.processing_class)
                metrics |= {f"{metric_key_prefix}_{evaluator.name}_{key}": value for key, value in found.items()}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _remember(self, statistics: dict[str, torch.Tensor]) -> None:
        for key, value in statistics.items():
            self._statistics[key].append(value.detach())

    def _stop_if_not_finite(self, loss: torch.Tensor, example_index: torch.Tensor | None) -> None:
        if torch.isfinite(loss):
            return
        rows = "unknown" if example_index is None else ", ".join(map(str, example_index.tolist()))
        raise NonFiniteLossError(
            f"The loss is {loss.item()} at step {self.state.global_step + 1}; rows of the batch: {rows}. Nothing was "
            f"written after it: resume from the last checkpoint in {self.args.output_dir} with a lower learning rate, "
            "gradient clipping (max_grad_norm) or bf16 instead of fp16, or look at those rows."
        )


class _Rounds(TrainerCallback):
    """Tells the data set its epoch, reports at the end what the data lost."""

    def __init__(self, trainer: EvaluatingTrainer, report: DataReport | None):
        self.trainer, self.report = trainer, report

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate tells the data set only when no sampler listens, and then not in every process
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch + 1e-6))

    def on_train_end(self, args, state, control, **kwargs):
        if self.report is not None and (summary := self.report.summary()):
            logger.warning(summary)
