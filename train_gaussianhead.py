"""Stage 2: trains the Gaussian head from a mesh head. The same command again resumes, or says that the run is finished."""

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage, GaussianHeadTrainConfig
from lib.config import parse_arguments, read_config
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.training.recorder import Recorder
from lib.training.runtime import choose_device, run, seed_everything
from lib.training.trainer import train


def main() -> None:
    """Command line."""
    arguments = parse_arguments(__doc__, training=True)
    config = read_config(arguments, GaussianHeadTrainConfig)
    device = choose_device(config.trainer.device, config.gpu_id)
    seed_everything(config.trainer.seed, device, config.trainer.deterministic)
    capture = HeadCapture(config.dataset)
    batches = TrainingBatches(capture, config.batch_size, views=1, seed=config.trainer.seed)
    recorder = Recorder(config.recorder, "gaussianhead")
    train(GaussianHeadStage(config, capture, device), batches, config.trainer, recorder, device, arguments.profile)


if __name__ == "__main__":
    run(main, together=True)
