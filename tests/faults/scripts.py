"""What a model says in the tests of Ray: an echo that raises what a GPU would, when told to."""

from __future__ import annotations

from tenet.engines import Reply, Request
from tenet.records import Usage

CUDA = "CUDA error: an illegal memory access was encountered"


def echo(request: Request) -> Reply:
    """The question back."""
    said = request.messages[-1].content
    if said == "break the GPU":
        raise RuntimeError(CUDA)
    return Reply(text=said, usage=Usage(calls=1, prompt_tokens=1, completion_tokens=1))
