"""Heads: a share of the key/value heads of each attention goes, with their query heads, the least important first."""

from __future__ import annotations

from edgeattn.pruning.forms.groups import groups_form

HEADS = groups_form("heads", "attention", "head")
