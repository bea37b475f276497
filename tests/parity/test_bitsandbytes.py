"""Codes of weights are those of bitsandbytes.

Decoded weights are compared with the paper's formula in tests/optim/test_coding.py:
`dequantize_4bit` of bitsandbytes 0.50.2 is wrong on CPUs where the last dimension is no
multiple of the block.
"""

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from fmjax.models.layers.coded_weights import NF4_LEVELS, dynamic_levels
from fmjax.optim.peft.coding import NormalFloat4


def drawn(*shape):
    rng = np.random.default_rng(0)
    return (0.02 * rng.standard_t(4, size=shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 5), (192, 300)])
def test_codes_are_those_of_bitsandbytes(shape):
    weight = drawn(*shape)
    codes, state = functional.quantize_4bit(
        torch.tensor(weight.T.copy()), quant_type="nf4", compress_statistics=True
    )
    found = NormalFloat4().encode(weight, 1)
    np.testing.assert_array_equal(np.ravel(found["codes"]), codes.numpy().ravel())
    np.testing.assert_allclose(found["mean"], state.offset.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["outer"], state.state2.absmax.numpy(), rtol=1e-5)
    # The mean is summed in another order, so that a few are rounded to another level.
    differ = np.ravel(found["largest"]) != state.absmax.numpy()
    assert differ.mean() < 0.01
    _, state = functional.quantize_4bit(
        torch.tensor(weight.T.copy()), quant_type="nf4", compress_statistics=False
    )
    found = NormalFloat4(double=False).encode(weight, 1)
    np.testing.assert_array_equal(np.ravel(found["largest"]), state.absmax.numpy())


def test_levels_are_those_of_bitsandbytes():
    known = functional.create_dynamic_map().numpy()
    np.testing.assert_array_equal(dynamic_levels(), known)
    known = functional.get_4bit_type("nf4", device="cpu").numpy()
    np.testing.assert_array_equal(np.array(NF4_LEVELS, np.float32), known)
