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
