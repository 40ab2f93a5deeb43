"""ContrastiveTrainer: Trainer for models whose loss sees the whole batch of all processes."""

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from hf_clipplus.ops.distributed import world_size

from .arguments import ContrastiveTrainingArguments
from .enhanced_trainer import EnhancedTrainer, average_gradients
from .gradient_cache import cached_backward, check_can_be_cached
from .schedules import groupvit_schedule, open_clip_schedule

logger = logging.get_logger(__name__)

MINING_INPUTS = ("mining_pixel_values", "mining_input_ids", "mining_attention_mask")


class ContrastiveTrainer(EnhancedTrainer):
    """`Trainer` plus what contrastive training needs; everything else (resume, logging) is Trainer's.

    - keeps the inverse temperature in [1, `max_logit_scale`] after each step;
    - no weight decay on biases, norms, scalars and vectors (logit scale and bias among them, unless `decay_scales`),
      nor on what the model names in `no_weight_decay`;
    - `lr_schedule`: the schedules of open_clip and of GroupViT;
    - logs scale, bias, mean positive and negative logit, and what was mined per image and branch;
    - `gradient_cache_chunk_size`: gradients of the whole batch in the memory of a chunk;
    - stops at a loss that is not finite, before it reaches the weights;
    - tells the model when the warm-up of online mining is over, or runs the frozen model that mines;
    - further objectives and adversarial batches, see `EnhancedTrainer`;
    - evaluators and a data report, see `EvaluatingTrainer`.

    Args:
        mining_model: frozen dual encoder whose features mine positives (`config.mining_features="frozen_model"`); the
            collator must have its processor as `mining_processor`.
        kwargs: of `EvaluatingTrainer` (evaluators, report) and `Trainer`.
    """

    args: ContrastiveTrainingArguments

    def __init__(self, *trainer_args, mining_model: nn.Module | None = None, **kwargs):
        super().__init__(*trainer_args, **kwargs)
        if self.args.gradient_cache_chunk_size is not None:
            check_can_be_cached(self.accelerator.unwrap_model(self.model))
        self.mining_model = mining_model
        if mining_model is not None:
            self.mining_model = mining_model.requires_grad_(False).eval().to(self.args.device)
            self._warn_of_other_calibration(mining_model)
        self.add_callback(_ClampScale(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        example_index = inputs.pop("example_index", None)
        cluster_features = self._cluster_features(inputs)
        inputs = self._with_mining(inputs) | {"return_loss": True}
        if not model.training:
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]
        if self.adversary is None:
            outputs = model(**inputs)
            loss = outputs["loss"]
        else:
            outputs, loss = self._adversarial_loss(model, inputs)
        if self.self_labels is not None:
            loss = loss + self._self_label_loss(outputs["image_embeds"], inputs["pixel_values"], cluster_features)
        if loss is not outputs["loss"]:
            self._remember({"loss_contrastive": outputs["loss"]})
        self._remember(outputs["statistics"])
        self._stop_if_not_finite(loss, example_index)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.args.gradient_cache_chunk_size is not None:
            loss = self._cached_step(model, inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.self_labels is not None and world_size() > 1 and self.accelerator.sync_gradients:
            average_gradients(self.self_labels.heads)  # which are no part of what DDP wraps
        return loss

    def _cached_step(self, model, inputs) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        cluster_features = self._cluster_features(inputs)
        inputs = self._with_mining(inputs)
        example_index = inputs.pop("example_index", None)
        inputs.pop("return_loss", None)
        accumulation = self.current_gradient_accumulation_steps

        def backward(loss: torch.Tensor) -> None:
            self._stop_if_not_finite(loss.detach(), example_index)
            scaled = loss / accumulation
            self.accelerator.scaler.scale(scaled).backward() if self.accelerator.scaler else scaled.backward()

        def further_loss(image_embeds: torch.Tensor) -> torch.Tensor:
            return self._self_label_loss(image_embeds, inputs["pixel_values"], cluster_features)

        unwrapped = self.accelerator.unwrap_model(model)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            result = cached_backward(
                unwrapped,
                inputs,
                chunk_size=self.args.gradient_cache_chunk_size,
                backward=backward,
                further_loss=None if self.self_labels is None else further_loss,
            )
        if world_size() > 1 and self.accelerator.sync_gradients:
            average_gradients(unwrapped)  # the towers ran outside DDP, so its reducer has not seen them
        if self.self_labels is not None:
            self._remember({"loss_contrastive": result["contrastive_loss"]})
        self._remember(result["statistics"])
        return result["loss"] / accumulation

    def get_decay_parameter_names(self, model) -> list[str]:
        dims = {name: parameter.ndim for name, parameter in model.named_parameters()}
        scales, exempt = self.args.decay_scales, model.no_weight_decay()
        decayed = [name for name in super().get_decay_parameter_names(model) if name not in exempt]
        return [name for name in decayed if dims[name] >= 2 or (scales and dims[name] == 0)]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule = {"groupvit": groupvit_schedule, "open_clip": open_clip_schedule}[self.args.lr_schedule]
            self.lr_scheduler = schedule(
                self.optimizer if optimizer is None else optimizer,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                total_steps=num_training_steps,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs, *args, **kwargs):
        if "loss" in logs and self._statistics:
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                if name.endswith("logit_scale"):
                    logs[name] = parameter.exp().item()
                elif name.endswith("logit_bias"):
                    logs[name] = parameter.item()
        super().log(logs, *args, **kwargs)

    def _with_mining(self, inputs: dict) -> dict:
        """The batch with what the model mines from."""
        inputs = dict(inputs)
        mining = {name: inputs.pop(name) for name in MINING_INPUTS if name in inputs}
        config = self.accelerator.unwrap_model(self.model).config
        source = getattr(config, "mining_features", None)
        if source == "online":
            inputs["mine_online"] = self.state.global_step >= config.mining_warmup_steps
        if source == "frozen_model":
            if self.mining_model is None or not mining:
                raise ValueError(
                    "config.mining_features='frozen_model' needs ContrastiveTrainer(mining_model=...) and a collator "
                    "with mining_processor=...; use 'precomputed' to mine from columns of the data set."
                )
            with torch.no_grad(), self.accelerator.autocast():
                images = self.mining_model.get_image_features(mining["mining_pixel_values"])
                texts = self.mining_model.get_text_features(
                    mining["mining_input_ids"], attention_mask=mining.get("mining_attention_mask")
                )
            inputs["mining_image_features"] = images.pooler_output.float()
            inputs["mining_text_features"] = texts.pooler_output.float()
        return inputs

    def _warn_of_other_calibration(self, mining_model: nn.Module) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        name = getattr(mining_model, "name_or_path", "")
        calibrated = getattr(config, "mining_model_name", None)
        if calibrated and name and name != calibrated:
            logger.warning(
                f"The thresholds of mining were calibrated on {calibrated!r}, but {name!r} mines: "
                "thresholds of one feature model mean nothing for another. Run hf_clipplus.training.calibrate."
            )


class _ClampScale(TrainerCallback):
    """Keeps the inverse temperature in its limits after each step."""

    def __init__(self, trainer: ContrastiveTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.trainer.accelerator.unwrap_model(self.trainer.model).clamp_logit_scale(args.max_logit_scale)
