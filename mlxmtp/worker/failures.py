"""What of the errors of a command is told to its client."""

from mlxmtp.errors import MlxmtpError, is_out_of_memory
from mlxmtp.worker.messages import Failed


def failure(id: int, error: Exception, *, still_loaded: bool = False) -> Failed | None:
    """Return how the command `id` failed; None: the error is an accident, and the engine may be broken."""
    if isinstance(error, MlxmtpError):
        return Failed(id, "refused", str(error), still_loaded)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        return Failed(id, "memory", str(error) or "out of memory")
    if isinstance(error, OSError):
        return Failed(id, "failed", str(error))
    return None
