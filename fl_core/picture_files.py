"""Pictures of one's own, with or without labels, from whatever holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fl_core.architectures import Shape
from fl_core.data import in_words
from fl_core.errors import InputError
from fl_core.loaders import IMAGE_ENDINGS, channels_first, decode, parquet, reader, reading


def pictures(path: Path, shape: Shape, option: str, most: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Pixels [pictures, *shape] in [0, 1], and labels [pictures] where the file has them.

    `path` is a folder of pictures, at any depth; .parquet as `loaders.parquet` reads it; or .npz or .safetensors with
    `images`, uint8 or in [0, 1], and perhaps `labels`. At most the first `most` are read. InputError, by the `option`
    that named it, for what cannot be read or has another shape.
    """
    labels: Tensor | None = None
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)[:most]
        if not files:
            raise InputError(f"{option} is {path}, which holds no picture ({', '.join(IMAGE_ENDINGS)})")
        images = decode([(file, str(file)) for file in files])
    elif not path.is_file():
        raise InputError(f"{option} is {path}, which is neither a file nor a folder")
    elif path.suffix.lower() == ".parquet":
        pool, test = parquet(str(path), limit=most)
        images, labels = torch.cat([pool.images, test.images])[:most], torch.cat([pool.labels, test.labels])[:most]
    elif path.suffix.lower() in (".npz", ".safetensors"):
        arrays = _arrays(path, option)
        pixels = channels_first(arrays["images"], str(path))[:most]
        images = reader(pixels)(np.arange(len(pixels)))
        if "labels" in arrays:
            labels = torch.from_numpy(arrays["labels"])[:most]
            if labels.is_floating_point() or labels.shape != images.shape[:1]:
                raise InputError(f"{path}: `labels` must be whole numbers, one for each of {len(images)} pictures")
            labels = labels.long()
    else:
        raise InputError(f"{option} is {path}; it must be a folder, or .parquet, .npz or .safetensors")
    if images.shape[1:] != shape:
        raise InputError(f"{option} is {path}, with pictures of {in_words(images.shape[1:])}; shape={in_words(shape)}")
    return images, labels


def _arrays(path: Path, option: str) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    with reading(f"{option} is {path}, which cannot be read", "save it again, as plain arrays"):
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as loaded:
                found = {name: loaded[name] for name in loaded.files if name in ("images", "labels")}
        else:
            with safe_open(str(path), framework="numpy") as file:
                found = {name: file.get_tensor(name) for name in file.keys() if name in ("images", "labels")}  # noqa: SIM118
    if "images" not in found:
        raise InputError(f"{option} is {path}, which has no `images`")
    return found
