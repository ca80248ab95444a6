"""`python -m mlxmtp.worker`: started by worker/client.py."""

from mlxmtp.worker.serve import main

main()
