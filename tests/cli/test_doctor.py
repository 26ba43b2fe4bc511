"""`blowtorch doctor`: what it finds out about an installation and about several processes, and what it says to do."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blowtorch_cli.doctor.findings import Meeting, Member, Request
from blowtorch_cli.doctor.installation import check_folder, check_host, check_variables
from blowtorch_cli.doctor.together import OF_MEETING, explain

CODE = "from blowtorch_cli.doctor.command import doctor; doctor(prog_name='blowtorch doctor')"


def wrong(findings):
    return [(finding.check, finding.text, finding.advice) for finding in findings if finding.status == "wrong"]


def test_an_installation_with_a_broken_plugin_is_told_why_on_one_screen(blowtorch, install, tmp_path):
    install("acme", "[blowtorch.loggers]\nacme = acme:Logger\n", acme="import nowhere_at_all")
    done = blowtorch("--save-path", str(tmp_path / "runs"), code=CODE)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and lines[-1] == "1 thing to mend"
    first_words = [line.split()[:2] for line in lines if line and not line.startswith(" ")]
    for expected in ("python", "torch", "accelerator", "packages", "folder", "memory"):
        assert ["ok", expected] in first_words, done.stdout
    problem = "logger 'acme' (acme 1.2) is broken: 'acme' cannot be imported: ModuleNotFoundError"
    assert problem in " ".join(done.stdout.split())
    assert "blowtorch plugins show acme says more" in done.stdout
    assert not (tmp_path / "runs").exists()


def examine(tmp_path, *words, **variables):
    command = [sys.executable, "-c", CODE, "--save-path", str(tmp_path / "runs"), *words]
    pipe = subprocess.PIPE
    environment = {**os.environ, "TMPDIR": str(tmp_path), **variables}
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_meet_and_tell_what_they_have_in_common(tmp_path):
    process = examine(tmp_path, "--processes", "2", "--json")
    output, problem = process.communicate(timeout=100)
    findings = json.loads(output)
    assert process.returncode == 0, output + problem
    assert all(finding.keys() == {"check", "status", "text", "advice"} for finding in findings)
    told = {finding["check"]: finding["text"] for finding in findings}
    assert told["processes"] == f"2 have met on {socket.gethostname()}"
    assert "torch " in told["versions"] and "blowtorch-core " in told["versions"]
    assert told["exchange"].startswith("a number is summed up in ")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_process_that_is_killed_for_memory_is_named_with_what_to_do(tmp_path):
    process = examine(tmp_path, "--processes", "2")
    deadline = time.monotonic() + 60
    while not (notes := [*tmp_path.glob("blowtorch-doctor-*/process-1.json")]) or not notes[0].read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(json.loads(notes[0].read_text())["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    text = " ".join(output.split())
    assert "wrong processes process 1 of 2 failed: it was killed by SIGKILL, as the system does when memory" in text
    assert "start fewer processes, or give the job more memory" in text


def test_processes_that_take_too_long_are_ended_and_told_of(tmp_path):
    process = examine(tmp_path, "--processes", "2", "--timeout", "1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "they have not ended within 1 s" in output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_wrong():
    [(check, text, advice)] = wrong(check_folder(Request(Path("/proc/runs"))))
    assert check == "folder" and text.startswith("runs cannot be written to /proc/runs: ")
    assert "run.save_path" in advice


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 in this shell, so a script waits for others"),
        ({"BLOWTORCH_PROCESS_TIMEOUT": "soon"}, "BLOWTORCH_PROCESS_TIMEOUT cannot be read: expected an amount"),
        ({"GLOO_SOCKET_IFNAME": "ib7"}, "GLOO_SOCKET_IFNAME is ib7, and there is no such network"),
    ],
)
def test_variables_that_mislead_processes_are_wrong(variables, text):
    [(check, said, advice)] = wrong(check_variables(Request(Path(), variables=variables)))
    assert check == "variables" and said.startswith(text) and "unset" in advice


def test_variables_that_are_right_are_none_of_them_wrong():
    variables = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "^docker", "BLOWTORCH_PROCESS_TIMEOUT": "9 minutes"}
    assert wrong(check_variables(Request(Path(), variables=variables))) == []


def test_a_host_that_is_not_known_and_a_port_that_is_taken_are_told_before_anybody_waits():
    [(check, text, _)] = wrong(check_host(Request(Path(), 2, rendezvous="nowhere.invalid:29400")))
    assert (check, text) == ("rendezvous", "no address is known for nowhere.invalid")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        [(_, text, advice)] = wrong(check_host(Request(Path(), 2, rendezvous=f"127.0.0.1:{port}")))
    assert text.startswith(f"port {port} of this machine is taken: ") and "another port" in advice
    assert wrong(check_host(Request(Path(), 2, rendezvous=f"127.0.0.1:{port}"))) == []


def test_machines_that_do_not_come_are_told_of(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    words = ["--processes", "1", "--nodes", "2", "--rendezvous", address, "--timeout", "6"]
    process = examine(tmp_path, *words)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"fewer than 2 machines have come to {address} within 6 s" in output
    assert "start the same command on each machine" in output


def make_meeting(second=None, sums=None):
    first = Member(0, "one", {"torch": "2.13.0"}, "GPU-1", 2, sees_folder=True, clock=0.0)
    other = dataclasses.replace(first, rank=1, device="GPU-2")
    members = [first, dataclasses.replace(other, **(second or {}))]
    return Meeting(members, "/runs", sums or {8: 1e-4, 64 << 20: 0.05})


def look_at(meeting):
    return [finding for check in OF_MEETING for finding in check(meeting)]


def test_a_meeting_in_which_all_is_well_has_nothing_to_tell_but_that():
    assert {finding.status for finding in look_at(make_meeting())} == {"ok"}


@pytest.mark.parametrize(
    ("second", "check", "text"),
    [
        ({"versions": {"torch": "2.9.1"}}, "versions", "process 0 has torch 2.13.0, process 1 2.9.1"),
        ({"device": "GPU-1"}, "devices", "processes 0, 1 share the GPU GPU-1"),
        ({"device": ""}, "devices", "process 1 has no GPU, and others have one"),
        (
            {"host": "two", "sees_folder": False}, "folder",
            "process 1 on two does not see what is written into /runs by the first",
        ),
        ({"host": "two", "clock": -61.4}, "clocks", "that of process 1 on two is 61 s behind"),
    ],
)  # fmt: skip
def test_what_one_process_has_otherwise_than_the_first_is_wrong(second, check, text):
    [(told, said, advice)] = wrong(look_at(make_meeting(second)))
    assert (told, said) == (check, text) and advice


def test_a_slow_exchange_is_noted():
    [finding] = [finding for finding in look_at(make_meeting(sums={8: 0.02, 4 << 20: 3.0})) if finding.status == "note"]
    assert finding.check == "exchange" and "4 MB in 3e+03 ms" in finding.text and "accumulate" in finding.advice


@pytest.mark.parametrize(
    ("output", "text", "advice"),
    [
        (
            "noise\n[launch] process 1 of 2 failed: ProcessError: process 0 of 2 did not come: it is in load (a.py)\n",
            "process 1 of 2 failed: ProcessError: process 0 of 2 did not come: it is in load (a.py)",
            "BLOWTORCH_PROCESS_TIMEOUT",
        ),
        (
            "[launch] 2 processes; meeting other machines at a:1\n[launch] fewer than 2 machines have come to a:1\n",
            "fewer than 2 machines have come to a:1",
            "start the same command on each machine",
        ),
        ("Traceback\nRuntimeError: Unable to resolve hostname\n", "RuntimeError: Unable to resolve", "/etc/hosts"),
        ("", "they have failed and said nothing", ""),
    ],
)
def test_what_a_launch_has_said_last_is_explained(output, text, advice):
    finding = explain(output)
    assert finding.status == "wrong" and finding.text.startswith(text) and advice in finding.advice
