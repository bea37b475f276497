"""The platform that a computation is for: that of the mesh's devices."""

import jax


def platform() -> str:
    """The platform ("cpu", "gpu", "tpu") of the mesh in use, inside `on_mesh`.

    A mesh may be of devices that this machine does not have, as when a run for TPUs is
    planned on a laptop. Outside of any mesh it is that of the default device. A jitted
    function is traced anew for a mesh of another platform: JAX's cache keys hold it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.abstract_device is not None:
        return mesh.abstract_device.platform
    device = jax.config.jax_default_device
    if isinstance(device, str):
        return device
    return (device or jax.devices()[0]).platform
