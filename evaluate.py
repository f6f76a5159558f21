"""Measures a trained Gaussian head on its held-out camera and sequence; takes the YAML file it was trained with."""

from lib.avatars.gaussian_head_avatar.evaluation import evaluate
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.config import parse_arguments, read_config
from lib.training.runtime import run


def main() -> None:
    """Command line."""
    folder = evaluate(read_config(parse_arguments(__doc__), GaussianHeadTrainConfig))
    print((folder / "metrics.json").read_text())
    print(f"wrote {folder}/metrics.json, pictures.json and a comparison picture per split (target, avatar, avatar without expression)")


if __name__ == "__main__":
    run(main)
