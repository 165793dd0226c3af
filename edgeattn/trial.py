"""A bundle made to be timed or estimated once, before anything is decided: float32, and nothing about it is verified.

What :func:`edgeattn.pipeline.convert` takes minutes for (the metric, parity, other precisions, gates) is left out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from edgeattn.baseline import Baseline, Progress, recorded
from edgeattn.bundle import SUFFIX, BundleDraft
from edgeattn.converters.preflight import GraphView, look, refuse
from edgeattn.mixed import open_artifact
from edgeattn.model import EdgeModel
from edgeattn.pipeline import ConvertOptions, check_room, draft_bundle, engine, foresee, golden_inputs
from edgeattn.report import Precision
from edgeattn.runtimes.selftest import make_golden
from edgeattn.schemes import BUILDERS, Choices, Workshop, schemes
from edgeattn.targets import Target

PRECISION = "fp32"
NOTE = (
    "converted for this alone, in float32: precision was not chosen and accuracy not checked; edgeattn convert makes a "
    "verified bundle"
)


@dataclass
class Trials:
    """Bundles of one model in a directory of its own; exports are shared by the targets."""

    model: EdgeModel
    folder: Path
    progress: Progress

    def bundle(self, target: Target, backend: str | None, threads: int, golden: bool) -> Path:
        """Convert for a target.

        Args:
            backend: engine, if not the target's first.
            threads: of the session that golden outputs are made with.
            golden: whether a device will compare its outputs.

        Raises:
            EdgeattnError: if it cannot be made; preflight says why and what to change.
        """
        options = ConvertOptions((target,), PRECISION, backend)
        chosen = engine(target, options)
        schemes(target, chosen, PRECISION)  # refused before any waiting
        check_room(self.model, self.folder)
        self.progress.begin(f"{target.name}: {PRECISION} with {chosen}")
        refuse(foresee(self.model, self._views, target, None, options))
        artifact = BUILDERS[chosen](self._workshop, PRECISION, target, Choices())
        arrays = None
        if golden:
            self._workshop.base = self._base
            with open_artifact(artifact, self._workshop, threads) as session:
                arrays = make_golden(session, golden_inputs(self._base))
        with BundleDraft(self.folder / f"{self.model.spec.name}.{target.name}{SUFFIX}") as draft:
            draft_bundle(draft, self._workshop, target, artifact, Precision(PRECISION, PRECISION), arrays)
            return draft.publish()

    @functools.cached_property
    def _views(self) -> tuple[GraphView, ...]:
        return look(self.model, {})

    @functools.cached_property
    def _workshop(self) -> Workshop:
        return Workshop(self.model, Baseline({}, {}, None, None), self.folder)

    @functools.cached_property
    def _base(self) -> Baseline:
        return recorded(self.model, None, self.progress)
