"""How good a model is, and what it predicts, outside of a run."""

import atexit
import contextlib
import itertools
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blowtorch.data.batches import Batches
from blowtorch.data.tree import move
from blowtorch.errors import CheckpointError, ScriptError
from blowtorch.record.metric_objects import MetricObjects, find_metric_objects, put_aside
from blowtorch.record.metrics import Window
from blowtorch.runs.view import POINTERS, find_newest, read_pointer
from blowtorch.script.functions import Function
from blowtorch.script.returns import Loss, Returns
from blowtorch.script.script import Script, ValidationRequest
from blowtorch.state import RunState
from blowtorch.streams import SeparateStreams, derive_seed
from blowtorch.training.model import load_initial_weights
from blowtorch.training.snapshot import take_snapshot
from blowtorch.training.validation import Validation, judging, validate
from blowtorch.training.workspace import Workspace

_CPU = torch.device("cpu")


def evaluate(script: Script, workspace: Workspace, loader: Any, name: str | None = None) -> dict[str, float]:
    """Validate the model of a detached workspace with every validation, or with that of a name.

    Raises:
        ScriptError: there is no validation, or no data.
    """
    if not script.validations:
        raise ScriptError("run.evaluate needs a function decorated with @run.validate_step or @run.validate_epoch")
    all_requests = script.validations.values()
    if loader is None and name is None and all(each.needs_data and each.loader is None for each in all_requests):
        raise ScriptError("run.evaluate has no data; give it a loader, or give one to @run.validate_step(loader)")
    call_comes_first = name is not None or len(all_requests) == 1
    metrics: dict[str, float] = {}
    for request in script.choose_validations(loader, name, call_comes_first):
        metrics |= _evaluate_one(script, workspace, request)
    return metrics


def _evaluate_one(script: Script, workspace: Workspace, request: ValidationRequest) -> dict[str, float]:
    """Do one validation, with the data that was chosen for it."""
    state, loader = workspace.state, request.loader
    assert request.function is not None
    most, shared = state.options.limit_validate_batches, workspace.shared(request.name)
    batches = Batches(loader, state.seed, state.device, most, request.name, shared=shared)
    objects = find_metric_objects(request.function.function, {"model": state.model, **script.kept})
    before = take_snapshot(state.model, [request.function.function], batches.holders_of_position, is_trained=False)
    with (
        before,
        contextlib.closing(batches),
        put_aside(objects.values()),  # a training under way may use the same ones
    ):
        function = request.function.bind(state, is_validate=True)
        loss = Loss(function, state.options.optimize_metric)
        returns = Returns(
            function.name,
            workspace.logged,
            workspace.lines.warn_new,
            MetricObjects(world=workspace.world),
            Window(pool=workspace.pool),
            summed=loss if state.options.loss_is == "sum" else None,
            has_no_return=request.function.has_no_return,
        )
        return validate(Validation(request.name, function, batches, returns), workspace)


def predict(script: Script, workspace: Workspace, loader: Any) -> Iterator[Any]:
    """Predict batch by batch, in the order of the loader; predictions are put on the CPU.

    Raises:
        ScriptError: there is no prediction step, or no data.
    """
    if script.predict is None:
        raise ScriptError("run.predict needs a function decorated with @run.predict_step")
    state = workspace.state
    loader = _choose_loader(loader, script.predict_loader, "predict", "predict_step")
    batches = Batches(loader, state.seed, state.device, name="predict", shared=workspace.shared("predict"))
    predictions = _predictions(script.predict.bind(state), workspace, batches)
    _given_out.add(predictions)
    return predictions


