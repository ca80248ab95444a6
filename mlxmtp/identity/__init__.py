"""Whether MTP's tokens are those of plain decoding on this machine: probes, and arithmetic that makes it so."""
