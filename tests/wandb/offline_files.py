"""Reads what wandb keeps offline."""

import json
import struct
import time
from collections import defaultdict

BLOCK = 32768


def records(path):
    """The records of an offline file, which is a log of LevelDB's format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, partial = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        partial += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(partial)
            yield record
            partial = b""


def read(folder):
    """What all offline files below a folder hold, by kind; wandb's own process may still be writing the end."""
    deadline = time.monotonic() + 30
    while True:
        found = read_now(folder)
        if len(found["exit"]) == len(list(folder.rglob("*.wandb"))) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def read_now(folder):
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            found[kind].append(getattr(record, kind))
    return found


def rows(found):
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in found["history"]
    ]


def summary_of(found):
    return {item.key: json.loads(item.value_json) for each in found["summary"] for item in each.update if item.key}
