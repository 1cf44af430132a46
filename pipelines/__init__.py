"""Video files in, batches of clips out. Knows video, knows no network.

    annotations = read_dataset("sthv2", root)  # or read_lists(train, validation)
    manifest = build_manifest(annotations, cache=default_cache(root))
    with ClipLoader(manifest.split("validation"), ClipSpec(num_segments=8), batch_size=16) as loader:
        for batch in loader.epoch():  # ClipBatch: frames, labels, ids
            ...

A name is imported when it is first used: what reads annotations loads no torch, what reads a manifest no PyAV.
"""

from typing import TYPE_CHECKING

from pipelines.exports import lazy_exports

if TYPE_CHECKING:
    from pipelines.annotations import DATASET_NAMES, Annotations, flip_labels, read_dataset, read_lists
    from pipelines.bad_clips import BadClipPolicy
    from pipelines.clip import ClipBatch, ClipSpec
    from pipelines.errors import BadClip, DataError
    from pipelines.ledger import Ledger
    from pipelines.loader import BACKENDS, ClipLoader
    from pipelines.manifest import Manifest, Videos, build_manifest, default_cache
    from pipelines.sampling import center_frame_indices, evenly_spaced, random_frame_indices
    from pipelines.scan import as_video, scan_file
    from pipelines.synthetic import make_dataset
    from pipelines.video import Sample, Video, VideoFile

__all__ = [
    "BACKENDS",
    "DATASET_NAMES",
    "Annotations",
    "BadClip",
    "BadClipPolicy",
    "ClipBatch",
    "ClipLoader",
    "ClipSpec",
    "DataError",
    "Ledger",
    "Manifest",
    "Sample",
    "Video",
    "VideoFile",
    "Videos",
    "as_video",
    "build_manifest",
    "center_frame_indices",
    "default_cache",
    "evenly_spaced",
    "flip_labels",
    "make_dataset",
    "random_frame_indices",
    "read_dataset",
    "read_lists",
    "scan_file",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "annotations": ("DATASET_NAMES", "Annotations", "flip_labels", "read_dataset", "read_lists"),
        "bad_clips": ("BadClipPolicy",),
        "clip": ("ClipBatch", "ClipSpec"),
        "errors": ("BadClip", "DataError"),
        "ledger": ("Ledger",),
        "loader": ("BACKENDS", "ClipLoader"),
        "manifest": ("Manifest", "Videos", "build_manifest", "default_cache"),
        "sampling": ("center_frame_indices", "evenly_spaced", "random_frame_indices"),
        "scan": ("as_video", "scan_file"),
        "synthetic": ("make_dataset",),
        "video": ("Sample", "Video", "VideoFile"),
    },
)
