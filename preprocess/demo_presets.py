"""Named looks of the demo head. A preset is a whole subject; single options of `preprocess.demo_subject` change parts of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Names of what assets/demo_head holds; None is without."""

    identity: str
    skin: str
    iris: str
    hair: str | None = None
    eyebrows: str | None = None
    hair_color: str | None = None


# The skin `lps` has painted brows, the mh_* skins have none.
PRESETS = {
    "demo": Look("lee_perry_smith", "lps", "iris_brown", "short02"),
    "bald": Look("lee_perry_smith", "lps", "iris_brown"),
    "slick": Look("makehuman", "mh_young_lightskinned_male2", "iris_blue", "short04", "eyebrow012"),
    "curly": Look("ict_1", "mh_young_darkskinned_male", "iris_brownlight", "short01", "eyebrow009"),
    "bob": Look("ict_2", "mh_young_lightskinned_female2", "iris_green", "bob02", "eyebrow002", "blond"),
    "fringe": Look("neutral", "mh_young_lightskinned_female3", "iris_lightblue", "short03", "eyebrow001", "auburn"),
    "grey": Look("makehuman", "mh_old_darkskinned_male", "iris_grey", "short01", "eyebrow008", "grey"),
}
