"""Puts the weights of LPIPS where training looks for them.

Says of every file where it goes, where it comes from and whether it is there; downloads what is absent and checks its SHA-256 before
it gets its name. A file that is there is never overwritten. The backbones are torchvision's (BSD-3-Clause), the linear heads
those of lpips (BSD-2-Clause). Exit code 0: all files are the published ones; 2: one is not, or is absent.
"""

import argparse
import http.client
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lib.errors import InputError
from lib.files import make_folder, remove, sha256
from lib.losses.perceptual import NETWORKS, PublishedFile
from lib.training.runtime import is_terminal, run

TIMEOUT_S = 30.0  # of the connection and of each read, not of the whole download
BLOCK_BYTES = 1 << 18


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("assets/lpips"), help="where the files go; loss.lpips_weights (default: %(default)s)")
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="vgg", help="training uses vgg (default: %(default)s)")
    parser.add_argument("--no-download", action="store_true", help="only say what is there")
    options = parser.parse_args()
    backbones = [backbone for name, backbone in NETWORKS.items() if options.network in (name, "all")]
    provide([file for backbone in backbones for file in (backbone.features, backbone.heads)], options.folder, may_download=not options.no_download)


def provide(files: Sequence[PublishedFile], folder: Path, may_download: bool) -> None:
    """Prints the state of every file and downloads the absent ones. Raises InputError with one line for each that is not right afterwards."""
    problems = []
    for file in files:
        path = folder / file.name
        found = sha256(path) if path.exists() else None
        state = "absent" if found is None else "present, the published file" if found == file.sha256 else "present, ANOTHER file"
        print(f"{path}: {state}\n  {file.content} ({file.licence})\n  from   {file.url}\n  sha256 {file.sha256}", flush=True)
        if found is None and may_download:
            try:
                download(file, path)
                print(f"{path}: downloaded, hash checked", flush=True)
            except InputError as error:
                problems.append(str(error))
        elif found is None:
            problems.append(f"{path}: absent; run this without --no-download, or download {file.url} yourself and copy it there")
        elif found != file.sha256:
            problems.append(f"{path}: not the published file (sha256 {found}, expected {file.sha256}); it was left as it is. If these are weights "
                            "of your own, keep it: training takes them. If not, move it away and run this again")
    if problems:
        raise InputError("\n".join(problems))


def download(file: PublishedFile, path: Path) -> None:
    """Downloads one file to `path`, by way of `<path>.partial`. Raises InputError and leaves nothing behind when it is not the published one."""
    make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    by_hand = f"Or download it elsewhere and copy it to {path}"
    try:
        try:
            expected, received = _stream(file, partial)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"{path}: {file.url} cannot be downloaded to this place ({error}); is there a network here, and room on the disk? "
                             f"{by_hand}") from error
        if received < expected:
            raise InputError(f"{path}: the download of {file.url} ended after {received} of {expected} bytes; run this again. {by_hand}")
        found = sha256(partial)
        if found != file.sha256:
            raise InputError(f"{path}: {file.url} answered with another file (sha256 {found}, expected {file.sha256}), which was thrown away; "
                             f"does a proxy answer in its place? {by_hand}")
        partial.rename(path)
    finally:  # also after Ctrl-C
        remove(partial)


def _stream(file: PublishedFile, partial: Path) -> tuple[int, int]:
    """Writes what the address answers; returns the announced (0: not said) and the received number of bytes."""
    # Some servers refuse the name that urllib gives itself.
    request = urllib.request.Request(file.url, headers={"User-Agent": "gaussian-head-avatars"})  # noqa: S310 (a constant, https)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, partial.open("wb") as output:  # noqa: S310 (known by its hash)
        expected, received = int(answer.headers.get("Content-Length") or 0), 0
        with tqdm(total=expected or None, desc=file.name, unit="B", unit_scale=True, mininterval=0.5 if is_terminal() else 15.0) as progress:
            while block := answer.read(BLOCK_BYTES):
                output.write(block)
                received += len(block)
                progress.update(len(block))
    return expected, received


if __name__ == "__main__":
    run(main)
