"""Checkpoints that another backend than `local` keeps, and what can be done with them when the run is over."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blowtorch import CheckpointError, find_runs, open_run
from tests.core.small_runs import QUIET, assert_same, weights

MODULE = '''
import shutil
from pathlib import Path
from blowtorch import hookimpl


class Elsewhere:
    """Keeps checkpoints below another folder, by the id of the run; copies them for whoever fetches them."""

    def __init__(self, root="store", password=""):
        self.root, self.password = Path(root), password

    @hookimpl
    def checkpoint_open(self, run):
        if self.password == "***":
            raise PermissionError("wrong password")
        self.place = self.root / run.id
        self.place.mkdir(parents=True, exist_ok=True)

    @hookimpl
    def checkpoint_publish(self, name, directory):
        shutil.copytree(directory, self.place / name, dirs_exist_ok=True)

    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        if not (self.place / name).is_dir():
            raise FileNotFoundError(name)
        for file in files or [path.name for path in (self.place / name).iterdir()]:
            shutil.copy(self.place / name / file, directory)
        return directory

    @hookimpl
    def checkpoint_list(self):
        return sorted(path.name for path in self.place.iterdir())

    @hookimpl
    def checkpoint_delete(self, name):
        shutil.rmtree(self.place / name, ignore_errors=True)
'''


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A module with a checkpoint backend, which can be named or made."""
    (tmp_path / "elsewhere.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("elsewhere", None)
    return importlib.import_module("elsewhere")


NAMED = {"elsewhere:Elsewhere": {"root": "store"}}


@pytest.fixture(params=["a name", "an object"])
def backend(request, elsewhere):
    return NAMED if request.param == "a name" else elsewhere.Elsewhere("store")


def test_everything_that_takes_a_checkpoint_fetches_it_from_there(make_run, fresh, loader, backend):
    run, trained = make_run(), fresh()
    run.predict_step(lambda batch, model: model(batch[0]))
    result = run(trained, loader, loader, max_epochs=2, checkpoint_backend=backend, **QUIET)
    assert not list((result.folder / "checkpoints").glob("step-*"))
    view = open_run(result.folder)
    assert [checkpoint.name for checkpoint in view.checkpoints] == ["step-00000008", "step-00000016"]
    assert view.checkpoint("best").metric == result.best.metric and view.checkpoint("latest").step == 16
    assert_same(weights(view.load_model(fresh(), "latest")), weights(trained))
    assert run.evaluate(fresh(), loader, checkpoint="latest") == run.evaluate(trained, loader)
    path = result.folder / "checkpoints" / "step-00000016"
    assert run.evaluate(fresh(), loader, checkpoint=path) == run.evaluate(trained, loader)
    predicted = run.predict(fresh(), loader, checkpoint="latest", gather=True)
    assert torch.equal(predicted, run.predict(trained, loader, gather=True))
    for origin in (result.folder, path, result.folder / "checkpoints" / "latest"):
        again, seen = make_run(), []
        again.init(lambda model, seen=seen: seen.extend(weights(model)))
        again(fresh(), loader, loader, initialize_from=origin, **QUIET)
        assert_same(seen, weights(trained))
    assert find_runs()[-1].checkpoint("best").name == result.best.name


def test_the_path_of_a_checkpoint_is_a_place_that_exists_or_words(make_run, fresh, loader, backend):
    heard = []
    run = make_run()
    run.on("checkpoint_saved")(lambda checkpoint: heard.append(checkpoint.path))
    result = run(fresh(), loader, loader, checkpoint_backend=backend, **QUIET)
    name = "Elsewhere" if backend is not NAMED else "elsewhere:Elsewhere"
    words = f"step-00000008 in checkpoint backend '{name}'"
    assert [str(path) for path in heard] == [str(result.best.path)] == [words]
    assert str(open_run(result.folder).checkpoint("best").path) == words
    assert words in (result.folder / "console.log").read_text()
    local = make_run()(fresh(), loader, loader, **QUIET)
    assert local.best.path == open_run(local.folder).checkpoint("best").path and local.best.path.is_dir()
    again = make_run()(fresh(), loader, loader, resume=str(result.folder), checkpoint_backend=backend, **QUIET)
    assert str(again.best.path) == words


def test_a_run_goes_on_from_any_checkpoint_that_is_named(make_run, fresh, loader, backend):
    options = {"checkpoint_backend": backend, "keep_last": 9, **QUIET}
    result = make_run()(fresh(), loader, loader, max_epochs=3, **options)
    path = result.folder / "checkpoints" / "step-00000016"
    run, steps = make_run(), []
    run.on("run_start")(lambda state: steps.append(state.step))
    run(fresh(), loader, loader, max_epochs=3, resume=path, **options)
    run(fresh(), loader, loader, max_epochs=3, resume=result.folder / "checkpoints" / "latest", **options)
    assert steps == [16, 24]
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint 'step-00000017'. Did you mean 'step-00000016'\? There"
    ):
        run(fresh(), loader, loader, max_epochs=3, resume=path.with_name("step-00000017"), **options)


