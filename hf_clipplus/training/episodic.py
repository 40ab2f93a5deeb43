"""EpisodicTrainer: Trainer for models that learn from episodes of a few labelled videos."""

import re
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import TrainingArguments

from .evaluating_trainer import EvaluatingTrainer
from .schedules import EpisodeSteps

# The published optimizer decays all but what its names call "bn" or "norm": CLIP's ln_* and downsample.1 are decayed
_PUBLISHED_NO_DECAY = re.compile(r"\.bn\d\.|^temporal_transformer\..*\.norm\.")


@dataclass
class EpisodicTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of `EpisodicTrainer`; a batch is a number of episodes."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the collator needs everything of an episode."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["query_labels"], metadata={"help": "What the model is scored on."}
    )
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Episodes of a step and process."})
    published_optimizer: bool = field(
        default=False,
        metadata={
            "help": "Adam with coupled weight decay on all but batch norms and the temporal transformer's norms, as "
            "published, instead of optim without decay on biases, norms and scalars."
        },
    )


class EpisodicTrainer(EvaluatingTrainer):
    """`EvaluatingTrainer` for episodes: several in a step, accumulation, and both parts of the loss in the log.

    Args:
        steps: CLIP-FSAR's schedule; None takes `lr_scheduler_type`.
        kwargs: of `EvaluatingTrainer` (evaluators, report) and `Trainer`. The checkpoint that is best on validation
            videos is kept with `load_best_model_at_end` and `metric_for_best_model="eval_<evaluator>_accuracy"`.
    """

    args: EpisodicTrainingArguments

    def __init__(self, *trainer_args, steps: EpisodeSteps | None = None, **kwargs):
        self.steps = steps
        super().__init__(*trainer_args, **kwargs)
        if self.args.published_optimizer:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            options = {"lr": self.args.learning_rate, "betas": betas, "eps": self.args.adam_epsilon}
            self.optimizer_cls_and_kwargs = (torch.optim.Adam, options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            correct = (outputs["logits"].detach().argmax(-1) == inputs["query_labels"]).float().mean()
            parts = {name: outputs[name] for name in ("loss_few_shot", "loss_video_text") if name in outputs}
            self._remember(parts | {"accuracy": correct})
            self._stop_if_not_finite(outputs["loss"].detach(), None)
        kept = {"loss": outputs["loss"], "logits": outputs["logits"]}
        return (outputs["loss"], kept) if return_outputs else outputs["loss"]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.published_optimizer:
            return [name for name, _ in model.named_parameters() if not _PUBLISHED_NO_DECAY.search(name)]
        dims = {name: parameter.ndim for name, parameter in model.named_parameters()}
        return [name for name in super().get_decay_parameter_names(model) if dims[name] >= 2]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.steps is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = self.steps.schedule(self.optimizer if optimizer is None else optimizer)
            self._created_lr_scheduler = True
        return self.lr_scheduler
