"""Processor of FFF: images, and any number of captions per image."""

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from hf_clipplus.models.processing_dual_encoder import TextInput, flatten_captions, forget_last_cut
from hf_clipplus.models.ready_images import prepare_images


class FFFProcessorKwargs(ProcessingKwargs, total=False):
    """What `FFFProcessor` takes beside images and text, and its defaults."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class FFFProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer; a list of lists of captions becomes flat ids and their owners.

    Texts are padded to the longest of the batch and cut at the context length, the end token kept, unless told
    otherwise.

    Example:

    ```python
    >>> batch = processor(images=[cat, dog], text=[["a cat", "a small cat"], ["a dog"]], return_tensors="pt")
    >>> batch["caption_owner"]
    tensor([0, 0, 1])
    ```
    """

    valid_processor_kwargs = FFFProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        forget_last_cut(tokenizer)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images=None, text: TextInput | None = None, **kwargs: Unpack[FFFProcessorKwargs]
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list.
            text: one text, a list (one text each), or a list of lists (the captions of each image).
            kwargs: for the image processor or the tokenizer (`return_tensors`, `padding`, `max_length`, `size`, ...),
                by name or in `images_kwargs` and `text_kwargs`.

        Returns:
            `pixel_values [N, 3, H, W]`; `input_ids`, `attention_mask [C, L]`; for a list of lists also
            `caption_owner [C]`; `truncated_captions`: number of texts that were cut, when any was.

        Raises:
            ValueError: nothing given, an image without captions, an empty caption, a different number of images and
                caption lists.
        """
        if images is None and text is None:
            raise ValueError("FFFProcessor: give images, text or both.")
        options = self._merge_kwargs(FFFProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        batch = {}
        if images is not None:
            batch.update(prepare_images(self.image_processor, images, options["images_kwargs"]))
        if text is None:
            return BatchFeature(batch)
        captions, owner = flatten_captions(text)
        if owner is not None and images is not None and len(text) != len(batch["pixel_values"]):
            raise ValueError(f"{len(batch['pixel_values'])} images but {len(text)} lists of captions.")
        encoded = self.tokenizer(captions, **options["text_kwargs"])
        batch.update(encoded)
        if owner is not None:
            return_tensors = options["text_kwargs"].get("return_tensors")
            batch.update(BatchFeature({"caption_owner": owner}, tensor_type=return_tensors))
        if cut := sum(bool(encoding.overflowing) for encoding in encoded.encodings or []):
            batch["truncated_captions"] = cut
        return BatchFeature(batch)


__all__ = ["FFFProcessor"]