def test_another_process_reads_them_by_the_name_of_the_backend(make_run, fresh, loader, elsewhere, tmp_path):
    result = make_run()(fresh(), loader, loader, checkpoint_backend=NAMED, **QUIET)
    code = "import sys, blowtorch; print(len(blowtorch.open_run(sys.argv[1]).checkpoints), 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, str(result.folder)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_an_object_that_is_gone_and_secrets_have_to_be_given(make_run, fresh, loader, elsewhere):
    trained = fresh()
    result = make_run()(trained, loader, loader, checkpoint_backend=elsewhere.Elsewhere("store"), **QUIET)
    gc.collect()
    with pytest.raises(
        CheckpointError, match=r"are in checkpoint backend 'a Elsewhere', which cannot be used here: .*"
    ):
        open_run(result.folder).checkpoint("best")
    view = open_run(result.folder, checkpoint_backend=NAMED)
    assert_same(weights(view.load_model(fresh(), "latest")), weights(trained))
    secret = {"elsewhere:Elsewhere": {"root": "store", "password": "abc"}}
    result = make_run()(trained, loader, loader, checkpoint_backend=secret, **QUIET)
    with pytest.raises(
        CheckpointError, match=r"wrong password; say which it is, open_run\(path, checkpoint_backend=...\)"
    ):
        open_run(result.folder).load_model(fresh())
    assert len(open_run(result.folder, secret).checkpoints) == 1
    make_run()(fresh(), loader, loader, initialize_from=str(result.folder), checkpoint_backend=secret, **QUIET)


def test_an_address_with_a_password_has_to_be_given_too(make_run, fresh, loader, elsewhere):
    trained, backend = fresh(), {"elsewhere:Elsewhere": {"root": "store://me:hunter2@host/a"}}
    result = make_run()(trained, loader, loader, checkpoint_backend=backend, **QUIET)
    assert "hunter2" not in (result.folder / "run.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"a secret within an address .* not kept; say which it is, open_run"):
        open_run(result.folder).load_model(fresh())
    assert_same(weights(open_run(result.folder, backend).load_model(fresh(), "latest")), weights(trained))
    longer = {"max_epochs": 2, "resume": str(result.folder), "checkpoint_backend": backend, **QUIET}
    assert make_run()(fresh(), loader, loader, **longer).step == 2 * result.step


def test_a_damaged_one_is_not_loaded(make_run, fresh, loader, elsewhere):
    result = make_run()(fresh(), loader, loader, checkpoint_backend=NAMED, **QUIET)
    view = open_run(result.folder)
    (stored,) = Path("store").rglob("model.pt")
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model.pt has .* bytes instead of"):
        view.load_model(fresh())


def test_whoever_reads_disturbs_nobody_who_trains(make_run, fresh, loader, elsewhere):
    """The object is that of the run, which goes on with it."""
    backend, other = elsewhere.Elsewhere("store"), make_run()(fresh(), loader, loader, **QUIET)
    run, seen = make_run(), []

    @run.on("checkpoint_saved")
    def read(state):
        seen.append(len(open_run(state.folder).checkpoints))
        with pytest.raises(CheckpointError, match="has no checkpoint 'best'"):
            open_run(other.folder, checkpoint_backend=backend).load_model(fresh())

    result = run(fresh(), loader, loader, max_epochs=2, checkpoint_backend=backend, **QUIET)
    assert seen == [1, 2] and len(open_run(result.folder).checkpoints) == 2


def test_the_backend_of_the_core_cleans_up_nothing_where_somebody_only_reads(make_run, fresh, loader):
    result = make_run()(fresh(), loader, loader, **QUIET)
    half = result.folder / "checkpoints" / ".tmp-step-00000099-abc"
    half.mkdir()
    assert len(open_run(result.folder, checkpoint_backend="local").checkpoints) == 1
    assert half.is_dir()
