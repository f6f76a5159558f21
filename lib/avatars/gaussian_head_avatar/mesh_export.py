"""The mesh head of stage 1 as mesh files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.avatar import RGB
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHead
from lib.datasets.driving import DrivingFrame
from lib.geometry.mesh_files import ColoredMesh, write_glb, write_obj
from lib.training.runtime import is_terminal


@torch.no_grad()
def write_meshes(head: MeshHead, frames: Sequence[DrivingFrame], paths: Sequence[Path], notes: Sequence[Sequence[str]], attribution: str | None,
                 ) -> tuple[int, int]:
    """Writes the mesh of every frame to its path, .obj or .glb; returns the numbers of vertices and faces, which all have in common.

    Raises InputError for a head without a surface, one that is NaN, and for what cannot be written.
    """
    device = head.tet_verts.device
    vertices = faces = 0
    for index in tqdm(range(len(frames)), desc="export", unit="frame", mininterval=0.5 if is_terminal() else 15.0, disable=len(frames) == 1):
        frame = frames[index].to(device)
        posed = head.deform(frame.expression, frame.pose_code, frame.head).mesh
        mesh = ColoredMesh(posed.vertices_world[0], posed.colors[0, :, RGB], posed.faces)
        vertices, faces = len(mesh.vertices), len(mesh.faces)
        if paths[index].suffix == ".obj":
            write_obj(paths[index], mesh, [attribution, *notes[index]] if attribution else notes[index])
        else:
            write_glb(paths[index], mesh, paths[index].stem, attribution, "; ".join(notes[index]))
    return vertices, faces
