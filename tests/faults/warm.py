"""What children are forked with: every script of the project and what it needs, imported."""

import threading

import torch
import torch.utils.tensorboard
from tqdm import tqdm

import evaluate  # noqa: F401
import export  # noqa: F401
import reenactment  # noqa: F401
import train_gaussianhead  # noqa: F401
import train_meshhead  # noqa: F401
from lib.avatars.gaussian_head_avatar import mesh_head
from preprocess import (  # noqa: F401
    check_subject,
    demo_capture,
    demo_subject,
    export_gaussian_avatars,
    fit_3dmm,
    landmarks,
    nersemble,
    new_subject,
    remove_background,
    video,
)

torch.set_num_threads(1)
mesh_head.SPHERE_STEPS = 20  # the usual 300 take longer than everything else
tqdm.set_lock(threading.RLock())  # its own lock is shared by processes, and whoever is killed leaves it behind
