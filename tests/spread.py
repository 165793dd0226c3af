"""How tests are spread over workers: what shares something costly stays together.

A file stays on one worker, unless it is marked with ``group_by``: then tests with the same values of these parameters
do, and nothing else holds the file together. ``group_by()`` without a parameter leaves each test by itself.
"""

from __future__ import annotations

import pytest

Values = dict[tuple[str, str], list[object]]
"""File and parameter -> the values met so far."""


def spread(items: list[pytest.Item]) -> None:
    """Give each test its group, and let the small groups come last: no worker is left with a large one at the end."""
    values: Values = {}
    for item in items:
        if (group := group_of(item, values)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=is_split)  # stable: what shares a fixture stays side by side


def is_split(item: pytest.Item) -> bool:
    """Whether it may run on another worker than the rest of its file."""
    return item.get_closest_marker("group_by") is not None


def group_of(item: pytest.Item, values: Values) -> str | None:
    """The name of its group, the same in every process that collects the same tests; None if it stands alone."""
    split, file = item.get_closest_marker("group_by"), item.location[0]
    if split is None:
        return file
    if not split.args:
        return None
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    places = []
    for name in (name for name in split.args if name in given):
        met = values.setdefault((file, name), [])
        if given[name] not in met:
            met.append(given[name])
        places.append(f"{name} {met.index(given[name])}")  # not the value, whose text may hold an address
    return ", ".join([file, *places])
