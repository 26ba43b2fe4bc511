"""The scripts in `examples/`, and what makes each of them very short."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["run.validate_every=2 steps", "run.checkpoint_every=3 steps", "run.limit_validate_batches=1"]
STEPS = [*SHORT, "run.max_steps=5"]
WORDS = {
    "digits": [*STEPS, "run.loggers=[]"],
    "fine_tuning": STEPS,
    "gan": STEPS,
    "gpt": [
        *("model.width=32", "model.depth=1", "model.heads=2", "model.context=32", "sample.length=10"),
        *("data.batch_size=16", "run.scheduler=cosine", *STEPS),
    ],
    "own_epoch": ["run.max_epochs=2", "run.limit_train_batches=3", "run.limit_validate_batches=1"],
    "stream": [*STEPS, "model.width=16"],
}
