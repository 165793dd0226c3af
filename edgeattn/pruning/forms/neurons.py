"""Neurons: a share of the neurons of each feed-forward goes, the least important first."""

from __future__ import annotations

from edgeattn.pruning.forms.groups import groups_form

NEURONS = groups_form("neurons", "feedforward", "neuron")
