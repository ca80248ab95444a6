"""`python -m mlxmtp.worker`: the process that `process.WorkerProcess` starts."""

from mlxmtp.worker.serve import main

main()
