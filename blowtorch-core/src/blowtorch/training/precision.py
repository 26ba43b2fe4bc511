"""The option `precision`: in which numbers a device computes, and whether it can."""

import contextlib
import warnings
from typing import Any

import torch
from torch import nn

from blowtorch.errors import OptionError, describe
from blowtorch.options import RunOptions
from blowtorch.state import RunState

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(options: RunOptions, device: torch.device) -> torch.autocast | None:
    """Return the context in which the user's functions compute under the option `precision`; None for fp32."""
    if options.precision == "fp32":
        return None
    return torch.autocast(device.type, dtype=_DTYPES[options.precision])


def computing(state: RunState) -> contextlib.AbstractContextManager[Any]:
    """Return the context for what does not train: validations, evaluations, predictions."""
    return autocast(state.options, state.device) or contextlib.nullcontext()


def refuse_missing_precision(options: RunOptions, device: torch.device) -> None:
    """Raise an `OptionError` if a device does not compute as the option `precision` asks: it is tried on one number.

    Which devices do depends on the version of torch, on the driver and on the system. Where one does not, torch may
    fail amid the first step, or only warn and go on in fp32.
    """
    if options.precision == "fp32":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            _try(options, device)
    except (RuntimeError, TypeError, AssertionError, UserWarning) as error:
        raise OptionError(
            f"option precision: {device} does not train in {options.precision!r} by torch {torch.__version__}: "
            f"{describe(error)}; leave the option out, take another precision, or a newer torch or system"
        ) from error


def _try(options: RunOptions, device: torch.device) -> None:
    """Do what a run in another precision needs of a device: numbers of that kind, and losses that are scaled."""
    torch.empty(0, dtype=_DTYPES[options.precision], device=device)
    with autocast(options, device) or contextlib.nullcontext():
        pass
    if options.precision == "fp16":
        scaler, weight = torch.amp.GradScaler(device.type), nn.Parameter(torch.zeros(1, device=device))
        scaler.scale(weight.square().sum()).backward()
        scaler.unscale_(torch.optim.SGD([weight]))
        scaler.update()


def detecting_anomalies(options: RunOptions) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which torch names the operation whose gradient is NaN, if the option asks for it."""
    # Unlike `detect_anomaly`, this does not warn that it is slow: the option's description says so.
    return torch.autograd.set_detect_anomaly(True) if options.detect_anomalies else contextlib.nullcontext()
