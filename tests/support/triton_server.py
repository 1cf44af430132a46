"""A stand-in for a Triton server: it reads a model repository as Triton does, and speaks KServe's protocol on loopback.

It runs DALI pipelines and ONNX files, and walks ensembles; it batches nothing. Written from the protocol's documents
(KServe v2, its binary data and classification extensions), it shares no code with what writes repositories.
"""

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}


def read_config(folder: Path) -> Any:
    """A model's configuration, as Triton's own descriptor parses it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def type_of(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    return str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")


def matches(array: np.ndarray, tensor: Any) -> bool:
    """Whether a batch is what a configuration says of it, the batch aside."""
    fits = len(tensor.dims) == array.ndim - 1 and array.dtype == DTYPES[type_of(tensor)]
    return fits and all(want in (-1, have) for want, have in zip(tensor.dims, array.shape[1:], strict=True))


class Models:
    """The models of a repository, by their folders' names."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.configs = {f.name: read_config(f) for f in sorted(repository.iterdir()) if f.is_dir()}

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A model's outputs. Raises AssertionError where names, types or shapes are not the configuration's."""
        config = self.configs[name]
        assert config.name == name
        assert {one.name for one in config.input} == inputs.keys()
        assert all(matches(inputs[one.name], one) for one in config.input), name
        assert all(1 <= len(array) <= config.max_batch_size for array in inputs.values())
        run = (
            self._steps
            if config.platform == "ensemble"
            else {"dali": self._dali, "onnxruntime": self._onnx}[config.backend]
        )
        outputs = run(config, inputs)
        assert all(matches(outputs[one.name], one) for one in config.output), name
        return outputs

    def _steps(self, config: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = dict(inputs)
        for step in config.ensemble_scheduling.step:
            found = self.run(step.model_name, {own: known[shared] for own, shared in step.input_map.items()})
            known |= {shared: found[own] for own, shared in step.output_map.items()}
        return {one.name: known[one.name] for one in config.output}

    def _dali(self, config: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from nvidia.dali import Pipeline

        serialized = (self.repository / config.name / "1" / "model.dali").read_bytes()
        pipeline = Pipeline.deserialize(serialized, batch_size=config.max_batch_size)
        pipeline.build()
        for name, array in inputs.items():
            pipeline.feed_input(name, list(array))
        outputs = pipeline.run()
        return {one.name: np.stack([np.array(x) for x in out]) for one, out in zip(config.output, outputs, strict=True)}

    def _onnx(self, config: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.repository / config.name / "1" / "model.onnx")
        names = [one.name for one in config.output]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def labels(self, name: str, output: str) -> list[str]:
        [file] = [one.label_filename for one in self.configs[name].output if one.name == output]
        return (self.repository / name / file).read_text(encoding="utf-8").splitlines()

    def metadata(self, name: str) -> dict[str, Any]:
        def about(tensor: Any) -> dict[str, Any]:
            return {"name": tensor.name, "datatype": type_of(tensor), "shape": [-1, *tensor.dims]}

        config = self.configs[name]
        return {"name": name, "inputs": [*map(about, config.input)], "outputs": [*map(about, config.output)]}


class Handler(BaseHTTPRequestHandler):
    models: Models
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        from google.protobuf.json_format import MessageToDict

        name, _, what = self.path.removeprefix("/v2/models/").partition("/")
        if name not in self.models.configs:
            self.answer(400, json.dumps({"error": f"Request for unknown model: '{name}' is not found"}).encode())
        elif what == "config":
            said = MessageToDict(self.models.configs[name], preserving_proto_field_name=True)
            self.answer(200, json.dumps(said).encode())
        else:
            self.answer(200, json.dumps(self.models.metadata(name)).encode())

    def do_POST(self) -> None:
        name = self.path.removeprefix("/v2/models/").removesuffix("/infer")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        request, binary = json.loads(body[:length]), body[length:]
        inputs = {}
        for one in request["inputs"]:
            size = one["parameters"]["binary_data_size"]
            inputs[one["name"]] = np.frombuffer(binary[:size], DTYPES[one["datatype"]]).reshape(one["shape"])
            binary = binary[size:]
        assert not binary
        outputs, described, data = self.models.run(name, inputs), [], b""
        for one in request["outputs"]:
            part, about = self.classified(name, one["name"], outputs[one["name"]], one["parameters"]["classification"])
            described.append(about)
            data += part
        head = json.dumps({"model_name": name, "model_version": "1", "outputs": described}).encode()
        self.answer(200, head + data, len(head))

    def classified(self, model: str, output: str, logits: np.ndarray, count: int) -> tuple[bytes, dict[str, Any]]:
        labels = self.models.labels(model, output)
        texts = [f"{row[i]:f}:{i}:{labels[i]}" for row in logits for i in np.argsort(-row)[:count]]
        data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        shape, size = [len(logits), count], {"binary_data_size": len(data)}
        return data, {"name": output, "datatype": "BYTES", "shape": shape, "parameters": size}

    def answer(self, status: int, body: bytes, head: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if head is not None:
            self.send_header("Inference-Header-Content-Length", str(head))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(repository: Path) -> Iterator[str]:
    """Serve a model repository; gives host and port."""
    handler = type("RepositoryHandler", (Handler,), {"models": Models(repository)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