_given_out: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close predictions that are left unread while there still is what they put back, and what puts it back."""
    for predictions in list(_given_out):
        with contextlib.suppress(ValueError):  # a thread that ends with the process is reading them
            predictions.close()


def _predictions(function: Function, workspace: Workspace, batches: Batches) -> Generator[Any, None, None]:
    """Yield predictions; between two of them modes, gradients and random streams are as the caller left them.

    In the end, so is what the step has changed of the model, unless the caller has trained it meanwhile.
    """
    state = workspace.state
    streams = SeparateStreams(derive_seed(state.seed, "predict"))
    before = take_snapshot(state.model, [function.function], batches.holders_of_position, is_trained=False)
    versions = before.versions()
    try:
        with contextlib.closing(batches):
            iterator = batches.iterate(1)
            for index in itertools.count():
                with streams, judging(workspace):
                    batch = next(iterator, _NOTHING)
                    if batch is _NOTHING:
                        return
                    is_called = not batches.is_stand_in or workspace.is_sharded
                    output = function.call(batch=batch, batch_index=index) if is_called else None
                    output = _of_all(move(output, _CPU), batches, workspace)
                versions = before.versions()
                if not (batches.is_apart and batches.is_stand_in):
                    yield output
    finally:
        if before.versions() == versions:
            before.put_back()


_NOTHING = object()


def _of_all(output: Any, batches: Batches, workspace: Workspace) -> Any:
    """Return what all processes have predicted for a batch, in the order of its samples.

    Raises:
        ScriptError: it is no prediction for each sample, so that the shares cannot be joined.
    """
    if not workspace.world.is_shared or batches.is_apart:
        return output
    shares = workspace.world.gather((batches.share, output))
    outputs = [output for share, output in shares if share is not None and share.samples]
    if len(outputs) > 1 and isinstance(outputs[0], torch.Tensor) and outputs[0].ndim == 0:
        raise ScriptError(
            "the prediction step returned one number for a batch, of which each process has some samples; return a "
            "value for each sample"
        )
    return outputs[0] if len(outputs) == 1 else _join(outputs)


def gather(outputs: Iterator[Any]) -> Any:
    """Join all predictions in one: tensors along their first dimension, within mappings and tuples too.

    >>> gather(iter([{"label": torch.tensor([1, 2])}, {"label": torch.tensor([3])}]))
    {'label': tensor([1, 2, 3])}
    """
    return _join(list(outputs))


def _join(outputs: Sequence[Any]) -> Any:
    """Join what lies in the same place of each output; the walkers of `tree` look at one value at a time."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(outputs)) if first.ndim == 0 else torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return {key: _join([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple):
        joined = [_join(column) for column in zip(*outputs, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    if isinstance(first, list):
        return [item for output in outputs for item in output]
    return list(outputs)


def load_checkpoint(checkpoint: str | Path | None, state: RunState, script: Script, folder: Path | None) -> None:
    """Load the weights of a checkpoint into the model of a state.

    Args:
        checkpoint: `best` or `latest` of a run, a path, or None for the weights as they are.
        state: whose options say which run is meant.
        script: of which the newest run is meant, if the options name none.
        folder: of the last run of this process, which comes before both; None where there was none.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another model.
    """
    if checkpoint is None:
        return
    path = Path(checkpoint)
    if str(checkpoint) in POINTERS:
        if folder is None:
            newest = find_newest(state.options.save_path, state.options.run_name, script.path)
            folder = None if newest is None else newest.path
        if folder is None or read_pointer(folder, path.name) is None:
            where = f"in {state.options.save_path!r} no run of this script" if folder is None else f"{folder} has none"
            raise CheckpointError(
                f"checkpoint={checkpoint!r} is of the last run, and {where}; give the path of another"
            )
        path = folder / "checkpoints" / path
    load_initial_weights(state.model, str(path), state.options.checkpoint_backend, "checkpoint")


def _choose_loader(of_call: Any, of_decorator: Any, method: str, decorator: str) -> Any:
    loader = of_decorator if of_call is None else of_call
    if loader is None:
        raise ScriptError(f"run.{method} has no data; give it a loader, or give one to @run.{decorator}(loader)")
    return loader
