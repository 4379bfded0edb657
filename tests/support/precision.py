"""What a processor must be able to compute for a test to mean anything."""

import pytest
import torch

from hotclip_server.encoding.engines.linear import multiplies_in

needs_bf16 = pytest.mark.skipif(
    not multiplies_in(torch.bfloat16), reason="this processor does not multiply in bf16"
)
