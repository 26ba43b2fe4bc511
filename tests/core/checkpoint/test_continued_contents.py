"""What a continued run insists on."""

import json
import re

import pytest
import torch

from blowtorch import CheckpointError, open_run
from blowtorch.folder.manifest import read_manifest, write_manifest
from tests.core.checkpoint.comparisons import QUIET, names


def test_a_part_may_be_begun_anew_if_it_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, scheduler="cosine", **QUIET)
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match="run.resume_without=schedulers/optimizer"):
        make_run(validates=False)(net, loader, **options)
    result = make_run("with", "run.resume_without=schedulers/optimizer", validates=False)(net, loader, **options)
    assert (result.status, result.step) == ("finished", 16)


def test_a_part_that_is_new_may_be_named_too(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    options = {"max_epochs": 2, "resume": str(first.folder), "scheduler": "cosine", **QUIET}
    with pytest.raises(CheckpointError, match="holds no 'schedulers/optimizer', which the script has"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without=["schedulers/optimizer"], **options).step == 16


@pytest.mark.parametrize(("name", "hint"), [("randm/numpy", "Did you mean 'random/numpy'"), ("state", "There are")])
def test_a_name_that_cannot_be_left_out_names_the_nearest(make_run, net, loader, name, hint):
    first = make_run(validates=False)(net, loader, **QUIET)
    with pytest.raises(CheckpointError, match=f"resume_without names '{name}', .*{hint}"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), resume_without=[name], **QUIET)


def change_training(checkpoint, change):
    """Rewrite a part of a checkpoint, as if it had always been so."""
    content = torch.load(checkpoint / "training.pt", weights_only=True)
    change(content)
    torch.save(content, checkpoint / "training.pt")
    manifest = read_manifest(checkpoint)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, manifest.step, manifest.epoch, manifest.metrics)


@pytest.mark.parametrize("stream", ["python", "numpy", "torch"])
def test_a_random_stream_that_is_missing_is_named_and_may_be_forgiven(make_run, net, loader, stream):
    first = make_run(validates=False)(net, loader, **QUIET)
    change_training(first.folder / "checkpoints" / "step-00000008", lambda content: content["random"].pop(stream))
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match=f"holds no 'random/{stream}', which the script has"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without=f"random/{stream}", **options).step == 16


def test_a_stream_of_a_device_that_is_not_here_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    path = first.folder / "checkpoints" / "step-00000008"
    change_training(path, lambda content: content["random"].update(cuda=[torch.zeros(16, dtype=torch.uint8)]))
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match="holds 'random/cuda', which the script has not"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without="random/cuda", **options).step == 16


def test_a_checkpoint_of_another_version_is_refused_with_both_versions(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=2, **QUIET)
    manifest = first.folder / "checkpoints" / "step-00000016" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 7}))
    info = first.folder / "run.yaml"
    info.write_text(re.sub(r"(blowtorch-core: .*)0\.1\.0", r"\g<1>0.9.4", info.read_text()))
    with pytest.raises(
        CheckpointError, match=r"another version, blowtorch-core 0\.9\.4, and this is 0\.1\.0: .*format 7"
    ):
        make_run(validates=False)(net, loader, max_epochs=3, resume=str(first.folder), **QUIET)
    assert names(first) == ["step-00000008"]  # the other is not readable for us, and still there
    assert manifest.is_file()


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("file", ["model.pt", "training.pt"])
def test_a_strangers_checkpoint_is_refused_and_nothing_is_executed(make_run, net, loader, tmp_path, file):
    first = make_run(validates=False)(net, loader, **QUIET)
    path = first.folder / "checkpoints" / "step-00000008"
    torch.save({"weights": Payload()}, path / file)
    (path / "manifest.json").unlink()
    write_manifest(path, 8, 1, {})
    with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    if file == "model.pt":
        with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values"):
            make_run(validates=False)(net, loader, initialize_from=str(first.folder), **QUIET)
        view = open_run(first.folder)
        with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values: it names io.open"):
            view.load_model(net, "latest")
    assert not (tmp_path / "executed").exists()
