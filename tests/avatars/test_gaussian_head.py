"""What compilers make of the Gaussian head."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from benchmarks.reenact import make_avatar
from lib.geometry.head_pose import HeadPose
from lib.networks.precision import set_precision

avatar = make_avatar(300)
for place in ("undeformed", "deformed"):
    head = avatar.head
    head.config = head.config.model_copy(update={"pose_deform_at": place})
    set_precision(head, "high")
    pose = HeadPose(torch.zeros(1, 6), torch.ones(1, 1))
    found = torch._dynamo.explain(head.cloud)(head.control(), torch.rand(1, head.config.exp_coeffs_dim), pose.pose, pose)
    print(place, found.graph_count, found.graph_break_count, *[reason.reason for reason in found.break_reasons])
"""


def test_all_that_moves_gaussians_is_one_graph():
    """In a process of its own, without type checks, which cannot be compiled."""
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines() == ["undeformed 1 0", "deformed 1 0"]
