"""What is refused before a model is loaded, which may take a minute: all that its reference and the options tell."""

from __future__ import annotations

from edgeattn.errors import UnsupportedError
from edgeattn.guards.outputs import refuse_existing
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.preflight import check_dla, engine
from edgeattn.pipeline.steps.recipes import recipes
from edgeattn.targets import Target


def refuse_early(name: str | None, options: ConvertOptions, suffix: str) -> None:
    """Look at the targets and at what lies where the results go.

    Args:
        name: of the model, as :func:`edgeattn.sources.names.expected_name` tells; None looks at no results.
        suffix: of a result's name, such as ".edge".

    Raises:
        InputError: for a precision that does not exist.
        UnsupportedError: for an engine or a precision that the only target does not have.
        OutputError: if a result is there and is not to be replaced.
    """
    for target in options.targets:
        try:
            check_target(target, options.of(target))
        except UnsupportedError:
            if len(options.targets) == 1:
                raise  # of several it is a row, and the others go on
        if name is not None:
            refuse_existing(options.path(name, target, suffix), options.force)


def check_target(target: Target, options: ConvertOptions) -> None:
    """Refuse what a target does not have.

    Args:
        options: of this target.

    Raises:
        InputError, UnsupportedError: as :func:`refuse_early`.
    """
    backend = engine(target, options)
    recipes(target, backend, options.precision)
    if options.dla:
        check_dla(target, backend)
