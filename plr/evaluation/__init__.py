"""Evaluation: scoring a cell, its records, its protocol, and rescoring of files."""

from __future__ import annotations
