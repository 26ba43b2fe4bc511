"""What the loop works with: in each step, and between the steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blowtorch.checkpoint.checkpoints import Checkpoints
from blowtorch.clock import Trigger
from blowtorch.data.batches import Batches
from blowtorch.parallel.agreement import Agreement, HasNews
from blowtorch.progress import Progress
from blowtorch.record.metrics import Window
from blowtorch.record.record import Record
from blowtorch.schedule.schedules import Schedules
from blowtorch.script.functions import Function
from blowtorch.script.returns import Loss, Returns
from blowtorch.state import RunState
from blowtorch.streams import restore_random_state
from blowtorch.training.callbacks import Callbacks
from blowtorch.training.compilation import Compilations
from blowtorch.training.coverage import Coverage
from blowtorch.training.gradients import Gradients
from blowtorch.training.validation import Validation
from blowtorch.training.waiting import Waiting
from blowtorch.training.workspace import Workspace


@dataclass
class Steps:
    """What the loop works with in each step.

    Attributes:
        function: the train step, or a function that drives a whole epoch.
        random_state: of the checkpoint from which the run goes on, until the next batch is about to be fetched.
    """

    workspace: Workspace
    function: Function
    batches: Batches
    returns: Returns
    loss: Loss
    gradients: Gradients
    schedules: Schedules
    callbacks: Callbacks
    state: RunState = field(init=False)
    progress: Progress = field(init=False)
    random_state: Mapping[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.state, self.progress = self.workspace.state, self.workspace.progress

    @property
    def is_watched(self) -> bool:
        """Whether the gradients, a schedule or a callback want to know of every step."""
        return self.gradients.wants_steps or self.schedules.wants_steps or bool(self.callbacks.step_calls)

    def restore_streams(self) -> None:
        """Put the random streams of the checkpoint back, if the run goes on from one and has not done so yet."""
        if self.random_state is not None:
            restore_random_state(self.random_state)
            self.random_state = None


@dataclass
class Training:
    """What the loop works with between the steps, and in them.

    Attributes:
        steps: what it works with in each step.
        epoch_window: the means of the epoch under way.
        checkpoint_trigger: None where the clock asks for no checkpoints.
        coverage: says what of the model is not trained.
        agreement: at which step several processes do what one of them wants; None where there is one alone.
        teller: knows whether a checkpoint has been published of which nobody has been told.
        compilations: says where `torch.compile` compiles again.
        waiting: times how long the steps wait for their batches.
        next_decision: the next step after which more than a recording can be due.
        lost_loss: a mean loss that is not finite, and the step at which it was recorded, until that is heeded.
        is_end_awaited: whether the last step seemed to be the last of its epoch, so that something waits for the end.
        news: what is to be said once the run starts: advice for a new one, else what has changed since before.
    """

    steps: Steps
    validations: list[Validation]
    record: Record
    checkpoints: Checkpoints
    epoch_window: Window
    record_trigger: Trigger
    checkpoint_trigger: Trigger | None
    coverage: Coverage
    agreement: Agreement | None
    teller: HasNews = field(init=False)
    workspace: Workspace = field(init=False)
    state: RunState = field(init=False)
    progress: Progress = field(init=False)
    compilations: Compilations = field(init=False)
    waiting: Waiting = field(init=False)
    news: list[str] = field(init=False, default_factory=list)
    step_triggers: list[Trigger] = field(init=False)
    next_decision: int = field(init=False, default=0)
    lost_loss: tuple[float, int] | None = field(init=False, default=None)
    is_end_awaited: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.workspace, self.state, self.progress = self.steps.workspace, self.steps.state, self.steps.progress
        self.compilations = Compilations(self.workspace)
        self.teller = self.checkpoints if self.agreement is None else self.agreement
        self.waiting = Waiting(self.state.device, self.steps.batches.loader)
        triggers = [self.checkpoint_trigger, *(validation.trigger for validation in self.validations)]
        # What may be due after a step besides a recording; at the end of an epoch everything is asked anyway.
        self.step_triggers = [
            trigger for trigger in triggers if trigger is not None and trigger.interval.unit != "epochs"
        ]
