"""Asks a Triton server what happens in a video: the five likeliest classes, over HTTP.

    tdn-bench export runs/demo/tdn/best.safetensors --format triton --output models --name tdn
    tritonserver --model-repository models
    python examples/triton_client.py clip.webm --model tdn

It takes both kinds of model that `tdn-bench export --format triton` writes. The ensemble (`tdn`) gets the video file as
it is, and the numbers of the frames to decode. The network alone (`tdn_network`, or `tdn` exported with
`--preprocessing none`) gets frames that are decoded here, of whatever codec FFmpeg reads. It needs
`pip install 'tdn_bench[triton-client]'`.
"""

import argparse
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from pipelines.clip import ClipSpec
from pipelines.cpu import PyAVDecoder
from pipelines.dali_graph import why_not_served
from pipelines.errors import BadClip, printable
from pipelines.plan import plan_evaluation
from pipelines.sampling import center_frame_indices
from pipelines.scan import as_video
from pipelines.video import OK, Video


def tensor(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    """An input of a request for one video: a batch of one."""
    request = triton.InferInput(name, [1, *values.shape], datatype)
    request.set_data_from_numpy(values[None])
    return request


def inputs_for(video: Video, shapes: dict[str, list[int]], parameters: dict[str, str]) -> list[triton.InferInput]:
    """What the model wants of a video, for the shapes of its inputs. SystemExit for a video that it cannot take."""
    if "video" not in shapes:
        _, segments, frames_per_segment, size, _, _ = shapes["frames"]
        spec = ClipSpec(segments, frames_per_segment, size=size, crop_ratio=float(parameters["crop_ratio"]))
        decoder = PyAVDecoder(spec, workers=1)
        [clip] = decoder([plan_evaluation(video, spec)])
        decoder.close()
        if isinstance(clip, BadClip):
            raise SystemExit(f"error: {printable(str(clip))}")
        return [tensor("frames", clip.reshape(spec.shape).numpy(), "UINT8")]
    if (why := why_not_served(video, parameters["decodes_on"])) is not None:
        raise SystemExit(f"error: {printable(video.path)}: {why}; send decoded frames to the network's model instead")
    _, segments, frames_per_segment = shapes["indices"]
    indices = center_frame_indices(video.file.num_frames, segments, frames_per_segment)
    return [
        tensor("video", np.fromfile(video.path, np.uint8), "UINT8"),
        tensor("indices", indices.astype(np.int32), "INT32"),
    ]


def ask(client: triton.InferenceServerClient, model: str, video: Video) -> list[tuple[str, float]]:
    """All classes of the model with their probabilities, the likeliest first."""
    metadata, config = client.get_model_metadata(model), client.get_model_config(model)
    shapes = {one["name"]: one["shape"] for one in metadata["inputs"]}
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    classes = metadata["outputs"][0]["shape"][-1]
    wanted = triton.InferRequestedOutput("logits", class_count=classes)  # with their names, from the server's labels
    answer = client.infer(model, inputs_for(video, shapes, parameters), outputs=[wanted])
    found = [one.decode().split(":", 2) for one in answer.as_numpy("logits").ravel()]  # logit:index:name
    logits = np.array([float(logit) for logit, _, _ in found])
    shares = np.exp(logits - logits.max())
    return [(name, share) for (_, _, name), share in zip(found, shares / shares.sum(), strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The likeliest classes of a video, from a Triton server.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", required=True, help="name of the model on the server")
    parser.add_argument("--url", default="localhost:8000", help="of the server's HTTP service")
    parser.add_argument("--top", type=int, default=5, help="how many classes")
    flags = parser.parse_args(argv)
    video = as_video(flags.video)
    if video.file.status != OK:
        raise SystemExit(f"error: {printable(str(flags.video))}: {video.file.status}")
    client = triton.InferenceServerClient(flags.url)
    try:
        answers = ask(client, flags.model, video)
    except (triton.InferenceServerException, OSError) as error:
        raise SystemExit(f"error: {flags.url}: {error}") from error
    finally:
        client.close()
    for name, share in answers[: flags.top]:
        print(f"{share:6.1%}  {printable(name)}")


if __name__ == "__main__":
    main()
