"""edgeattn.runtimes: a bundle on a device, in numpy and one engine alone.

    with edgeattn.runtimes.load("streaming-conformer.cpu.edge") as session:
        stream = session.stream()
        for packet in microphone:                  # float32 in [-1, 1], any size
            for event in stream.push(packet):
                print(event.kind, event.text)
        stream.flush()

A language model writes: ``session.generate(tokens)`` gives the next tokens one by one.

Importing this loads numpy and nothing heavier; :func:`load` imports the one engine that the bundle needs.
"""

from edgeattn.runtimes.engines import BackendStatus, backend_status, backends, load, open_session
from edgeattn.runtimes.generation import GenerateOptions
from edgeattn.runtimes.session import LayerTime, Session
from edgeattn.runtimes.step import Step
from edgeattn.runtimes.stream import Event, Stream, Word

__all__ = [
    "BackendStatus",
    "Event",
    "GenerateOptions",
    "LayerTime",
    "Session",
    "Step",
    "Stream",
    "Word",
    "agreement",
    "backend_status",
    "backends",
    "buckets",
    "generation",
    "jetson",
    "load",
    "onnxruntime",
    "open_session",
    "openvino",
    "selftest",
    "step",
    "tensorrt_build",
]
