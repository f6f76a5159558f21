"""What a fit supposes before it has seen anything."""

from pydantic import Field

from lib.config import Config


class FitConfig(Config):
    """What is known of heads and detectors beforehand. Pixels are those of pictures of 512²."""

    least_noise: float = Field(1.0, gt=0, description="pixels: detections are never trusted more than this standard deviation")
    kernel: float = Field(3.0, gt=0, description="standard deviations at which a detection counts a quarter")
    jaw_yaw: tuple[float, float] = Field((20.0, 45.0), description="degrees from the front: jaw line counts fully, not at all")
    side_yaw: tuple[float, float] = Field((60.0, 100.0), description="degrees from facing the camera: a landmark counts fully, not at all")
    identity: float = Field(1.0, gt=0, description="how far people are from the mean, in standard deviations of the face model")
    size: float = Field(0.005, gt=0, description="relative: how far identity may change the size of the face, which is for `scale` to say")
    expression: float = Field(1.0, gt=0, description="how strong expressions are, in standard deviations of the face model")
    bound: float = Field(0.05, gt=0, description="by how much a coefficient that means something in [0,1] may leave it")
    offset: float = Field(0.03, ge=0, description="canonical units: standard deviation of what the model cannot say of a face; 0 is without")
    offset_radius: float = Field(0.3, gt=0, description="canonical units over which such offsets are alike")
    expression_rate: float = Field(2.0, gt=0, description="change of a coefficient within a second, in its standard deviations")
    rotation_rate: float = Field(2.0, gt=0, description="radians within a second")
    translation_rate: float = Field(2.0, gt=0, description="canonical units within a second")
    smooth_gap: float = Field(0.1, ge=0, description="seconds: frames of a sequence further apart are not tied to each other")
    one_view_scale: float = Field(0.1, gt=0, description="world units per canonical unit where no two cameras see a head, so that size is free")
    outline_weight: float = Field(0.03, gt=0, description="what a point of the outline counts, of 60 a view: neighbours say the same (--silhouettes)")
    outline_frames: int = Field(8, ge=1, description="frames whose mattes are looked at (--silhouettes): the shape of the head is the same in all")
    outline_points: int = Field(40, ge=0, description="points besides the landmarks at which the offset is free then")
    steps: int = Field(25, ge=1, description="largest number of steps per kernel; there are three")
