"""What convert and quantize load before they work: targets, the model in its sizes, the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.cli.console import Bar

if TYPE_CHECKING:
    from edgeattn.evaluation.data import Data
    from edgeattn.model import EdgeModel
    from edgeattn.pruning.importance import Hook
    from edgeattn.targets import Target


@dataclass(frozen=True)
class Inputs:
    """The arguments that name a model and its data, as they were typed."""

    model: str
    buckets: Sequence[str]
    fills: Sequence[str]
    data: str | None
    split: str | None
    samples: int
    calibration_samples: int


def chosen_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Each target once, an alias and its name being the same.

    Raises:
        InputError: for an unknown name.
    """
    from edgeattn.targets import get_target

    return tuple({found.name: found for found in map(get_target, names)}.values())


def devices_of(target: str) -> tuple[str, ...]:
    """The devices that edgeattn.toml names for a target, by any of its names; empty for none.

    Raises:
        InputError: for a file that cannot be used, an unknown target in it, or one that has two tables.
    """
    from edgeattn.cli.settings import SETTINGS, TARGETS, read_devices
    from edgeattn.errors import InputError
    from edgeattn.targets import get_target

    found: dict[str, tuple[str, ...]] = {}
    for written, devices in read_devices().items():
        try:
            name = get_target(written).name
        except InputError as error:
            raise InputError(f"{SETTINGS}: [{TARGETS}.{written}]: {error}") from error
        if name in found:
            raise InputError(f"{SETTINGS}: [{TARGETS}.{written}]: {name} has two tables; keep one")
        found[name] = devices
    return found.get(target, ())


def one_device(bundle: Path) -> str:
    """The device that edgeattn.toml names for a bundle's target, else this machine.

    Raises:
        InputError: as :func:`devices_of`, or for several.
    """
    from edgeattn.bundle import read_manifest
    from edgeattn.errors import InputError

    target = read_manifest(bundle).target
    devices = devices_of(target) or ("local",)
    if len(devices) > 1:
        raise InputError(
            f"edgeattn.toml names {len(devices)} devices for {target}: choose one, as --device {devices[0]}"
        )
    return devices[0]


def load(inputs: Inputs, bar: Bar) -> tuple[EdgeModel, Data | None]:
    """The model in its sizes, and its data.

    Raises:
        EdgeattnError: if either cannot be used.
    """
    from edgeattn.buckets import parse_buckets, parse_fills, with_buckets
    from edgeattn.evaluation.data import enough_to_calibrate
    from edgeattn.sources import load_data, load_model

    buckets, fills = parse_buckets(inputs.buckets), parse_fills(inputs.fills)
    bar.begin(f"loading {inputs.model}")
    source = with_buckets(load_model(inputs.model), buckets, fills)
    loaded = load_data(inputs.model, source.spec, inputs.data, inputs.split, inputs.samples, source.assets)
    enough_to_calibrate(loaded, inputs.calibration_samples)
    return source, loaded


def load_loss(reference: str | None) -> Hook | None:
    """A loss of the user's, ``file.py:function``.

    Raises:
        InputError: if it cannot be loaded.
    """
    if reference is None:
        return None
    from edgeattn.sources.code import load_function

    return load_function(reference)  # what it returns is looked at where it is used
