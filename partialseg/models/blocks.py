"""What the networks are built of: convolutions with their norm, residual blocks, transposed convolutions."""

from __future__ import annotations

from typing import Any

from keras import layers

from partialseg.models.normalization import InstanceNormLeakyReLU

Triple = tuple[int, ...]
#: Of nnU-Net's instance norms and leaky ReLUs.
EPSILON, SLOPE = 1e-5, 0.01


def convolution(
    x: Any,
    width: int,
    kernel: Triple,
    name: str,
    *,
    stride: Triple = (1, 1, 1),
    dropout: float = 0.0,
    bias: bool = True,
) -> Any:
    """Convolution, dropout of whole channels, instance norm, leaky ReLU.

    Args:
        x: Features, `(batch, depth, height, width, channels)`.
        width: Channels of the result.
        kernel: Size of the kernel, odd along each axis.
        name: What the names of the layers begin with.
        stride: Voxel `i` of the result is centred on voxel `stride * i` of `x`.
        dropout: Share of the channels that are set to 0 while training.
        bias: Whether the convolution has a bias. The norm after it takes it away again; nnU-Net has one.

    Returns:
        Features, spatial sizes divided by the stride and rounded up.

    Example:
        >>> from keras import ops
        >>> x = convolution(ops.zeros((1, 4, 5, 6, 1)), 2, (1, 3, 3), "first", stride=(1, 2, 2))
        >>> tuple(int(size) for size in x.shape)
        (1, 4, 3, 3, 2)
    """
    x = _convolved(x, width, kernel, name, stride, bias)
    if dropout:
        x = layers.SpatialDropout3D(dropout, name=f"{name}_dropout")(x)
    return norm_relu(x, name)


def residual_block(
    x: Any,
    width: int,
    kernel: Triple,
    name: str,
    *,
    stride: Triple = (1, 1, 1),
    dropout: float = 0.0,
    bias: bool = True,
) -> Any:
    """Two convolutions, and what went into them added before the last leaky ReLU.

    On the way around the convolutions, a stride is an average over its voxels, and where the number of channels
    changes, a convolution of 1 without bias and a norm follow (ResNet-D: He et al., "Bag of tricks for image
    classification with convolutional neural networks", CVPR 2019; as nnU-Net's residual encoder has it). The
    last norm begins with a scale of 0, so that a block at first hands on what goes around it.

    Args:
        x: Features, `(batch, depth, height, width, channels)`; the stride divides the sizes.
        width: Channels of the result.
        kernel: Size of the kernels.
        name: What the names of the layers begin with.
        stride: Of the first convolution.
        dropout: Share of the channels that are set to 0 after the first convolution while training.
        bias: Whether the two convolutions have a bias.

    Example:
        >>> from keras import ops
        >>> x = residual_block(ops.zeros((1, 4, 6, 8, 1)), 2, (3, 3, 3), "block", stride=(1, 2, 2))
        >>> tuple(int(size) for size in x.shape)
        (1, 4, 3, 4, 2)
    """
    around = x
    if any(step != 1 for step in stride):
        # TensorFlow has no average of half floats on CPUs.
        around = layers.AveragePooling3D(stride, dtype="float32", name=f"{name}_skip_pool")(around)
    if around.shape[-1] != width:
        around = _convolved(around, width, (1, 1, 1), f"{name}_skip", (1, 1, 1), bias=False)
        around = norm(around, f"{name}_skip")
    x = convolution(x, width, kernel, f"{name}_1", stride=stride, dropout=dropout, bias=bias)
    x = norm(_convolved(x, width, kernel, f"{name}_2", (1, 1, 1), bias), f"{name}_2", scale="zeros")
    return leaky_relu(layers.Add(name=f"{name}_add")([x, around]), name)


def upsampling(x: Any, width: int, stride: Triple, name: str, *, bias: bool = True) -> Any:
    """Transposed convolution that makes `stride` voxels of each voxel, `(batch, *spatial, width)`."""
    return layers.Conv3DTranspose(
        width, stride, stride, use_bias=bias, kernel_initializer="he_normal", name=name
    )(x)


def norm_relu(x: Any, name: str) -> Any:
    """Instance norm and leaky ReLU."""
    return InstanceNormLeakyReLU(epsilon=EPSILON, negative_slope=SLOPE, name=f"{name}_norm")(x)


def norm(x: Any, name: str, scale: str = "ones") -> Any:
    """Instance norm (group norm with a channel a group); `scale` is the initializer of its factor."""
    return layers.GroupNormalization(
        groups=-1, epsilon=EPSILON, gamma_initializer=scale, name=f"{name}_norm"
    )(x)


def leaky_relu(x: Any, name: str) -> Any:
    """Leaky ReLU with nnU-Net's slope."""
    return layers.LeakyReLU(negative_slope=SLOPE, name=f"{name}_relu")(x)


def _convolved(x: Any, width: int, kernel: Triple, name: str, stride: Triple, bias: bool) -> Any:
    """Convolution, padded by half a kernel on both sides.

    That is what PyTorch does. Padding "same" does it without a stride; with one, it pads sizes that the stride
    divides at the end alone, so that coarse voxels are centred between those that strided targets are taken from.
    """
    padding, half = "same", tuple(size // 2 for size in kernel)
    if any(step != 1 for step in stride) and any(half):
        padding = "valid"
        x = layers.ZeroPadding3D(half, name=f"{name}_pad")(x)
    return layers.Conv3D(
        width,
        kernel,
        stride,
        padding=padding,
        use_bias=bias,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
