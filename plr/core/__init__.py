"""Foundations of every step: specs, fingerprints, the store, provenance, runtime, configuration files."""

from __future__ import annotations
