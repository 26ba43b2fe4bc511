"""Who waits for whom: the host for the device, which costs time on each step, and the device for the host."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.on_device import Row, Setting, aside, attempt
from benchmarks.on_device.workloads import Decoder, make_workloads, one_optimizer, predict_bytes
from blowtorch import Run

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "hipStreamSynchronize")
FIRST, LAST, EVERY = 25, 45, 50  # the steps that are watched, between two recordings
GOING_AHEAD: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "accumulate": {"accumulate": 2},
    "clip_grad_norm": {"clip_grad_norm": 1.0},
    "ema": {"callbacks": ["ema"]},
    "a schedule": {"scheduler": "cosine"},
}
WAITING: dict[str, dict[str, Any]] = {"fp16": {"precision": "fp16"}, "on_nan='skip'": {"on_nan": "skip"}}
NOTHING = "nothing waits"


def count_waits(setting: Setting) -> Iterator[Row]:
    """By torch's own check, which raises where the host waits, and by the events that its profiler sees."""
    if not setting.is_cuda:
        yield Row("waits on steps that record nothing", "not on this device", "0")
        return
    yield attempt("torch's check sees a wait that is there", "a wait", see_own_wait, setting)
    for name, options in GOING_AHEAD.items():
        yield attempt(name, NOTHING, check_by_torch, setting, name, options, True)
    yield attempt("a list of batches", NOTHING, check_by_torch, setting, "a list of batches", {}, True, False)
    for name, options in WAITING.items():  # the documentation says so
        yield attempt(name, "a wait", check_by_torch, setting, name, options, False)
    yield attempt("the profiler", "none", check_by_profiler, setting)


