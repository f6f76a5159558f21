"""Measures a trained Gaussian head on what was held out; takes the YAML file it was trained with (docs/evaluation.md).

    python evaluate.py --compare results/a results/b [--across-subjects] [--output FILE]     several runs in one table (.md, .csv or .html)
"""

import sys

from lib.avatars.gaussian_head_avatar.evaluation import evaluate
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.config import parse_arguments, read_config
from lib.evaluation.comparison import compare, comparison_request
from lib.training.runtime import run


def main() -> None:
    """Command line."""
    request = comparison_request(sys.argv[1:])
    print(evaluate(read_config(parse_arguments(__doc__), GaussianHeadTrainConfig)) if request is None else compare(request))


if __name__ == "__main__":
    run(main)
