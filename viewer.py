"""Shows a trained avatar, or one in training, in a browser: orbit, move its face, play a driver, save pictures and clips."""

from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.viewer import view
from lib.config import parse_arguments, read_config
from lib.training.runtime import run


def main() -> None:
    """Command line."""
    view(read_config(parse_arguments(__doc__), ViewerConfig))


if __name__ == "__main__":
    run(main)
