"""Stage 3: drives a trained avatar with a sequence of parameters; writes frames, a video and a contact sheet."""

from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig, reenact
from lib.config import parse_arguments, read_config
from lib.training.runtime import run


def main() -> None:
    """Command line."""
    folder = reenact(read_config(parse_arguments(__doc__), ReenactmentConfig))
    print(f"wrote {folder}/reenactment.mp4 and {folder}/contact_sheet.png")


if __name__ == "__main__":
    run(main)
