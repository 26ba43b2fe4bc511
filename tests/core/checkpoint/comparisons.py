"""What two runs are compared by: the names of their checkpoints, their metrics and their weights."""

import torch

from blowtorch import open_run

QUIET = {"progress": False}


def names(result):
    return [each.name for each in open_run(result.folder).checkpoints]


def metric_lines(events, result):
    return [{**event, "time": None} for event in events(result, "metrics")]


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
