"""results.json: what a run found, with a checksum, as it is read again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqrec_jax.describe import identity_of
from seqrec_jax.errors import InputError
from seqrec_jax.files import read_json, write_text

CHECKSUM = "sha256"  # of all else that the file holds


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results and their checksum."""
    results = json.loads(json.dumps(results))  # As it will be read.
    write_text(path, json.dumps({**results, CHECKSUM: identity_of(results)}, indent=2) + "\n")


def read_results(path: Path, remedy: str) -> Any:
    """Results, without their checksum; an InputError with the remedy where they are damaged or altered."""
    results = read_json(path, remedy)
    if isinstance(results, dict) and results.pop(CHECKSUM, None) not in (None, identity_of(results)):
        raise InputError(f"{path}: is not as it was written, as its checksum tells; {remedy}")
    return results
