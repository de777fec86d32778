"""The engine behind MLServer: a custom runtime in its process, computing on a thread of its own."""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput

from dev.bench.peer_programs.engine import BUNDLE, open_engine


class Model(MLModel):
    """Both tensors are of bytes: pictures and statements."""

    async def load(self) -> bool:
        """Open the engine; one that computes gets a thread, so that the loop goes on."""
        self.thread = ThreadPoolExecutor(1) if os.environ.get(BUNDLE) else None
        self.answer = await asyncio.get_running_loop().run_in_executor(self.thread, open_engine)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute a request, or a batch that MLServer has merged."""
        pictures, statements = (self._elements(tensor) for tensor in payload.inputs)
        asked = [(picture, str(text, "utf-8")) for picture, text in zip(pictures, statements, strict=True)]
        if self.thread is None:
            rows = self.answer(asked)
        else:
            rows = await asyncio.get_running_loop().run_in_executor(self.thread, self.answer, asked)
        data = [number for row in rows for number in row]
        output = ResponseOutput(name="scores", shape=[len(rows), 3], datatype="FP32", data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        """Each request as it comes."""
        async for payload in payloads:
            yield await self.predict(payload)

    @staticmethod
    def _elements(tensor: RequestInput) -> list[bytes]:
        data: list[bytes] | bytes = tensor.data.root
        return data if isinstance(data, list) else [data]
