"""Sends blowtorch runs to Weights & Biases, online or offline; `wandb` is imported when a run starts."""

import html
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blowtorch import BlowtorchError, RunInfo, hookimpl, open_run

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbLogger"]


class WandbLogger:
    """One Weights & Biases run for each blowtorch run, over all its restarts.

    Without an account on this machine the run is kept offline, and a line at its end says how to send it later.

    Args:
        project: the project that the run belongs to.
        entity: user or team; your default unless given.
        mode: `online`, `offline` or `disabled`; what WANDB_MODE says, or whether there is an account, unless given.
        group: shown together with other runs of that group.
        tags: labels of the run.
        notes: a longer description.

    Raises:
        ValueError: there is no such mode.
    """

    def __init__(
        self,
        project: str = "blowtorch",
        entity: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"mode: expected 'online', 'offline' or 'disabled', got {mode!r}")
        self.project = project
        self.entity = entity
        self.mode = mode
        self.group = group
        self.tags = list(tags)
        self.notes = notes
        self._run: wandb.Run | None = None

    @hookimpl
    def log_start(self, run: RunInfo) -> None:
        """Begin the run, or continue it under the same id."""
        import wandb

        if self._run is not None:  # an earlier attempt went wrong half way, and wandb holds its id in use
            self._run.finish()
            self._run = None
        mode: Any = self.mode or os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            notes=self.notes,
            id=run.id,
            name=run.name,
            dir=str(run.own_folder),
            config=dict(run.config),
            mode=mode,
            # Offline, wandb cannot ask its server whether the run exists, and says so; the id alone does it there.
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=has_secret_arguments(run.folder),
            ),
        )
        # Steps are a metric of their own: wandb drops what comes for an earlier step of its own counter.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @hookimpl
    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int, time: float) -> None:
        """One row for each recording."""
        self._log({**metrics, "epoch": epoch, "_timestamp": time}, step)

    @hookimpl
    def log_image(self, name: str, path: Path, step: int) -> None:
        """An image; wandb keeps a copy."""
        import wandb

        self._log({name: wandb.Image(str(path))}, step)

    @hookimpl
    def log_histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Show a histogram."""
        import numpy as np
        import wandb

        bins = rebinned(counts, edges, wandb.Histogram.MAX_LENGTH)
        self._log({name: wandb.Histogram(np_histogram=(np.array(bins[0]), np.array(bins[1])))}, step)

    @hookimpl
    def log_text(self, name: str, text: str, step: int) -> None:
        """Show a text, line by line as it is."""
        import wandb

        self._log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step)

    @hookimpl
    def log_file(self, name: str, path: Path, step: int) -> None:
        """Put a file among the files of the run."""
        assert self._run is not None
        self._run.save(str(path), base_path=str(path.parents[1]), policy="now")

    @hookimpl
    def log_finish(self, status: str, summary: Mapping[str, float]) -> None:
        """Close the run with its summary and status; a run that failed is shown as failed."""
        run, self._run = self._run, None
        if run is None:
            return
        run.summary.update({**summary, "status": status})
        folder = Path(run.dir).parent
        is_offline = run.offline
        run.finish(exit_code=1 if status == "failed" else 0)
        if is_offline:
            print(f"wandb kept the run offline; to send it: wandb sync {folder.parent}/offline-run-*", flush=True)

    def _log(self, row: dict[str, Any], step: int) -> None:
        if self._run is None:
            raise RuntimeError("the wandb logger was given an event before log_start")
        self._run.log({**row, "step": step})


def rebinned(counts: Sequence[int], edges: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """Return a histogram with at most so many bins; where there are more, neighbours are put together.

    >>> rebinned([1, 2, 3], [0.0, 0.5, 1.0, 1.5], most=2)
    ([3, 3], [0.0, 1.0, 1.5])
    """
    width = -(-len(counts) // most)
    starts = range(0, len(counts), width)
    return [sum(counts[start : start + width]) for start in starts], [*edges[:-1:width], edges[-1]]


def has_secret_arguments(folder: Path) -> bool:
    """Tell whether wandb must not see how the script was started: its metadata would repeat each word as it is."""
    try:
        recorded = open_run(folder).info.get("command", [])
    except BlowtorchError:  # there is no run, so nothing says what is secret
        return False
    return any(word not in recorded for word in sys.argv[1:])


def has_account() -> bool:
    """Tell whether wandb would find a key: in the environment, or in the file where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    netrc_file = os.environ.get("NETRC")
    for path in [Path(netrc_file)] if netrc_file else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
