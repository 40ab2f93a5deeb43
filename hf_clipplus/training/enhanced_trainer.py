"""EnhancedTrainer: labels that images bring along, and adversarial batches, for any contrastive model."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback

from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.evaluation.attacked import PixelAttack
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification
from hf_clipplus.ops.distributed import world_size

from .adversary import Adversary
from .arguments import ContrastiveTrainingArguments
from .evaluating_trainer import EvaluatingTrainer
from .self_labels import STATE_FILE, SelfLabels


class EnhancedTrainer(EvaluatingTrainer):
    """`EvaluatingTrainer` with what `EnhancementArguments` describe; a trainer of a loss calls what is here.

    Class attributes:
        refuses_enhancements: why a trainer can have none of it; None where it can.
    """

    args: ContrastiveTrainingArguments
    refuses_enhancements: str | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.refuses_enhancements and (self.args.self_labels or self.args.adversarial):
            raise ValueError(f"self_labels and adversarial cannot be used here: {self.refuses_enhancements}")
        self.self_labels = self._make_self_labels() if self.args.self_labels else None
        self.adversary = self._make_adversary() if self.args.adversarial else None
        if self.self_labels is not None:
            self.add_callback(_ZeroGradients(self.self_labels.heads))
        if self.args.eval_attack_radius is not None and not self._zero_shot_evaluators():
            raise ValueError("eval_attack_radius attacks zero-shot classification, and no evaluator here does that.")

    def evaluate(self, *args, **kwargs):
        """As `EvaluatingTrainer.evaluate`, zero-shot classification also under attack where that is asked for."""
        if self.args.eval_attack_radius is not None:
            for evaluator in self._zero_shot_evaluators():
                evaluator.attack = PixelAttack(self.args.eval_attack_radius)
        return super().evaluate(*args, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with the heads of the labels as further parameter groups."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.self_labels is not None:
            for group in self.self_labels.parameter_groups(self.args.weight_decay):
                optimizer.add_param_group(group)
        return optimizer

    def _zero_shot_evaluators(self) -> list[ZeroShotClassification]:
        return [evaluator for evaluator in self.evaluators if isinstance(evaluator, ZeroShotClassification)]

    def _make_self_labels(self) -> SelfLabels:
        args = self.args
        if self.optimizer is not None:
            raise ValueError("self_labels have heads to train: leave the optimizer to the Trainer.")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("self_labels keep their heads beside the model, which DeepSpeed and FSDP do not train.")
        weights, rows = args.self_label_weights, self.train_dataset
        if "clusters" in weights and hasattr(rows, "__len__") and len(rows) < args.label_clusters:
            raise ValueError(f"label_clusters={args.label_clusters}, but the data set has {len(rows)} images only.")
        return SelfLabels(
            weights,
            self.accelerator.unwrap_model(self.model).config,
            self._pixel_scale("self_labels"),
            clusters=args.label_clusters,
            refresh_steps=args.label_cluster_steps,
            seed=args.seed,
            device=args.device,
        )

    def _make_adversary(self) -> Adversary:
        args = self.args
        if args.gradient_cache_chunk_size is not None:
            raise ValueError(
                "adversarial cannot be used with gradient_cache_chunk_size: an attack needs the gradient of the whole "
                "batch's loss at once. Gradient checkpointing and more processes save memory too."
            )
        return Adversary(
            args.adversarial,
            radius=args.adversarial_radius,
            steps=args.adversarial_steps,
            seed=args.seed,
            scale=self._pixel_scale("adversarial"),
        )

    def _pixel_scale(self, wanted_by: str) -> PixelScale:
        processor = self.processing_class or getattr(self.data_collator, "processor", None)
        if processor is None:
            raise ValueError(f"{wanted_by} needs to know how pixels were normalised: pass processing_class.")
        return PixelScale.of(processor)

    def _adversarial_loss(self, model, inputs: dict):
        """The outputs that are looked at further, and the loss: of the adversarial batch alone or of both."""
        share = self.args.adversarial_share
        clean = model(**inputs) if share < 1 else None
        scaler = self.accelerator.scaler
        loss_scale = scaler.get_scale() if scaler is not None else 1.0
        unwrapped = self.accelerator.unwrap_model(model)
        with self.adversary.against(unwrapped, inputs, self.state.global_step, loss_scale) as attacked:
            outputs = model(**attacked)
        self._remember({"loss_adversarial": outputs["loss"]})
        if clean is None:
            return outputs, outputs["loss"]
        return clean, (1 - share) * clean["loss"] + share * outputs["loss"]

    def _self_label_loss(self, image_embeds, pixel_values, cluster_features) -> torch.Tensor:
        loss, statistics = self.self_labels.losses(
            image_embeds, pixel_values, cluster_features, self.state.global_step
        )
        self._remember(statistics)
        return loss

    def _cluster_features(self, inputs: dict) -> torch.Tensor | None:
        """`[N, Df]` of a frozen model, where they are what is clustered."""
        wanted = self.self_labels is not None and self.self_labels.clusters is not None
        if not (wanted and self.args.label_cluster_features == "frozen_model"):
            return None
        if "mining_image_features" in inputs:
            return inputs["mining_image_features"]
        if self.mining_model is None or "mining_pixel_values" not in inputs:
            raise ValueError(
                "label_cluster_features='frozen_model' needs ContrastiveTrainer(mining_model=...) and a collator with "
                "mining_processor=..., or a column mining_image_features."
            )
        with torch.no_grad(), self.accelerator.autocast():
            return self.mining_model.get_image_features(inputs["mining_pixel_values"]).pooler_output.float()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.self_labels is not None and self.args.should_save:
            torch.save(self.self_labels.state_dict(), Path(output_dir) / STATE_FILE)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        file = None if checkpoint is None else Path(checkpoint) / STATE_FILE
        if file is not None and file.exists() != (self.self_labels is not None):
            given, now = ("with", "without") if file.exists() else ("without", "with")
            raise ValueError(
                f"{checkpoint} is of a run {given} self_labels, this one is {now}: they cannot be joined."
            )
        if file is not None and self.self_labels is not None:
            state = torch.load(file, map_location="cpu", weights_only=True)
            try:
                self.self_labels.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(
                    f"{file} has other labels than self_labels={self.args.self_labels}: {error}"
                ) from error
        super()._load_optimizer_and_scheduler(checkpoint)


class _ZeroGradients(TrainerCallback):
    """After each step, for heads that are no part of the model: Trainer zeroes the model's gradients only."""

    def __init__(self, heads: nn.Module):
        self.heads = heads

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.heads.zero_grad()


def average_gradients(model: nn.Module) -> None:
    """Give every process the mean of the gradients of all; for what no DDP wraps."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
