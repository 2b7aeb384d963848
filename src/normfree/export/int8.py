"""ONNX files in int8: static quantization of a folded network by onnxruntime's quantizer, with corrected biases.

Weights become int8, symmetric, with a scale for each output channel; activations become uint8 in ranges that are
measured on images. A file has pairs of QuantizeLinear and DequantizeLinear ("QDQ"), which runtimes fuse into
convolutions of integers.

Rounding weights changes the mean of a layer's outputs. The mean change on the images is subtracted from the layer's
bias: bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2), here with measured instead of modelled inputs.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import RunFailed, UsageError
from .seal import seal
from .write import Job, quiet

# operators that compute on integers; what is between them, such as GELU, sigmoid and gates, stays in float32
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "Pad")
LAYERS = {"Conv": (0, 2, 3), "ConvTranspose": (0, 2, 3), "Gemm": (0,)}  # with weights; axes of means for each channel
PERCENTILE = 99.999  # of a tensor's values that are in its range: a single outlier would widen all steps
BATCH_ELEMENTS = 2**21  # numbers in a batch of images, as all activations of a batch are in memory at once
SHOWN = 32  # images on which layers are compared, and a file with its network


@dataclass(frozen=True)
class Calibration:
    """What int8 files are calibrated on, and how accurate they must be.

    Args:
        images: inputs of the network, (N, C, H, W) float32, prepared as for evaluation; some hundred of its training
            images.
        bias_correction: subtract the mean change of outputs from biases.
        accept: says of a file, and of the layers that are in float32 in it, whether it is good enough. While it is not,
            layers stay in float32, one after another, those first that change the outputs most. None: any is.
    """

    images: Tensor
    bias_correction: bool = True
    accept: Callable[[Path, Sequence[str]], bool] | None = None

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images that a network of images of ``shape`` (C, H, W) does not take.

        Raises:
            UsageError: the reason.
        """
        if len(shape) != 3:
            raise UsageError(f"precision (='int8') is for networks of images, not of volumes of {_sides(shape)}")
        if self.images.ndim != 4 or not len(self.images) or self.images.dtype != torch.float32:
            given = f"{tuple(self.images.shape)} of {self.images.dtype}"
            raise UsageError(f"calibration takes one or more images, (N, C, H, W) of torch.float32, not {given}")
        if tuple(self.images.shape[1:]) != tuple(shape):
            raise UsageError(
                f"calibration images are {_sides(self.images.shape[1:])}; the network takes {_sides(shape)}"
            )
        if not self.images.isfinite().all():
            raise UsageError("calibration images must be finite")

    def batches(self, size: int | None) -> list[np.ndarray]:
        """The images in batches, all of ``size`` where that is given: first images again fill up the last one."""
        count, images = size or max(1, BATCH_ELEMENTS // self.images[0].numel()), self.images
        if size:
            images = images[torch.arange(-(-len(images) // size) * size) % len(images)]
        return [batch.numpy() for batch in images.split(count)]


@torch.no_grad()
def on_images(job: Job, calibration: Calibration) -> Job:
    """The job, checked on some of the images in place of noise, whose activations are not those of images."""
    calibration.check(job.description.preprocessing.shape)
    batch = job.description.batch
    inputs = [torch.from_numpy(images[:SHOWN]) for images in calibration.batches(batch)[:1]]
    return replace(job, checks=[(images, job.network(images)) for images in inputs])


def write_int8(float32: Path, part: Path, batch: int | None, calibration: Calibration) -> tuple[str, ...]:
    """Quantize an ONNX file; returns the names of the layers that stay in float32.

    Args:
        part: the file that is written.
        batch: images per call where that is fixed.

    Raises:
        RunFailed: no file is good enough for ``calibration.accept``.
    """
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # the quantizer prints
        network = _Quantizable(float32, calibration.batches(batch))
        if calibration.bias_correction:
            network.correct_biases()
        network.write(part)
    kept: list[str] = []
    order: list[str] | None = None
    while calibration.accept is not None and not calibration.accept(part, [network.names[node] for node in kept]):
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            order = network.most_sensitive() if order is None else order
            if len(kept) == len(order):
                raise RunFailed(f"int8 is not accurate enough, even with all {len(order)} layers in float32")
            kept.append(order[len(kept)])
            network.write(part, kept)
    return tuple(network.names[node] for node in kept)


class _Quantizable:
    """A float32 ONNX model with the ranges of its activations.

    Attributes:
        names: those of the layers with weights in the network, by the names of their nodes.
        corrections: what is subtracted from biases, by the names of their layers' nodes.
    """

    def __init__(self, file: Path, batches: list[np.ndarray]):
        import onnxruntime.quantization as tools
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self.tools, self.batches = tools, batches
        self.model = load_model_with_shape_infer(file)
        self.input, self.output = self.model.graph.input[0].name, self.model.graph.output[0].name
        layers = [node for node in self.model.graph.node if node.op_type in LAYERS]
        self.names = {node.name: node.input[1].removesuffix(".weight") for node in layers}
        self.corrections: dict[str, np.ndarray] = {}
        with TemporaryDirectory() as folder:
            self.ranges = self._ranges(file, Path(folder) / "all_outputs.onnx")

    def write(self, path: Path, kept: Sequence[str] = ()) -> None:
        """Write the quantized model; the layers of the nodes ``kept`` stay in float32."""
        import onnx

        onnx.save(self._quantized(kept=kept), path)
        seal(path)

    def correct_biases(self) -> None:
        """Measure the mean change of each layer's outputs by the rounding of its weights, on the network's own inputs.

        To the network are added, for each layer, the difference of its rounded weights, the layer with these weights
        and without a bias, and the mean of what it gives.
        """
        import onnx
        from onnx import helper, numpy_helper

        graph, quantized = (found := copy.deepcopy(self.model)).graph, self._quantized().graph
        rounded = {tensor.name: tensor for tensor in quantized.initializer}
        restored = {node.output[0]: node for node in quantized.node if node.input[0] in rounded}
        weights = {node.name: restored.get(node.input[1]) for node in quantized.node if node.op_type in LAYERS}
        del graph.output[:]
        for node in [node for node in graph.node if node.op_type in LAYERS and len(node.input) == 3]:
            if (restore := weights.get(node.name)) is None:
                continue
            error, change, mean, axes = (f"{node.name}:{part}" for part in ("error", "change", "mean", "axes"))
            layer = onnx.NodeProto()
            layer.CopyFrom(node)
            layer.name, layer.input[:], layer.output[:] = change, [node.input[0], error], [change]
            inputs = [copy.deepcopy(rounded[name]) for name in restore.input]
            known = {tensor.name for tensor in graph.initializer}
            graph.initializer.extend(tensor for tensor in inputs if tensor.name not in known)
            graph.initializer.append(numpy_helper.from_array(np.array(LAYERS[node.op_type]), axes))
            restore = copy.deepcopy(restore)
            restore.name = restore.output[0] = f"{error}:restored"
            graph.node.extend(
                [
                    restore,
                    helper.make_node("Sub", [restore.output[0], node.input[1]], [error]),
                    layer,
                    helper.make_node("ReduceMean", [change, axes], [mean], keepdims=0),
                ]
            )
            graph.output.append(helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
        if not graph.output:  # no layer has a bias
            return
        sums, images = dict[str, Any](), sum(map(len, self.batches))
        for batch, means in zip(self.batches, self._outputs(found, self.batches), strict=True):
            for value, mean in zip(graph.output, means, strict=True):
                sums[value.name] = sums.get(value.name, 0) + mean.astype(np.float64) * len(batch) / images
        self.corrections = {name.removesuffix(":mean"): total for name, total in sums.items()}

    def most_sensitive(self) -> list[str]:
        """The nodes of layers, those first that change the network's outputs most when they alone are quantized."""
        some = [batch[:SHOWN] if len(self.batches[0]) > SHOWN else batch for batch in self.batches[:1]]
        (expected,) = next(self._outputs(self.model, some))
        errors = {}
        for node in self.names:
            (found,) = next(self._outputs(self._quantized(only=[node]), some))
            errors[node] = float(np.square(found - expected, dtype=np.float64).sum())
        return sorted(errors, key=lambda node: -errors[node])

    def _quantized(self, kept: Sequence[str] = (), only: Sequence[str] = ()) -> Any:
        """The quantized model."""
        from onnx import numpy_helper

        model, types = copy.deepcopy(self.model), self.tools.QuantType
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.name in self.corrections and node.name not in kept and (not only or node.name in only):
                bias = tensors[node.input[2]]
                corrected = numpy_helper.to_array(bias) - self.corrections[node.name]
                bias.CopyFrom(numpy_helper.from_array(corrected.astype(np.float32), bias.name))
        quantizer = self.tools.QDQQuantizer(
            model,
            True,  # a scale for each channel
            False,  # all 8 bits
            types.QInt8,
            types.QUInt8,
            copy.deepcopy(self.ranges),
            list(only),
            list(kept),
            list(OPERATORS),
            {},
        )
        quantizer.quantize_model()
        return quantizer.model.model

    def _ranges(self, file: Path, scratch: Path) -> Any:
        """The range of each activation on the images."""
        calibrator = self.tools.create_calibrator(
            file,
            augmented_model_path=str(scratch),
            calibrate_method=self.tools.CalibrationMethod.Percentile,
            extra_options=dict(percentile=PERCENTILE, symmetric=False),
        )
        for batch in self.batches:  # one by one: it keeps all outputs of what it is given
            calibrator.collect_data(_Reader([{self.input: batch}]))
        return calibrator.compute_data()

    def _outputs(self, model: Any, batches: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        exact_sums(options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for batch in batches:
            yield [np.asarray(output) for output in session.run(None, {self.input: batch})]


def exact_sums(options: Any) -> None:
    """Make onnxruntime sum products of int8 exactly where its fastest way saturates: on AVX2 without VNNI."""
    options.add_session_config_entry("session.x64quantprecision", "1")


class _Reader:
    """Inputs in the form that onnxruntime's calibrators take."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]):
        self.inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
