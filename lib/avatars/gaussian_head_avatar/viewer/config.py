"""The YAML file of viewer.py: that of reenactment, and where the page is."""

from pathlib import Path

from pydantic import Field

from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig


class ViewerConfig(ReenactmentConfig):
    """The YAML file of viewer.py; what drives the avatar is chosen as for reenactment."""

    beside: tuple[Path, ...] = Field((), description="checkpoints of further avatars with as many expression coefficients, shown beside it")
    sliders: int = Field(8, ge=0, description="expression coefficients that have a slider: those that vary most in the driver")
    host: str = Field("127.0.0.1", min_length=1, description="address the page is served at; 0.0.0.0: to everybody who reaches this machine")
    port: int = Field(8080, ge=0, le=65535, description="of the page; 0: any that is free")

    def of_another(self, path: Path) -> "ViewerConfig":
        """For an avatar of `beside`. A published one has its own super-resolution network in a file beside it, where the published system puts it."""
        network = path.with_name("supres_latest")
        return self.model_copy(update={"load_supres_checkpoint": network if network.exists() else None})
