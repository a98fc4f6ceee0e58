"""What is computed and kept: specs, fingerprints, the store, provenance, runtime, configuration files."""

from __future__ import annotations
