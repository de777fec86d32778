"""What Triton's Python backend runs: an engine that does nothing. Sees nothing of hotslot."""

import os
import sys
from collections.abc import Sequence
from typing import Any

sys.path.append(os.environ["PEER_NUMPY"])  # Triton's process ignores PYTHONPATH

import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    """Reads the picture and the statement, returns the same scores."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        answers = []
        for request in requests:
            for name in ("image", "statement"):
                backend.get_input_tensor_by_name(request, name).as_numpy()
            scores = backend.Tensor("scores", np.array([0.5, 0.25, 0.25], np.float32))
            answers.append(backend.InferenceResponse([scores]))
        return answers
