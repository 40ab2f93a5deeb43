"""Request handler of a Hugging Face Inference Endpoint. It stands in the repository of the model and needs no package.

The endpoint's server makes one `EndpointHandler(path)` and calls it with the JSON of each request:

    {"inputs": "<base64 of a picture>", "parameters": {"candidate_labels": ["a tiger", "a boat"]}}

`inputs` may be a list of pictures; then the answer is a list. What is refused raises ValueError, which the server
answers with status 400 and the message. No path is ever opened, and no address, unless its host is in the environment
variable HANDLER_ALLOWED_HOSTS (names separated by commas).
"""

import base64
import binascii
import io
import os
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, ImageOps
from transformers import pipeline

TASK = "zero-shot-image-classification"
# task -> the parameters it takes, and the one that it needs
PARAMETERS = {
    "zero-shot-image-classification": ("candidate_labels", "hypothesis_template"),
    "image-classification": ("top_k",),
    "image-feature-extraction": (),
    "clipplus-zero-shot-segmentation": ("class_names", "templates", "background"),
}
REQUIRED = {
    "zero-shot-image-classification": "candidate_labels",
    "clipplus-zero-shot-segmentation": "class_names",
}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Args:
        pictures: in a request.
        megabytes: of an encoded picture.
        megapixels: of a decoded one, read from its header before anything is decoded.
        texts: labels, or templates, in a list.
        characters: of a text.
        seconds: after which no further picture is begun.
    """

    pictures: int = 16
    megabytes: float = 10
    megapixels: float = 40
    texts: int = 256
    characters: int = 1000
    seconds: float = 30


class EndpointHandler:
    """See the top of this file.

    Args:
        path: folder of the model's repository.
        limits: see `Limits`.
    """

    def __init__(self, path: str = "", limits: Limits = Limits()):
        with suppress(ImportError):  # where the package is installed, its classes are used
            import_module("hf_clipplus")
        self.pipeline = pipeline(TASK, model=path, trust_remote_code=True)  # the code that lies beside this file
        self.limits = limits
        hosts = os.environ.get("HANDLER_ALLOWED_HOSTS", "").split(",")
        self.allowed_hosts = {host.strip().lower() for host in hosts} - {""}

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer a request.

        Returns:
            Per picture: `[{"label", "score"}, ...]`, best first; features as nested lists; or segments
            `[{"label", "score", "mask"}, ...]` with base64 PNG masks.

        Raises:
            ValueError: the request is malformed or over a limit; says what was expected.
        """
        started = time.monotonic()
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('expected a JSON object {"inputs": picture or list of pictures, "parameters": {...}}.')
        options = self._parameters(data.get("parameters"))
        inputs = data["inputs"]
        several = isinstance(inputs, list)
        pictures = inputs if several else [inputs]
        if not 0 < len(pictures) <= self.limits.pictures:
            raise ValueError(f"expected 1 to {self.limits.pictures} pictures, got {len(pictures)}.")
        answers = []
        for number, picture in enumerate(pictures):
            if time.monotonic() - started > self.limits.seconds:
                raise ValueError(f"{self.limits.seconds:g} seconds are over after {number} pictures: send fewer.")
            answers.append(_as_json(self.pipeline(self._picture(picture, number), **options)))
        return answers if several else answers[0]

    def _parameters(self, given: Any) -> dict[str, Any]:
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise ValueError(f"parameters must be an object, got {type(given).__name__}.")
        known, required = PARAMETERS[TASK], REQUIRED.get(TASK)
        unknown = sorted(map(str, given.keys() - set(known)))
        if unknown:
            raise ValueError(f"unknown parameters {unknown[:5]}; {TASK} has {list(known)}.")
        if required is not None and not given.get(required):
            raise ValueError(f'parameters must have "{required}", a list of texts.')
        for name, value in given.items():
            self._check(name, value)
        return given

    def _check(self, name: str, value: Any) -> None:
        texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        if isinstance(value, dict) or any(not isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a text, a number or a list of texts.")
        if len(texts) > self.limits.texts or any(len(text) > self.limits.characters for text in texts):
            raise ValueError(f"{name}: at most {self.limits.texts} texts of {self.limits.characters} characters.")

    def _picture(self, value: Any, number: int) -> Image.Image:
        """The picture as RGB, upright."""
        if isinstance(value, Image.Image):  # the server decodes a body that is an image
            image = value
        elif isinstance(value, bytes | str):
            data = value if isinstance(value, bytes) else self._bytes(value, number)
            if len(data) > self.limits.megabytes * 1e6:
                raise ValueError(f"picture {number} is larger than {self.limits.megabytes:g} MB.")
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            except (OSError, Image.DecompressionBombError) as error:
                raise ValueError(f"picture {number} cannot be read ({error}); known: {', '.join(FORMATS)}.") from error
        else:
            raise ValueError(f"picture {number} is {type(value).__name__}, expected base64 text.")
        if image.width * image.height > self.limits.megapixels * 1e6:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"picture {number} is {size}, larger than {self.limits.megapixels:g} megapixels.")
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"picture {number} is damaged: {error}") from error

    def _bytes(self, text: str, number: int) -> bytes:
        if text.startswith(("http://", "https://")):
            return self._fetch(text, number)
        encoded = text.partition(",")[2] if text.startswith("data:image/") else text
        if len(encoded) > 1.4 * self.limits.megabytes * 1e6:
            raise ValueError(f"picture {number} is larger than {self.limits.megabytes:g} MB.")
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise ValueError(f"picture {number} is no base64 text ({error}); paths are not opened.") from error

    def _fetch(self, url: str, number: int) -> bytes:
        host = (urlsplit(url).hostname or "").lower()
        if host not in self.allowed_hosts:
            raise ValueError(f"picture {number}: this endpoint opens no addresses of {host!r}; send base64 instead.")
        try:
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(url, timeout=min(10, self.limits.seconds)) as answer:
                return answer.read(int(self.limits.megabytes * 1e6) + 1)
        except OSError as error:
            raise ValueError(f"picture {number} could not be fetched: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed host must not send the endpoint to another one."""

    def redirect_request(self, *args, **kwargs):
        return None


def _as_json(answer: Any) -> Any:
    """What the pipeline answered, in types that JSON has."""
    if isinstance(answer, dict):  # segmentation
        return [{**each, "mask": _as_base64(each["mask"])} for each in answer["segments"]]
    return answer


def _as_base64(mask: Image.Image) -> str:
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
