"""`blowtorch launch`, with real processes: what they print, how they end, and what the launcher then says and gives."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def wait_for(path, count=1):
    """Wait until there are some files of a name."""
    deadline = time.monotonic() + 30
    while len(list(path.parent.glob(path.name))) < count:
        assert time.monotonic() < deadline, "the script does not come so far"
        time.sleep(0.02)


def is_running(pid):
    """Tell whether a process is there and no mere entry in the table of processes."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_after_one_is_killed_all_start_again_and_meet_again(write, finish):
    script = write(
        """
        import torch, torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.tensor([rank + 1])
        dist.all_reduce(total)
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        print(attempt, "sum", total.item(), sys.argv[1:])
        if attempt == 0 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
        """,
        "a folder/my train.py",
    )
    code, output, error = finish(script, "--processes", "2", "--restarts=1", "with", "a=1", "b=x y")
    assert code == 0, error
    lines = output.splitlines()
    assert sorted(lines[:2]) == ["0 sum 3 ['with', 'a=1', 'b=x y']", "[1] 0 sum 3 ['with', 'a=1', 'b=x y']"]
    assert sorted(lines[2:]) == ["1 sum 3 ['with', 'a=1', 'b=x y']", "[1] 1 sum 3 ['with', 'a=1', 'b=x y']"]
    [first, *_, last] = [line for line in error.splitlines() if line.startswith("[launch]")]
    assert re.fullmatch(r"\[launch\] 2 processes of \d+ threads? each \(OMP_NUM_THREADS\)", first)
    assert last.startswith("[launch] process 1 of 2 failed: it was killed by SIGKILL")
    assert last.endswith("; all are started again (restart 1 of 1)")


def test_the_last_line_names_the_process_that_failed_first_and_the_cause(write, finish):
    script = write(
        """
        import atexit
        if rank == 1:
            print("before it")
            atexit.register(time.sleep, 1)
            open("raised", "w").close()
            raise ValueError("bad luck")
        while not os.path.exists("raised"):
            time.sleep(0.01)
        time.sleep(0.2)
        raise RuntimeError("Connection closed by peer")  # in consequence, and it ends earlier
        """
    )
    code, output, error = finish("--quiet", "--processes", "2", script)
    assert (code, output) == (1, "")
    lines = error.splitlines()
    assert lines[-1] == "[launch] process 1 of 2 failed: ValueError: bad luck (train.py, line 9)"
    assert "[1] before it" in lines and "[1] ValueError: bad luck" in lines, "shown, since it has failed"
    assert "run_script" not in error, "a traceback begins in the script"


@pytest.mark.parametrize(
    ("codes", "expected", "last"),
    [
        ((75, 0), 75, "2 processes of"),  # the other one is given all the time that it takes
        ((7, 0), 7, "process 0 of 2 failed: it has ended with exit status 7"),
    ],
)
def test_the_exit_status_is_that_of_the_script(write, finish, tmp_path, codes, expected, last):
    script = write(
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(f"ready-{{rank}}", "w").close()
        while not os.path.exists("ready-1"):
            time.sleep(0.01)
        if rank == 1:
            time.sleep(1)
        open(f"end-{{rank}}", "w").close()
        sys.exit({codes}[rank])
        """
    )
    code, _, error = finish(script, "--processes", "2", "--restarts", str(int(expected == 75)))
    assert code == expected
    assert error.splitlines()[-1].startswith(f"[launch] {last}")
    assert len(list(tmp_path.glob("end-*"))) == 2


TELLS = """
    got = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: got.append(number))
    print("terminal", *(os.isatty(number) for number in range(3)))
    open(f"ready-{rank}", "w").close()
    while not got:
        time.sleep(0.01)
    time.sleep(0.5)
    print("got", *got)
    sys.exit(75)
"""


def test_sigterm_reaches_each_process_once_and_is_no_failure(write, launch, tmp_path):
    process = launch("--processes", "2", "--restarts", "1", write(TELLS))
    wait_for(tmp_path / "ready-*", 2)
    process.terminate()
    output, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert {"got 15", "[1] got 15"} <= set(output.splitlines())
    assert error.splitlines()[-1] == "[launch] SIGTERM: the processes are asked to stop, and have 120 s"


STUBBORN = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])  # such as a loader's worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    open(f"pids-{rank}", "w").write(f"{os.getpid()} {child.pid}")
    os.rename(f"pids-{rank}", f"ready-{rank}")
    time.sleep(1000)
"""


def test_processes_that_do_not_stop_in_time_are_killed_with_all_that_they_have_started(write, launch, tmp_path):
    process = launch("--processes", "2", "--shutdown-timeout", "0.5", write(STUBBORN))
    wait_for(tmp_path / "ready-*", 2)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines()[-1] == "[launch] processes that have not ended are killed"
    left = [pid for file in tmp_path.glob("ready-*") for pid in file.read_text().split()]
    assert len(left) == 4 and not any(map(is_running, left))


