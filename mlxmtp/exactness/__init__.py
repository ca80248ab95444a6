"""Measure whether MTP writes plain decoding's tokens on this machine, and apply the strategies that make it so."""
