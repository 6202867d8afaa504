"""One checkpoint: a directory of safetensors files and a checkpoint.json that vouches for them.

checkpoint.json:

    {"format": "moeworks-checkpoint", "version": 1,
     "files": {"model.safetensors": {"size": BYTES, "sha256": HEX}, ...},
     "state": {...},
     "sha256": HEX of all of the above, as JSON with sorted keys and no spaces}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moeworks.checkpoint.names import list_checkpoints, step_of
from moeworks.checkpoint.safetensors_file import write_tensors
from moeworks.checkpoint.staging import staged_directory, sweep_leftovers
from moeworks.errors import CheckpointError
from moeworks.files import locked, make_folder

MANIFEST = "checkpoint.json"
FORMAT = "moeworks-checkpoint"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was read."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    """File stem ("model", "optimizer", ...) to named tensors, on the CPU, backed by the files."""
    state: dict[str, Any]


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint that appears in one piece, replacing one of the same step; returns its path.

    `tensors` maps a file stem to named tensors of any dtype that safetensors knows and on any device; tensors
    that share memory are written in full and read back as separate tensors. `state` is JSON (no NaN or
    infinity), so tuples come back as lists and keys as strings. Several processes write one after the other.
    Raises CheckpointError if the state is not JSON, or if the disk refuses; then nothing new remains on it.
    """
    step_of(directory)
    plain_state = _plain_json(directory, state)
    try:
        make_folder(directory.parent)
        with locked(directory.parent, wait=True):
            sweep_leftovers(directory.parent)
            with staged_directory(directory) as staged:
                for stem, named in tensors.items():
                    write_tensors(staged / f"{stem}.safetensors", _separate(named))
                _write_manifest(staged, plain_state)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {directory}: {error}; {_survivor(directory)}") from error
    return directory


def verify_checkpoint(directory: Path) -> None:
    """Compare every file's size and SHA-256 with checkpoint.json; reads all bytes once.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    _check_files(directory, _read_manifest(directory)["files"], checksums=True)


def read_checkpoint(directory: Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint, after verify_checkpoint's checks; `verify=False` leaves out the files' checksums.

    The tensors are mapped from the files and enter memory as they are used; writing to them changes no file.
    Raises CheckpointError naming the file and what is wrong with it.
    """
    manifest = _read_manifest(directory)
    _check_files(directory, manifest["files"], checksums=verify)
    tensors = {Path(name).stem: _load(directory / name) for name in manifest["files"]}
    return Checkpoint(path=directory, tensors=tensors, state=manifest["state"])


def _separate(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, contiguous, each with a storage of its own: safetensors refuses shared memory."""
    storages: set[tuple[torch.device, int]] = set()
    separate = {}
    for name, tensor in named.items():
        whole = tensor.detach().contiguous()
        storage = (whole.device, whole.untyped_storage().data_ptr())
        separate[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    return separate


def _plain_json(directory: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state as it will be read back, so that its checksum does not depend on the Python types."""
    try:
        return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {directory}: the state is not JSON: {error}") from error


def _write_manifest(staged: Path, state: dict[str, Any]) -> None:
    paths = sorted(staged.glob("*.safetensors"))
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    manifest = {"format": FORMAT, "version": VERSION, "files": files, "state": state}
    manifest["sha256"] = _digest(manifest)
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{directory} is not a readable checkpoint: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the description of a moeworks checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {manifest.get('version')!r}; this moeworks reads version {VERSION}"
        )
    if manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"{path} was altered: its checksum differs")
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Check what the manifest names: anyone can compute its checksum, so paths must stay in its directory."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("state"), dict):
        raise CheckpointError(f"{path}: expected an object `files` and an object `state`")
    for name, entry in files.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: files names {name!r}: expected a .safetensors file in the same directory"
            )
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise CheckpointError(f"{path}: files[{name!r}]: expected an object with `size` and `sha256`")


def _check_files(directory: Path, files: dict[str, dict[str, Any]], *, checksums: bool) -> None:
    for name, expected in files.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                raise CheckpointError(
                    f"{path} is truncated or altered: expected {expected['size']} bytes, found {size}"
                )
            if checksums and _sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path} was altered: its checksum differs")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing from the checkpoint") from error
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _survivor(directory: Path) -> str:
    checkpoints = list_checkpoints(directory.parent)
    if not checkpoints:
        return "there is no earlier checkpoint"
    return f"the previous checkpoint survives: {checkpoints[-1]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
