"""What a doctor looks at of several processes: starts them, and reads what they have found out together."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blowtorch_cli.doctor.findings import Finding, Meeting, MeetingCheck, Request
from blowtorch_cli.doctor.member import FOUND

_END_S = 15.0  # for processes that are asked to stop
_STOP_S = 5
_CLOCK_S = 2.0  # more than that is told
_SLOW_S = 1.0
_PROCESS_FAILED = re.compile(r"^\[launch\] (process \d+ of \d+ failed: .*)$", re.MULTILINE)
_LAUNCH_SAID = re.compile(r"^\[launch\] (?!\d+ process)(.*)$", re.MULTILINE)
_ADVICE = (
    ("SIGKILL", "if memory ran out, which `dmesg` shows, start fewer processes, or give the job more memory"),
    ("did not come", "look where it is; if it only needs longer, set BLOWTORCH_PROCESS_TIMEOUT='30 minutes'"),
    ("rendezvous is not known", "give a host that each machine can look up, or its address"),
    ("nothing answers at", "start the same command on that machine too, and see that no firewall closes the port"),
    ("machines have come", "start the same command on each machine; see that no firewall closes the port"),
    (
        r"[Rr]esolve|not known|getaddrinfo",
        "write the address and the name of this machine into /etc/hosts, or set GLOO_SOCKET_IFNAME to its network",
    ),
    (r"already in use|EADDRINUSE", "end what uses the port, such as an earlier launch, or give another one"),
    (
        r"refused|timed out|timeout|unreachable|No route",
        "see that no firewall stands between the machines, and that GLOO_SOCKET_IFNAME names the network they share",
    ),
)


def examine(request: Request) -> Iterator[Finding]:
    """Start processes as `blowtorch launch` does, and tell what is wrong with them; takes a limited time."""
    with tempfile.TemporaryDirectory(prefix="blowtorch-doctor-") as scratch:
        folder = Path(scratch)
        problem = _launch(request, folder)
        if problem is not None:
            yield problem
        elif (folder / FOUND).exists():
            meeting = Meeting.from_json(json.loads((folder / FOUND).read_text(encoding="utf-8")))
            for check in OF_MEETING:
                yield from check(meeting)


def _launch(request: Request, folder: Path) -> Finding | None:
    """Let processes meet; return what has come in between, if anything has."""
    command = [sys.executable, "-m", "blowtorch_cli", "launch", "--quiet", "--processes", str(request.processes)]
    command += ["--shutdown-timeout", str(_STOP_S)]
    if request.rendezvous:
        command += ["--nodes", str(request.nodes), "--rendezvous", request.rendezvous]
    command += ["-m", "blowtorch_cli.doctor.member", str(folder), str(request.save_path.absolute())]
    wait = f"{max(1, round(request.timeout / 2))} seconds"
    process = subprocess.Popen(
        command, env={**os.environ, "BLOWTORCH_PROCESS_TIMEOUT": wait}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=request.timeout)
    except subprocess.TimeoutExpired:
        return _describe_hanging(request, folder)
    finally:
        _end(process)
    if process.returncode == 0:
        return None
    return explain(output)


def _end(process: "subprocess.Popen[str]") -> None:
    """End the launcher, which ends its processes."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _describe_hanging(request: Request, folder: Path) -> Finding:
    """Return what each process was doing when the time was over."""
    doing: dict[str, list[str]] = {}
    for path in sorted(folder.glob("process-*.json")):
        told = json.loads(path.read_text(encoding="utf-8") or '{"doing": "beginning"}')
        doing.setdefault(told["doing"], []).append(path.stem.partition("-")[2])
    if not doing and request.nodes > 1:
        text = f"fewer than {request.nodes} machines have come to {request.rendezvous} within {request.timeout:g} s"
        return Finding("processes", "wrong", text, _find_advice("machines have come"))
    texts = [f"process {', '.join(ranks)} was {what}" for what, ranks in doing.items()]
    return Finding(
        "processes",
        "wrong",
        f"they have not ended within {request.timeout:g} s: {'; '.join(texts) or 'none has begun'}",
        "a slow file system delays imports, and a firewall lets processes wait; --timeout gives them longer",
    )


def explain(output: str) -> Finding:
    """Return what has failed, by what a launch has printed, and what to do about it.

    >>> explain("[launch] process 1 of 2 failed: ValueError: bad luck (train.py, line 3)").text
    'process 1 of 2 failed: ValueError: bad luck (train.py, line 3)'
    """
    said = _PROCESS_FAILED.findall(output) or _LAUNCH_SAID.findall(output) or output.strip().splitlines()[-1:]
    text = said[-1] if said else "they have failed and said nothing"
    return Finding("processes", "wrong", text, _find_advice(text))


