"""Which frames of several videos were taken at the same moment: found by their times, so that a gap in one shifts none of the others."""

from dataclasses import dataclass
from statistics import median

from lib.errors import InputError
from preprocess.raw_videos import Video

SAME_RATE = 0.02  # relative difference of frame rates that counts as none
OFF_BEAT = 0.35  # of a frame: how far a time may be from its place


@dataclass(frozen=True)
class Aligned:
    """Moments that all cameras have: `stamps[camera][k]` belongs to `times[k]` (seconds since the first frame of any of them)."""

    times: tuple[float, ...]
    stamps: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def align(videos: dict[str, Video], cameras: list[str], every: int, sequence: str) -> Aligned:
    """Every n-th moment, counted from the first frame of any camera; moments that a camera lacks are left out, and `notes` says so.

    Raises InputError for videos of different frame rates, and for frames that lie on no common beat.
    """
    absent = [camera for camera in cameras if camera not in videos]
    if absent:
        return Aligned((), {}, (f"{sequence}: left out, as there is no video of {_some(absent)}; --cameras with the others would keep it",))
    period = _period({camera: videos[camera] for camera in cameras})
    start = min(videos[camera].seconds(videos[camera].stamps[0]) for camera in cameras)
    places = {camera: _places(videos[camera], start, period) for camera in cameras}
    last = max(max(there) for there in places.values())
    moments = range(0, last + 1, every)
    kept = [moment for moment in moments if all(moment in there for there in places.values())]
    notes = []
    if len(kept) < len(moments):
        lacking = {camera: [moment for moment in moments if moment not in there] for camera, there in places.items()}
        each = [f"{camera} lacks {len(lost)}, the first at {lost[0] * period:.2f} s" for camera, lost in lacking.items() if lost]
        notes.append(f"{sequence}: {len(moments) - len(kept)} of {len(moments)} frames left out, as not all cameras have them: {_some(each)}")
    for camera in cameras:
        if videos[camera].lost:
            notes.append(f"{videos[camera].path}: is cut off, {videos[camera].lost} frames that it promises are not there; copy or download it again")
    times = tuple(round(moment * period, 6) for moment in kept)
    return Aligned(times, {camera: tuple(places[camera][moment] for moment in kept) for camera in cameras}, tuple(notes))


def _period(videos: dict[str, Video]) -> float:
    """Seconds from frame to frame."""
    periods = {}
    for camera, video in videos.items():
        steps = [after - before for before, after in zip(video.stamps, video.stamps[1:], strict=False)]
        if steps:  # times are rounded to units: so not the median itself, which a long video would drift away from
            moments = sum(max(1, round(step / median(steps))) for step in steps)
            periods[camera] = video.seconds(video.stamps[-1] - video.stamps[0]) / moments
    if not periods:
        return 1.0  # a single frame each
    usual = median(periods.values())
    for camera, period in periods.items():
        if abs(period / usual - 1.0) > SAME_RATE:
            raise InputError(f"{videos[camera].path}: {1.0 / period:.2f} frames per second, while the other cameras have {1.0 / usual:.2f}; "
                             "frames cannot be matched by time: leave this camera out (--cameras) or get its original video")
    return usual


def _places(video: Video, start: float, period: float) -> dict[int, int]:
    """Stamps by the number of their moment."""
    places: dict[int, int] = {}
    for stamp in video.stamps:
        beat = (video.seconds(stamp) - start) / period
        if abs(beat - round(beat)) > OFF_BEAT or round(beat) in places:
            raise InputError(f"{video.path}: the frame at {video.seconds(stamp):.4f} s is off the beat of {1.0 / period:.2f} frames per second that "
                             "the cameras share; leave this camera or sequence out, or get its original video")
        places[round(beat)] = stamp
    return places


def _some(names: list[str], limit: int = 4) -> str:
    return "; ".join(names[:limit]) + (f"; ... ({len(names)} in all)" if len(names) > limit else "")
