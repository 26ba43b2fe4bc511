"""Parameters that are not trained, which checkpoints may leave out: of each they keep a digest instead."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blowtorch.checkpoint.shards import read_files
from blowtorch.checkpoint.tensors import load_weights, read_weights
from blowtorch.errors import CheckpointError
from blowtorch.folder.manifest import checksum_of, read_manifest, verify
from blowtorch.parallel.pieces import is_divided, whole


class FrozenWeights:
    """The parameters of a model that asked for no gradient when the run began, and are still as they were then.

    One that something else changes than an optimizer, such as the momentum encoder of a contrastive loss, is saved like
    all others.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._digests: dict[str, dict[str, str]] = {}
        self._sums: dict[str, int] = {}

    def remember(self) -> None:
        """Take note of the parameters that ask for no gradient now; each is read once."""
        frozen = self._find()
        self._digests = {name: digest_of(parameter) for name, parameter in frozen.items()}
        self._sums = _sum_up(frozen)

    def find_unchanged(self) -> dict[str, dict[str, str]]:
        """Return the digests of those that a checkpoint may leave out, by name.

        A sum of the bits, which is computed where they are, tells whether they have changed.
        """
        frozen = {name: parameter for name, parameter in self._find().items() if name in self._digests}
        sums = _sum_up(frozen)
        return {name: self._digests[name] for name in frozen if sums[name] == self._sums[name]}

    def _find(self) -> dict[str, Tensor]:
        weights = read_weights(self._model, keep_vars=True)
        return {name: value.detach() for name, value in weights.items() if _is_frozen(value)}


def load_verified_weights(model: nn.Module, directory: Path) -> None:
    """Load the weights of a checkpoint, which are those that were validated.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    manifest = read_manifest(directory)
    weights = read_verified_weights(directory, is_mapped=any(map(is_divided, model.parameters())))
    load_weights(model, fill_in(weights, model, manifest.frozen, str(directory)), str(directory))


def read_verified_weights(directory: Path, is_mapped: bool = False) -> dict[str, Any]:
    """Return the weights that a checkpoint holds, by name.

    Args:
        directory: the checkpoint.
        is_mapped: read each when it is used, and leave those in pieces that were written so; the directory has to stay
            meanwhile.

    Raises:
        CheckpointError: it is damaged.
    """
    problems = verify(directory, ["model.pt", *read_manifest(directory).shards])
    if problems:
        raise CheckpointError(f"{directory} is damaged: {'; '.join(problems)}")
    weights: dict[str, Any] = read_files(directory, ["model.pt"], is_mapped)[0]
    return weights


def fill_in(weights: dict[str, Any], model: nn.Module, frozen: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the weights of a checkpoint with the model's own in the place of those that it left out.

    Args:
        weights: of the checkpoint.
        model: that is to be given them.
        frozen: the digests of those that were left out, by name.
        origin: the checkpoint, for messages.

    Raises:
        CheckpointError: the model's own are others, naming the first one.
    """
    mine, filled = read_weights(model), copy.copy(weights)  # which carries the versions of the modules
    for name, digest in frozen.items():
        if name in mine:  # else whoever loads them names what is missing
            if digest_of(mine[name]) != digest:
                raise CheckpointError(
                    f"{origin} was written with checkpoint_frozen=False and left out {name!r}, which was not trained; "
                    f"the model has another one. Give the model the weights that it began with before, such as those "
                    f"of the base that was fine-tuned"
                )
            filled[name] = mine[name]
    return filled


def digest_of(tensor: Tensor) -> dict[str, str]:
    """Return the checksum of the bits of a tensor, by its algorithm."""
    return checksum_of(_bytes_of(whole(tensor).cpu()).numpy())


def _is_frozen(value: Any) -> bool:
    if not isinstance(value, nn.Parameter) or value.requires_grad or is_lazy(value) or value.is_meta:
        return False
    return value.layout is torch.strided and not value.is_quantized and not value.is_nested


def _sum_up(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sum of the bits of each, for which a device is waited for once."""
    sums = [_bits_of(whole(tensor)).sum() for tensor in tensors.values()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    read = {device: iter(torch.stack(totals).tolist()) for device, totals in by_device.items()}
    return {name: next(read[total.device]) for name, total in zip(tensors, sums, strict=True)}


def _bits_of(tensor: Tensor) -> Tensor:
    """Return a tensor as integers, the widest that fit, since they are summed up without a copy."""
    data = _bytes_of(tensor)
    is_aligned = data.numel() % 8 == 0 and data.storage_offset() % 8 == 0
    return data.view(torch.int64) if is_aligned else data


def _bytes_of(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8)
