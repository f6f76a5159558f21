"""Stage 1: trains the mesh head of a subject. The same command again resumes, or says that the run is finished."""

from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.config import parse_arguments, read_config
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.training.recorder import Recorder
from lib.training.runtime import choose_device, run, seed_everything
from lib.training.trainer import train


def main() -> None:
    """Command line."""
    config = read_config(parse_arguments(__doc__), MeshHeadTrainConfig)
    device = choose_device(config.trainer.device, config.gpu_id)
    seed_everything(config.trainer.seed, device)
    capture = HeadCapture(config.dataset)
    batches = TrainingBatches(capture, config.batch_size, config.dataset.num_sample_view, config.trainer.seed)
    train(MeshHeadStage(config, capture, device), batches, config.trainer, Recorder(config.recorder, "meshhead"), device)


if __name__ == "__main__":
    run(main, together=True)
