"""Saves the weights of the model that the loop by hand of a script trains: `python by_hand.py SCRIPT`."""

import runpy
import sys

import torch

if __name__ == "__main__":
    model = runpy.run_path(sys.argv[1], run_name="by_hand")["by_hand"]()
    torch.save(model.state_dict(), "weights.pt")