def _find_advice(text: str) -> str:
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), "")


def check_members(meeting: Meeting) -> Iterator[Finding]:
    """Say who has met."""
    hosts = list(dict.fromkeys(member.host for member in meeting.members))
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} machines: {', '.join(hosts)}"
    yield Finding("processes", "ok", f"{len(meeting.members)} have met on {where}")


def check_versions(meeting: Meeting) -> Iterator[Finding]:
    """Compare what each has installed with what the first has."""
    first, *others = meeting.members
    is_same = True
    for name in dict.fromkeys(name for member in meeting.members for name in member.versions):
        expected = first.versions.get(name, "none")
        ranks = [str(member.rank) for member in others if member.versions.get(name, "none") != expected]
        if ranks:
            is_same = False
            found = others[int(ranks[0]) - 1].versions.get(name, "none")
            yield Finding(
                "versions",
                "wrong",
                f"process 0 has {name} {expected}, process {', '.join(ranks)} {found}",
                "install the same versions on each machine: a run refuses to begin with others",
            )
    if is_same:
        yield Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in first.versions.items()))


def check_devices(meeting: Meeting) -> Iterator[Finding]:
    """See that each process has a GPU of its own, or that none has one."""
    owners: dict[str, list[str]] = {}
    for member in meeting.members:
        owners.setdefault(member.device, []).append(str(member.rank))
    without = owners.pop("", [])
    for device, ranks in owners.items():
        if len(ranks) > 1:
            yield Finding(
                "devices",
                "wrong",
                f"processes {', '.join(ranks)} share the GPU {device}",
                "start one process for each GPU, with the same CUDA_VISIBLE_DEVICES for all of a machine",
            )
    if owners and without:
        yield Finding(
            "devices",
            "wrong",
            f"process {', '.join(without)} has no GPU, and others have one",
            "see that torch finds the GPUs of each machine: run blowtorch doctor there",
        )
    elif owners and all(len(ranks) == 1 for ranks in owners.values()):
        idle = sum({member.host: member.accelerators for member in meeting.members}.values()) - len(owners)
        text = "each process has a GPU of its own" + (f"; {idle} more have nothing to do" if idle > 0 else "")
        yield Finding("devices", "note" if idle > 0 else "ok", text)
    elif not owners:
        yield Finding("devices", "ok", "none has a GPU, so all train on the CPU")


def check_shared_folder(meeting: Meeting) -> Iterator[Finding]:
    """See that the folder for runs is the same for all."""
    blind = [str(member.rank) for member in meeting.members if not member.sees_folder]
    if not blind:
        yield Finding("folder", "ok", f"all see what the first one writes into {meeting.folder}")
        return
    hosts = dict.fromkeys(member.host for member in meeting.members if not member.sees_folder)
    yield Finding(
        "folder",
        "wrong",
        f"process {', '.join(blind)} on {', '.join(hosts)} does not see what is written into "
        f"{meeting.folder} by the first",
        "let run.save_path (here --save-path) be a folder that all machines share",
    )


def check_clocks(meeting: Meeting) -> Iterator[Finding]:
    """Compare the clocks."""
    farthest = max(meeting.members, key=lambda member: abs(member.clock))
    if abs(farthest.clock) <= _CLOCK_S:
        yield Finding("clocks", "ok", f"they differ by less than {_CLOCK_S:g} s")
        return
    by = f"{abs(farthest.clock):.0f} s {'ahead' if farthest.clock > 0 else 'behind'}"
    yield Finding(
        "clocks",
        "wrong",
        f"that of process {farthest.rank} on {farthest.host} is {by}",
        "let the machines keep their clocks by NTP: what is told by the age of files is wrong else",
    )


def check_exchange(meeting: Meeting) -> Iterator[Finding]:
    """Say how long sums over all processes take."""
    if len(meeting.members) == 1:
        return
    (_, latency), *_, (size, seconds) = sorted(meeting.sums.items())
    is_slow = size / seconds < (64 << 20) / _SLOW_S
    text = (
        f"a number is summed up in {latency * 1000:.2g} ms, {size / (1 << 20):.0f} MB in {seconds * 1000:.3g} ms "
        f"({size / seconds / 1e9:.2g} GB/s), as the gradients of {size / 4e6:.0f} million parameters"
    )
    advice = "the option accumulate exchanges gradients less often; see which network is used (GLOO_SOCKET_IFNAME)"
    yield Finding("exchange", "note" if is_slow else "ok", text, advice if is_slow else "")


OF_MEETING: list[MeetingCheck] = [
    check_members,
    check_versions,
    check_devices,
    check_shared_folder,
    check_clocks,
    check_exchange,
]
