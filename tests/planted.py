"""Files of many kinds with code in them, which makes a file where it is run."""

import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import torch

from molkern import interop
from molkern.md.checkpoint import _HEAD


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def archive(planted, *names):
    """An npz whose arrays hold it."""
    content = io.BytesIO()
    arrays = {name: np.array([planted], dtype=object) for name in names}
    np.savez(content, **arrays)
    return content.getvalue()


def saved(planted, **options):
    """A file of torch's with all that a checkpoint has, one entry of which holds it."""
    content = io.BytesIO()
    names = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
    whole = {**{name: {} for name in names}, "global_step": 1, "model_state_dict": {"a": planted}}
    torch.save(whole, content, **options)
    return content.getvalue()


def array(planted):
    content = io.BytesIO()
    np.save(content, np.array([planted], dtype=object))
    return content.getvalue()


def script(planted):
    return f"import pathlib\npathlib.Path({str(planted.marker)!r}).touch()\nimages = []\n".encode()


def yaml(planted):
    return (
        f"model: !!python/object/apply:pathlib.Path.touch [{planted.marker}]\n"
        f"data: !!python/object/apply:os.system ['touch {planted.marker}']\n"
    ).encode()


def old_trajectory(planted):
    """ASE's trajectories were pickles once."""
    return b"PickleTrajectory" + pickle.dumps(planted, 2)


def database(planted):
    """ASE's database as JSON, which makes objects of some dictionaries."""
    row = {"numbers": [1], "positions": {"__ase_objtype__": "os.system", "command": "touch x"}}
    row |= {"calculator": script(planted).decode(), "constraints": script(planted).decode()}
    return json.dumps({"1": row, "ids": [1], "nextid": 2}).encode()


def sealed(planted):
    """A checkpoint of dynamics with the right checksum."""
    body = archive(planted, "array_positions", "settings", "state")
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


CONTENTS = {
    "pickle 0": lambda p: pickle.dumps(p, 0),
    "pickle 2": lambda p: pickle.dumps(p, 2),
    "pickle 5": lambda p: pickle.dumps(p, 5),
    "array": array,
    "archive of frames": lambda p: archive(p, "z", "R", "E", "F"),
    "archive of QM9": lambda p: archive(p, "N", "Z", "R", "id"),
    "archive of a split": lambda p: archive(p, "train", "validation", "test", "digest"),
    "archive of weights": lambda p: archive(p, *interop.RECIPES, "meta_json"),
    "torch": saved,
    "old torch": lambda p: saved(p, _use_new_zipfile_serialization=False),
    "YAML": yaml,
    "Python": script,
    "old trajectory": old_trajectory,
    "database": database,
    "checkpoint": sealed,
}
