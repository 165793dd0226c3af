"""Every room has a face: the names and the modules that others may take from it, and nobody enters elsewhere."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from tests.imports import face_of, from_outside, rooms
from tests.wheels import ROOT

FACES = {
    "edgeattn.attention": """
        masks multihead padded_rows relative_bias
    """,
    "edgeattn.bundle": """
        ASSETS Bundle BundleDraft FORMAT_VERSION FileEntry Golden GoldenArray MANIFEST Manifest SUFFIX
        names_bundle open_bundle read_golden read_manifest zip_bundle
    """,
    "edgeattn.cli": """
        main
    """,
    "edgeattn.converters": """
        conversion engines litert onnx onnx_operators openvino shared_weights tensorrt trace
    """,
    "edgeattn.converters.passes": """
        ONNX_PASSES TENSORRT_PASSES graph onnx_graph
    """,
    "edgeattn.converters.preflight": """
        judge rule view
    """,
    "edgeattn.distillation": """
        Batches Item Learner Loss Point Schedule TeacherCache Tensors Trainer digest measured_loss
        read_checkpoint split training write_checkpoint
    """,
    "edgeattn.evaluation": """
        accuracy array_reading arrays confidence data identity influence kinds parity probing replay speech
        task_data word_error
    """,
    "edgeattn.graphs": """
        counting estimate layers work
    """,
    "edgeattn.guards": """
        blocks children confined npz outputs plain scratch silence
    """,
    "edgeattn.jobs": """
        answers evaluate measure parcel remote
    """,
    "edgeattn.models": """
        BuiltIn DEFAULT MODELS built_in training
    """,
    "edgeattn.models.streaming_conformer": """
        NAME Options augment build data edge_model measure model model_spec sample stage train utterances
        vocabulary voices weights weights_path
    """,
    "edgeattn.pipeline": """
        api calibrate check convert inspect profile prune quantize run stream
    """,
    "edgeattn.pipeline.steps": """
        adversarial baseline candidates early exports fallbacks options packing preflight recipes refusals
        repeatable rows runs sensitivity served
    """,
    "edgeattn.pipeline.steps.pruning": """
        Outcome PruneTask SPEEDUPS Setting for_target forget latency_table prune_file prune_task
    """,
    "edgeattn.profiling": """
        benchmark_model contract figures holding measure pacing stability throttling
    """,
    "edgeattn.pruning": """
        Anatomy Cut EXAMPLE FORMS Form GRAPH Hook Importance ImportanceOptions LatencyTable MeasureOptions
        PROGRAM PRUNING Planning Prunable PruningRecord ReconstructOptions Recovery RecoveryOptions Request
        SelectOptions Selection Stack Study Timing Unit Unknown WEIGHTS amounts apply_saved cache_directory
        check_cut check_weights copied cut_to_json estimate_table find_anatomy groups_left is_saved
        largest_difference layer_of leave_out magnitude measure_importance measure_table parse_request
        plain_config prunable prune read_saved read_tensors reconstruct recover request_text reshape reshaping
        select set_number state_owners timings unit_rows with_cuts without_dropped write_pruned
    """,
    "edgeattn.pruning.forms": """
        FORMS check_cut cut_from_json cut_to_json form removing reshaping without_dropped
    """,
    "edgeattn.quantize": """
        attention_maps engines int8_nncf plan quantization quantize_onnx quantize_tflite ranges recovery
        search sensitivity
    """,
    "edgeattn.results": """
        gates grid importance pictures report sensitivity tables timeline verdicts
    """,
    "edgeattn.runtimes": """
        BackendStatus Event GenerateOptions LayerTime Session Step Stream Word agreement backend_status backends
        buckets generation jetson load onnxruntime open_session openvino selftest step tensorrt_build
    """,
    "edgeattn.runtimes.generation": """
        GenerateOptions generate generates writers
    """,
    "edgeattn.sources": """
        Examples code from_graphs from_module load_data load_model metrics names outputs read_loaded read_model
        sizes tasks text_sizes with_task
    """,
    "edgeattn.sources.huggingface": """
        checkpoint directory
    """,
    "edgeattn.sources.huggingface.makers": """
        audio images others series text
    """,
    "edgeattn.sources.onnx": """
        file read reference
    """,
    "edgeattn.sources.onnx.ops": """
        CONTRIB Function Node NotImportableError TABLE TooManyStepsError attention blocks elementwise fused
        fused_attention grouped_attention indexing node norms products quantized recurrent shapes to_tensor
    """,
    "edgeattn.sources.program": """
        Archive EXPORT GRAPH_FILE clean_archive
    """,
    "edgeattn.sources.tflite": """
        file
    """,
    "edgeattn.spec": """
        BucketSpec CtcGreedy CutAxis DTYPES DType FbankConfig GraphSpec HALF_MAX HIDDEN HIDES MAX_NAME
        MAX_SAMPLE_RATE ModelSpec PaddedAxis StateSpec StreamSpec TensorSpec check_name from_json to_json
    """,
    "edgeattn.targets": """
        Accelerator Arch CoreCluster Cpu CpuFeatures Isa Kernels Memory Peaks Power Software Target
        calibration cpu_features cpu_kernels get_target head_dim_note host host_target known_target
        list_targets roofline supports_2_4 target
    """,
    "edgeattn.tasks": """
        Described Encoded Metric Pipeline Sample TASKS Task anything labels metric recognised restored stored tables
        tagged task task_named task_of_manifest text_classification texts
    """,
    "edgeattn.tasks.images": """
        clips masks placement preprocess processor reading resize settings
    """,
    "edgeattn.targets.devices": """
        Device DeviceSession Inventory Job Timeouts TransportError Wants on_device parse_device program
        qemu_root
    """,
    "edgeattn.tasks.metrics": """
        classification detection edit enhancement generation keyword language policy ranking regression
        segmentation similarity spans tagging verification
    """,
}
"""Room -> its face; to widen one is a decision."""


@pytest.mark.parametrize("room", rooms())
def test_a_face_is_what_was_decided(room: str) -> None:
    assert face_of(room) is not None, f"{room} has no __all__"
    assert sorted(face_of(room) or []) == FACES[room].split()


@pytest.mark.parametrize("room", rooms())
def test_a_face_names_what_is_there(room: str) -> None:
    pytest.importorskip("torch", reason="some rooms need edgeattn[convert]")
    package = importlib.import_module(room)
    missing = [
        name
        for name in face_of(room) or []
        if importlib.util.find_spec(f"{room}.{name}") is None and not hasattr(package, name)
    ]
    assert missing == []


def test_outsiders_enter_by_the_face() -> None:
    entered = []
    for path, room, module, name in from_outside():
        face = face_of(room) or []
        taken = name if module == room else module[len(room) + 1 :].split(".")[0]
        if taken not in face:
            entered.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
    assert entered == []
