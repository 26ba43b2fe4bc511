"""Does scripts one after another in this process: `python -m tests.integration.scripts_in_turn JOBS`.

The jobs are a list in JSON of lists of a folder, in which there is a `train.py`, and the words for it. A word that ends
in a pattern, such as `run.resume=train_logs/*`, means what is there when its turn has come.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def expand(word):
    key, _, place = word.partition("=")
    return f"{key}={next(Path().glob(place))}" if place.endswith("/*") else word


if __name__ == "__main__":
    for folder, *words in json.loads(sys.argv[1]):
        os.chdir(folder)
        sys.argv = ["train.py", *map(expand, words)]
        runpy.run_path("train.py", run_name="__main__")
