"""Writes a trained head for other tools: PLY of Gaussians, an avatar bundle, OBJ or glTF of the mesh, the published files.

Takes the YAML file of reenactment.py, e.g. --config config/demo_export.yaml format=ply frame=all.
"""

import json

from lib.avatars.gaussian_head_avatar.export import ExportConfig, export
from lib.config import parse_arguments, read_config
from lib.training.runtime import run

SHOWN = 6  # names of files


def main() -> None:
    """Command line."""
    report = export(read_config(parse_arguments(__doc__), ExportConfig))
    files = json.loads(report.read_text())["files"]
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    print(f"wrote {report.parent}: {', '.join(files[:SHOWN])}{more}, {report.name}")


if __name__ == "__main__":
    run(main)
