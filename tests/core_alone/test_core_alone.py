"""The core in an environment without any other of our packages."""

import importlib.util

import pytest
import torch

from blowtorch import ExtensionError, Run
from blowtorch.plugins import find_extensions


def make_run():
    run = Run(random_seed=1, command_line=[])
    run.train_step(lambda batch, model: model(batch).pow(2).mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    return run


@pytest.mark.parametrize("module", ["blowtorch_tensorboard", "blowtorch_wandb", "blowtorch_cli", "wandb", "click"])
def test_no_plugin_package_can_be_imported(module):
    assert importlib.util.find_spec(module) is None


def test_only_the_built_in_extensions_are_there():
    assert {extension.package for extension in find_extensions()} == {"blowtorch-core"}


def test_it_trains_with_all_that_is_built_in(tmp_path):
    options = {"save_path": str(tmp_path), "scheduler": "cosine", "callbacks": [{"early_stopping": {"patience": 2}}]}
    run = make_run()
    run.validate_step(lambda batch, model: {"loss": model(batch).pow(2).mean()})
    result = run(torch.nn.Linear(4, 1), [torch.ones(8, 4)] * 5, [torch.ones(8, 4)], max_epochs=2, **options)
    assert result.status == "finished"
    assert result.best is not None


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_of_ours_that_is_not_installed_says_what_to_install(tmp_path, name):
    with pytest.raises(ExtensionError, match=f"pip install blowtorch-{name}"):
        make_run()(torch.nn.Linear(4, 1), [torch.ones(8, 4)], loggers=[name], save_path=str(tmp_path))
