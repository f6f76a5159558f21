"""An avatar that follows its checkpoint: a running training replaces the file, and what is shown is the newest."""

from pathlib import Path

import torch

from lib.avatars.gaussian_head_avatar.reenactment import load_avatar
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.views import AvatarViews
from lib.errors import InputError

Version = tuple[int, int, int]


class WatchedAvatar:
    """The avatar of a checkpoint, and its views. Only reads the file: a training that replaces it is neither locked nor waited for."""

    def __init__(self, config: ViewerConfig, path: Path, key: str, device: torch.device) -> None:
        """Raises InputError as `load_avatar` does."""
        self._config, self.path, self._key, self._device = config, path, key, device
        self._load(self._version())

    def refresh(self) -> bool:
        """Takes the file again if it was replaced; whether it was. Raises InputError, once for each replacement, for one that cannot be shown;
        the avatar from before then stays."""
        version = self._version()
        if version in (None, self.version):  # a file that is gone leaves the avatar as it is
            return False
        self._load(version)
        return True

    def _load(self, version: Version | None) -> None:
        self.version = version  # from before reading: what is replaced meanwhile is read again
        loaded = load_avatar(self._config, self.path, self._key)
        count = loaded.avatar.head.config.exp_coeffs_dim
        if hasattr(self, "views") and count != self.expression_count:
            raise InputError(f"{self.path}: was replaced by an avatar of {count} expression coefficients, it had {self.expression_count}; "
                             "start the viewer again")
        self.trained, self.step, self.expression_count = loaded.trained, loaded.step, count
        self.own_pose = loaded.avatar.head.own_pose
        self.views = AvatarViews(loaded.avatar.to(self._device), self._config.precision)

    def _version(self) -> Version | None:
        """Changes whenever the file is replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
