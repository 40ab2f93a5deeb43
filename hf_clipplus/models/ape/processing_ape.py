"""Processor of APE: images, and the prompts of classes."""

from collections.abc import Mapping, Sequence

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class APEProcessorKwargs(ProcessingKwargs, total=False):
    """What `APEProcessor` takes beside images and text, and its defaults."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class APEProcessor(ProcessorMixin):
    """The backbone's image processor and tokenizer. `APEProcessor.from_pretrained` reads any CLIP folder.

    Texts are padded to the longest of the batch and cut at the context length unless told otherwise.
    """

    valid_processor_kwargs = APEProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)


def class_prompts(
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    sentences: Mapping[str, Sequence[str]] | None = None,
) -> list[list[str]]:
    """All prompts of every class: templates with the name in place of `{}`, then the sentences written for the class.

    Args:
        class_names: distinct, not blank; underscores become spaces in templates.
        templates: texts with `{}`; may be empty when there are sentences.
        sentences: class name -> texts, e.g. of CuPL.

    Raises:
        ValueError: a blank or repeated name, a template without `{}`, a class without sentences (it is named), or no
            prompt at all.
    """
    names = list(class_names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or any(not name.strip() for name in names):
        raise ValueError(f"class names must be distinct and not blank; repeated: {repeated}.")
    wrong = [template for template in templates if "{}" not in template]
    if wrong:
        raise ValueError(f"templates need {{}} where the class name goes; these have none: {wrong}.")
    if sentences is not None:
        missing = [name for name in names if not sentences.get(name)]
        if missing:
            raise ValueError(
                f"no sentences for {len(missing)} classes: {missing[:10]}; known: {list(sentences)[:10]}."
            )
    elif not templates:
        raise ValueError("there are neither templates nor sentences to make prompts of.")
    written = sentences or {}
    return [
        [template.replace("{}", name.replace("_", " ")) for template in templates] + list(written.get(name, ()))
        for name in names
    ]


__all__ = ["APEProcessor"]
