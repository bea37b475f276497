"""Platform and kind of the devices that a computation is compiled for."""

import jax


def platform() -> str:
    """The platform ("cpu", "gpu", "tpu") of the mesh in use, inside `on_mesh`.

    Without a mesh it is that of the default device. The mesh may have devices that this
    machine does not have, as when a run for TPUs is planned on a laptop. Jitted
    functions are traced again for a mesh of another platform, because the mesh is part
    of JAX's cache key.
    """
    device = _abstract_device()
    if device is not None:
        return device.platform
    device = jax.config.jax_default_device
    return device if isinstance(device, str) else _default_device().platform


def device_kind() -> str:
    """The kind of device, such as "TPU v5 lite", of the mesh in use."""
    device = _abstract_device() or _default_device()
    return device.device_kind


def _abstract_device():
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device


def _default_device() -> jax.Device:
    device = jax.config.jax_default_device
    if isinstance(device, str):
        return jax.devices(device)[0]
    return device or jax.devices()[0]
