"""The parts of a run, put together: what the loop works with."""

from dataclasses import dataclass, field
from typing import Any

from blowtorch.callbacks import Callbacks
from blowtorch.checkpoints import Checkpoints
from blowtorch.clock import Trigger
from blowtorch.data import Batches
from blowtorch.metrics import Window
from blowtorch.optimization import Gradients
from blowtorch.record import Record
from blowtorch.schedules import Schedules
from blowtorch.steps import Function, Loss, Returns
from blowtorch.validation import Validation


@dataclass
class Training:
    """The parts of a run; they stay the same while it lasts."""

    function: Function  # the train step, or a function that drives a whole epoch
    batches: Batches
    returns: Returns
    loss: Loss
    schedules: Schedules
    validations: list[Validation]
    callbacks: Callbacks
    record: Record
    checkpoints: Checkpoints
    gradients: Gradients | None  # None where nothing happens to them
    epoch_window: Window
    record_trigger: Trigger
    checkpoint_trigger: Trigger | None
    changes: list[str] = field(default_factory=list)  # since the process that is continued, in words
    random_state: dict[str, Any] | None = None  # of a checkpoint; put back before the next batch is fetched

    def __post_init__(self) -> None:
        found = [self.record_trigger, self.checkpoint_trigger, *(each.trigger for each in self.validations)]
        self.triggers = [  # everything that may be due after a step; at the end of an epoch all are asked anyway
            trigger for trigger in found if trigger is not None and trigger.interval.unit != "epochs"
        ]
