"""Whether a device trains, measures and predicts what a loop by hand does."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.on_device import Row, Setting, aside, attempt
from benchmarks.on_device.workloads import (
    Workload,
    largest_difference,
    make_workloads,
    one_optimizer,
    to_host,
    train_by_hand,
    train_with_blowtorch,
)
from blowtorch import Run

MOST_OF_SPREAD = 3.0  # times the largest difference between loops by hand
MORE_BY_HAND = 3  # loops by hand that are added where the first two were equal, and blowtorch was not
BITS = "the bits of a loop by hand"


def compare_with_loops_by_hand(setting: Setting) -> Iterator[Row]:
    """Each workload under each precision, beside the same loop by hand."""
    for workload in make_workloads(num_batches=6 if setting.is_short else 40):
        for precision in ("fp32", "bf16", "fp16"):
            if precision == "fp16" and workload.drive is not None:
                continue  # a loop by hand would need a scaler for each of its optimizers
            yield from compare(setting, workload, precision, None)


def compare_compiled(setting: Setting) -> Iterator[Row]:
    """Two of the workloads, compiled, beside the same loop by hand, compiled too."""
    options: dict[str, Any] = {} if setting.is_cuda else {"backend": "eager"}
    try:
        compiled = torch.compile(nn.Linear(4, 4).to(setting.device), **options)
        compiled(torch.ones(2, 4, device=setting.device)).sum().backward()
    except Exception as error:
        yield Row("compiled", f"torch.compile does not work here: {type(error).__name__}: {str(error)[:300]}", BITS)
        return
    digits, gpt, *_ = make_workloads(num_batches=6 if setting.is_short else 40)
    for workload, precision in ((gpt, "bf16"), (digits, "fp32"), (gpt, "fp32"), (digits, "bf16")):
        yield from compare(setting, workload, precision, options)


def compare(setting: Setting, workload: Workload, precision: str, compiled: dict[str, Any] | None) -> Iterator[Row]:
    """Yield a row for a workload; another with deterministic kernels where the usual ones differ by themselves."""
    what = f"{workload.name}, {precision}{', compiled' if compiled is not None else ''}"
    arguments = (workload, setting.device, precision, compiled)
    row = attempt(what, BITS, compare_once, what, arguments)
    yield row
    if row.wanted != BITS:
        with only_deterministic():
            yield attempt(what, BITS, compare_once, f"{what}, deterministic kernels", arguments)


def compare_once(what: str, arguments: tuple[Any, ...]) -> Row:
    """One workload, trained by blowtorch and more than once by hand, which shows what a difference means."""
    untrained = to_host(arguments[0].make_model())
    hand, others = train_by_hand(*arguments), [train_by_hand(*arguments)]
    mine = train_with_blowtorch(*arguments)
    difference = largest_difference(mine, hand)
    if difference:
        others += [train_by_hand(*arguments) for _ in range(MORE_BY_HAND)]
    spread = max(largest_difference(other, hand) for other in others)
    moved = largest_difference(hand, untrained)
    found = f"differs by {difference:g}; loops by hand by {spread:g}; training moved weights by {moved:.2g}"
    if spread == 0.0:
        return Row(what, found, BITS, difference == 0.0 and moved > 0.0)
    return Row(what, found, f"at most {MOST_OF_SPREAD} times as loops by hand", difference <= MOST_OF_SPREAD * spread)


@contextlib.contextmanager
def only_deterministic() -> Iterator[None]:
    """Have torch take deterministic kernels where it has them."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


