"""What the zoo's PEFT methods share: layers that hold several adapters and cannot be merged, and strict loading."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from torch import nn
from transformers import PreTrainedModel


class UnmergeableLayer(BaseTunerLayer):
    """A layer whose adapters do what the layer that they wrap cannot express.

    A subclass sets `why_not_merged`, and calls `start` in `__init__`.
    """

    why_not_merged: str

    def start(self, base_layer: nn.Module, adapter_name: str) -> None:
        """The state that PEFT expects of a layer."""
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = [adapter_name]

    def one_active(self, of: nn.Module) -> str | None:
        """The active adapter among those in a container, None if there is none or adapters are disabled.

        Raises:
            ValueError: several are active.
        """
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in of]
        if len(active) > 1:
            raise ValueError(f"only one adapter can be active at a time, active are {active}.")
        return active[0] if active else None

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(self.why_not_merged)

    def unmerge(self) -> None:
        raise NotImplementedError(self.why_not_merged)


class UnmergeableTuner(BaseTuner):
    """A tuner of such layers. A subclass says how a layer is made: `_wrap`."""

    def _wrap(self, target: nn.Module, adapter_name: str, config: Any, key: str) -> UnmergeableLayer:
        """The layer around `target`, whose path in the model is `key`.

        Raises:
            TypeError: the method does not fit such a module.
        """
        raise NotImplementedError

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                target.set_adapter(self.active_adapters)
            return
        layer = self._wrap(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # the inherited one copies child.weight, which these have not

    def unload(self) -> nn.Module:
        """The base as it was; of modules that were trained beside the adapters (`modules_to_save`) the originals."""
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])
        return super().unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise NotImplementedError(f"{self.tuner_layer_cls.why_not_merged} unload() gives the base.")


def load_strictly(
    base: PreTrainedModel | PeftModel, folder: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """`PeftModel.from_pretrained` that refuses adapters with missing or unknown tensors, where PEFT only warns.

    Args:
        base: the model, or a PeftModel that has it, to add a further adapter.
        folder: of the adapter, or its Hub id.
        adapter_name: under which PEFT knows it.
        is_trainable: whether it is to be trained further.

    Raises:
        ValueError: tensors are missing or unknown; the base is left as it was.
    """
    folder, further = str(folder), isinstance(base, PeftModel)
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not is_trainable
    if further:
        base.add_adapter(adapter_name, config)
    model = base if further else PeftModel(base, config, adapter_name)
    given = set(load_peft_weights(folder, device="cpu"))
    expected = set(get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False))
    if given != expected:
        model.delete_adapter(adapter_name) if further else model.unload()
        missing, unknown = sorted(expected - given), sorted(given - expected)
        raise ValueError(f"{folder} does not fit: missing tensors {missing[:5]}, unknown tensors {unknown[:5]}.")
    model.load_adapter(folder, adapter_name, is_trainable=is_trainable)
    return model
