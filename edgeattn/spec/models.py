"""A model: its graphs, and how they belong together."""

from __future__ import annotations

from dataclasses import dataclass

from edgeattn.errors import InputError
from edgeattn.spec.buckets import BucketSpec, check_bucket
from edgeattn.spec.graphs import GraphSpec, check_name
from edgeattn.spec.streams import StreamSpec, check_stream


@dataclass(frozen=True)
class ModelSpec:
    """A model: its graphs, what it is for, and for a streaming one how it is driven."""

    name: str
    task: str
    graphs: tuple[GraphSpec, ...]
    stream: StreamSpec | None = None
    buckets: tuple[BucketSpec, ...] = ()

    def __post_init__(self) -> None:
        check_name("model", self.name)
        check_name("task", self.task)
        for bucket in self.buckets:
            check_name("bucket", bucket.name)
            for pad in bucket.pad:
                check_name("dimension", pad.dim)
        names = [graph.name for graph in self.graphs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"model {self.name!r} needs graphs with different names, got {names}")
        if self.stream is not None:
            check_stream(self.stream, self.graphs[0])
        taken = [*names, *(bucket.name for bucket in self.buckets)]
        if len(set(taken)) != len(taken):
            raise ValueError(f"model {self.name!r}: buckets and graphs need different names, got {taken}")
        parts = [name for bucket in self.buckets for name in bucket.graphs]
        if len(set(parts)) != len(parts):
            raise ValueError(f"model {self.name!r}: a graph is part of one bucket at most, got {parts}")
        for bucket in self.buckets:
            check_bucket(bucket, {graph.name: graph for graph in self.graphs})

    def bucket(self, name: str | None = None) -> BucketSpec | None:
        """The bucket of that name; without a name the one that the first graph is part of. None if there is none."""
        for bucket in self.buckets:
            if bucket.name == name or (name is None and self.graphs[0].name in bucket.graphs):
                return bucket
        return None

    def units(self) -> dict[str, tuple[GraphSpec, ...]]:
        """What a caller sees as one graph -> the graphs that it is, smallest first where it has several sizes."""
        units: dict[str, tuple[GraphSpec, ...]] = {}
        for graph in self.graphs:
            bucket = next((bucket for bucket in self.buckets if graph.name in bucket.graphs), None)
            if bucket is None:
                units[graph.name] = (graph,)
            else:
                units[bucket.name] = tuple(self.graph(name) for name in bucket.graphs)
        return units

    def graph(self, name: str | None = None) -> GraphSpec:
        """The graph of that name; without a name the only one, or the first.

        Raises:
            InputError: if there is none of that name.
        """
        if name is None:
            return self.graphs[0]
        for graph in self.graphs:
            if graph.name == name:
                return graph
        bucket = self.bucket(name)
        if bucket is not None:
            raise InputError(f"{name!r} has several sizes here; name one of {', '.join(bucket.graphs)}")
        raise InputError(f"model {self.name!r} has no graph {name!r}; it has {', '.join(g.name for g in self.graphs)}")
