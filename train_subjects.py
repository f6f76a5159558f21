"""Many subjects: both stages, evaluation and reenactment of each, several at a time (docs/subjects.md). The same command again goes on."""

from lib.avatars.gaussian_head_avatar.subjects import SubjectsConfig, train_subjects
from lib.config import parse_arguments, read_config
from lib.training.runtime import run


def main() -> None:
    """Command line."""
    print(train_subjects(read_config(parse_arguments(__doc__), SubjectsConfig)))


if __name__ == "__main__":
    run(main)