class Looked:
    """A dataset whose rows are as long as their index says, so that each batch has another shape."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1 + 997 * (index % 7),), float(index % 8))


def collate(rows: list[torch.Tensor]) -> dict[str, Any]:
    """A batch with all that batches are made of."""
    return {"rows": nn.utils.rnn.pad_sequence(rows, batch_first=True), "pair": (rows[0], [rows[-1]]), "text": "a"}


def compare_what_arrives(setting: Setting) -> Iterator[Row]:
    """Odd batches, fetched ahead: what the step sees is what the loader gave."""
    rows = [collate([Looked()[index] for index in range(first, first + 4)]) for first in range(0, 64, 4)]
    for workers in (0, 2):
        loader = DataLoader(Looked(), 4, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
        what = f"batches of odd shapes, {workers} workers"
        yield attempt(what, "equal", look_at_batches, setting, what, loader, rows)
    yield attempt("a list of batches", "equal", look_at_batches, setting, "a list of batches", rows, rows)


def look_at_batches(setting: Setting, what: str, loader: Any, rows: list[dict[str, Any]]) -> Row:
    """Sum up the batches on the device, in an order that a copy which is not waited for would spoil."""
    seen: list[torch.Tensor] = []
    run = Run(random_seed=0, command_line=[])
    run.configure_optimizers(one_optimizer)

    @run.train_step
    def step(batch, model):
        for _ in range(20):  # keep the device busy, so that a copy that is not waited for shows
            model(torch.ones(256, 256, device=batch["rows"].device))
        seen.append(batch["rows"].sum() + batch["pair"][0].sum() + batch["pair"][1][0].sum())
        batch["rows"].fill_(-1.0)  # nobody may be given this memory before the step has been done
        return {"loss": model(torch.ones(1, 256, device=batch["rows"].device)).mean(), "batch_size": 4}

    expected = [float(row["rows"].sum() + row["pair"][0].sum() + row["pair"][1][0].sum()) for row in rows]
    given = loader if isinstance(loader, DataLoader) else [{**row, "rows": row["rows"].clone()} for row in rows]
    with aside() as folder:
        run(nn.Linear(256, 256), given, max_epochs=1, device=str(setting.device), save_path=folder, progress=False)
    found = [value.item() for value in seen]
    return Row(what, "equal" if found == expected else f"{found} and {expected}", "equal", found == expected)


def measure_and_predict(setting: Setting) -> Iterator[Row]:
    """`evaluate` and `predict` beside the same by hand."""
    workload = make_workloads(num_batches=4)[0]
    model = workload.make_model().to(setting.device).eval()
    run = Run(random_seed=0, command_line=[])
    run.validate_step(workload.step)
    run.predict_step(lambda batch, model: model(batch[0]))
    with torch.no_grad():
        moved = [[part.to(setting.device) for part in batch] for batch in workload.batches]
        loss = sum(workload.step(batch, model).item() for batch in moved) / len(moved)
        outputs = torch.cat([model(batch[0]) for batch in moved]).cpu()

    def evaluate() -> Row:
        with aside():
            measured = run.evaluate(model, list(workload.batches), device=str(setting.device))
        difference = abs(measured["loss" if "loss" in measured else "val/loss"] - loss)
        return Row("evaluate", f"differs by {difference:g}", "at most 1e-6", difference <= 1e-6)

    def predict() -> Row:
        with aside():
            predicted = run.predict(model, list(workload.batches), gather=True, device=str(setting.device))
        distance = float((predicted.cpu() - outputs).abs().max())
        return Row("predict", f"differs by {distance:g}", "at most 1e-6", distance <= 1e-6)

    yield attempt("evaluate", "at most 1e-6", evaluate)
    yield attempt("predict", "at most 1e-6", predict)
    yield attempt("noise in predictions", "the same each time", predict_noise, setting)
    for every in (1, 3):
        yield attempt(f"recorded every {every} steps", "equal", compare_recorded, setting, every)


def predict_noise(setting: Setting) -> Row:
    """What a prediction draws on the device is the same each time, and moves no stream outside."""
    run = Run(random_seed=0, command_line=[])
    run.predict_step(lambda batch, model: torch.rand(len(batch), 4, device=batch.device))
    batches, model = [torch.zeros(3, 4)] * 2, nn.Linear(4, 4)
    with aside():
        torch.manual_seed(1)
        first = run.predict(model, batches, gather=True, device=str(setting.device))
        drawn = torch.rand(4, device=setting.device)
        again = run.predict(model, batches, gather=True, device=str(setting.device))
        torch.manual_seed(1)
        is_untouched = torch.equal(torch.rand(4, device=setting.device), drawn)
    found = f"{'equal' if torch.equal(first, again) else 'other'}, streams {'as before' if is_untouched else 'moved'}"
    return Row("noise in predictions", found, "the same each time", torch.equal(first, again) and is_untouched)


def compare_recorded(setting: Setting, every: int) -> Row:
    """What is recorded, of a device some time after its step, is what the steps have returned, under their numbers."""
    run, kept = Run(random_seed=0, command_line=[]), []
    run.configure_optimizers(one_optimizer)

    @run.train_step
    def step(batch, model):
        loss = model(batch).square().mean()
        kept.append(loss.detach().clone())
        return loss

    with aside() as folder:
        settings = {
            "save_path": folder,
            "progress": False,
            "checkpoint_every": "4 steps",
            "log_every": f"{every} steps",
        }
        result = run(nn.Linear(8, 8), list(torch.randn(12, 4, 8)), device=str(setting.device), **settings)
        lines = [json.loads(line) for line in (result.folder / "record.jsonl").read_text().splitlines()]
    found = [(line["step"], line["metrics"]["train/loss"]) for line in lines if "train/loss" in line.get("metrics", {})]
    losses, ends = [value.item() for value in kept], range(every, 13, every)
    expected = [(end, sum(4 * loss for loss in losses[end - every : end]) / (4 * every)) for end in ends]
    value = f"{len(found)} recordings {'equal' if found == expected else 'differ'}"
    return Row(f"recorded every {every} steps", value, "equal", found == expected)
