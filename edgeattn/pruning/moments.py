"""What linear layers see: second moments of their inputs, for low ranks that lose least on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeattn.model import Arrays, EdgeModel
from edgeattn.pruning.cut import Cut, moved


def second_moments(
    model: EdgeModel, cut: Cut, paths: Iterable[str], samples: Mapping[str, Sequence[Arrays]]
) -> dict[str, Tensor]:
    """E[x x^T] over the rows that each layer reads.

    Args:
        model: with the cut's groups and layers removed.
        paths: of linear layers in the original; those that went with their layer are left out.
        samples: graph -> full input sets of this model.

    Returns:
        path -> float64, (inputs, inputs); of layers that read something.
    """
    assert model.network is not None, "only such are pruned"
    places = {path: place for path in paths if (place := moved(cut, path)) is not None}
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).to(torch.float64)
            sums[path] = sums.get(path, torch.zeros(())) + x.T @ x
            rows[path] = rows.get(path, 0) + len(x)

        return see

    handles = [model.network.get_submodule(at).register_forward_pre_hook(hook(path)) for path, at in places.items()]
    try:
        for graph, own in samples.items():
            for sample in own:
                model.run(sample, graph)
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / rows[path] for path, total in sums.items()}
