"""FeedbackTrainer: trains DIVA's visual tower by diffusion feedback, and leaves a plain CLIP behind."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback

from .trainer import ContrastiveTrainer

# GenHancer's and DCR's settings (2503.19480, 2603.04803)
LORA_RANK, LORA_ALPHA, LORA_DROPOUT = 16, 16, 0.1


class FeedbackTrainer(ContrastiveTrainer):
    """`ContrastiveTrainer` (resume, evaluators, stop at a loss that is not finite) for `DIVAForDiffusionFeedback`.

    Tells the model the accumulation steps, which the published weighting of the draws' gradients depends on, and
    merges LoRA weights into the tower when training has ended, so that what is saved is a plain model.
    """

    refuses_enhancements = (
        "they need a contrastive loss of image and text embeddings, and the loss of diffusion feedback is that of a "
        "frozen diffusion model."
    )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "accumulation_steps": self.current_gradient_accumulation_steps}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            self.model = self.model_wrapped = model.merge_and_unload()
        return result


def with_lora(model: DIVAForDiffusionFeedback, *, train_projector: bool) -> PeftModel:
    """The model with low-rank updates on every linear layer of the visual tower, as the two-stage follow-ups train it.

    Args:
        model: with its generator attached.
        train_projector: whether the projector is trained in full beside them.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(("vision_model.", "visual_projection"))
    ]
    names = [name for name in names if ".head.attention." not in name]  # SigLIP's pooling reads these weights itself
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        bias="lora_only",
        target_modules=names,
        modules_to_save=["visual_proj"] if train_projector else None,
    )
    return get_peft_model(model, config)