def see_own_wait(setting: Setting) -> Row:
    """What the checks below are worth."""
    value = torch.ones(1, device=setting.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value.item()
    except RuntimeError as error:
        return Row("torch's check sees a wait that is there", str(error)[:80], "a wait", True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Row("torch's check sees a wait that is there", "it sees none: the next rows mean nothing", "a wait", False)


def check_by_torch(
    setting: Setting, name: str, options: dict[str, Any], is_ahead: bool, has_worker: bool = True
) -> Row:
    """Train with torch's check on for some steps."""
    found = NOTHING
    try:
        train_watched(setting, lambda: torch.cuda.set_sync_debug_mode("error"), options, has_worker=has_worker)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        found = f"a wait: {str(error)[:80]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Row(name, found, NOTHING if is_ahead else "a wait", (found == NOTHING) == is_ahead)


def check_by_profiler(setting: Setting) -> Row:
    """Count the events of waiting on some steps, beside those that the profiler makes itself."""
    value, profiles = torch.ones(1, device=setting.device), [make_profile() for _ in range(3)]
    for profile, num_waits in zip(profiles, (0, 3), strict=False):
        profile.start()
        for _ in range(num_waits):
            value.item()
        profile.stop()
    train_watched(setting, profiles[2].start, {}, profiles[2].stop)
    own, with_waits, counts = map(count_waiting, profiles)
    if (with_waits - own).total() < 3:
        return Row("the profiler", "it does not see waits that are there, so it tells nothing", "none")
    more = counts - own
    found = ", ".join(f"{number} {name}" for name, number in more.items()) or "none"
    return Row("the profiler", f"{found} on {LAST - FIRST} steps", "none; one may be its own", more.total() <= 1)


def make_profile() -> torch.profiler.profile:
    """A profiler of all that torch can look at here."""
    return torch.profiler.profile(activities=list(torch.profiler.supported_activities()))


def count_waiting(profile: torch.profiler.profile) -> Counter[str]:
    """Return how often the host waited, by the name of the event."""
    waits = (event for event in profile.key_averages() if event.key.startswith(WAITS) and "Async" not in event.key)
    return Counter({event.key: event.count for event in waits})


def train_watched(
    setting: Setting,
    start: Callable[[], Any],
    options: dict[str, Any],
    stop: Callable[[], Any] = lambda: None,
    has_worker: bool = True,
) -> None:
    """Train the decoder; between two recordings, something watches."""
    workload = make_workloads(num_batches=2 * LAST + 10)[1]
    loader: Any = list(workload.batches)
    if has_worker:
        loader = DataLoader(torch.stack(loader), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    run = Run(random_seed=0, command_line=[])
    run.train_step(workload.step)
    run.configure_optimizers(workload.make_optimizers)

    @run.on("train_step_end")
    def watch(step):
        if step == FIRST:
            start()
        elif step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            stop()

    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "log_every": f"{EVERY} steps", "checkpoint_every": None}
        run(workload.make_model(), loader, max_steps=LAST + 3, device=str(setting.device), **settings, **options)


def hold_up_the_device(setting: Setting) -> Iterator[Row]:
    """The host goes ahead while the device is busy: so many steps are asked for before the first of them is done."""
    what = "steps that the host is ahead of a busy device"
    if not setting.is_cuda:
        yield Row(what, "not on this device", "above 1")
        return
    data = torch.randn(64, 8, 16)
    loaders: dict[str, Any] = {
        "a loader with a worker": DataLoader(data, batch_size=None, num_workers=1),  # type: ignore[arg-type]
        "a loader without workers": DataLoader(TensorDataset(data.flatten(0, 1)), 8),
        "a list of batches": list(data),
        "a generator": (batch for batch in data),
    }
    for name, loader in loaders.items():
        yield attempt(f"{what}, {name}", "20", go_ahead, setting, what, name, loader)


def go_ahead(setting: Setting, what: str, name: str, loader: Any) -> Row:
    """Keep the device busy for about a second, amid the run."""
    busy, keep_busy = torch.cuda.Event(), work_for_a_second(setting)
    run, ahead = Run(random_seed=0, command_line=[]), []

    @run.train_step
    def step(batch, model, step):
        if step == FIRST:
            keep_busy()
            busy.record()
        ahead.append(FIRST <= step < LAST and not busy.query())
        return model(batch[0] if isinstance(batch, list) else batch).square().mean()

    run.configure_optimizers(one_optimizer)
    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "log_every": f"{EVERY} steps", "checkpoint_every": None}
        run(nn.Linear(16, 16), loader, max_steps=LAST + 3, device=str(setting.device), **settings)
    return Row(f"{what}, {name}", str(sum(ahead)), str(LAST - FIRST), sum(ahead) == LAST - FIRST)


def work_for_a_second(setting: Setting) -> Callable[[], None]:
    """Return what gives the device work for about a second, which takes the host no time to ask for."""
    matrix = torch.ones((64, 64) if setting.is_short else (8192, 8192), device=setting.device)
    torch.mm(matrix, matrix)
    begin = mark(setting)
    torch.mm(matrix, matrix)
    number = 3 if setting.is_short else min(500, round(1 / (mark(setting) - begin)))

    def work() -> None:
        for _ in range(number):
            torch.mm(matrix, matrix)

    return work


def share_of_waiting(setting: Setting) -> Iterator[Row]:
    """The share of the time in which the device has nothing to do, since the host has not asked for more yet."""
    sizes = {"64 wide, 2 deep": (64, 2), "512 wide, 6 deep": (512, 6), "1024 wide, 12 deep": (1024, 12)}
    for name, size in list(sizes.items())[: 1 if setting.is_short else None]:
        yield attempt(name, "", measure_share, setting, name, *size)


def measure_share(setting: Setting, name: str, width: int, depth: int) -> Row:
    """The time of a step in a run, and by hand, beside the time that the device computes in it."""
    num_steps = 8 if setting.is_short else 60
    batches = [torch.randint(256, (4 if setting.is_short else 32, 65), device=setting.device)] * num_steps
    model = Decoder(width, depth).to(setting.device)
    optimizer = one_optimizer(model)["optimizer"]

    def by_hand(num_batches: int) -> None:
        for batch in batches[:num_batches]:
            optimizer.zero_grad()
            loss = predict_bytes(batch, model)
            loss.backward()
            optimizer.step()
            loss.item()

    def by_blowtorch() -> None:
        run = Run(random_seed=0, command_line=[])
        run.train_step(predict_bytes)
        run.configure_optimizers(one_optimizer)
        run.on("train_step_end")(lambda step: marks.append(mark(setting)) if step in (5, num_steps) else None)
        with aside() as folder:
            settings = {"save_path": folder, "progress": False, "checkpoint_every": None, "device": str(setting.device)}
            run(model, batches, **settings)

    by_hand(num_steps)
    taken: dict[str, list[float]] = {"naive": [], "blowtorch": []}
    for _ in range(3):
        begin = mark(setting)
        by_hand(num_steps)
        taken["naive"].append((mark(setting) - begin) / num_steps)
        marks: list[float] = []
        by_blowtorch()
        taken["blowtorch"].append((marks[1] - marks[0]) / (num_steps - 5))
    naive, mine = (1000 * statistics.median(seconds) for seconds in taken.values())
    busy = 1000 * computing_time(setting, lambda: by_hand(8)) / 8
    found = f"a step takes {mine:.2f} ms, by hand {naive:.2f} ms"
    if busy:
        found += f"; the device computes {busy:.2f} ms of it, and waits {max(0.0, 1 - busy / mine):.0%} of the time, "
        found += f"by hand {max(0.0, 1 - busy / naive):.0%}"
    return Row(name, found)


def mark(setting: Setting) -> float:
    """The time when the device has done all that it was asked for."""
    setting.synchronize()
    return time.perf_counter()


def computing_time(setting: Setting, do: Callable[[], None]) -> float:
    """Seconds for which kernels run, as the profiler sees them; 0 where it sees none."""
    if not setting.is_cuda:
        return 0.0
    with make_profile() as profile:
        do()
        setting.synchronize()
    kernels = (
        event
        for event in profile.key_averages()
        if str(event.device_type).endswith("CUDA") and not getattr(event, "is_user_annotation", False)
    )
    return sum(event.self_device_time_total for event in kernels) / 1e6
