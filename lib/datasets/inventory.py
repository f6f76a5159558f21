"""What a subject folder holds, from directory listings alone: which files are missing, which must be derived."""

from dataclasses import dataclass
from pathlib import Path

from lib.datasets.layout import LANDMARKS_NAME, LOWRES_SIZE, PARAMS_NAME, VERTICES_NAME, CaptureFolder, FrameFiles
from lib.errors import InputError

NAMED = 4  # how many names a message lists before it counts the rest

# What makes a missing file, by what it is; {subject} is the folder. In the order in which they are made.
WAYS_OUT = {
    "image": "`python -m preprocess.nersemble` extracts it from a raw capture (--help says how); or leave this frame or camera out",
    "camera": "`python -m preprocess.nersemble` writes it from a raw capture (--help says how); every frame has its own: copy the rig's, "
              "or leave this frame or camera out",
    "mask": "`python -m preprocess.remove_background {subject}` makes it; or leave this frame or camera out",
    PARAMS_NAME: "`python -m preprocess.landmarks {subject}`, then `python -m preprocess.fit_3dmm {subject}` make it; or remove the frame",
    LANDMARKS_NAME: "`python -m preprocess.landmarks {subject}`, then `python -m preprocess.fit_3dmm {subject}` make it; or remove the frame",
    VERTICES_NAME: "`python -m preprocess.fit_3dmm {subject}` makes it (a published fit: run it again with save_vertices: True); or remove the frame",
}


@dataclass(frozen=True)
class Missing:
    """A file that training needs and the folder lacks."""

    path: Path
    frame: str
    camera: str | None
    way_out: str

    def __str__(self) -> str:
        return f"{self.path}: file is missing (frame {self.frame}" + (f", camera {self.camera})" if self.camera else ")")


