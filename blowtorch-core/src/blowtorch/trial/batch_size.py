"""How large a batch fits into the memory of a device."""

import gc
from typing import Any

import torch
from torch.utils.data import DataLoader

from blowtorch.errors import ScriptError
from blowtorch.schedule.schedules import read_configured
from blowtorch.script.returns import Loss, Returns
from blowtorch.script.script import Script
from blowtorch.state import RunState
from blowtorch.streams import derive_seed
from blowtorch.training.gradients import Gradients
from blowtorch.tree import move
from blowtorch.trial.untouched import left_as_it_was

_STEPS = 2  # in the first an optimizer makes its state, in the second all of it is there from the beginning


def find_batch_size(script: Script, state: RunState, loader: Any, largest: int | None) -> int:
    """The largest batch size, in doublings or halvings of the loader's, with which two steps fit into memory.

    Model, kept objects and random streams are afterwards as they were.

    Raises:
        ScriptError: there is no train step, the loader is none of torch, or not even one sample fits.
    """
    if script.train is None or script.train.kind != "train_step" or script.configure_optimizers is None:
        raise ScriptError("run.find_batch_size needs @run.train_step and @run.configure_optimizers")
    if not isinstance(loader, DataLoader) or not isinstance(loader.batch_size, int):
        raise ScriptError(f"run.find_batch_size expects a DataLoader with a batch size, got {loader!r:.100}")
    limits = [limit for limit in (largest, _length(loader.dataset)) if limit is not None]
    size, most = loader.batch_size, min(limits, default=2**31)
    if most < 1:
        raise ScriptError(f"run.find_batch_size has nothing to try: at most {most} samples may make a batch")
    fits: dict[int, bool] = {}
    with left_as_it_was(script, state.model, derive_seed(state.seed, "find_batch_size")):
        for function in script.init:
            function.function(**function.bind(state).given())
        while size >= 1 and size not in fits:
            size = min(size, most)
            fits[size] = _fits(script, state, loader, size)
            size = (2 * size if size < most else size) if fits[size] else size // 2
    best = max((size for size, does in fits.items() if does), default=None)
    if best is None:
        raise ScriptError(f"a step with a single sample does not fit into the memory of {state.device}")
    return best


def _fits(script: Script, state: RunState, loader: DataLoader[Any], size: int) -> bool:
    """Whether steps with batches of this size can be done; what they took is given back."""
    try:
        _try_steps(script, state, loader, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        state.optimizers.clear()
        state.model.zero_grad()
        gc.collect()
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _try_steps(script: Script, state: RunState, loader: DataLoader[Any], size: int) -> None:
    assert script.train is not None
    assert script.configure_optimizers is not None
    resized: DataLoader[Any] = DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)
    batch = move(next(iter(resized)), state.device)
    configure = script.configure_optimizers
    optimizers, _ = read_configured(configure.function(**configure.bind(state).given()))
    state.optimizers.update(optimizers)
    gradients = Gradients(state, num_batches=None)
    function = script.train.bind(state, backward=gradients.backward)
    returns, loss = Returns(function.name, state), Loss(function, state.options.optimize_metric)
    state.model.train()
    for _ in range(_STEPS):
        state.model.zero_grad()
        with gradients.autocast or torch.enable_grad():
            returned = function.function(**function.given(batch=batch))
        metrics = returns.read(returned, state.logged)
        if not function.drives_itself:
            gradients.backward(metrics[loss.choose(metrics)])
            for optimizer in optimizers.values():
                optimizer.step()
        gradients.finish_step()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was missing, on whatever device."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None
