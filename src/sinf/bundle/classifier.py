"""What every model of sinf offers beside its logits: classes, what it is fed, predictions for image files, the hub."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sinf.data.images import Preprocessing
from sinf.errors import ConfigError, DataError
from sinf.models import BaseModel

#: An image file, or an image that is opened.
Picture = str | Path | Image.Image
BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: the most likely classes, best first, with their probabilities, and what its
    method adds (a route, or MACs). ``milliseconds`` is the time of the batch divided by its images. An image that could
    not be read has an ``error`` and nothing else."""

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    milliseconds: float = 0.0
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"name": name, "probability": probability} for name, probability in pairs]
        return {"image": self.image, "classes": classes, **self.details, "milliseconds": self.milliseconds}


class Classifier:
    """Base of the models of every method. A subclass says what it was made with and how it answers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        raise NotImplementedError

    @property
    def details_of_a_prediction(self) -> dict[str, type]:
        """Names and types of what the method adds to a prediction: a route, or MACs."""
        return {}

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model is fed."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the model to a folder, signed where there is a key."""
        raise NotImplementedError

    def base_model(self) -> BaseModel:
        """The classifier that the artefact was made from, as it was; of a plain model its own network."""
        raise NotImplementedError

    def _answer(self, images: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, classes) that do not depend on what else is in the batch, and what :meth:`_details` wants."""
        raise NotImplementedError

    def _details(self, images: Tensor, answer: Any) -> list[dict[str, Any]]:
        """What the method adds to the prediction of each image, always under the same names."""
        return [{} for _ in range(len(images))]

    @property
    def classes(self) -> list[str]:
        """As of :mod:`sinf.edge`: names of the classes, in the order of the logits."""
        return list(self.class_names)

    def normalise(self, pixels: np.ndarray | Tensor) -> Tensor:
        """``(B, H, W, C)`` uint8, of the model's size, to what the model reads: ``(B, C, H, W)`` float32."""
        return self.preprocessing.normalise(torch.as_tensor(pixels))

    def preprocess(self, images: Picture | Iterable[Picture]) -> Tensor:
        """Image files, or images of Pillow, to what the model reads: ``(B, C, H, W)`` float32; one image is a batch of
        one.

        Raises:
            DataError: an image is not there or cannot be read, or there is none.
        """
        pictures = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
        if not pictures:
            raise DataError("a batch must hold images", got="none", remedy="give paths, or images of Pillow")
        return self.normalise(np.stack([self._pixels(picture, number) for number, picture in enumerate(pictures)]))

    def predict(self, images: Picture | Iterable[Picture], *, top: int = 5, batch: int = BATCH) -> list[Prediction]:
        """The ``top`` most likely classes of image files, or images of Pillow, in their order. An image that cannot be
        read is a prediction with an error."""
        pictures = [images] if isinstance(images, (str, Path, Image.Image)) else images
        return list(self.stream(pictures, top=top, batch=batch))

    def stream(self, images: Iterable[Picture], *, top: int = 5, batch: int = BATCH) -> Iterator[Prediction]:
        """As :meth:`predict`, one prediction after the other: no more than ``batch`` images are in memory at once.

        Raises:
            ConfigError: ``top`` or ``batch`` is less than 1.
        """
        if top < 1 or batch < 1:
            raise ConfigError("top and batch must be at least 1", got=f"{top}, {batch}", remedy="leave them out")
        left, first, start = iter(images), True, 0
        while some := list(islice(left, batch)):
            names, pixels, errors = [], [], {}
            for number, picture in enumerate(some):
                names.append(_name(picture, start + number))
                try:
                    pixels.append(self._pixels(picture, start + number))
                except DataError as error:
                    errors[number] = str(error)
            answers = iter(self._classify(np.stack(pixels), top, first) if pixels else ())
            first = first and not pixels
            start += len(some)
            for number, name in enumerate(names):
                if number in errors:
                    yield Prediction(name, error=errors[number])
                else:
                    classes, probabilities, details, milliseconds = next(answers)
                    yield Prediction(name, classes, probabilities, details, milliseconds)

    @torch.no_grad()
    def _classify(self, pixels: np.ndarray, top: int, first: bool) -> list[tuple[Any, ...]]:
        x = self.normalise(pixels)
        if first:
            self._answer(x)  # loads what it needs, so that what is timed is the inference
        begin = time.perf_counter()
        logits, answer = self._answer(x)
        milliseconds = 1000 * (time.perf_counter() - begin) / len(x)
        best = logits.softmax(1).topk(min(top, logits.shape[1]), 1)
        names = self.class_names
        return [
            (tuple(names[i] for i in indices), tuple(values), details, milliseconds)
            for indices, values, details in zip(
                best.indices.tolist(), best.values.tolist(), self._details(x, answer), strict=True
            )
        ]

    def _pixels(self, picture: Picture, number: int) -> np.ndarray:
        name = _name(picture, number)
        if isinstance(picture, Image.Image):
            return self.preprocessing.of_image(picture, name)
        if not Path(picture).is_file():
            raise DataError("the image must exist", got=name, remedy="check the path")
        return self.preprocessing.decode(picture, name)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, key: bytes | None = None
    ) -> str:
        """Write the model to a repository of the Hugging Face hub, which is made if it is not there; its address is
        returned. ``from_pretrained(repository)`` loads it again.

        Raises:
            DataError: the hub refuses, or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory(prefix="sinf-push-") as folder:
            place = Path(folder, "model")
            self.save_pretrained(place, key=key)
            try:
                made = api.create_repo(repository, private=private, exist_ok=True)
                api.upload_folder(repo_id=made.repo_id, folder_path=place, commit_message="written by sinf")
            except Exception as error:  # the hub client raises many types
                got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                remedy = "check the name, the token and the network"
                raise DataError(f"the model cannot be pushed to {repository}", got=got, remedy=remedy) from error
        return str(made)


def _name(picture: Picture, number: int) -> str:
    if not isinstance(picture, Image.Image):
        return str(picture)
    return str(getattr(picture, "filename", "") or f"image {number}")