@dataclass(frozen=True)
class Inventory:
    """The listed cameras of a subject folder. `camera_ids` are those with at least one image, `absent` those with none."""

    folder: CaptureFolder
    files: dict[str, FrameFiles]
    camera_ids: tuple[str, ...]
    absent: tuple[str, ...]
    unlisted: tuple[str, ...]
    resolution: int

    def source(self, frame: str, camera: str, kind: str) -> Path:
        """The file a picture is decoded from: lowres where that is enough and exists, else full. A missing one is where a JPEG belongs."""
        name = self._source_name(self.files[frame], camera, kind)
        return self.folder.images_path(frame) / name if name else self.folder.image_path(frame, camera, kind)

    def full(self, frame: str, camera: str) -> Path | None:
        """The image of full size, where there is one."""
        name = self.files[frame].image_name(camera, "image")
        return self.folder.images_path(frame) / name if name else None

    def has(self, frame: str, camera: str, kind: str) -> bool:
        """Whether there is a file of this kind."""
        return self._source_name(self.files[frame], camera, kind) is not None

    def missing(self) -> list[Missing]:
        """All files that training would miss: those that are made first come first, then frame by frame."""
        found, folder = [], self.folder

        def miss(path: Path, what: str, frame: str, camera: str | None = None) -> None:
            found.append((list(WAYS_OUT).index(what), Missing(path, frame, camera, WAYS_OUT[what].format(subject=folder.root))))

        for frame, files in self.files.items():
            for path in (folder.params_path(frame), folder.landmarks_path(frame), folder.vertices_path(frame)):
                if path.name not in files.params:
                    miss(path, path.name, frame)
            for camera in self.camera_ids:
                for kind in ("image", "mask"):
                    if self._source_name(files, camera, kind) is None:
                        miss(folder.image_path(frame, camera, kind), kind, frame, camera)
                if not files.has_camera(camera):
                    miss(folder.camera_path(frame, camera), "camera", frame, camera)
        return [one for _, one in sorted(found, key=lambda row: row[0])]

    def require_complete(self) -> None:
        """Raises InputError naming the first missing file, its frame and camera, and how many more."""
        missing = self.missing()
        if missing:
            raise InputError(f"{missing[0]}, {len(missing)} missing in all for {len(self.files)} frames x {len(self.camera_ids)} cameras; "
                             f"{missing[0].way_out}")

    def notes(self, original_resolution: int) -> list[str]:
        """One line per kind of thing that is left out or derived."""
        lines, total = [], len(self.files) * len(self.camera_ids)
        if self.absent:
            lines.append(f"{_count(self.absent, 'camera')} of dataset.camera_ids without any image, left out: {_names(self.absent)}")
        if self.unlisted:
            lines.append(f"{_count(self.unlisted, 'camera')} of images/ not listed in dataset.camera_ids, not used: {_names(self.unlisted)}")
        sources = {kind: [self._source_name(files, camera, kind) for files in self.files.values() for camera in self.camera_ids]
                   for kind in ("image", "mask", "visible")}
        pngs = {kind: sum(name is not None and name.endswith(".png") for name in names) for kind, names in sources.items()}
        if any(pngs.values()):
            lines.append("PNG instead of JPEG: " + ", ".join(f"{count} of {total} {kind} files" for kind, count in pngs.items() if count))
        full = sum(name is not None and not name.startswith("image_lowres_") for name in sources["image"])
        if full and self.resolution <= LOWRES_SIZE and self.resolution != original_resolution:
            size, how = self.resolution, "area averaging" if self.resolution < original_resolution else "interpolation"
            lines.append(f"no image_lowres_* for {full} of {total} pictures: {size}x{size} pictures are derived by {how}")
        unseen = sources["visible"].count(None)
        if unseen:
            lines.append(f"no visible_* for {unseen} of {total} pictures: every pixel counts as visible")
        frames = list(self.files)
        if not _contiguous(frames):
            lines.append(f"frames are not contiguous ({_names(frames, NAMED - 1)}): sorted by name")
        return lines

    def _source_name(self, files: FrameFiles, camera: str, kind: str) -> str | None:
        low = files.image_name(camera, kind, lowres=True) if self.resolution <= LOWRES_SIZE else None
        return low or files.image_name(camera, kind)


def take_inventory(folder: CaptureFolder, camera_ids: tuple[str, ...], resolution: int) -> Inventory:
    """Lists the folder once. Raises InputError for no frames, and for camera lists of which nothing can be used."""
    files = {frame: folder.files(frame) for frame in folder.frames()}
    found = sorted(set().union(*(frame.pictured_cameras() for frame in files.values())))
    there = f"{folder.root / 'images'} has {_names(found, len(found))}" if found else f"no frame of {folder.root / 'images'} has any image_*.jpg"
    if not camera_ids:
        raise InputError(f"dataset.camera_ids: no camera is listed; {there}")
    twice = [camera for camera in camera_ids if camera_ids.count(camera) > 1]
    if twice:
        raise InputError(f"dataset.camera_ids: '{twice[0]}' is listed {camera_ids.count(twice[0])} times; list it once")
    present = tuple(camera for camera in camera_ids if camera in found)
    if not present:
        raise InputError(f"dataset.camera_ids: none of {_names(camera_ids)} has an image; {there}")
    absent = tuple(camera for camera in camera_ids if camera not in found)
    unlisted = tuple(camera for camera in found if camera not in camera_ids)
    return Inventory(folder, files, present, absent, unlisted, resolution)


def _contiguous(frames: list[str]) -> bool:
    """Whether numbered frames count up by one; names that are no numbers say nothing about it."""
    if not all(frame.isdecimal() for frame in frames):
        return True
    numbers = [int(frame) for frame in frames]
    return all(after - before == 1 for before, after in zip(numbers, numbers[1:], strict=False))


def _count(items: tuple[str, ...], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''}"


def _names(names: list[str] | tuple[str, ...], limit: int = NAMED) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