def test_a_failure_on_one_machine_ends_the_processes_of_the_others(write, launch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = write(
        """
        if rank == 1:
            raise ValueError("bad luck")
        time.sleep(1000)
        """
    )
    launchers = [launch("--nodes", "2", "--rendezvous", address, "--processes", "1", script) for _ in range(2)]
    last = sorted(process.communicate(timeout=60)[1].splitlines()[-1] for process in launchers)
    assert last[0].startswith("[launch] another machine has ended the job")
    assert last[1] == "[launch] process 1 of 2 failed: ValueError: bad luck (train.py, line 5)"
    assert [process.returncode for process in launchers] == [1, 1]


def test_one_that_waits_for_another_which_a_signal_has_ended_is_ended_too(write, launch, tmp_path):
    script = write(
        """
        if rank == 1:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # as one that has lost it
        open(f"ready-{rank}", "w").close()
        time.sleep(1000)
        """
    )
    process = launch("--processes", "2", script)
    wait_for(tmp_path / "ready-*", 2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert error.count("KeyboardInterrupt") == 1 and "killed" not in error


@pytest.mark.skipif(sys.platform != "linux", reason="no other system can do that")
def test_no_process_survives_a_launcher_that_is_killed(write, launch, tmp_path):
    process = launch("--processes", "2", write(STUBBORN))
    wait_for(tmp_path / "ready-*", 2)
    process.kill()
    pids = [file.read_text().split() for file in tmp_path.glob("ready-*")]
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid, _ in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _, child in pids:  # it is not the launcher's own
        os.kill(int(child), signal.SIGKILL)


class Terminal:
    """A launcher in a terminal of its own."""

    TAKE_IT = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, arguments, folder):
        self.keyboard, screen = pty.openpty()
        launch = [sys.executable, "-m", "blowtorch_cli", "launch", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.TAKE_IT, *launch],
            cwd=folder,
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )
        os.close(screen)

    def press_ctrl_c(self):
        os.write(self.keyboard, b"\x03")

    def close(self):
        """Wait for the end; return the exit status and all that was shown."""
        shown = b""
        while True:
            try:
                data = os.read(self.keyboard, 1 << 16)
            except OSError:  # as Linux says that nobody has it open any more
                data = b""
            if not data:
                break
            shown += data
        os.close(self.keyboard)
        return self.process.wait(), shown.decode()


def test_in_a_terminal_the_first_process_has_it_and_ctrl_c_reaches_each_once(write, tmp_path):
    terminal = Terminal(["--processes", "2", write(TELLS)], tmp_path)
    wait_for(tmp_path / "ready-*", 2)
    terminal.press_ctrl_c()
    code, shown = terminal.close()
    assert code == 75
    lines = [re.sub(r".*\x1b\[K", "", line) for line in shown.splitlines()]
    assert "terminal True True True" in lines and "[1] terminal False False False" in lines
    assert {"got 2", "[1] got 2"} <= set(lines)


def test_more_ctrl_c_end_what_does_not_listen(write, tmp_path):
    terminal = Terminal(["--processes", "2", write(STUBBORN)], tmp_path)
    wait_for(tmp_path / "ready-*", 2)
    for _ in range(3):
        terminal.press_ctrl_c()
        time.sleep(0.5)  # one within a moment would count as the same
    code, shown = terminal.close()
    assert code == 128 + signal.SIGINT
    assert "processes that have not ended are killed" in shown


SHOWS = """
    import json, multiprocessing
    class Kept:
        pass
    def work(queue):
        queue.put([__name__, Kept.__module__])
    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        if not __file__.endswith("__main__.py"):  # which Python imports in no child
            child = context.Process(target=work, args=(queue,))
            child.start()
        main = sys.modules["__main__"]
        print(json.dumps([
            sys.argv, sys.path, __file__, __package__, __spec__ and __spec__.name,
            main.Kept is Kept, sorted(vars(main).keys() - {"__annotations__"}),
            "child" in vars(main) and queue.get(),
        ]))
"""


def test_what_a_run_records_as_its_command_starts_the_launch_again(write, finish):
    script = write("print(*sys.orig_argv)")
    _, output, _ = finish("--processes", "1", script, "with", "a=1")
    assert output == f"blowtorch launch --processes 1 {script} with a=1\n"


@pytest.mark.parametrize("words", [["scripts/train.py"], ["-m", "package.train"], ["-m", "package"]])
def test_a_script_is_run_as_by_python_itself(write, finish, tmp_path, words):
    for name in ("scripts/train.py", "package/train.py", "package/__main__.py"):
        write(SHOWS, name)
    code, output, error = finish("--processes", "1", *words, "--", "--restarts", "1")
    assert code == 0, error
    plain = subprocess.run(
        [sys.executable, *words, "--restarts", "1"], cwd=tmp_path, env=os.environ | {"RANK": "0"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(output) == json.loads(plain.stdout)
    assert error == ""
