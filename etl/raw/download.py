"""Fetches raw files that are not there yet, going on from where an interrupted transfer stopped."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from etl.progress import progress
from etl.raw.files import is_name
from seqrec_jax.data.format import sha256_of
from seqrec_jax.errors import InputError

_CHUNK_BYTES = 1 << 20
_SECONDS_WITHOUT_DATA = 60


def download(source: Path, urls: Mapping[str, str], checksums: Mapping[str, str]) -> dict[str, str]:
    """Fetches the files that the folder lacks; those that are there are left as they are.

    Args:
        source: folder of the raw files, made if missing.
        urls: address of each file, by name.
        checksums: SHA-256 of files, by name, where known.

    Returns:
        SHA-256 of each file that was fetched, by name.

    Raises:
        InputError: no network, the transfer ended early, or a file is not the one expected.
    """
    fetched = {}
    for name, url in urls.items():
        target = source / name
        if not is_name(name):
            raise InputError(f"Gin binding Plan.urls: {name!r} is no file's name, but leads elsewhere")
        if os.path.lexists(target):
            continue
        source.mkdir(parents=True, exist_ok=True)
        partial = source / f".{name}.partial"
        logging.info("%s: fetching from %s", target, url)
        try:
            _fetch(url, partial)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"{target}: is not there, and {url} cannot be fetched ({reason}); run the same command again with a "
                f"network to go on, or put the file there yourself"
            ) from error
        fetched[name] = sha256_of(partial)
        if checksums.get(name, fetched[name]) != fetched[name]:
            partial.unlink()
            raise InputError(f"{target}: what {url} gave has SHA-256 {fetched[name]}, not {checksums[name]}; try again")
        os.replace(partial, target)
    return fetched


def _fetch(url: str, partial: Path) -> None:
    """Appends the rest of a file to what is there of it."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS_WITHOUT_DATA)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # There is no rest: the file is whole.
            return
        raise
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if goes_on else 0)
        with (
            partial.open("ab" if goes_on else "wb") as file,
            progress(total=total, initial=file.tell(), unit="B", unit_scale=True, desc=partial.name[1:-8]) as bar,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise OSError(f"the transfer ended after {partial.stat().st_size:,} of {total:,} bytes")
